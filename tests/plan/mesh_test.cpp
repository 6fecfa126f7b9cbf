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
    const Mesh mesh(plan_of(order));
    for (const Group group : {Group::Tp, Group::Cp, Group::Ep, Group::DpCp, Group::Edp, Group::Pp, Group::World}) {
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
