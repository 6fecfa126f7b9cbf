// What a collective over the fabric is to the network: how long after its last member it starts to flow, and what
// flows.
#pragma once

#include <algorithm>
#include <limits>

#include "models/cost/cost.h"
#include "models/cost/rdma.h"
#include "sim/fold.h"

namespace trainyard {

/// Of one member channel, over all its queue pairs, in the units of the channel's weights: of an all-to-all, what one
/// pair of members exchanges.
struct CollectiveFlow {
  double latency_s = 0;
  double bytes = 0;
  double max_bytes_per_s = 0;
};

/// `payload_bytes` as in Op::payload_bytes. The channel leaves its node.
inline CollectiveFlow collective_flow(const CostModel& cost, const ClusterSpec& cluster, const ChannelClass& channel,
                                      Collective kind, double payload_bytes) {
  const FabricCost fabric =
      cost.fabric_collective(kind, channel.ranks, channel.nodes, payload_bytes, cluster.nic_bytes_per_s);
  CollectiveFlow flow{fabric.latency_s, fabric.bytes_per_nic, fabric.max_bytes_per_s};
  if (kind != Collective::AllToAll) return flow;
  const auto ranks = static_cast<double>(channel.ranks);
  const double pairs = ranks - ranks / static_cast<double>(channel.nodes);
  flow.bytes /= pairs;
  flow.max_bytes_per_s /= pairs;
  // Everybody sends to everybody at line rate until the first cut.
  const bool incast = channel.ranks > 2;
  if (incast && cluster.rdma.congestion_control == CongestionControl::Dcqcn) flow.latency_s += dcqcn_cut_s();
  return flow;
}

/// Seconds of a collective that has the network to itself.
inline double alone_seconds(const Fold& fold, const ChannelClass& channel, const CollectiveFlow& flow) {
  double rate = flow.max_bytes_per_s;
  for (const Crossing& crossing : channel.crossings) {
    const LinkClass& link = fold.links[static_cast<std::size_t>(crossing.link_class)];
    const double flows = static_cast<double>(crossing.weight) / static_cast<double>(fold.flows_per_channel);
    rate = std::min(rate, link.capacity_bytes_per_s / flows);
  }
  return flow.latency_s + flow.bytes / rate;
}

}  // namespace trainyard
