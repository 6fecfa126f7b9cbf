// Rules of ClusterSpec and PolicySpec.

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

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
  const auto only_hashed = [&](bool is_default, const char* key, std::int64_t value) {
    rule.expect(cluster.routing == Routing::Ecmp || is_default, key, std::to_string(value),
                "means something only where flows are hashed: adaptive routing spreads their packets",
                "remove it, or set \"routing\": \"ecmp\"");
  };
  only_hashed(cluster.flows_per_channel == 1, "flows_per_channel", cluster.flows_per_channel);
  only_hashed(cluster.ecmp_seed == 0, "ecmp_seed", cluster.ecmp_seed);
  for (std::size_t i = 0; i < cluster.tiers.size(); ++i) {
    const FabricTier& tier = cluster.tiers[i];
    rule.expect(tier.uplinks <= tier.nodes_per_group * cluster.nics_per_node, fmt::format("tiers[{}].uplinks", i),
                std::to_string(tier.uplinks),
                fmt::format("must be at most nodes_per_group*nics_per_node = {}, as many as NICs below",
                            tier.nodes_per_group * cluster.nics_per_node),
                "lower it, or leave it out");
  }
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

double queue_pair_timeout_s(std::int64_t ib_timeout, std::int64_t retries) {
  return std::ldexp(4.096e-6, static_cast<int>(ib_timeout)) * static_cast<double>(retries);
}

double PolicySpec::recovery_s() const {
  return detection_timeout_s + diagnosis_s + fence_s + allocate_s + process_start_s + communicators_s + load_state_s +
         first_step_s;
}

namespace {

/// link < collective < process group < training < rendezvous.
void check_ladder(const DetectionLadder& ladder, RuleChecker& rule) {
  const std::array<std::pair<const char*, double>, 5> rungs{{{"link_s", ladder.link_s},
                                                             {"collective_s", ladder.collective_s},
                                                             {"process_group_s", ladder.process_group_s},
                                                             {"training_s", ladder.training_s},
                                                             {"rendezvous_s", ladder.rendezvous_s}}};
  for (std::size_t i = 1; i < rungs.size(); ++i) {
    const auto& [below, below_s] = rungs[i - 1];
    const auto& [name, value_s] = rungs[i];
    rule.expect(value_s > below_s, fmt::format("timeouts.{}", name), fmt::format("{:g}", value_s),
                fmt::format("must be longer than the layer below it, {} = {:g}, or it kills what that would report",
                            below, below_s),
                "order them link < collective < process_group < training < rendezvous");
  }
}

void check_spares(const PolicySpec& policy, RuleChecker& rule) {
  const std::int64_t hot = std::max<std::int64_t>(policy.spares.hot, 0);
  rule.expect(hot + policy.spares.cold <= policy.spare_nodes, "spares", fmt::format("{} + {}", hot, policy.spares.cold),
              fmt::format("hot and cold spares must be at most spare_nodes = {}", policy.spare_nodes),
              "raise spare_nodes, or keep fewer of them");
  const ReadmissionPolicy& readmission = policy.readmission;
  rule.expect(readmission.retire_ejections == 0 || readmission.retire_ejections >= readmission.lemon_ejections,
              "readmission.retire_ejections", std::to_string(readmission.retire_ejections),
              "must be at least lemon_ejections: a node is quarantined before it is retired", "raise it, or set it 0");
}

void check_cadence(const PolicySpec& policy, RuleChecker& rule) {
  rule.expect(policy.checkpoint_interval_s == 0 || policy.checkpoint_interval_s >= 1e-3, "checkpoint_interval_s",
              fmt::format("{:g}", policy.checkpoint_interval_s), "must be 0 for the optimum, or a millisecond at least",
              "give it in seconds");
  rule.expect(policy.checkpoint_interval_s > 0 || policy.checkpoint_stall_s > 0, "checkpoint_stall_s", "0",
              "must be positive when the interval is left to the optimum",
              "give checkpoint_interval_s, or the stall of a save");
  rule.expect(policy.checkpoint_interval_s > 0 || policy.checkpoints.cadence != CheckpointCadence::Fixed,
              "checkpoint_interval_s", "0", "a fixed cadence needs its interval",
              "give checkpoint_interval_s, or take young_daly or adaptive");
  rule.expect(policy.checkpoint_interval_s == 0 || policy.checkpoints.cadence != CheckpointCadence::Adaptive,
              "checkpoint_interval_s", fmt::format("{:g}", policy.checkpoint_interval_s),
              "means nothing to an adaptive cadence, which finds its own", "remove it, or take a fixed cadence");
}

}  // namespace

Problems validate(const PolicySpec& policy, const std::string& path) {
  RuleChecker rule(path);
  check_cadence(policy, rule);
  check_ladder(policy.timeouts, rule);
  check_spares(policy, rule);
  rule.expect(policy.stragglers.replace_at_slowdown == 0 || policy.stragglers.replace_at_slowdown > 1,
              "stragglers.replace_at_slowdown", fmt::format("{:g}", policy.stragglers.replace_at_slowdown),
              "must be above 1, or 0 to tolerate stragglers", "1.1 replaces a node that makes steps 10% longer");
  rule.expect(policy.repair_median_s > 0, "repair_median_s", "0", "must be positive",
              "give the median time of a repair");
  return rule.take();
}

}  // namespace trainyard
