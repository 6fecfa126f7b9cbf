// Faults of the fabric, as single NICs feel them: what a step simulation is given. A leaf's fault strikes every NIC
// below it, loss costs rate.
#pragma once

#include <cstdint>
#include <vector>

#include "models/spec/cluster_spec.h"
#include "models/spec/fault_spec.h"

namespace trainyard {

/// NICs, named by the first GPU that uses each, below the leaf switch that one NIC of a node hangs off.
struct NicsOfLeaf {
  std::vector<std::int64_t> nodes;
  std::vector<std::int64_t> devices;  // of each of the nodes
};

/// `places`: by node, empty where each is where its number says. Of `nodes` nodes, those below the leaf of `node`.
NicsOfLeaf nics_of_leaf(const ClusterSpec& cluster, const std::vector<std::int64_t>& places, std::int64_t nodes,
                        std::int64_t node, std::int64_t device);

/// How many times slower a NIC is that loses this share of its packets.
double slowdown_by_loss(const ClusterSpec& cluster, double loss);

/// GpuSlow, NicSlow and LinkDown of single parts; others as they are. A NIC of two ports loses one with each LinkDown.
std::vector<InjectedFault> by_part(const std::vector<InjectedFault>& faults, const ClusterSpec& cluster,
                                   const std::vector<std::int64_t>& places, std::int64_t nodes);

}  // namespace trainyard
