// Where ranks are, and which links a flow crosses: the cluster as the step simulator sees it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/spec/cluster_spec.h"
#include "sim/job_state.h"

namespace trainyard {

using LinkId = std::int32_t;

/// Ranks fill nodes in order: rank r is GPU r % gpus_per_node of node r / gpus_per_node, save where nodes have been
/// moved, or spares stand among them: then that number is a position in the job, and its place another.
///
/// Links have one direction. NIC links come first (out and in of every NIC), then uplinks and downlinks of every switch
/// group of every tier that can be a bottleneck. Under adaptive routing a group's uplinks are one link, and a tier
/// whose uplinks carry all that the NICs below can send never is a bottleneck, so it has none at all. Under ECMP each
/// is a link of its own: a flow crosses the one that a hash of its ends picks, down from where that one leads.
class Platform {
 public:
  /// `payload_rate`: bytes/s of payload that a NIC moves in one direction.
  Platform(const ClusterSpec& cluster, std::int64_t ranks, double payload_rate,
           const std::vector<MovedNode>& moved = {}, std::int64_t spares_among = 0);

  [[nodiscard]] std::int64_t node_of(std::int64_t rank) const { return rank / cluster_.gpus_per_node; }
  [[nodiscard]] std::int64_t gpu_of(std::int64_t rank) const { return rank % cluster_.gpus_per_node; }
  [[nodiscard]] std::int64_t rank_at(std::int64_t node, std::int64_t gpu) const {
    return node * cluster_.gpus_per_node + gpu;
  }
  [[nodiscard]] bool same_node(std::int64_t a, std::int64_t b) const { return node_of(a) == node_of(b); }

  [[nodiscard]] LinkId nic_out(std::int64_t rank) const { return static_cast<LinkId>(2 * nic_of(rank)); }
  [[nodiscard]] LinkId nic_in(std::int64_t rank) const { return static_cast<LinkId>(2 * nic_of(rank) + 1); }
  /// True when every GPU has a NIC of its own: then a NIC's links are as private as its rank.
  [[nodiscard]] bool private_nics() const { return cluster_.nics_per_node == cluster_.gpus_per_node; }
  [[nodiscard]] bool is_nic(LinkId link) const { return link < nic_links_; }

  /// Of the job.
  [[nodiscard]] std::int64_t nodes() const { return nic_links_ / 2 / cluster_.nics_per_node; }
  /// By position; empty where each is where its number says.
  [[nodiscard]] const std::vector<std::int64_t>& places() const { return place_; }
  /// Where the node stands that fills a position of the job.
  [[nodiscard]] std::int64_t place_of_position(std::int64_t position) const {
    return place_.empty() ? position : place_[static_cast<std::size_t>(position)];
  }

  /// Tier links, without the NICs, that each flow from rank a to rank b on another node crosses, up and down in turn; a
  /// link once for each flow that crosses it.
  void append_tier_links(std::int64_t a, std::int64_t b, std::vector<LinkId>& out) const;
  /// That a channel between two NICs is split into.
  [[nodiscard]] std::int64_t flows_per_channel() const { return hashed_ ? cluster_.flows_per_channel : 1; }
  [[nodiscard]] bool hashed() const { return hashed_; }
  /// How many of `ranks` members of a group lie outside the tier group of `rank`, for each tier that has links,
  /// together with the links of that tier group: see AllToAll in fold.cpp.
  [[nodiscard]] std::size_t limiting_tiers() const { return tiers_.size(); }
  [[nodiscard]] std::int64_t tier_group(std::size_t tier, std::int64_t rank) const;
  /// Of the tier's parallel uplinks the first, which is the only one under adaptive routing.
  [[nodiscard]] LinkId tier_up(std::size_t tier, std::int64_t rank) const;
  [[nodiscard]] LinkId tier_down(std::size_t tier, std::int64_t rank) const { return tier_up(tier, rank) + 1; }

  /// What a link is called: "NIC 3 of node 12, out", "uplink 7 of leaf 4, rail 2".
  [[nodiscard]] std::string name_of(LinkId link) const;
  /// Its tier, from the leaf up; -1: a NIC.
  [[nodiscard]] int tier_of(LinkId link) const;

  [[nodiscard]] std::size_t links() const { return capacity_.size(); }
  /// Payload bytes/s of a healthy link.
  [[nodiscard]] double capacity(LinkId link) const { return capacity_[static_cast<std::size_t>(link)]; }

 private:
  struct Tier {
    std::string name;
    int index = 0;  // in ClusterSpec::tiers
    std::int64_t nodes_per_group = 0;
    std::int64_t rails = 1;    // groups are split by rail
    std::int64_t uplinks = 1;  // of a group, to choose among
    LinkId first_link = 0;
  };

  [[nodiscard]] std::int64_t place_of(std::int64_t rank) const { return place_of_position(node_of(rank)); }
  /// A NIC by where its node stands: what an address is to a hash.
  [[nodiscard]] std::int64_t nic_place(std::int64_t rank) const {
    return place_of(rank) * cluster_.nics_per_node + gpu_of(rank) * cluster_.nics_per_node / cluster_.gpus_per_node;
  }
  [[nodiscard]] std::int64_t nic_of(std::int64_t rank) const {
    return node_of(rank) * cluster_.nics_per_node + gpu_of(rank) * cluster_.nics_per_node / cluster_.gpus_per_node;
  }

  ClusterSpec cluster_;
  bool hashed_ = false;
  std::vector<std::int64_t> place_;  // by position, if any is not at home where its number says
  LinkId nic_links_ = 0;
  std::vector<Tier> tiers_;
  std::vector<double> capacity_;
};

/// Calls visit(from, to) for the hops between nodes of the rings over `members`, of which those of one node lie
/// together: one ring through each NIC of the group on a node, so each hands on to the one in its place on the next
/// node, and keeps its rail. The last node closes the rings; a group inside one node has none.
template <class Visit>
void for_each_ring_hop(const Platform& platform, const std::vector<std::int64_t>& members, Visit visit) {
  std::vector<std::size_t> node_begin;
  for (std::size_t i = 0; i < members.size(); ++i) {
    if (i == 0 || !platform.same_node(members[i], members[i - 1])) node_begin.push_back(i);
  }
  node_begin.push_back(members.size());
  const std::size_t nodes = node_begin.size() - 1;
  for (std::size_t n = 0; n < nodes && nodes > 1; ++n) {
    const std::size_t next = (n + 1) % nodes, here = node_begin[n + 1] - node_begin[n],
                      there = node_begin[next + 1] - node_begin[next];
    for (std::size_t i = 0; i < here; ++i) visit(members[node_begin[n] + i], members[node_begin[next] + i % there]);
  }
}

}  // namespace trainyard
