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
  /// Parallel links from one switch group up, which share its bandwidth evenly; 0: as many as make each of them as fast
  /// as a NIC. Tells only under Routing::Ecmp.
  std::int64_t uplinks = 0;
};

/// How a fabric spreads what leaves a switch over its uplinks.
enum class Routing : std::uint8_t {
  Adaptive,  // packet by packet over all of them (InfiniBand's adaptive routing, Spectrum-X)
  Ecmp,      // each flow over one, which a hash of its ends picks: some get several, some none
};

/// What a queue pair does about a packet that got lost.
enum class Retransmission : std::uint8_t {
  GoBackN,          // sends it and all after it again: RoCE NICs as shipped
  SelectiveRepeat,  // sends it again, alone
};

/// What tells senders that a receiver gets too much.
enum class CongestionControl : std::uint8_t {
  None,   // nothing has to: receivers admit what they can take (Llama 3 ran so, arXiv 2407.21783)
  Dcqcn,  // marked packets; senders start at line rate and cut it once they hear (Zhu et al., SIGCOMM 2015)
};

/// The transport, as NICs and switches are set. What queue pairs wait for is the job's: DetectionLadder.
struct RdmaSpec {
  double rtt_s = 10e-6;
  std::int64_t packet_bytes = 4096;
  Retransmission retransmission = Retransmission::GoBackN;
  /// A lost last packet is noticed after a round trip, not after a queue pair's timeout (MegaScale turns it on).
  bool adaptive_retransmission = false;
  CongestionControl congestion_control = CongestionControl::None;
  /// A switch ignores a port that has paused it for so long; 0: it never does.
  double pfc_watchdog_s = 0;
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
  Routing routing = Routing::Adaptive;
  /// Flows of the fabric that a channel between two NICs is split into: its queue pairs (NCCL_IB_QPS_PER_CONNECTION
  /// with NCCL_IB_SPLIT_DATA_ON_QPS=1). Each is hashed for itself, and they share what is sent evenly.
  std::int64_t flows_per_channel = 1;
  /// What the hashes start from: another number, other collisions.
  std::int64_t ecmp_seed = 0;
  /// From the leaf up; empty: one flat non-blocking switch.
  std::vector<FabricTier> tiers;
  /// Each NIC has two ports, of half its rate each, to two leaf switches, and one queue pair spans both: with one of
  /// them gone it goes on at half its rate (Alibaba HPN, SIGCOMM 2024).
  bool dual_tor = false;
  RdmaSpec rdma;
  StorageSpec storage;

  [[nodiscard]] std::int64_t gpus() const { return nodes * gpus_per_node; }
};

Problems validate(const ClusterSpec& cluster, const std::string& path = "$");

}  // namespace trainyard
