#include "sim/state_copies.h"

#include <algorithm>

#include "models/recovery/roster.h"

namespace trainyard {

using recovery::StateCopy;
using recovery::Tier;

namespace {

constexpr std::int64_t kKept = 2;

bool contains(const std::vector<bool>& nodes, recovery::NodeId node) {
  return static_cast<std::size_t>(node) < nodes.size() && nodes[static_cast<std::size_t>(node)];
}

}  // namespace

void StateCopies::written(const recovery::ActionKey& checkpoint, std::int64_t step, Tier tier,
                          const std::vector<NodeId>& owners) {
  if (!last_owners_ || *last_owners_ != owners) last_owners_ = std::make_shared<const std::vector<NodeId>>(owners);
  copies_.push_back({{tier, step, checkpoint}, last_owners_, {}});
  const auto of_tier = [tier](const Copy& copy) { return copy.what.tier == tier; };
  if (std::count_if(copies_.begin(), copies_.end(), of_tier) > kKept)
    copies_.erase(std::find_if(copies_.begin(), copies_.end(), of_tier));
}

void StateCopies::memory_lost(NodeId node) {
  for (Copy& copy : copies_)
    if (copy.what.tier != Tier::Nvme) lose(copy, node);
}

void StateCopies::node_gone(NodeId node) {
  for (Copy& copy : copies_) lose(copy, node);
}

void StateCopies::lose(Copy& copy, NodeId node) {
  const auto at = static_cast<std::size_t>(node);
  if (at >= copy.lost.size()) copy.lost.resize(at + 1);
  copy.lost[at] = true;
}

std::vector<StateCopy> StateCopies::found(const std::vector<NodeId>& owners) const {
  std::vector<StateCopy> found;
  for (const Copy& copy : copies_)
    if (complete(copy, owners)) found.push_back(copy.what);
  return found;
}

/// Of the nodes that have lost theirs, some may not have had any. In Host and Nvme each slot needs its own; a slot
/// whose node has changed since, or that is nobody's now, finds its shard with the peer only.
bool StateCopies::complete(const Copy& copy, const std::vector<NodeId>& owners) const {
  for (std::size_t slot = 0; slot < owners.size(); ++slot) {
    const NodeId held_by = (*copy.owners)[slot];
    if (held_by == recovery::kNobody) continue;  // its replica took no part
    const bool own = owners[slot] == held_by && !contains(copy.lost, held_by);
    if (!own && (copy.what.tier != Tier::Peer || !peer_holds(copy, slot))) return false;
  }
  return true;
}

bool StateCopies::peer_holds(const Copy& copy, std::size_t slot) const {
  const std::size_t slots = copy.owners->size();
  const NodeId peer = (*copy.owners)[(slot + static_cast<std::size_t>(peer_distance_)) % slots];
  return peer != recovery::kNobody && !contains(copy.lost, peer);
}

}  // namespace trainyard
