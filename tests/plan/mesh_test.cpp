// Ranks and coordinates, groups and their members.
#include <catch2/catch.hpp>

#include <numeric>
#include <set>

#include "models/plan/mesh.h"

using namespace trainyard;

namespace {

ParallelPlan plan_of(const std::string& order) {
  ParallelPlan plan;
  plan.tp = 2;
  plan.cp = 2;
  plan.ep = 4;
  plan.pp = 3;
  plan.dp = 4;
  plan.order = order;
  return plan;
}

ParallelPlan hybrid_plan(std::int64_t shard_size) {
  ParallelPlan plan = plan_of("tp-cp-ep-dp-pp");
  plan.ep = 2;
  plan.zero_stage = 1;
  plan.zero_shard_size = shard_size;
  return plan;
}

}  // namespace

TEST_CASE("ranks and coordinates are one to one", "[plan]") {
  for (const char* order : {"tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp"}) {
    const Mesh mesh(plan_of(order));
    for (std::int64_t rank = 0; rank < mesh.ranks(); ++rank) CHECK(mesh.rank(mesh.coordinates(rank)) == rank);
  }
  // Megatron's default order: tp, then cp, then dp, then pp.
  CHECK(Mesh(plan_of("tp-cp-ep-dp-pp")).coordinates(2 * 2 * 4) == Coordinates{0, 0, 1, 0});
  CHECK(Mesh(plan_of("tp-cp-ep-pp-dp")).coordinates(2 * 2) == Coordinates{0, 0, 1, 0});
}

TEST_CASE("each group kind partitions the ranks, and members agree on order", "[plan]") {
  for (const char* order : {"tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp"}) {
    ParallelPlan plan = hybrid_plan(2);
    plan.order = order;
    const Mesh mesh(plan);
    for (const Group group : {Group::Tp, Group::Cp, Group::Ep, Group::DpCp, Group::Edp, Group::Pp, Group::World,
                              Group::DpCpShard, Group::DpCpCopy, Group::EdpShard, Group::EdpCopy}) {
      std::set<std::int64_t> seen;
      for (std::int64_t rank = 0; rank < mesh.ranks(); ++rank) {
        const std::vector<std::int64_t> members = mesh.members(group, rank);
        REQUIRE(static_cast<std::int64_t>(members.size()) == mesh.group_size(group));
        CHECK(members[static_cast<std::size_t>(mesh.group_index(group, rank))] == rank);
        CHECK(mesh.members(group, members.front()) == members);
        seen.insert(members.begin(), members.end());
      }
      CHECK(static_cast<std::int64_t>(seen.size()) == mesh.ranks());
    }
  }
}

TEST_CASE("expert groups fold into context and data parallel ranks", "[plan]") {
  const Mesh mesh(plan_of("tp-cp-ep-dp-pp"));
  // ep 4 over cp 2: two neighbouring dp ranks, both their context ranks.
  CHECK(mesh.members(Group::Ep, 0) == std::vector<std::int64_t>{0, 2, 4, 6});
  CHECK(mesh.members(Group::Edp, 0) == std::vector<std::int64_t>{0, 8});
}

TEST_CASE("hybrid sharding puts blocks of neighbours together, and copies across them", "[plan]") {
  // Eight ranks hold what is dense, and four each half of the experts; tp 2 puts them two apart.
  const Mesh mesh(hybrid_plan(4));
  CHECK(mesh.members(Group::DpCpShard, 10) == std::vector<std::int64_t>{8, 10, 12, 14});
  CHECK(mesh.members(Group::DpCpCopy, 10) == std::vector<std::int64_t>{2, 10});
  // All four ranks of an expert share one copy of it.
  CHECK(mesh.group_size(Group::EdpShard) == 1);
  CHECK(sharding(hybrid_plan(4), Group::Edp).shards == Group::Edp);
  const Mesh halves(hybrid_plan(2));
  CHECK(halves.members(Group::EdpShard, 2) == std::vector<std::int64_t>{2, 6});
  CHECK(halves.members(Group::EdpCopy, 2) == std::vector<std::int64_t>{2, 10});
}

TEST_CASE("what is sharded lies on as many ranks as the plan says, in as many copies as are left", "[plan]") {
  for (const std::int64_t size : {0, 1, 2, 4, 8}) {
    for (const Group group : {Group::DpCp, Group::Edp}) {
      const ParallelPlan plan = hybrid_plan(size);
      const Mesh mesh(plan);
      const std::int64_t whole = mesh.group_size(group), shards = size == 0 ? whole : std::min(size, whole);
      CHECK(mesh.group_size(sharding(plan, group).shards) == shards);
      CHECK(mesh.group_size(sharding(plan, group).copies) == whole / shards);
    }
  }
}
