#include "sim/fold.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>
#include <unordered_map>

#include "models/base/check.h"
#include "models/base/index.h"
#include "models/base/random.h"

namespace trainyard {

namespace {

// A member of a channel: 0 for all members of a collective; 1 sends, 2 receives.
struct Member {
  std::int32_t rank;
  std::uint32_t role;
  /// How many times the flow its NIC carries: 0 inside a node; of a Shift 1 out of the node, 2 into it, 3 both. Says of
  /// private NICs what their links would.
  std::uint32_t nic_weight = 0;
};
struct Crossed {
  LinkId link;
  std::uint32_t weight;
};

// A NIC whose traffic crosses a tier link, with so many of a channel's flows.
struct Through {
  LinkId link, nic;
  double flows;
  bool operator<(const Through& other) const {
    return std::tie(link, nic, flows) < std::tie(other.link, other.nic, other.flows);
  }
};

// Every channel with its members and links, in flat arrays.
struct Structure {
  std::vector<std::uint32_t> sort;
  std::vector<std::uint32_t> nodes;                         // that it spans
  std::vector<std::size_t> first_member{0}, first_link{0};  // by channel, and one past the last
  std::vector<Member> members;
  std::vector<Crossed> links;

  [[nodiscard]] std::size_t channels() const { return sort.size(); }
  void close(std::uint32_t of_sort, std::int64_t over_nodes) {
    sort.push_back(of_sort);
    nodes.push_back(static_cast<std::uint32_t>(over_nodes));
    first_member.push_back(members.size());
    first_link.push_back(links.size());
  }
};

class StructureBuilder {
 public:
  StructureBuilder(const ParallelPlan& plan, const Platform& platform, const std::vector<ChannelSort>& sorts)
      : mesh_(plan), plan_(plan), platform_(platform), sorts_(sorts) {}

  Structure build() {
    add_channels();
    drop_links_that_never_bind();
    return std::move(out_);
  }

  double headroom() {
    add_channels();
    const std::vector<double> demand = tier_demand();
    double least = std::numeric_limits<double>::infinity();
    for (std::size_t l = 0; l < demand.size(); ++l) {
      const auto link = static_cast<LinkId>(l);
      if (!platform_.is_nic(link)) least = std::min(least, platform_.capacity(link) - demand[l]);
    }
    return least;
  }

 private:
  void add_channels() {
    for (std::size_t s = 0; s < sorts_.size(); ++s) {
      if (sorts_[s].kind == ChannelKind::Transfer) {
        add_transfers(static_cast<std::uint32_t>(s));
      } else {
        add_groups(static_cast<std::uint32_t>(s));
      }
    }
  }

  // A tier link carries at most what the NICs whose traffic crosses it can move: of each the largest share that one of
  // its channels sends that way. Where that fits, it never slows anyone and says nothing about symmetry.
  std::vector<double> tier_demand() {
    std::sort(through_.begin(), through_.end());
    std::vector<double> demand(platform_.links(), 0);
    const auto flows = static_cast<double>(platform_.flows_per_channel());
    for (std::size_t i = 0; i < through_.size(); ++i) {
      const Through& its = through_[i];
      const bool most = i + 1 == through_.size() || through_[i + 1].link != its.link || through_[i + 1].nic != its.nic;
      if (most) demand[index(its.link)] += platform_.capacity(its.nic) * std::min(1.0, its.flows / flows);
    }
    return demand;
  }

  void drop_links_that_never_bind() {
    const std::vector<double> demand = tier_demand();
    const auto binds = [&](LinkId link) {
      return platform_.is_nic(link) || demand[index(link)] > platform_.capacity(link) * (1 + 1e-9);
    };
    std::size_t kept = 0, first = 0;
    for (std::size_t c = 0; c < out_.channels(); ++c) {
      const std::size_t end = out_.first_link[c + 1];
      for (std::size_t l = first; l < end; ++l) {
        if (binds(out_.links[l].link)) out_.links[kept++] = out_.links[l];
      }
      first = end;
      out_.first_link[c + 1] = kept;
    }
    out_.links.resize(kept);
  }

