#include "cli/job.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "models/base/units.h"

namespace trainyard::cli {

namespace {

namespace fs = std::filesystem;

constexpr char kStackPrefix[] = "stack-";

}  // namespace

fs::path shipped_scenarios() {
  std::error_code error;
  const fs::path binary = fs::read_symlink("/proc/self/exe", error);
  if (!error) {
    const fs::path beside = binary.parent_path() / "../share/trainyard/scenarios";
    if (fs::exists(beside, error)) return beside;
  }
  return TRAINYARD_SCENARIO_DIR;
}

namespace {

std::vector<fs::path> profile_folders(const std::string& scenario_file) {
  std::vector<fs::path> folders{fs::path(scenario_file).parent_path() / "profiles",
                                fs::path(scenario_file).parent_path() / "../profiles"};
  folders.insert(folders.begin(), "profiles");  // what `calibrate` writes here
  if (const char* named = std::getenv("TRAINYARD_PROFILES")) folders.insert(folders.begin(), named);
  folders.push_back(shipped_scenarios() / "profiles");
  return folders;
}

// Names of the profiles of one kind that there are.
std::set<std::string> profile_names(const std::string& scenario_file, const std::string& prefix) {
  std::set<std::string> names;
  for (const fs::path& folder : profile_folders(scenario_file)) {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(folder, error)) {
      const std::string stem = entry.path().stem().string();
      const bool stack = stem.rfind(kStackPrefix, 0) == 0;
      if (entry.path().extension() == ".json" && stack == !prefix.empty()) names.insert(stem.substr(prefix.size()));
    }
  }
  return names;
}

// The profile of this name in the first of the places where profiles live that has one.
Result<std::string> find_profile(const std::string& scenario_file, const std::string& prefix, const std::string& name,
                                 const std::string& path) {
  for (const fs::path& folder : profile_folders(scenario_file)) {
    std::error_code error;
    const fs::path file = folder / (prefix + name + ".json");
    if (fs::exists(file, error)) return file.string();
  }
  return Problem{scenario_file, path, "\"" + name + "\"", "there is no such profile",
                 fmt::format("use one of {}, or put a file of this name into a folder \"profiles\" beside the scenario",
                             fmt::join(profile_names(scenario_file, prefix), ", "))};
}

}  // namespace

std::size_t Job::fullest_stage() const {
  const auto fullest =
      std::max_element(program.stages.begin(), program.stages.end(),
                       [](const StageProgram& a, const StageProgram& b) { return a.arena_bytes < b.arena_bytes; });
  return static_cast<std::size_t>(fullest - program.stages.begin());
}

double Job::memory_peak_bytes() const { return cost().process_peak_bytes(program, program.stages[fullest_stage()]); }

Result<ProfileFiles> find_profiles(const Scenario& scenario, const std::string& scenario_file) {
  const Result<std::string> hardware = find_profile(scenario_file, "", scenario.cluster.hardware, "$.cluster.hardware");
  if (!hardware) return hardware.problems();
  const Result<std::string> stack = find_profile(scenario_file, kStackPrefix, scenario.stack, "$.stack");
  if (!stack) return stack.problems();
  return ProfileFiles{hardware.value(), stack.value()};
}

