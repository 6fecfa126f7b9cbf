// Where the nodes of a run stand below the switches.
//
// A node's number says what it is for: those of the job come first, in the order of its ranks, then the spares. Its
// place says where it stands: place p is below leaf p / nodes_per_leaf(). Without spares among them the two are the
// same.
#pragma once

#include <cstdint>
#include <vector>

#include "models/spec/cluster_spec.h"

namespace trainyard {

/// Nodes below a switch of the first tier; all, where there are no tiers.
std::int64_t nodes_per_leaf(const ClusterSpec& cluster);

/// By node number, of a job and spares that each leaf holds a like share of, as its last nodes. Any first few spares
/// stand far from each other too. 0 spares: the places are the numbers.
std::vector<std::int64_t> places_with_spares_per_leaf(std::int64_t job_nodes, std::int64_t spares,
                                                      std::int64_t nodes_per_leaf);

/// The place of a node; its number, where `places` does not tell.
inline std::int64_t place_of(const std::vector<std::int64_t>& places, std::int64_t node) {
  const bool told = node >= 0 && node < static_cast<std::int64_t>(places.size());
  return told ? places[static_cast<std::size_t>(node)] : node;
}

}  // namespace trainyard
