#include "sim/platform.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "models/base/random.h"
#include "models/spec/node_places.h"

namespace trainyard {

Platform::Platform(const ClusterSpec& cluster, std::int64_t ranks, double payload_rate,
                   const std::vector<MovedNode>& moved, std::int64_t spares_among)
    : cluster_(cluster), hashed_(cluster.routing == Routing::Ecmp) {
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
    if ((below_over_above <= 1 && !hashed_) || one_group) continue;  // never a bottleneck, or never crossed
    Tier tier;
    tier.name = spec.name;
    tier.index = static_cast<int>(i);
    tier.nodes_per_group = spec.nodes_per_group;
    tier.rails = cluster.rail_optimized && i == 0 ? cluster.nics_per_node : 1;
    tier.first_link = static_cast<LinkId>(capacity_.size());
    const std::int64_t groups = (nodes + spec.nodes_per_group - 1) / spec.nodes_per_group * tier.rails;
    const std::int64_t nics_below = spec.nodes_per_group * cluster.nics_per_node / tier.rails;
    const double nics_above = static_cast<double>(nics_below) / below_over_above;  // that its uplinks are worth
    if (hashed_) tier.uplinks = spec.uplinks > 0 ? spec.uplinks : std::max<std::int64_t>(1, std::llround(nics_above));
    capacity_.resize(capacity_.size() + static_cast<std::size_t>(2 * groups * tier.uplinks),
                     nics_above * payload_rate / static_cast<double>(tier.uplinks));
    tiers_.push_back(tier);
  }
}

std::int64_t Platform::tier_group(std::size_t tier, std::int64_t rank) const {
  const Tier& t = tiers_[tier];
  const std::int64_t rail = t.rails > 1 ? gpu_of(rank) * cluster_.nics_per_node / cluster_.gpus_per_node : 0;
  return place_of(rank) / t.nodes_per_group * t.rails + rail;
}

LinkId Platform::tier_up(std::size_t tier, std::int64_t rank) const {
  return tiers_[tier].first_link + static_cast<LinkId>(2 * tier_group(tier, rank) * tiers_[tier].uplinks);
}

int Platform::tier_of(LinkId link) const {
  int tier = -1;
  for (const Tier& its : tiers_) {
    if (link >= its.first_link) tier = its.index;
  }
  return tier;
}

std::string Platform::name_of(LinkId link) const {
  if (is_nic(link)) {
    const std::int64_t nic = link / 2;
    return fmt::format("NIC {} of node {}, {}", nic % cluster_.nics_per_node, nic / cluster_.nics_per_node,
                       link % 2 == 0 ? "out" : "in");
  }
  const auto above = std::find_if(tiers_.rbegin(), tiers_.rend(), [&](const Tier& t) { return link >= t.first_link; });
  const std::int64_t at = (link - above->first_link) / 2, group = at / above->uplinks;
  std::string name = (link - above->first_link) % 2 == 0 ? "uplink" : "downlink";
  name += above->uplinks > 1 ? fmt::format(" {}", at % above->uplinks) : "s";
  name += fmt::format(" of {} {}", above->name, group / above->rails);
  if (above->rails > 1) name += fmt::format(", rail {}", group % above->rails);
  return name;
}

// The switch above that an uplink leads to is the one that a flow comes down from: the same number on both sides.
void Platform::append_tier_links(std::int64_t a, std::int64_t b, std::vector<LinkId>& out) const {
  for (std::int64_t flow = 0; flow < flows_per_channel(); ++flow) {
    for (std::size_t tier = 0; tier < tiers_.size(); ++tier) {
      if (tier_group(tier, a) == tier_group(tier, b)) continue;
      LinkId chosen = 0;
      if (tiers_[tier].uplinks > 1) {
        std::uint64_t hash = mix64(static_cast<std::uint64_t>(cluster_.ecmp_seed) + 0x9e3779b97f4a7c15);
        for (const std::int64_t part : {nic_place(a), nic_place(b), flow, static_cast<std::int64_t>(tier)})
          hash = mix64(hash ^ static_cast<std::uint64_t>(part));
        chosen = static_cast<LinkId>(2 * (hash % static_cast<std::uint64_t>(tiers_[tier].uplinks)));
      }
      out.push_back(tier_up(tier, a) + chosen);
      out.push_back(tier_down(tier, b) + chosen);
    }
  }
}

}  // namespace trainyard