  // Notes which NIC each tier crossing comes from or goes to, and with how many of a pair's flows.
  void note(std::int64_t from, std::int64_t to, const std::vector<LinkId>& tier_links, std::size_t first) {
    std::vector<std::pair<LinkId, LinkId>> crossings;  // link, NIC; uplinks and downlinks alternate
    for (std::size_t i = first; i < tier_links.size(); ++i)
      crossings.emplace_back(tier_links[i], (i - first) % 2 == 0 ? platform_.nic_out(from) : platform_.nic_in(to));
    std::sort(crossings.begin(), crossings.end());
    for (std::size_t i = 0, end = 0; i < crossings.size(); i = end) {
      while (end < crossings.size() && crossings[end] == crossings[i]) ++end;
      through_.push_back({crossings[i].first, crossings[i].second, static_cast<double>(end - i)});
    }
  }

  void add_groups(std::uint32_t s) {
    const Group group = sorts_[s].group;
    for (std::int64_t rank = 0; rank < mesh_.ranks(); ++rank) {
      if (mesh_.group_index(group, rank) != 0) continue;
      if (group == Group::Embedding && mesh_.coordinates(rank).pp != 0) continue;
      const std::vector<std::int64_t> members = mesh_.members(group, rank);
      for (const std::int64_t member : members) out_.members.push_back({static_cast<std::int32_t>(member), 0, 0});
      switch (sorts_[s].kind) {
        case ChannelKind::AllToAll: cross_all_to_all(members); break;
        case ChannelKind::Shift: cross_shift(members); break;
        case ChannelKind::Ring:
        case ChannelKind::Transfer: cross_ring(members); break;
      }
      out_.close(s, nodes_of(members));
    }
  }

  bool inside_node(const std::vector<std::int64_t>& members) const {
    return std::all_of(members.begin(), members.end(),
                       [&](std::int64_t m) { return platform_.same_node(m, members[0]); });
  }

  // Members of one node lie together.
  std::int64_t nodes_of(const std::vector<std::int64_t>& members) const {
    std::int64_t nodes = 1;
    for (std::size_t i = 1; i < members.size(); ++i) nodes += platform_.same_node(members[i], members[i - 1]) ? 0 : 1;
    return nodes;
  }

  // Both directions of the i-th member's NIC. The members of the channel are the last that were added.
  void cross_nics(const std::vector<std::int64_t>& members, std::size_t i, std::int64_t weight) {
    cross_nic(platform_.nic_out(members[i]), weight);
    cross_nic(platform_.nic_in(members[i]), weight);
    out_.members[out_.members.size() - members.size() + i].nic_weight = static_cast<std::uint32_t>(weight);
  }

  // All of a channel's flows go through a NIC.
  void cross_nic(LinkId nic, std::int64_t weight) { cross(nic, weight * platform_.flows_per_channel()); }
  void cross(LinkId link, std::int64_t weight) { out_.links.push_back({link, static_cast<std::uint32_t>(weight)}); }

  // Rings visit nodes in group order, one ring through each NIC of the group on a node: every member's NIC is crossed
  // once each way, and so are the tier links between consecutive nodes. The last node closes the ring.
  void cross_ring(const std::vector<std::int64_t>& members) {
    if (inside_node(members)) return;
    for (std::size_t i = 0; i < members.size(); ++i) cross_nics(members, i, 1);
    if (platform_.limiting_tiers() == 0) return;
    std::vector<LinkId> tier_links;
    for_each_ring_hop(platform_, members, [&](std::int64_t from, std::int64_t to) {
      const std::size_t first = tier_links.size();
      platform_.append_tier_links(from, to, tier_links);
      note(from, to, tier_links, first);
    });
    add_counted(tier_links);
  }

