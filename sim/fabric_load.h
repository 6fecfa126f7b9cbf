// What flows get of a fabric when all of them send without end: the network's own speed, with no plan's compute in
// between.
#pragma once

#include <cstdint>
#include <vector>

#include "models/base/random.h"
#include "models/base/status.h"
#include "sim/platform.h"

namespace trainyard {

/// From the NIC of one rank to that of another, on different nodes.
struct FabricFlow {
  std::int64_t from = 0, to = 0;
};

/// Every NIC to one other of its rail, each receives from one: nodes in a random circle, each rail in one of its own.
std::vector<FabricFlow> random_circles(const ClusterSpec& cluster, std::int64_t nodes, RandomStream& random);

/// Bytes/s of payload of each flow under max-min sharing. Of a few thousand flows at most: SimGrid's time grows with
/// their square.
Result<std::vector<double>> sustained_rates(const Platform& platform, const std::vector<FabricFlow>& flows);

}  // namespace trainyard
