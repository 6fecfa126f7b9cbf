#include "models/recovery/messages.h"

#include <type_traits>

#include <fmt/format.h>

namespace trainyard::recovery {
namespace {

std::string key_text(const ActionKey& key) { return fmt::format("{}.{}.{}", key.incarnation, key.epoch, key.id); }

std::string optional_text(const std::optional<std::int64_t>& value) { return value ? std::to_string(*value) : "none"; }

std::string body_text(const SetTimer& a) { return fmt::format("set_timer at_ns={}", a.at_ns); }
std::string body_text(const Fence&) { return "fence"; }
std::string body_text(const Eject& a) { return fmt::format("eject node={} slot={}", a.node, optional_text(a.slot)); }
std::string body_text(const PromoteSpare& a) { return fmt::format("promote_spare node={} slot={}", a.node, a.slot); }
std::string body_text(const StartProcesses&) { return "start_processes"; }
std::string body_text(const BuildCommunicators&) { return "build_communicators"; }
std::string body_text(const LoadState& a) { return fmt::format("load_state step={}", a.step); }
std::string body_text(const Resume& a) { return fmt::format("resume step={}", a.step); }
std::string body_text(const TakeCheckpoint&) { return "take_checkpoint"; }
std::string body_text(const PageHuman& a) {
  return fmt::format("page_human reason={} domain={}", to_string(a.reason), optional_text(a.domain));
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
std::string event_text(const StepsDone& e) {
  return fmt::format("steps_done epoch={} steps={}..{}", e.epoch, e.first, e.last);
}
std::string event_text(const CheckpointDurable& e) {
  return fmt::format("checkpoint_durable key={} step={}", key_text(e.key), e.step);
}
std::string event_text(const SpareReady& e) { return fmt::format("spare_ready node={}", e.node); }
std::string event_text(const NodeRepaired& e) {
  return fmt::format("node_repaired key={} node={}", key_text(e.key), e.node);
}
std::string event_text(const TimerFired& e) { return fmt::format("timer_fired key={}", key_text(e.key)); }
std::string event_text(const Answered& e) {
  return fmt::format("answered key={} outcome={} culprit={}", key_text(e.key), to_string(e.outcome),
                     optional_text(e.culprit));
}
std::string event_text(const HumanCleared&) { return "human_cleared"; }

}  // namespace

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
  }
  return "?";
}

std::string describe(const Event& event) {
  return std::visit([](const auto& e) { return event_text(e); }, event);
}

std::string describe(const Action& action) {
  return fmt::format("{} {}", key_text(action.key),
                     std::visit([](const auto& a) { return body_text(a); }, action.body));
}

}  // namespace trainyard::recovery