  // What a member hands to the next crosses both their NICs where that is on another node.
  void cross_shift(const std::vector<std::int64_t>& members) {
    std::vector<LinkId> tier_links;
    for (std::size_t i = 0; i < members.size(); ++i) {
      const std::size_t next = (i + 1) % members.size();
      const std::int64_t from = members[i], to = members[next];
      if (platform_.same_node(from, to)) continue;
      cross_nic(platform_.nic_out(from), 1);
      cross_nic(platform_.nic_in(to), 1);
      Member* of_channel = &out_.members[out_.members.size() - members.size()];
      of_channel[i].nic_weight |= 1;
      of_channel[next].nic_weight |= 2;
      const std::size_t first = tier_links.size();
      platform_.append_tier_links(from, to, tier_links);
      note(from, to, tier_links, first);
    }
    add_counted(tier_links);
  }

  void add_counted(std::vector<LinkId>& links) {
    std::sort(links.begin(), links.end());
    for (std::size_t i = 0; i < links.size();) {
      std::size_t j = i;
      while (j < links.size() && links[j] == links[i]) ++j;
      cross(links[i], static_cast<std::int64_t>(j - i));
      i = j;
    }
  }

  // The flow is what one member sends to one other. A NIC carries that once for each member on another node, a tier
  // link once for each pair that it separates.
  void cross_all_to_all(const std::vector<std::int64_t>& members) {
    if (inside_node(members)) return;
    const auto outside = [&](const auto& group_of, std::int64_t of) {
      return std::count_if(members.begin(), members.end(), [&](std::int64_t m) { return group_of(m) != group_of(of); });
    };
    for (std::size_t i = 0; i < members.size(); ++i)
      cross_nics(members, i, outside([&](std::int64_t m) { return platform_.node_of(m); }, members[i]));
    if (platform_.hashed()) return cross_hashed_pairs(members);
    std::vector<LinkId> tier_links;
    for (std::size_t tier = 0; tier < platform_.limiting_tiers(); ++tier) {
      for (const std::int64_t member : members) {
        const auto peers = outside([&](std::int64_t m) { return platform_.tier_group(tier, m); }, member);
        if (peers > 0) {
          through_.push_back({platform_.tier_up(tier, member), platform_.nic_out(member), 1});
          through_.push_back({platform_.tier_down(tier, member), platform_.nic_in(member), 1});
        }
        for (std::int64_t i = 0; i < peers; ++i) {
          tier_links.push_back(platform_.tier_up(tier, member));
          tier_links.push_back(platform_.tier_down(tier, member));
        }
      }
    }
    add_counted(tier_links);
  }

  // Each pair's flows go where their hashes say.
  void cross_hashed_pairs(const std::vector<std::int64_t>& members) {
    std::vector<LinkId> tier_links;
    for (const std::int64_t from : members) {
      for (const std::int64_t to : members) {
        if (platform_.same_node(from, to)) continue;
        const std::size_t first = tier_links.size();
        platform_.append_tier_links(from, to, tier_links);
        note(from, to, tier_links, first);
      }
    }
    add_counted(tier_links);
  }

  void add_transfers(std::uint32_t s) {
    const bool backward = sorts_[s].backward;
    std::vector<LinkId> tier_links;
    for (std::int64_t rank = 0; rank < mesh_.ranks(); ++rank) {
      Coordinates to = mesh_.coordinates(rank);
      // With virtual stages the last stage hands on to the first.
      if (plan_.virtual_stages == 1 && to.pp == (backward ? 0 : plan_.pp - 1)) continue;
      to.pp = (to.pp + (backward ? plan_.pp - 1 : 1)) % plan_.pp;
      const std::int64_t target = mesh_.rank(to);
      const bool inside = platform_.same_node(rank, target);
      out_.members.push_back({static_cast<std::int32_t>(rank), 1, inside ? 0U : 1U});
      out_.members.push_back({static_cast<std::int32_t>(target), 2, inside ? 0U : 1U});
      if (!inside) {
        cross_nic(platform_.nic_out(rank), 1);
        cross_nic(platform_.nic_in(target), 1);
        tier_links.clear();
        platform_.append_tier_links(rank, target, tier_links);
        note(rank, target, tier_links, 0);
        add_counted(tier_links);
      }
      out_.close(s, inside ? 1 : 2);
    }
  }

