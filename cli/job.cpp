#include "cli/job.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include <fmt/format.h>

#include "models/base/units.h"

namespace trainyard::cli {

namespace {

namespace fs = std::filesystem;

// The first of the places where profiles live that has this one; else the last, for the message.
std::string find_profile(const std::string& scenario_file, const std::string& name) {
  std::vector<fs::path> folders{fs::path(scenario_file).parent_path() / "profiles",
                                fs::path(scenario_file).parent_path() / "../profiles"};
  if (const char* named = std::getenv("TRAINYARD_PROFILES")) folders.insert(folders.begin(), named);
  folders.emplace_back(TRAINYARD_PROFILE_DIR);
  for (const fs::path& folder : folders) {
    std::error_code error;
    if (fs::exists(folder / (name + ".json"), error)) return (folder / (name + ".json")).string();
  }
  return (folders.back() / (name + ".json")).string();
}

}  // namespace

std::size_t Job::fullest_stage() const {
  const auto fullest =
      std::max_element(program.stages.begin(), program.stages.end(),
                       [](const StageProgram& a, const StageProgram& b) { return a.arena_bytes < b.arena_bytes; });
  return static_cast<std::size_t>(fullest - program.stages.begin());
}

double Job::memory_peak_bytes() const { return cost().process_peak_bytes(program.stages[fullest_stage()].arena_bytes); }

Result<Job> prepare(const std::string& scenario_file) {
  Result<Scenario> scenario = load_scenario(scenario_file);
  if (!scenario) return scenario.problems();
  Job job;
  job.scenario = std::move(scenario).value();
  Result<HardwareProfile> hardware = load_hardware_profile(find_profile(scenario_file, job.scenario.cluster.hardware));
  if (!hardware) return hardware.problems();
  Result<StackProfile> stack = load_stack_profile(find_profile(scenario_file, "stack-" + job.scenario.stack));
  if (!stack) return stack.problems();
  job.hardware = std::move(hardware).value();
  job.stack = std::move(stack).value();
  job.program = lower(job.scenario.model, job.scenario.plan);
  return job;
}

Problems check_memory(const Job& job) {
  const double peak = job.memory_peak_bytes();
  if (peak <= job.hardware.memory_bytes) return {};
  Problem problem;
  problem.path = "$.plan";
  problem.value = fmt::format("{} a GPU", format_bytes(peak));
  problem.rule = fmt::format("stage {} does not fit the {} of {}", job.fullest_stage(),
                             format_bytes(job.hardware.memory_bytes), job.hardware.name);
  problem.fix = "recompute more, shard more (tp, pp, zero_stage), or use smaller micro-batches";
  problem.kind = ProblemKind::Infeasible;
  return {problem};
}

}  // namespace trainyard::cli
