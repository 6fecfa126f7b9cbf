#include "models/recovery/messages.h"

#include <array>

#include <fmt/compile.h>  // months have a million events
#include <fmt/format.h>
#include <fmt/ranges.h>

namespace trainyard::recovery {
namespace {

std::string key_text(const ActionKey& key) {
  return fmt::format(FMT_COMPILE("{}.{}.{}"), key.incarnation, key.epoch, key.id);
}

std::string copy_text(const StateCopy& copy) {
  return fmt::format("step={} tier={} checkpoint={}", copy.step, to_string(copy.tier), key_text(copy.checkpoint));
}

std::string optional_text(const std::optional<std::int64_t>& value) { return value ? std::to_string(*value) : "none"; }

std::string body_text(const SetTimer& a) { return fmt::format(FMT_COMPILE("set_timer at_ns={}"), a.at_ns); }
std::string body_text(const Fence&) { return "fence"; }
std::string body_text(const Eject& a) { return fmt::format("eject node={} slot={}", a.node, optional_text(a.slot)); }
std::string body_text(const ReturnToRepair& a) { return fmt::format("return_to_repair node={}", a.node); }
std::string body_text(const PromoteSpare& a) { return fmt::format("promote_spare node={} slot={}", a.node, a.slot); }
std::string body_text(const StartProcesses& a) {
  return fmt::format("start_processes replicas={}", fmt::join(a.replicas, ","));
}
std::string body_text(const BuildCommunicators&) { return "build_communicators"; }
std::string body_text(const LoadState& a) { return fmt::format("load_state {}", copy_text(a.copy)); }
std::string body_text(const Resume& a) { return fmt::format("resume step={}", a.step); }
std::string body_text(const TakeCheckpoint& a) {
  return fmt::format(FMT_COMPILE("take_checkpoint tier={} hold={}"), to_string(a.tier), a.hold);
}
std::string body_text(const HeatSpare& a) { return fmt::format("heat_spare node={}", a.node); }
std::string body_text(const TestNode& a) { return fmt::format("test_node node={} thorough={}", a.node, a.thorough); }
std::string body_text(const PageHuman& a) {
  return fmt::format("page_human reason={} subject={}", to_string(a.reason), optional_text(a.subject));
}
std::string body_text(const FileLedger& a) {
  std::string text = fmt::format("file_ledger epoch={} attempts={} restored_step={}", a.ledger.epoch, a.ledger.attempts,
                                 a.ledger.restored_step);
  for (const PhaseSpan& span : a.ledger.spans)
    text += fmt::format(" {}#{}={}..{}", to_string(span.phase), span.attempt, span.begin_ns, span.end_ns);
  return text;
}

std::string event_text(const Launched& e) { return fmt::format("launched step={}", e.step); }
std::string event_text(const HeartbeatLost& e) {
  return fmt::format("heartbeat_lost node={} last_seen_ns={}", e.node, e.last_seen_ns);
}
std::string event_text(const CommunicatorError& e) {
  return fmt::format("communicator_error epoch={} reporter={} suspect={} last_seen_ns={}", e.epoch, e.reporter,
                     optional_text(e.suspect), e.last_seen_ns);
}
std::string event_text(const XidReported& e) {
  return fmt::format("xid_reported node={} gpu={} xid={} last_seen_ns={}", e.node, e.gpu, e.xid, e.last_seen_ns);
}
std::string event_text(const RankExited& e) {
  return fmt::format("rank_exited epoch={} node={} last_seen_ns={}", e.epoch, e.node, e.last_seen_ns);
}
std::string event_text(const Straggling& e) {
  return fmt::format("straggling epoch={} node={} slowdown={:a}", e.epoch, e.node, e.slowdown);
}
std::string event_text(const StragglingOver& e) { return fmt::format("straggling_over node={}", e.node); }
std::string event_text(const MaintenanceDue& e) {
  return fmt::format("maintenance_due node={} at_ns={}", e.node, e.at_ns);
}
std::string event_text(const HashesAgree& e) { return fmt::format("hashes_agree key={}", key_text(e.key)); }
std::string event_text(const HashesDiffer& e) {
  std::string text = fmt::format("hashes_differ key={} votes=", key_text(e.key));
  for (const auto& [node, hash] : e.votes) text += fmt::format("{}:{:016x},", node, hash);
  return text;
}
std::string event_text(const StateFound& e) {
  return fmt::format("state_found epoch={} {}", e.epoch, copy_text(e.copy));
}
std::string event_text(const TookOver& e) { return fmt::format("took_over incarnation={}", e.incarnation); }
std::string event_text(const StepsDone& e) {
  return fmt::format(FMT_COMPILE("steps_done epoch={} steps={}..{}"), e.epoch, e.first, e.last);
}
std::string event_text(const CheckpointDurable& e) {
  return fmt::format(FMT_COMPILE("checkpoint_durable key={} step={} tier={}"), key_text(e.key), e.step,
                     to_string(e.tier));
}
std::string event_text(const SpareReady& e) {
  return fmt::format("spare_ready node={} temperature={}", e.node, to_string(e.temperature));
}
std::string event_text(const NodeRepaired& e) {
  return fmt::format("node_repaired key={} node={}", key_text(e.key), e.node);
}
std::string event_text(const TimerFired& e) { return fmt::format(FMT_COMPILE("timer_fired key={}"), key_text(e.key)); }
std::string event_text(const Answered& e) {
  return fmt::format(FMT_COMPILE("answered key={} outcome={} culprit={}"), key_text(e.key), to_string(e.outcome),
                     optional_text(e.culprit));
}
std::string event_text(const HumanCleared&) { return "human_cleared"; }

}  // namespace

const char* to_string(Tier tier) {
  switch (tier) {
    case Tier::Device: return "device";
    case Tier::Host: return "host";
    case Tier::Peer: return "peer";
    case Tier::Nvme: return "nvme";
    case Tier::Remote: return "remote";
  }
  return "?";
}

const char* to_string(Temperature temperature) {
  switch (temperature) {
    case Temperature::Hot: return "hot";
    case Temperature::Warm: return "warm";
    case Temperature::Cold: return "cold";
  }
  return "?";
}

const char* kind_of(const Event& event) {
  constexpr std::array kNames = {"launched",     "heartbeat_lost",     "communicator_error", "xid_reported",
                                 "rank_exited",  "straggling",         "straggling_over",    "maintenance_due",
                                 "hashes_agree", "hashes_differ",      "state_found",        "took_over",
                                 "steps_done",   "checkpoint_durable", "spare_ready",        "node_repaired",
                                 "timer_fired",  "answered",           "human_cleared"};
  static_assert(kNames.size() == kEventKinds);
  return kNames[event.index()];
}

const char* to_string(Outcome outcome) {
  switch (outcome) {
    case Outcome::Acted: return "acted";
    case Outcome::Refused: return "refused";
    case Outcome::Timeout: return "timeout";
  }
  return "?";
}

const char* to_string(PageReason reason) {
  switch (reason) {
    case PageReason::SparesExhausted: return "spares_exhausted";
    case PageReason::EjectionBound: return "ejection_bound";
    case PageReason::NoProgress: return "no_progress";
    case PageReason::NodeRetired: return "node_retired";
  }
  return "?";
}

std::string describe(const Event& event) {
  return std::visit([](const auto& e) { return event_text(e); }, event);
}

std::string describe(const Action& action) {
  return fmt::format(FMT_COMPILE("{} {}"), key_text(action.key),
                     std::visit([](const auto& a) { return body_text(a); }, action.body));
}

}  // namespace trainyard::recovery