  Mesh mesh_;
  const ParallelPlan& plan_;
  const Platform& platform_;
  const std::vector<ChannelSort>& sorts_;
  Structure out_;
  std::vector<Through> through_;
};

std::uint64_t hash_double(double x) { return mix64(std::bit_cast<std::uint64_t>(x)); }

// All that can differ between two faults of one part.
std::uint64_t colour_of(const InjectedFault& fault) {
  std::uint64_t colour = 0;
  for (const std::uint64_t part :
       {static_cast<std::uint64_t>(fault.kind), hash_double(fault.at_s), hash_double(fault.duration_s.value_or(-1)),
        hash_double(fault.factor), hash_double(fault.loss), static_cast<std::uint64_t>(fault.direction)})
    colour = mix64(colour ^ part);
  return colour;
}

// The rank whose GPU or NIC the fault strikes; none where the plan does not use it.
std::optional<std::int64_t> struck_rank(const InjectedFault& fault, const Platform& platform, std::int64_t ranks) {
  const std::int64_t rank = platform.rank_at(fault.node, fault.device);
  return rank < ranks ? std::optional(rank) : std::nullopt;
}

// Colours before refinement: all that can differ between two ranks. A private NIC's troubles are its rank's.
std::vector<std::uint64_t> rank_colours(const ParallelPlan& plan, const Platform& platform,
                                        const std::vector<InjectedFault>& degradations) {
  const Mesh mesh(plan);
  std::vector<std::uint64_t> colours(index(mesh.ranks()));
  for (std::int64_t rank = 0; rank < mesh.ranks(); ++rank)
    colours[index(rank)] = mix64(1000 + static_cast<std::uint64_t>(mesh.coordinates(rank).pp));
  for (const InjectedFault& fault : degradations) {
    if (const auto rank = struck_rank(fault, platform, mesh.ranks()))
      colours[index(*rank)] = mix64(colours[index(*rank)] ^ colour_of(fault));
  }
  return colours;
}

std::vector<std::uint64_t> link_colours(const Platform& platform, const std::vector<InjectedFault>& degradations,
                                        std::int64_t ranks) {
  std::vector<std::uint64_t> colours(platform.links());
  for (std::size_t l = 0; l < colours.size(); ++l) {
    const auto link = static_cast<LinkId>(l);
    // Links of two tiers may carry alike, and are told apart all the same: reports name tiers.
    const std::uint64_t place =
        platform.is_nic(link) ? 1 + l % 2 : 3 + static_cast<std::uint64_t>(platform.tier_of(link));
    colours[l] = mix64(place ^ hash_double(platform.capacity(link)));
  }
  for (const InjectedFault& fault : degradations) {
    if (fault.kind != InjectedKind::NicSlow && fault.kind != InjectedKind::LinkDown) continue;
    const auto rank = struck_rank(fault, platform, ranks);
    if (!rank) continue;
    for (const LinkId link : {platform.nic_out(*rank), platform.nic_in(*rank)})
      colours[index(link)] = mix64(colours[index(link)] ^ colour_of(fault));
  }
  return colours;
}

std::size_t distinct(const std::vector<std::uint64_t>& colours) {
  std::vector<std::uint64_t> sorted = colours;
  std::sort(sorted.begin(), sorted.end());
  return static_cast<std::size_t>(std::unique(sorted.begin(), sorted.end()) - sorted.begin());
}

class Refinement {
 public:
  Refinement(const Structure& structure, const Platform& platform, std::vector<std::uint64_t> ranks,
             std::vector<std::uint64_t> links)
      : structure_(structure),
        platform_(platform),
        ranks_(std::move(ranks)),
        links_(std::move(links)),
        channels_(structure.channels()) {}

  // A round mixes into every colour the multiset of its neighbours'. Refinement only splits classes, so once a round
  // splits none the partition is equitable.
  int run() {
    std::size_t classes = distinct(ranks_) + distinct_links();
    for (int round = 1;; ++round) {
      one_round();
      const std::size_t now = distinct(ranks_) + distinct_links();
      TY_CHECK(now >= classes, "refinement never merges classes");
      if (now == classes) return round;
      classes = now;
    }
  }

  [[nodiscard]] const std::vector<std::uint64_t>& ranks() const { return ranks_; }
  [[nodiscard]] const std::vector<std::uint64_t>& links() const { return links_; }
  [[nodiscard]] const std::vector<std::uint64_t>& channels() const { return channels_; }