Result<Profiles> load_profiles(const Scenario& scenario, const std::string& scenario_file, const ProfileFiles& files) {
  const Result<HardwareProfile> hardware = load_hardware_profile(files.hardware);
  if (!hardware) return hardware.problems();
  const Result<StackProfile> stack = load_stack_profile(files.stack);
  if (!stack) return stack.problems();
  const std::vector<std::string>& known = stack.value().hardware;
  if (!known.empty() && std::find(known.begin(), known.end(), hardware.value().name) == known.end()) {
    return Problem{
        scenario_file, "$.stack", "\"" + stack.value().name + "\"",
        fmt::format("was measured on {} only, and the cluster is of {}", fmt::join(known, ", "), hardware.value().name),
        "use \"default\", or give a stack profile for this hardware"};
  }
  const auto is_asked_for = [&](const AttentionCurve& its) { return its.kernel == stack.value().attention; };
  const std::vector<AttentionCurve>& kernels = hardware.value().attention;
  const bool by_name = stack.value().attention != "fastest" && stack.value().attention != "materialised";
  if (by_name && std::none_of(kernels.begin(), kernels.end(), is_asked_for)) {
    return Problem{files.stack, "$.attention.kernel", "\"" + stack.value().attention + "\"",
                   "has not been measured on " + hardware.value().name, "use \"fastest\", or measure it"};
  }
  if (hardware.value().of_processors() && hardware.value().rates_for(scenario.plan) == nullptr) {
    static constexpr const char* kPrecisions[] = {"bf16", "f32", "f64"};
    return Problem{
        files.hardware, "$.op_rates", "",
        fmt::format("has nothing measured for {} with {} threads a rank, which the plan of {} asks for",
                    kPrecisions[static_cast<int>(scenario.plan.precision)], scenario.plan.cpu_threads, scenario_file),
        "run trainyard calibrate on the machine, or change the plan"};
  }
  return Profiles{hardware.value(), stack.value()};
}

std::string stack_for(const std::string& framework, const std::string& hardware, bool before_fused_attention,
                      const std::string& scenario_file) {
  std::string best, otherwise = "default";
  std::size_t most = 0;
  for (const std::string& name : profile_names(scenario_file, kStackPrefix)) {
    const Result<std::string> file = find_profile(scenario_file, kStackPrefix, name, "");
    if (!file) continue;
    const Result<StackProfile> stack = load_stack_profile(file.value());
    if (!stack) continue;
    const std::vector<std::string>& known = stack.value().hardware;
    if (!known.empty() && std::find(known.begin(), known.end(), hardware) == known.end()) continue;
    const bool of_that_time = (stack.value().attention == "materialised") == before_fused_attention;
    if (!known.empty() && of_that_time && name.rfind("default-", 0) == 0) otherwise = name;
    for (const std::string& part : stack.value().frameworks)
      if (part.size() > most && framework.find(part) != std::string::npos) best = name, most = part.size();
  }
  return best.empty() ? otherwise : best;
}

Result<Job> prepare(const std::string& scenario_file) {
  Result<Scenario> scenario = load_scenario(scenario_file);
  if (!scenario) return scenario.problems();
  return prepare(std::move(scenario).value(), scenario_file);
}

Result<Job> prepare(Scenario scenario, const std::string& scenario_file) {
  Job job;
  job.scenario = std::move(scenario);
  const Result<ProfileFiles> profiles = find_profiles(job.scenario, scenario_file);
  if (!profiles) return profiles.problems();
  job.profiles = profiles.value();
  Result<Profiles> loaded = load_profiles(job.scenario, scenario_file, job.profiles);
  if (!loaded) return loaded.problems();
  job.hardware = loaded.value().hardware;
  job.stack = loaded.value().stack;
  job.file = scenario_file;
  job.program = lower(job.scenario.model, job.scenario.plan);
  return job;
}

Problems check_memory(const Job& job) {
  const double peak = job.memory_peak_bytes();
  if (peak <= job.hardware.memory_bytes) return {};
  Problem problem;
  problem.file = job.file;
  problem.path = "$.plan";
  problem.value = fmt::format("{} a GPU", format_bytes(peak));
  problem.rule = fmt::format("stage {} does not fit the {} of {}", job.fullest_stage(),
                             format_bytes(job.hardware.memory_bytes), job.hardware.name);
  problem.fix =
      "recompute more, shard more (tp, pp, zero_stage, a larger zero_shard_size), or use smaller micro-batches";
  problem.kind = ProblemKind::Infeasible;
  return {problem};
}

}  // namespace trainyard::cli
