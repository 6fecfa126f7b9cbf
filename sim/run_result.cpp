#include "sim/run_result.h"

#include <utility>

#include <nlohmann/json.hpp>

#include "models/base/statistics.h"
#include "models/base/units.h"

namespace trainyard {

namespace recovery {

static void to_json(nlohmann::json& json, const PhaseSpan& span) {
  json = {static_cast<int>(span.phase), span.attempt, span.begin_ns, span.end_ns};
}
static void from_json(const nlohmann::json& json, PhaseSpan& span) {
  span = {static_cast<Phase>(json.at(0).get<int>()), json.at(1), json.at(2), json.at(3)};
}
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(RecoveryLedger, epoch, attempts, restored_step, ejected_nodes, spans)

static void to_json(nlohmann::json& json, const ControllerLog& log) {
  json = {log.config, log.events, nlohmann::json::binary(log.lines)};
}
static void from_json(const nlohmann::json& json, ControllerLog& log) {
  log = {json.at(0), json.at(2).get_binary(), json.at(1)};
}

}  // namespace recovery

static void to_json(nlohmann::json& json, const RunEvent& event) {
  json = {event.time_ns, static_cast<int>(event.kind), event.node, event.text};
}
static void from_json(const nlohmann::json& json, RunEvent& event) {
  event = {json.at(0), static_cast<RunEventKind>(json.at(1).get<int>()), json.at(2), json.at(3)};
}
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(CauseCount, name, failures, spare_failures)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(RunRecovery, ledger, causes, lost_work_s)
static void to_json(nlohmann::json& json, const SpareCount& count) { json = {count.time_ns, count.free}; }
static void from_json(const nlohmann::json& json, SpareCount& count) { count = {json.at(0), json.at(1)}; }
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(SpareUse, configured, fewest, mean, availability, counts)

namespace {

// The macro's functions are inline and would collide with the public declarations.
struct Fields : RunResult {
  NLOHMANN_DEFINE_TYPE_INTRUSIVE(Fields, seed, policy, duration_ns, healthy_step_s, checkpoint_interval_s,
                                 mean_time_between_failures_s, failures, spare_failures, by_cause, recoveries, band_ns,
                                 effective_training_time, checkpoints, steps_committed, steps_done, pages, replicas,
                                 fewest_replicas, corruptions, corruptions_found, corrupted_training_ns, waiting_for,
                                 spares, events, trace_hash, log, next_draw)
};

}  // namespace

const char* to_string(Band band) {
  switch (band) {
    case Band::Productive: return "productive";
    case Band::DegradedSlowdown: return "degraded_slowdown";
    case Band::CheckpointStall: return "checkpoint_stall";
    case Band::LostWork: return "lost_work";
    case Band::Detect: return "detect";
    case Band::Decide: return "decide";
    case Band::Drain: return "drain";
    case Band::Fence: return "fence";
    case Band::Allocate: return "allocate";
    case Band::WaitForSpare: return "wait_for_spare";
    case Band::WaitForHuman: return "wait_for_human";
    case Band::ProcessStart: return "process_start";
    case Band::Communicators: return "communicators";
    case Band::LoadState: return "load_state";
    case Band::FirstStep: return "first_step";
  }
  return "?";
}

const char* to_string(RunEventKind kind) {
  switch (kind) {
    case RunEventKind::Launched: return "launched";
    case RunEventKind::Failure: return "failure";
    case RunEventKind::SpareFailure: return "spare_failure";
    case RunEventKind::FaultBegins: return "fault_begins";
    case RunEventKind::FaultEnds: return "fault_ends";
    case RunEventKind::Symptom: return "symptom";
    case RunEventKind::ControllerState: return "controller_state";
    case RunEventKind::Eject: return "eject";
    case RunEventKind::Promote: return "promote";
    case RunEventKind::Replicas: return "replicas";
    case RunEventKind::Repaired: return "repaired";
    case RunEventKind::CheckpointDurable: return "checkpoint_durable";
    case RunEventKind::Page: return "page";
    case RunEventKind::Ended: return "ended";
  }
  return "?";
}

double RunResult::band_s(Band band) const {
  return static_cast<double>(band_ns[static_cast<std::size_t>(band)]) / kNsPerS;
}

double RunResult::median_recovery_s() const {
  std::vector<double> totals_s;
  totals_s.reserve(recoveries.size());
  for (const RunRecovery& recovery : recoveries) totals_s.push_back(recovery.ledger.total_s());
  return median(std::move(totals_s));
}

void to_json(nlohmann::json& json, const RunResult& result) {
  Fields fields;
  static_cast<RunResult&>(fields) = result;
  nlohmann::to_json(json, fields);
}

void from_json(const nlohmann::json& json, RunResult& result) {
  Fields fields;
  nlohmann::from_json(json, fields);
  result = static_cast<RunResult&>(fields);
}

}  // namespace trainyard