 private:
  // Private NIC links say nothing that their rank does not.
  bool counts(LinkId link) const { return !(platform_.private_nics() && platform_.is_nic(link)); }

  std::size_t distinct_links() const {
    std::vector<std::uint64_t> shared;
    for (std::size_t l = 0; l < links_.size(); ++l) {
      if (counts(static_cast<LinkId>(l))) shared.push_back(links_[l]);
    }
    return distinct(shared);
  }

  // What a member is in its channel.
  static std::uint64_t tag(const Member& member) { return member.role + 4 * std::uint64_t{member.nic_weight}; }

  void one_round() {
    std::vector<std::uint64_t> rank_sum(ranks_.size(), 0), link_sum(links_.size(), 0);
    for (std::size_t c = 0; c < structure_.channels(); ++c) {
      std::uint64_t sum = 0;
      for (std::size_t m = structure_.first_member[c]; m < structure_.first_member[c + 1]; ++m) {
        const Member& member = structure_.members[m];
        sum += mix64(ranks_[index(member.rank)] + tag(member));
      }
      for (std::size_t l = structure_.first_link[c]; l < structure_.first_link[c + 1]; ++l) {
        const Crossed& crossed = structure_.links[l];
        if (counts(crossed.link)) sum += mix64(links_[index(crossed.link)] ^ (std::uint64_t{crossed.weight} << 32));
      }
      const std::uint64_t colour =
          mix64(sum ^ mix64(structure_.sort[c] + 77 + (std::uint64_t{structure_.nodes[c]} << 32)));
      channels_[c] = colour;
      for (std::size_t m = structure_.first_member[c]; m < structure_.first_member[c + 1]; ++m) {
        const Member& member = structure_.members[m];
        rank_sum[index(member.rank)] += mix64(colour + 3 * tag(member) + 1);
      }
      for (std::size_t l = structure_.first_link[c]; l < structure_.first_link[c + 1]; ++l) {
        const Crossed& crossed = structure_.links[l];
        if (counts(crossed.link))
          link_sum[index(crossed.link)] += mix64(colour ^ (std::uint64_t{crossed.weight} << 32));
      }
    }
    for (std::size_t r = 0; r < ranks_.size(); ++r) ranks_[r] = mix64(ranks_[r] ^ mix64(rank_sum[r]));
    for (std::size_t l = 0; l < links_.size(); ++l) links_[l] = mix64(links_[l] ^ mix64(link_sum[l]));
  }

  const Structure& structure_;
  const Platform& platform_;
  std::vector<std::uint64_t> ranks_, links_, channels_;
};

// Colours to class numbers, in order of first appearance: the same on every machine.
std::vector<std::int32_t> number(const std::vector<std::uint64_t>& colours, std::vector<std::size_t>& representatives) {
  std::unordered_map<std::uint64_t, std::int32_t> seen;
  std::vector<std::int32_t> classes(colours.size());
  for (std::size_t i = 0; i < colours.size(); ++i) {
    const auto [entry, is_new] = seen.try_emplace(colours[i], static_cast<std::int32_t>(representatives.size()));
    if (is_new) representatives.push_back(i);
    classes[i] = entry->second;
  }
  return classes;
}

// Builds the quotient from the final colours.
class Quotient {
 public:
  Quotient(const ParallelPlan& plan, const Platform& platform, const Structure& structure,
           std::vector<ChannelSort> sorts)
      : mesh_(plan), platform_(platform), structure_(structure) {
    out_.sorts = std::move(sorts);
  }

  Fold build(const std::vector<std::uint64_t>& ranks, const std::vector<std::uint64_t>& links,
             const std::vector<std::uint64_t>& channels) {
    number_ranks(ranks);
    number_links(ranks, links);
    number_channels(channels);
    weigh_crossings();
    return std::move(out_);
  }

