// A scenario made ready to simulate: lowered, with the profiles that it names.
#pragma once

#include <filesystem>
#include <string>

#include "models/cost/cost.h"
#include "models/program/program.h"
#include "models/spec/scenario.h"

namespace trainyard::cli {

/// Where the profiles that a scenario names were found.
struct ProfileFiles {
  std::string hardware, stack;
};

struct Job {
  std::string file;  // the scenario's, as the user named it
  ProfileFiles profiles;
  Scenario scenario;
  StepProgram program;
  HardwareProfile hardware;
  StackProfile stack;

  [[nodiscard]] CostModel cost() const { return CostModel(hardware, stack, scenario.plan); }
  [[nodiscard]] std::int64_t nodes() const {
    return (scenario.plan.ranks() + scenario.cluster.gpus_per_node - 1) / scenario.cluster.gpus_per_node;
  }
  /// Device memory of the stage that needs most.
  [[nodiscard]] double memory_peak_bytes() const;
  [[nodiscard]] std::size_t fullest_stage() const;
};

/// The scenarios that come with the program: in share/trainyard beside a relocated binary's folder, or in the sources.
std::filesystem::path shipped_scenarios();

/// Looks in $TRAINYARD_PROFILES, ./profiles, beside the scenario, and in those that come with the program.
Result<ProfileFiles> find_profiles(const Scenario& scenario, const std::string& scenario_file);

struct Profiles {
  HardwareProfile hardware;
  StackProfile stack;
};
/// Also checks that the stack speaks of the hardware, and the hardware of the plan's precision.
Result<Profiles> load_profiles(const Scenario& scenario, const std::string& scenario_file, const ProfileFiles& files);

/// The stack profile that names this framework and may be used with this hardware, of several the one that names most
/// of it. Else the default of that hardware and time: "default-..." or "default".
std::string stack_for(const std::string& framework, const std::string& hardware, bool before_fused_attention,
                      const std::string& scenario_file);

/// Loads the scenario and its profiles, and lowers it.
Result<Job> prepare(const std::string& scenario_file);
/// The same of a scenario that was loaded from `scenario_file`.
Result<Job> prepare(Scenario scenario, const std::string& scenario_file);

/// Infeasible when a stage does not fit the device.
Problems check_memory(const Job& job);

}  // namespace trainyard::cli
