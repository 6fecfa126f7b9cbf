// What a sweep leaves behind, as plain structs: one per table of store/schema.sql.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "store/run_records.h"

namespace trainyard::store {

/// A policy with its varied keys.
struct SweepVariation {
  std::string name;    // "grok-90s,checkpoint_interval_s=60"
  std::string policy;  // "grok-90s"
  std::string changes_json = "{}";
  std::string policy_json = "{}";
  bool operator==(const SweepVariation&) const = default;
};

/// What is known of a sweep before it starts.
struct NewSweep {
  std::string identity;  // hash of inputs_json: a sweep of the same identity is the same sweep
  std::string name;
  std::string scenario;  // file
  std::int64_t duration_ns = 0;
  std::string version, commit_id;
  std::string inputs_json = "{}";    // what all cells depend on, by name
  std::int64_t started_unix_ns = 0;  // 0: now
  std::vector<SweepVariation> variations;
};

/// One row of `sweeps`, with its variations in the order in which they were entered.
struct SweepRow : NewSweep {
  std::int64_t id = 0;
  std::int64_t worked_on_unix_ns = 0;
};

/// One simulated run of a sweep. Seconds of recovery are not numbers where there was none.
struct SweepCell {
  std::int64_t variation = 0;  // index into the sweep's variations
  std::uint64_t seed = 0;
  double effective_training_time = 0;
  std::int64_t failures = 0, recoveries = 0;
  double recovery_median_s = std::numeric_limits<double>::quiet_NaN();
  double recovery_mean_s = std::numeric_limits<double>::quiet_NaN();
  double recovery_p99_s = std::numeric_limits<double>::quiet_NaN();
  std::int64_t lost_work_ns = 0;
  std::vector<GoodputBand> bands;  // those that are not 0
  double checkpoint_interval_s = 0;
  std::int64_t checkpoints = 0, steps_done = 0, steps_committed = 0, pages = 0;
  std::int64_t spares_configured = 0, spares_fewest = 0;
  double spares_mean = 0;
  std::string waiting_for;
  std::string trace_hash;
};

/// Whether two simulations of one cell came to the same end: every figure, bit for bit.
bool agree(const SweepCell& a, const SweepCell& b);

}  // namespace trainyard::store