 private:
  void number_ranks(const std::vector<std::uint64_t>& colours) {
    std::vector<std::size_t> representatives;
    out_.rank_class_of = number(colours, representatives);
    for (const std::size_t representative : representatives) {
      RankClass made;
      made.representative = static_cast<std::int64_t>(representative);
      made.stage = mesh_.coordinates(made.representative).pp;
      made.channel.assign(out_.sorts.size(), -1);
      made.channel_as_receiver.assign(out_.sorts.size(), -1);
      out_.ranks.push_back(std::move(made));
    }
    for (const std::int32_t c : out_.rank_class_of) ++out_.ranks[index(c)].count;
  }

  void number_links(const std::vector<std::uint64_t>& rank_colours, const std::vector<std::uint64_t>& colours) {
    std::vector<std::uint64_t> all = colours;
    if (platform_.private_nics()) {
      for (std::size_t r = 0; r < rank_colours.size(); ++r) {
        const auto rank = static_cast<std::int64_t>(r);
        all[index(platform_.nic_out(rank))] = mix64(rank_colours[r] + 101);
        all[index(platform_.nic_in(rank))] = mix64(rank_colours[r] + 102);
      }
    }
    std::vector<std::size_t> representatives;
    link_class_of_ = number(all, representatives);
    for (const std::size_t representative : representatives) {
      const auto link = static_cast<LinkId>(representative);
      out_.links.push_back({link, 0, platform_.capacity(link)});
    }
    for (const std::int32_t c : link_class_of_) ++out_.links[index(c)].count;
  }

  void number_channels(const std::vector<std::uint64_t>& colours) {
    std::vector<std::size_t> representatives;
    channel_class_of_ = number(colours, representatives);
    for (const std::size_t c : representatives) out_.channels.push_back(describe(c));
    representative_channels_ = std::move(representatives);
    for (std::size_t c = 0; c < colours.size(); ++c) {
      ++out_.channels[index(channel_class_of_[c])].count;
    }
    // Each rank class learns its channels from its representative's.
    for (std::size_t c = 0; c < structure_.channels(); ++c) {
      for (std::size_t m = structure_.first_member[c]; m < structure_.first_member[c + 1]; ++m) {
        const Member& member = structure_.members[m];
        RankClass& rank = out_.ranks[index(out_.rank_class_of[index(member.rank)])];
        if (rank.representative != member.rank) continue;
        (member.role == 2 ? rank.channel_as_receiver : rank.channel)[structure_.sort[c]] = channel_class_of_[c];
      }
    }
  }

  ChannelClass describe(std::size_t c) const {
    ChannelClass made;
    made.sort = static_cast<std::int32_t>(structure_.sort[c]);
    std::vector<std::int64_t> nodes;
    for (std::size_t m = structure_.first_member[c]; m < structure_.first_member[c + 1]; ++m) {
      const std::int64_t rank = structure_.members[m].rank;
      const std::int32_t rank_class = out_.rank_class_of[index(rank)];
      const bool transfer = structure_.members[m].role != 0;
      if (transfer ||
          std::find(made.rank_classes.begin(), made.rank_classes.end(), rank_class) == made.rank_classes.end()) {
        made.rank_classes.push_back(rank_class);
      }
      nodes.push_back(platform_.node_of(rank));
    }
    made.ranks = static_cast<std::int64_t>(nodes.size());
    std::sort(nodes.begin(), nodes.end());
    made.nodes = std::unique(nodes.begin(), nodes.end()) - nodes.begin();
    made.inside_node = made.nodes == 1;
    return made;
  }

