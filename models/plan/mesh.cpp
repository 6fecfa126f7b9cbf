#include "models/plan/mesh.h"

#include <algorithm>

#include "models/base/check.h"

namespace trainyard {

const char* to_string(Group group) {
  static constexpr const char* kNames[] = {"tp",        "cp",    "ep",          "dp_cp",      "edp",       "pp",
                                           "embedding", "world", "dp_cp_shard", "dp_cp_copy", "edp_shard", "edp_copy"};
  static_assert(std::size(kNames) == kGroupCount);
  return kNames[static_cast<int>(group)];
}

Mesh::Mesh(const ParallelPlan& plan)
    : tp_(plan.tp),
      cp_(plan.cp),
      ep_(plan.ep),
      pp_(plan.pp),
      dp_(plan.dp),
      dense_(blocks(plan, plan.dp * plan.cp)),
      expert_(blocks(plan, plan.dp * plan.cp / plan.ep)),
      dp_before_pp_(plan.order != "tp-cp-ep-pp-dp") {}

Mesh::Blocks Mesh::blocks(const ParallelPlan& plan, std::int64_t group_size) {
  const std::int64_t size = plan.zero_stage == 0 ? 0 : std::min(plan.zero_shard_size, group_size);
  // Blocks of one rank shard nothing, and one block is the whole group.
  return size <= 1 || size == group_size ? Blocks{} : Blocks{size, group_size / size};
}

Coordinates Mesh::coordinates(std::int64_t rank) const {
  Coordinates at;
  at.tp = rank % tp_;
  rank /= tp_;
  at.cp = rank % cp_;
  rank /= cp_;
  at.dp = dp_before_pp_ ? rank % dp_ : rank / pp_;
  at.pp = dp_before_pp_ ? rank / dp_ : rank % pp_;
  return at;
}

std::int64_t Mesh::rank(const Coordinates& at) const {
  const std::int64_t outer = dp_before_pp_ ? at.pp * dp_ + at.dp : at.dp * pp_ + at.pp;
  return (outer * cp_ + at.cp) * tp_ + at.tp;
}

std::int64_t Mesh::group_size(Group group) const {
  switch (group) {
    case Group::Tp: return tp_;
    case Group::Cp: return cp_;
    case Group::Ep: return ep_;
    case Group::DpCp: return dp_ * cp_;
    case Group::Edp: return dp_ * cp_ / ep_;
    case Group::Pp: return pp_;
    case Group::Embedding: return pp_ > 1 ? 2 : 1;
    case Group::World: return ranks();
    case Group::DpCpShard: return dense_.size;
    case Group::DpCpCopy: return dense_.count;
    case Group::EdpShard: return expert_.size;
    case Group::EdpCopy: return expert_.count;
  }
  TY_CHECK(false, "unknown group");
}

std::int64_t Mesh::group_index(Group group, std::int64_t rank) const {
  const Coordinates at = coordinates(rank);
  const std::int64_t data = at.dp * cp_ + at.cp;  // cp varies faster than dp
  switch (group) {
    case Group::Tp: return at.tp;
    case Group::Cp: return at.cp;
    case Group::Ep: return data % ep_;
    case Group::DpCp: return data;
    case Group::Edp: return data / ep_;
    case Group::Pp: return at.pp;
    case Group::Embedding: return at.pp == 0 ? 0 : 1;
    case Group::World: return rank;
    case Group::DpCpShard: return data % dense_.size;
    case Group::DpCpCopy: return data / dense_.size % dense_.count;
    case Group::EdpShard: return data / ep_ % expert_.size;
    case Group::EdpCopy: return data / ep_ / expert_.size % expert_.count;
  }
  TY_CHECK(false, "unknown group");
}

std::vector<std::int64_t> Mesh::members(Group group, std::int64_t rank) const {
  Coordinates at = coordinates(rank);
  if (group == Group::Embedding && at.pp != 0 && at.pp != pp_ - 1) return {};
  const std::int64_t data = at.dp * cp_ + at.cp;
  const std::int64_t own_index = group_index(group, rank);
  std::vector<std::int64_t> out;
  out.reserve(static_cast<std::size_t>(group_size(group)));
  for (std::int64_t i = 0; i < group_size(group); ++i) {
    Coordinates member = at;
    std::int64_t member_data = data;
    switch (group) {
      case Group::Tp: member.tp = i; break;
      case Group::Cp: member_data = at.dp * cp_ + i; break;
      case Group::Ep: member_data = data / ep_ * ep_ + i; break;
      case Group::DpCp: member_data = i; break;
      case Group::Edp: member_data = i * ep_ + data % ep_; break;
      case Group::Pp: member.pp = i; break;
      case Group::Embedding: member.pp = i == 0 ? 0 : pp_ - 1; break;
      case Group::World: member = coordinates(i); break;
      case Group::DpCpShard: member_data = data + (i - own_index); break;
      case Group::DpCpCopy: member_data = data + (i - own_index) * dense_.size; break;
      case Group::EdpShard: member_data = data + (i - own_index) * ep_; break;
      case Group::EdpCopy: member_data = data + (i - own_index) * ep_ * expert_.size; break;
    }
    if (group != Group::World) {
      member.cp = member_data % cp_;
      member.dp = member_data / cp_;
    }
    out.push_back(this->rank(member));
  }
  return out;
}

Sharding sharding(const ParallelPlan& plan, Group group) {
  TY_CHECK(group == Group::DpCp || group == Group::Edp, "only what data-parallel ranks hold alike is sharded");
  const bool dense = group == Group::DpCp;
  const Sharding hybrid =
      dense ? Sharding{Group::DpCpShard, Group::DpCpCopy} : Sharding{Group::EdpShard, Group::EdpCopy};
  if (plan.zero_stage == 0 || plan.zero_shard_size == 1) return {hybrid.shards, group};
  if (Mesh(plan).group_size(hybrid.shards) == 1) return {group, hybrid.copies};
  return hybrid;
}

}  // namespace trainyard
