// PolicySpec: how recovery is done. The first half are the controller's own knobs; the second
// is how long the world takes to carry out what the controller asks for under this policy.
#pragma once

#include <cstdint>
#include <string>

#include "models/base/status.h"

namespace trainyard {

struct PolicySpec {
  std::string name;

  // Knobs of the controller.
  /// Silence after which a rank is declared dead (the collective or heartbeat timeout).
  double detection_timeout_s = 600;
  /// Time given to gather symptoms before suspects are named.
  double diagnosis_s = 60;
  /// Productive seconds between two checkpoints. Unset (0): the optimum for the fault rate.
  double checkpoint_interval_s = 0;
  /// Time for which the job stands still for each checkpoint.
  double checkpoint_stall_s = 5;
  std::int64_t spare_nodes = 0;
  /// Ejections allowed in one failure domain (a leaf) per hour before a human is paged.
  std::int64_t max_ejections_per_domain_per_hour = 8;

  // What the world takes for each action under this policy, in seconds.
  double fence_s = 10;
  double allocate_s = 120;
  double process_start_s = 60;
  double communicators_s = 300;
  double load_state_s = 120;
  /// Extra time of the first step after a resume: warm-up, allocator, tuner.
  double first_step_s = 60;
  /// Median of the lognormal repair time of an ejected node, and its sigma.
  double repair_median_s = 14400;
  double repair_sigma = 1;

  /// Sum of the phases from the fault to the first productive second, lost work not counted.
  [[nodiscard]] double recovery_s() const;
};

Problems validate(const PolicySpec& policy, const std::string& path = "$");

}  // namespace trainyard
