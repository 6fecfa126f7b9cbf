#include "sim/nic_faults.h"

#include <algorithm>

#include "models/cost/rdma.h"
#include "models/faults/fault_mode.h"
#include "models/spec/node_places.h"

namespace trainyard {

NicsOfLeaf nics_of_leaf(const ClusterSpec& cluster, const std::vector<std::int64_t>& places, std::int64_t nodes,
                        std::int64_t node, std::int64_t device) {
  NicsOfLeaf out;
  const std::int64_t size = nodes_per_leaf(cluster), leaf = place_of(places, node) / size;
  for (std::int64_t other = 0; other < nodes; ++other)
    if (place_of(places, other) / size == leaf) out.nodes.push_back(other);
  const std::int64_t gpus_per_nic = cluster.gpus_per_node / cluster.nics_per_node;
  if (cluster.rail_optimized) {
    out.devices = {device / gpus_per_nic * gpus_per_nic};
  } else {
    for (std::int64_t nic = 0; nic < cluster.nics_per_node; ++nic) out.devices.push_back(nic * gpus_per_nic);
  }
  return out;
}

double slowdown_by_loss(const ClusterSpec& cluster, double loss) {
  return 1 / goodput(cluster.rdma, cluster.nic_bytes_per_s, loss);
}

namespace {

bool strikes_leaf(const InjectedFault& fault) {
  return fault.mode && faults::row_of(*fault.mode).scope == faults::ModeScope::Leaf;
}

}  // namespace

std::vector<InjectedFault> by_part(const std::vector<InjectedFault>& faults, const ClusterSpec& cluster,
                                   const std::vector<std::int64_t>& places, std::int64_t nodes) {
  std::vector<InjectedFault> out;
  for (InjectedFault fault : faults) {
    if (fault.mode == FaultMode::GrayLoss) {
      fault.factor = slowdown_by_loss(cluster, fault.loss);
      fault.mode.reset();
    }
    if (!strikes_leaf(fault)) {
      out.push_back(fault);
      const bool whole_nic = fault.mode == FaultMode::GidMisconfigured || fault.mode == FaultMode::MtuMismatch;
      if (whole_nic && cluster.dual_tor) out.push_back(fault);  // both ports
      continue;
    }
    // The NIC that pauses its leaf stays cut off once the switch no longer listens to it.
    const double watchdog_s = cluster.rdma.pfc_watchdog_s;
    if (fault.mode == FaultMode::PfcStorm && watchdog_s > 0 && fault.duration_s.value_or(watchdog_s + 1) > watchdog_s) {
      InjectedFault its = fault;
      its.mode = FaultMode::LinkDown;
      its.at_s += watchdog_s;
      if (its.duration_s) *its.duration_s -= watchdog_s;
      out.push_back(its);
      fault.duration_s = watchdog_s;
    }
    const NicsOfLeaf below = nics_of_leaf(cluster, places, nodes, fault.node, fault.device);
    for (const std::int64_t node : below.nodes) {
      for (const std::int64_t device : below.devices) {
        InjectedFault its = fault;
        its.node = node;
        its.device = device;
        out.push_back(its);
      }
    }
  }
  return out;
}

}  // namespace trainyard
