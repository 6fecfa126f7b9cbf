// Rules of recovery policies: what would make a rehearsal mean something else than it says.
#include <catch2/catch.hpp>

#include "models/spec/policy_spec.h"

using namespace trainyard;

namespace {

PolicySpec good_policy() {
  PolicySpec policy;
  policy.name = "good";
  policy.spare_nodes = 10;
  return policy;
}

/// The paths of the problems.
std::vector<std::string> paths(const PolicySpec& policy) {
  std::vector<std::string> found;
  for (const Problem& problem : validate(policy)) found.push_back(problem.path);
  return found;
}

using Paths = std::vector<std::string>;

}  // namespace

TEST_CASE("each layer of the detection ladder outlasts the one below it") {
  CHECK(paths(good_policy()).empty());
  PolicySpec policy = good_policy();
  policy.timeouts.collective_s = 20;  // shorter than a queue pair's retries: NCCL is killed before it can say why
  CHECK(paths(policy) == Paths{"$.timeouts.collective_s"});
  policy = good_policy();
  policy.timeouts.training_s = policy.timeouts.process_group_s;
  CHECK(paths(policy) == Paths{"$.timeouts.training_s"});
  policy = good_policy();
  policy.timeouts.rendezvous_s = 10;
  CHECK(paths(policy) == Paths{"$.timeouts.rendezvous_s"});
}

TEST_CASE("a cadence has what it needs and nothing that it ignores") {
  PolicySpec policy = good_policy();
  policy.checkpoints.cadence = CheckpointCadence::Fixed;
  CHECK(paths(policy) == Paths{"$.checkpoint_interval_s"});
  policy.checkpoint_interval_s = 60;
  CHECK(paths(policy).empty());
  policy.checkpoints.cadence = CheckpointCadence::Adaptive;
  CHECK(paths(policy) == Paths{"$.checkpoint_interval_s"});
}

TEST_CASE("spares, stragglers and readmission add up") {
  PolicySpec policy = good_policy();
  policy.spares.hot = 8;
  policy.spares.cold = 3;
  CHECK(paths(policy) == Paths{"$.spares"});
  policy = good_policy();
  policy.stragglers.replace_at_slowdown = 0.9;
  CHECK(paths(policy) == Paths{"$.stragglers.replace_at_slowdown"});
  policy = good_policy();
  policy.readmission.lemon_ejections = 5;
  policy.readmission.retire_ejections = 3;
  CHECK(paths(policy) == Paths{"$.readmission.retire_ejections"});
}
