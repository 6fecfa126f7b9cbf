#include "models/spec/node_places.h"

#include <algorithm>

#include "models/base/check.h"

namespace trainyard {

namespace {

/// Leaves in the order of their numbers' bits read backwards: of such an order any beginning is spread evenly.
std::vector<std::int64_t> scattered(std::int64_t leaves) {
  int bits = 0;
  while ((std::int64_t{1} << bits) < leaves) ++bits;
  std::vector<std::int64_t> order;
  for (std::int64_t i = 0; i < std::int64_t{1} << bits; ++i) {
    std::int64_t reversed = 0;
    for (int bit = 0; bit < bits; ++bit) reversed |= (i >> bit & 1) << (bits - 1 - bit);
    if (reversed < leaves) order.push_back(reversed);
  }
  return order;
}

}  // namespace

std::int64_t nodes_per_leaf(const ClusterSpec& cluster) {
  const std::int64_t nodes = cluster.tiers.empty() ? cluster.nodes : cluster.tiers.front().nodes_per_group;
  return std::max<std::int64_t>(nodes, 1);
}

std::vector<std::int64_t> places_with_spares_per_leaf(std::int64_t job_nodes, std::int64_t spares,
                                                      std::int64_t nodes_per_leaf) {
  TY_CHECK(job_nodes >= 1 && spares >= 0 && nodes_per_leaf >= 1, "a job has nodes and a leaf has room");
  const std::int64_t nodes = job_nodes + spares, leaves = (nodes + nodes_per_leaf - 1) / nodes_per_leaf;
  const auto end_of = [&](std::int64_t leaf) { return std::min((leaf + 1) * nodes_per_leaf, nodes); };
  // Dealt out one by one, so that the first few are far apart; the last leaf may be too small for its share.
  std::vector<std::int64_t> held(static_cast<std::size_t>(leaves)), spare_places;
  const std::vector<std::int64_t> order = scattered(leaves);
  while (std::ssize(spare_places) < spares) {
    for (const std::int64_t leaf : order) {
      std::int64_t& its = held[static_cast<std::size_t>(leaf)];
      const std::int64_t place = end_of(leaf) - 1 - its;
      if (place < leaf * nodes_per_leaf || std::ssize(spare_places) == spares) continue;
      spare_places.push_back(place);
      ++its;
    }
  }
  std::vector<std::int64_t> places;
  for (std::int64_t leaf = 0; leaf < leaves; ++leaf)
    for (std::int64_t place = leaf * nodes_per_leaf; place < end_of(leaf) - held[static_cast<std::size_t>(leaf)];
         ++place)
      places.push_back(place);
  places.insert(places.end(), spare_places.begin(), spare_places.end());
  return places;
}

}  // namespace trainyard
