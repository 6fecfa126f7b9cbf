// Rules of ClusterSpec and PolicySpec.

#include <cmath>

#include <fmt/format.h>

#include "models/spec/cluster_spec.h"
#include "models/spec/json_reader.h"
#include "models/spec/policy_spec.h"

namespace trainyard {

Problems validate(const ClusterSpec& cluster, const std::string& path) {
  RuleChecker rule(path);
  rule.expect_positive(
      {{"nodes", cluster.nodes}, {"gpus_per_node", cluster.gpus_per_node}, {"nics_per_node", cluster.nics_per_node}});
  for (std::size_t i = 0; i < cluster.tiers.size(); ++i)
    rule.expect(cluster.tiers[i].nodes_per_group >= 1, fmt::format("tiers[{}].nodes_per_group", i),
                std::to_string(cluster.tiers[i].nodes_per_group), "must be at least 1", "give a positive count");
  rule.expect(is_profile_name(cluster.hardware), "hardware", cluster.hardware,
              "must be the name of a profile, not a path", "use one of scenarios/profiles/<name>.json");
  if (!rule.ok()) return rule.take();
  rule.expect(cluster.gpus_per_node % cluster.nics_per_node == 0, "nics_per_node",
              std::to_string(cluster.nics_per_node),
              fmt::format("must divide gpus_per_node = {}, so that GPUs share NICs evenly", cluster.gpus_per_node),
              "use 8, 4, 2 or 1 for 8 GPUs");
  for (std::size_t i = 1; i < cluster.tiers.size(); ++i) {
    const std::int64_t below = cluster.tiers[i - 1].nodes_per_group, here = cluster.tiers[i].nodes_per_group;
    rule.expect(here > below && here % below == 0, fmt::format("tiers[{}].nodes_per_group", i), std::to_string(here),
                fmt::format("must be a larger multiple of the tier below ({})", below),
                "list tiers from the leaf up, whole groups inside groups");
  }
  return rule.take();
}

double PolicySpec::recovery_s() const {
  return detection_timeout_s + diagnosis_s + fence_s + allocate_s + process_start_s + communicators_s + load_state_s +
         first_step_s;
}

Problems validate(const PolicySpec& policy, const std::string& path) {
  RuleChecker rule(path);
  rule.expect(policy.checkpoint_interval_s == 0 || policy.checkpoint_interval_s >= 1e-3, "checkpoint_interval_s",
              fmt::format("{:g}", policy.checkpoint_interval_s), "must be 0 for the optimum, or a millisecond at least",
              "give it in seconds");
  rule.expect(policy.checkpoint_interval_s > 0 || policy.checkpoint_stall_s > 0, "checkpoint_stall_s", "0",
              "must be positive when the interval is left to the optimum",
              "give checkpoint_interval_s, or the stall of a save");
  rule.expect(policy.repair_median_s > 0, "repair_median_s", "0", "must be positive",
              "give the median time of a repair");
  return rule.take();
}

}  // namespace trainyard
