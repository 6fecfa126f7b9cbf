#include "sim/run_result.h"

#include <cstring>
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

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(CauseCount, name, failures, spare_failures)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(RunRecovery, ledger, causes, lost_work_s)
static void to_json(nlohmann::json& json, const SpareCount& count) { json = {count.time_ns, count.free}; }
static void from_json(const nlohmann::json& json, SpareCount& count) { count = {json.at(0), json.at(1)}; }
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(SpareUse, configured, fewest, mean, availability, counts)

namespace {

// The macro's functions are inline and would collide with the public declarations.
struct Fields : RunResult {
  NLOHMANN_DEFINE_TYPE_INTRUSIVE(Fields, seed, policy, duration_ns, healthy_step_s, checkpoint_interval_s,
                                 mean_time_between_failures_s, failures, spare_failures, by_cause, recoveries,
                                 unfinished, band_ns, effective_training_time, checkpoints, steps_committed, steps_done,
                                 pages, replicas, fewest_replicas, corruptions, corruptions_found,
                                 corrupted_training_ns, waiting_for, spares, trace_hash, log, next_draw)
};

// Months have half a million events: numbers as plain memory, which crosses from one process to another of the same
// program, and all texts as one.
constexpr std::size_t kNumbers = 3;

nlohmann::json packed(const std::vector<RunEvent>& events) {
  std::vector<std::uint8_t> numbers(events.size() * kNumbers * sizeof(std::int64_t));
  std::string texts;
  for (std::size_t i = 0; i < events.size(); ++i) {
    const RunEvent& its = events[i];
    const std::int64_t values[kNumbers] = {its.time_ns, static_cast<std::int64_t>(its.kind), its.node};
    std::memcpy(numbers.data() + i * sizeof values, values, sizeof values);
    texts.append(its.text).push_back('\0');
  }
  return {nlohmann::json::binary(std::move(numbers)), std::move(texts)};
}

std::vector<RunEvent> unpacked(const nlohmann::json& json) {
  const std::vector<std::uint8_t>& numbers = json.at(0).get_binary();
  const auto& texts = json.at(1).get_ref<const std::string&>();
  std::int64_t values[kNumbers];
  std::vector<RunEvent> events(numbers.size() / sizeof values);
  std::size_t text = 0;
  for (std::size_t i = 0; i < events.size(); ++i) {
    std::memcpy(values, numbers.data() + i * sizeof values, sizeof values);
    const std::size_t end = texts.find('\0', text);
    events[i] = {values[0], static_cast<RunEventKind>(values[1]), values[2], texts.substr(text, end - text)};
    text = end + 1;
  }
  return events;
}

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
  json["events"] = packed(result.events);
}

void from_json(const nlohmann::json& json, RunResult& result) {
  Fields fields;
  nlohmann::from_json(json, fields);
  result = static_cast<RunResult&>(fields);
  result.events = unpacked(json.at("events"));
}

}  // namespace trainyard
