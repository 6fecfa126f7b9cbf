#include "sim/platform.h"

#include <algorithm>

#include "models/spec/node_places.h"

namespace trainyard {

Platform::Platform(const ClusterSpec& cluster, std::int64_t ranks, double payload_rate,
                   const std::vector<MovedNode>& moved, std::int64_t spares_among)
    : cluster_(cluster) {
  std::int64_t nodes = (ranks + cluster.gpus_per_node - 1) / cluster.gpus_per_node;
  if (!moved.empty() || spares_among > 0) {
    place_ = places_with_spares_per_leaf(nodes, spares_among, nodes_per_leaf(cluster));
    place_.resize(static_cast<std::size_t>(nodes));
  }
  capacity_.assign(static_cast<std::size_t>(2 * nodes * cluster.nics_per_node), payload_rate);
  nic_links_ = static_cast<LinkId>(capacity_.size());
  for (const MovedNode& its : moved) place_[static_cast<std::size_t>(its.position)] = its.place;
  if (!place_.empty()) nodes = std::max(nodes, *std::max_element(place_.begin(), place_.end()) + 1);
  double below_over_above = 1;
  for (std::size_t i = 0; i < cluster.tiers.size(); ++i) {
    const FabricTier& spec = cluster.tiers[i];
    below_over_above *= spec.oversubscription;
    const bool one_group = spec.nodes_per_group >= nodes;
    if (below_over_above <= 1 || one_group) continue;  // never a bottleneck, or never crossed
    Tier tier;
    tier.nodes_per_group = spec.nodes_per_group;
    tier.rails = cluster.rail_optimized && i == 0 ? cluster.nics_per_node : 1;
    tier.first_link = static_cast<LinkId>(capacity_.size());
    const std::int64_t groups = (nodes + spec.nodes_per_group - 1) / spec.nodes_per_group * tier.rails;
    const std::int64_t nics_below = spec.nodes_per_group * cluster.nics_per_node / tier.rails;
    capacity_.resize(capacity_.size() + static_cast<std::size_t>(2 * groups),
                     static_cast<double>(nics_below) * payload_rate / below_over_above);
    tiers_.push_back(tier);
  }
}

std::int64_t Platform::tier_group(std::size_t tier, std::int64_t rank) const {
  const Tier& t = tiers_[tier];
  const std::int64_t rail = t.rails > 1 ? gpu_of(rank) * cluster_.nics_per_node / cluster_.gpus_per_node : 0;
  return place_of(rank) / t.nodes_per_group * t.rails + rail;
}

LinkId Platform::tier_up(std::size_t tier, std::int64_t rank) const {
  return tiers_[tier].first_link + static_cast<LinkId>(2 * tier_group(tier, rank));
}

void Platform::append_tier_links(std::int64_t a, std::int64_t b, std::vector<LinkId>& out) const {
  for (std::size_t tier = 0; tier < tiers_.size(); ++tier) {
    if (tier_group(tier, a) == tier_group(tier, b)) continue;
    out.push_back(tier_up(tier, a));
    out.push_back(tier_down(tier, b));
  }
}

}  // namespace trainyard
