// What a data-parallel replica is: whole nodes, whole expert groups, and whole copies of the state where there are
// some.
#include <catch2/catch.hpp>

#include "models/plan/replica_layout.h"

using namespace trainyard;

namespace {

ParallelPlan plan_over(std::int64_t dp, std::int64_t zero_stage, std::int64_t shard_size) {
  ParallelPlan plan;
  plan.dp = dp;
  plan.zero_stage = zero_stage;
  plan.zero_shard_size = shard_size;
  return plan;
}

}  // namespace

TEST_CASE("without sharding every node that holds whole replicas holds all", "[plan]") {
  const ReplicaLayout layout = replica_layout(plan_over(64, 0, 0), 8);
  CHECK(layout.replicas == 8);
  CHECK(layout.hold_all);
}

TEST_CASE("what all data-parallel ranks share, no replica holds", "[plan]") {
  const ReplicaLayout layout = replica_layout(plan_over(64, 3, 0), 8);
  CHECK(layout.replicas == 8);
  CHECK(!layout.hold_all);
  CHECK(!replica_layout(plan_over(64, 3, 64), 8).hold_all);
}

TEST_CASE("under hybrid sharding a replica is whole copies, and holds all", "[plan]") {
  const ReplicaLayout by_node = replica_layout(plan_over(64, 3, 8), 8);
  CHECK(by_node.replicas == 8);
  CHECK(by_node.hold_all);
  const ReplicaLayout two_nodes = replica_layout(plan_over(64, 1, 16), 8);
  CHECK(two_nodes.replicas == 4);
  CHECK(two_nodes.hold_all);
  CHECK(two_nodes.positions == std::vector<std::int64_t>{0, 1, 2, 3, 4, 5, 6, 7});
  const ReplicaLayout half_a_node = replica_layout(plan_over(64, 1, 4), 8);
  CHECK(half_a_node.replicas == 8);
  CHECK(half_a_node.hold_all);
}

TEST_CASE("a replica holds its experts too, or not all", "[plan]") {
  ParallelPlan plan = plan_over(64, 1, 8);
  plan.ep = 4;  // eight of the sixteen ranks of an expert, four apart: half of the job
  CHECK(replica_layout(plan, 8).replicas == 2);
  CHECK(replica_layout(plan, 8).hold_all);
  plan.ep = 8;  // all eight ranks of an expert share it
  CHECK(replica_layout(plan, 8).replicas == 8);
  CHECK(!replica_layout(plan, 8).hold_all);
}
