// ClusterSpec: what the job runs on. Nodes with GPUs and NICs, and a fabric of switch tiers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/base/status.h"

namespace trainyard {

/// One tier of switches. Tier 0 is the leaf (ToR). Two nodes in different groups of a tier
/// cross that tier's uplink on one side and its downlink on the other.
struct FabricTier {
  std::string name;                  // "leaf", "pod", "hall"
  std::int64_t nodes_per_group = 0;  // nodes below one switch group of this tier
  /// Bandwidth below the tier over bandwidth above it; 1: non-blocking.
  double oversubscription = 1;
};

struct StorageSpec {
  /// Shared by the whole cluster; 0: saving costs only the stall.
  double remote_write_bytes_per_s = 0;
  /// The same for loading; 0: takes no more than the policy's load_state_s.
  double remote_read_bytes_per_s = 0;
  /// Of the disks of one node; 0: as above.
  double nvme_write_bytes_per_s = 0, nvme_read_bytes_per_s = 0;
};

struct ClusterSpec {
  std::string name;
  /// Name of the hardware profile, such as "h100-sxm": scenarios/profiles/<name>.json.
  std::string hardware;
  std::int64_t nodes = 0;
  std::int64_t gpus_per_node = 8;
  std::int64_t nics_per_node = 8;
  /// Per NIC and direction, line rate.
  double nic_bytes_per_s = 0;
  /// GPU i of every node hangs, through NIC i, off leaf switches of rail i.
  bool rail_optimized = true;
  /// From the leaf up; empty: one flat non-blocking switch.
  std::vector<FabricTier> tiers;
  StorageSpec storage;

  [[nodiscard]] std::int64_t gpus() const { return nodes * gpus_per_node; }
};

Problems validate(const ClusterSpec& cluster, const std::string& path = "$");

}  // namespace trainyard
