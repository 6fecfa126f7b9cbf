// What can make one step of a job longer than another.
#pragma once

#include <cstdint>
#include <tuple>
#include <vector>

#include "models/spec/fault_spec.h"

namespace trainyard {

/// The ranks of a position in the job run on a node that stands elsewhere: a spare.
struct MovedNode {
  std::int64_t position = 0;  // from 0 to the job's nodes
  std::int64_t place = 0;     // below leaf place / nodes_per_leaf(cluster)
  bool operator==(const MovedNode&) const = default;
};

/// What tells two slow parts apart.
inline auto key_of(const InjectedFault& part) {
  return std::tuple(part.node, part.device, part.kind, part.factor, part.loss, part.direction);
}

struct JobState {
  /// GpuSlow and NicSlow; `node` is a position in the job. Ascending.
  std::vector<InjectedFault> slow;
  /// By position.
  std::vector<MovedNode> moved;
  /// So many spares stand among the job's nodes, below each leaf a like share (models/spec/node_places.h): that moves
  /// the homes of its positions. 0: position p is home at place p.
  std::int64_t spares_among = 0;
  /// Of every NIC's bandwidth, what copies of checkpoints on their way to peers leave to training.
  double nic_share = 1;
};

}  // namespace trainyard