  // What one link of each class carries: the channels that cross its representative, by class.
  void weigh_crossings() {
    struct Found {
      std::int32_t channel_class;
      std::size_t order;  // in which links are met first, so that reports keep it
      Crossing crossing;
    };
    std::vector<Found> found;
    for (std::size_t c = 0; c < structure_.channels(); ++c) {
      for (std::size_t l = structure_.first_link[c]; l < structure_.first_link[c + 1]; ++l) {
        const Crossed& crossed = structure_.links[l];
        const std::int32_t link_class = link_class_of_[index(crossed.link)];
        if (out_.links[index(link_class)].representative == crossed.link)
          found.push_back({channel_class_of_[c], found.size(), {link_class, crossed.weight, 0}});
      }
    }
    const auto same = [](const Found& x, const Found& y) {
      return x.channel_class == y.channel_class && x.crossing.link_class == y.crossing.link_class;
    };
    std::sort(found.begin(), found.end(), [](const Found& x, const Found& y) {
      return std::tie(x.channel_class, x.crossing.link_class, x.order) <
             std::tie(y.channel_class, y.crossing.link_class, y.order);
    });
    std::size_t kept = 0;
    for (const Found& its : found) {
      if (kept > 0 && same(found[kept - 1], its)) {
        found[kept - 1].crossing.weight += its.crossing.weight;
      } else {
        found[kept++] = its;
      }
    }
    found.resize(kept);
    std::sort(found.begin(), found.end(), [](const Found& x, const Found& y) { return x.order < y.order; });
    for (const Found& its : found) out_.channels[index(its.channel_class)].crossings.push_back(its.crossing);
    count_flows();
  }

  void count_flows() {
    std::vector<std::int64_t> flows(out_.links.size(), 0);
    for (std::size_t i = 0; i < out_.channels.size(); ++i) {
      const std::size_t c = representative_channels_[i];
      for (std::size_t l = structure_.first_link[c]; l < structure_.first_link[c + 1]; ++l)
        flows[index(link_class_of_[index(structure_.links[l].link)])] += structure_.links[l].weight;
      for (Crossing& crossing : out_.channels[i].crossings) crossing.flows = flows[index(crossing.link_class)];
      for (std::size_t l = structure_.first_link[c]; l < structure_.first_link[c + 1]; ++l)
        flows[index(link_class_of_[index(structure_.links[l].link)])] = 0;
    }
  }

  Mesh mesh_;
  const Platform& platform_;
  const Structure& structure_;
  Fold out_;
  std::vector<std::int32_t> link_class_of_, channel_class_of_;
  std::vector<std::size_t> representative_channels_;  // by channel class
};

}  // namespace

std::vector<ChannelSort> channel_sorts(const ParallelPlan& plan) {
  const Mesh mesh(plan);
  std::vector<ChannelSort> sorts;
  for (const Group group : {Group::Tp, Group::Cp, Group::DpCp, Group::Edp, Group::DpCpShard, Group::DpCpCopy,
                            Group::EdpShard, Group::EdpCopy, Group::Embedding, Group::World}) {
    const bool shifts = group == Group::Cp && plan.ring_attention();
    if (mesh.group_size(group) > 1) sorts.push_back({shifts ? ChannelKind::Shift : ChannelKind::Ring, group, false});
  }
  if (plan.ep > 1) sorts.push_back({ChannelKind::AllToAll, Group::Ep, false});
  if (plan.pp > 1) {
    sorts.push_back({ChannelKind::Transfer, Group::Pp, false});
    sorts.push_back({ChannelKind::Transfer, Group::Pp, true});
  }
  return sorts;
}

double tier_headroom(const ParallelPlan& plan, const Platform& platform) {
  const std::vector<ChannelSort> sorts = channel_sorts(plan);
  return StructureBuilder(plan, platform, sorts).headroom();
}

Fold fold(const ParallelPlan& plan, const Platform& platform, const std::vector<InjectedFault>& degradations,
          bool unfold) {
  const std::vector<ChannelSort> sorts = channel_sorts(plan);
  const Structure structure = StructureBuilder(plan, platform, sorts).build();
  std::vector<std::uint64_t> ranks = rank_colours(plan, platform, degradations);
  std::vector<std::uint64_t> links = link_colours(platform, degradations, plan.ranks());
  if (unfold) {
    for (std::size_t r = 0; r < ranks.size(); ++r) ranks[r] = mix64(r + 1);
    for (std::size_t l = 0; l < links.size(); ++l) links[l] = mix64(l + 1);
  }
  Refinement refinement(structure, platform, std::move(ranks), std::move(links));
  const int rounds = refinement.run();
  Fold out =
      Quotient(plan, platform, structure, sorts).build(refinement.ranks(), refinement.links(), refinement.channels());
  out.rounds = rounds;
  out.flows_per_channel = platform.flows_per_channel();
  return out;
}

}  // namespace trainyard
