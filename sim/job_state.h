// What can make one step of a job longer than another.
#pragma once

#include <cstdint>
#include <vector>

#include "models/spec/fault_spec.h"

namespace trainyard {

/// The ranks of a position in the job run on a node that stands elsewhere: a spare.
struct MovedNode {
  std::int64_t position = 0;  // from 0 to the job's nodes; it is home on the node of this number
  std::int64_t node = 0;
  bool operator==(const MovedNode&) const = default;
};

struct JobState {
  /// GpuSlow and NicSlow; `node` is a position in the job. Ascending.
  std::vector<InjectedFault> slow;
  /// By position.
  std::vector<MovedNode> moved;
  /// Of every NIC's bandwidth, what copies of checkpoints on their way to peers leave to training.
  double nic_share = 1;
};

}  // namespace trainyard
