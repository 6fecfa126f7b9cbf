// Scenario: model, plan, cluster, faults and policies in one file, each inline or by reference
// to another file. What `trainyard sim run` takes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "models/plan/parallel_plan.h"
#include "models/spec/cluster_spec.h"
#include "models/spec/fault_spec.h"
#include "models/spec/model_spec.h"
#include "models/spec/policy_spec.h"
#include "models/spec/training_spec.h"
#include "models/spec/validation_spec.h"

namespace trainyard {

struct Scenario {
  std::string name;
  std::string description;
  std::uint64_t seed = 1;
  ModelSpec model;
  ParallelPlan plan;
  ClusterSpec cluster;
  FaultSpec faults;
  /// The first is the one under test; reports set the others beside it.
  std::vector<PolicySpec> policies;
  /// Wall-clock length of the simulated run; 0: only one step is simulated.
  double duration_s = 0;
  /// Name of the software-stack profile: scenarios/profiles/stack-<name>.json.
  std::string stack = "default";
  /// What `exec run` needs beyond that. Paths are as seen from the working directory.
  std::optional<TrainingSpec> training;
  /// What `plan validate` asks of the plan beyond soundness. Paths likewise.
  ValidationSpec validation;

  /// Parts as they were read, references followed: JSON with sorted keys. Whoever compares scenarios compares these.
  struct Written {
    std::string model, plan, cluster, faults;
    std::vector<std::string> policies;
  } written;
};

/// Reads a scenario file and what it refers to (paths relative to the file that names them),
/// validates everything and returns all problems found.
Result<Scenario> load_scenario(const std::string& file);

/// Policies in place of a scenario's own: a JSON list as a scenario has it, written under `path` of `file`, from where
/// its references are followed.
struct OtherPolicies {
  std::string list, file, path;
};
Result<Scenario> load_scenario(const std::string& file, const OtherPolicies& policies);

/// The same from text; `file` is used in messages and to resolve references.
Result<Scenario> parse_scenario(std::string_view text, const std::string& file);

Result<ModelSpec> load_model(const std::string& file);
Result<ClusterSpec> load_cluster(const std::string& file);

}  // namespace trainyard
