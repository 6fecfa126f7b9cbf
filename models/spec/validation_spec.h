// ValidationSpec: what a team wants to have seen of a plan before it is executed. `trainyard plan validate` checks it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace trainyard {

struct ValidationSpec {
  /// Scenario files that rehearse the same model and plan: on a larger cluster, with failures.
  std::vector<std::string> scenarios;
  /// Runs of each, over which effective time and recovery are taken.
  std::int64_t seeds = 1;
  /// Limits; unset: none. Of the healthy step; of kept work over wall time, mean over runs; of the median recovery.
  std::optional<double> max_step_time_s, min_effective_training_time, max_recovery_s;
};

}  // namespace trainyard
