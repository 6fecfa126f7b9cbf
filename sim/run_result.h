// What a run simulation leaves: where the wall time went, what failed, how each recovery went.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "models/recovery/ledger.h"
#include "models/recovery/replay.h"

namespace trainyard {

/// Where wall time goes. Every nanosecond of a run is in exactly one band.
enum class Band : std::uint8_t {
  Productive,        // steps that were kept, at the healthy step time
  DegradedSlowdown,  // what slow or stalled parts cost beyond the healthy step time
  CheckpointStall,   // the job stands still for a snapshot
  LostWork,          // steps, at the healthy step time, that a failure undid
  Detect,            // from the fault to the controller's first symptom
  Decide,
  Drain,  // a planned restart: standing still until the state is safe
  Fence,
  Allocate,
  WaitForSpare,
  WaitForHuman,
  ProcessStart,
  Communicators,
  LoadState,
  FirstStep,
};
inline constexpr int kBandCount = static_cast<int>(Band::FirstStep) + 1;
/// "productive", "checkpoint_stall", ...: the names used in reports and in the store.
const char* to_string(Band band);

enum class RunEventKind : std::uint8_t {
  Launched,
  Failure,       // text: the cause
  SpareFailure,  // a spare failed: the job goes on
  FaultBegins,   // an injected degradation
  FaultEnds,
  Symptom,          // what the controller was told
  ControllerState,  // text: the state that it entered
  Eject,
  Promote,
  Replicas,  // text: so many data-parallel replicas take part from now on
  Repaired,
  CheckpointDurable,
  Page,
  Ended,
};
const char* to_string(RunEventKind kind);

struct RunEvent {
  std::int64_t time_ns = 0;
  RunEventKind kind = RunEventKind::Launched;
  std::int64_t node = -1;  // -1: the whole job
  std::string text;
  bool operator==(const RunEvent&) const = default;
};

struct CauseCount {
  std::string name;
  std::int64_t failures = 0;        // that stopped the job, or struck while it was recovering
  std::int64_t spare_failures = 0;  // of nodes that held no ranks
  bool operator==(const CauseCount&) const = default;
};

struct RunRecovery {
  recovery::RecoveryLedger ledger;
  /// Ground truth: causes of the failures that struck from the first one until training went on.
  std::vector<std::string> causes;
  /// Healthy-step seconds of work that the failure undid; not part of the ledger.
  double lost_work_s = 0;
  bool operator==(const RunRecovery&) const = default;
};

/// From `time_ns` on so many spares could be promoted at once.
struct SpareCount {
  std::int64_t time_ns = 0;
  std::int64_t free = 0;
  bool operator==(const SpareCount&) const = default;
};

/// The pool of spares over the run: nodes that could be promoted at once.
struct SpareUse {
  std::int64_t configured = 0;
  std::int64_t fewest = 0;
  double mean = 0;
  /// Fraction of wall time with at least one spare free.
  double availability = 0;
  /// Whenever the number changed, the first at time 0. Several may be of one time: the last one holds.
  std::vector<SpareCount> counts;
  bool operator==(const SpareUse&) const = default;
};

struct RunResult {
  std::uint64_t seed = 0;
  std::string policy;
  std::int64_t duration_ns = 0;
  double healthy_step_s = 0;
  /// As used: the policy's, or the optimum for the job's failure rate.
  double checkpoint_interval_s = 0;
  /// Of the job's nodes at the given rates; infinite without random causes.
  double mean_time_between_failures_s = 0;

  std::int64_t failures = 0;  // sum of CauseCount::failures
  std::int64_t spare_failures = 0;
  /// In the order of FaultSpec::causes; "injected" last, when faults were injected.
  std::vector<CauseCount> by_cause;
  std::vector<RunRecovery> recoveries;  // those that ended within the run
  std::vector<RunRecovery> unfinished;  // one that had not, its ledger as far as it went; or none

  /// Sums to duration_ns exactly.
  std::array<std::int64_t, kBandCount> band_ns{};
  /// Productive band over wall time: seconds of kept work at the healthy step time per wall
  /// second. Work done again counts once. Work since the last checkpoint counts at the run's end.
  double effective_training_time = 0;

  std::int64_t checkpoints = 0;      // that became durable
  std::int64_t steps_committed = 0;  // covered by the last durable checkpoint
  std::int64_t steps_done = 0;       // whole steps at the run's end
  std::int64_t pages = 0;
  /// Data-parallel replicas that the job has, and the fewest that it went on with.
  std::int64_t replicas = 1, fewest_replicas = 1;
  /// Nodes that began to compute wrong numbers without a sign, those that a vote of replicas found, and for how long
  /// the job trained with one of them.
  std::int64_t corruptions = 0, corruptions_found = 0, corrupted_training_ns = 0;
  /// The job was down when the run ended, and not because a failure came late: "a spare" or "a human" was waited for,
  /// or "a recovery that succeeds, after N attempts". Else empty.
  std::string waiting_for;
  SpareUse spares;

  std::vector<RunEvent> events;
  /// xxHash64 of every event's (time_ns, kind, node) as little-endian int64.
  std::uint64_t trace_hash = 0;
  /// With RunInput::keep_log.
  recovery::ControllerLog log;
  /// The draw that each random stream would give next, mixed: equal only if every draw of the
  /// run was made alike.
  std::uint64_t next_draw = 0;

  [[nodiscard]] double band_s(Band band) const;
  /// Median of the recoveries' ledger totals, 0 without recoveries. Lost work not included.
  [[nodiscard]] double median_recovery_s() const;
  bool operator==(const RunResult&) const = default;
};

/// Complete and exact in both directions in CBOR, between processes of one program; field names are those of the
/// struct.
void to_json(nlohmann::json& json, const RunResult& result);
void from_json(const nlohmann::json& json, RunResult& result);

}  // namespace trainyard
