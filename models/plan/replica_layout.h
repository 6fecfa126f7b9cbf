// Which nodes make up a data-parallel replica: the unit in which an elastic job shrinks and grows.
#pragma once

#include <cstdint>
#include <vector>

#include "models/plan/parallel_plan.h"

namespace trainyard {

struct ReplicaLayout {
  /// The least that holds whole nodes, whole groups of expert parallel ranks, and whole copies of what is sharded over
  /// less than all data-parallel ranks. 1: the job cannot be divided.
  std::int64_t replicas = 1;
  /// Node positions, those of replica 0 first. Empty for one replica.
  std::vector<std::int64_t> positions;
  /// Each holds the whole training state: nothing is sharded over several of them.
  bool hold_all = false;
};

/// Of a valid plan. Ranks fill nodes of `gpus_per_node` in order.
ReplicaLayout replica_layout(const ParallelPlan& plan, std::int64_t gpus_per_node);

}  // namespace trainyard
