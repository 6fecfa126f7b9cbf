// trainyard plan validate: everything that a team asks of a plan before it is executed, and the lock that says it held.

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <iostream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/interrupt.h"
#include "cli/plan_lock.h"
#include "cli/simulation.h"
#include "cli/terminal.h"
#include "cli/version.h"
#include "models/base/units.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

struct Options {
  std::string job, lock;
};

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm day{};
  gmtime_r(&now, &day);
  return fmt::format("{:04}-{:02}-{:02}", day.tm_year + 1900, day.tm_mon + 1, day.tm_mday);
}

template <class Of>
double mean_over(const std::vector<RunResult>& runs, Of of) {
  double sum = 0;
  for (const RunResult& run : runs) sum += of(run);
  return sum / static_cast<double>(runs.size());
}

// What one scenario gave: the first policy is the one under test.
LockedScenario outcome_of(const Job& job, const Simulated& simulated, std::int64_t seeds) {
  LockedScenario out;
  out.file = job.file;
  out.seeds = seeds;
  out.step_time_s = simulated.step.time_s;
  std::uint64_t hash = simulated.step.trace_hash;
  if (!simulated.runs.empty()) {
    const std::vector<RunResult>& runs = simulated.runs.front();
    hash = runs.front().trace_hash;
    out.effective_training_time = mean_over(runs, [](const RunResult& run) { return run.effective_training_time; });
    out.recovery_s = mean_over(runs, [](const RunResult& run) { return run.median_recovery_s(); });
  }
  out.trace_hash = fmt::format("{:016x}", hash);
  return out;
}

// A scenario against the limits. `healthy_step_s` is the job's own.
Problems judge(const LockedScenario& outcome, const ValidationSpec& limits, bool ended_well) {
  Problems problems;
  const auto fail = [&](const char* path, std::string value, std::string rule) {
    problems.push_back({outcome.file, path, std::move(value), std::move(rule),
                        "change the plan, the policy, or what is asked of them", ProblemKind::Infeasible});
  };
  if (!ended_well) fail("$", "", "did not recover");
  if (limits.min_effective_training_time && outcome.effective_training_time &&
      *outcome.effective_training_time < *limits.min_effective_training_time)
    fail("$.policies[0]", fmt::format("{:.4f}", *outcome.effective_training_time),
         fmt::format("effective training time is below the {} that is asked", *limits.min_effective_training_time));
  if (limits.max_recovery_s && outcome.recovery_s && *outcome.recovery_s > *limits.max_recovery_s)
    fail("$.policies[0]", format_duration(*outcome.recovery_s),
         fmt::format("a median recovery takes longer than the {} that are allowed",
                     format_duration(*limits.max_recovery_s)));
  return problems;
}

class Validation {
 public:
  Validation(const Options& options, const Context& context) : options_(options), context_(context) {}

  // The lock's entry, or what stands in its way.
  Result<LockedPlan> run() {
    Result<Job> prepared = prepare(options_.job);
    if (!prepared) return prepared.problems();
    const Job& job = prepared.value();
    Problems problems = check(job.program);
    for (Problem& problem : problems) problem.kind = ProblemKind::Infeasible;
    const Problems memory = check_memory(job);
    problems.insert(problems.end(), memory.begin(), memory.end());
    if (!problems.empty()) return problems;
    const Result<PlanHashes> hashes = hash_plan(job.scenario, job.program, job.profiles);
    if (!hashes) return hashes.problems();
    LockedPlan plan;
    plan.commit = commit_id();
    plan.date = today();
    plan.hashes = hashes.value();
    plan.memory_peak_bytes = job.memory_peak_bytes();
    for (const StageProgram& stage : job.program.stages) plan.arena_bytes.push_back(stage.arena_bytes);
    problems = rehearse(job, plan, job.scenario.validation);
    if (!problems.empty()) return problems;
    plan.step_time_s = plan.scenarios.front().step_time_s;
    for (const std::string& file : job.scenario.validation.scenarios) {
      const Problems found = rehearse_file(file, job, plan);
      problems.insert(problems.end(), found.begin(), found.end());
    }
    if (problems.empty()) problems = unjudged(job, plan);
    if (!problems.empty()) return problems;
    return plan;
  }

 private:
  // Limits that nothing was held to.
  static Problems unjudged(const Job& job, const LockedPlan& plan) {
    const auto any = [&](std::optional<double> LockedScenario::*what) {
      return std::any_of(plan.scenarios.begin(), plan.scenarios.end(),
                         [&](const LockedScenario& scenario) { return (scenario.*what).has_value(); });
    };
    const ValidationSpec& limits = job.scenario.validation;
    Problems problems;
    const auto missing = [&](const char* path, double limit) {
      problems.push_back({job.file, path, fmt::format("{:g}", limit), "is a limit that no scenario can be held to",
                          "name a scenario with failures and a duration in $.validation.scenarios"});
    };
    if (limits.min_effective_training_time && !any(&LockedScenario::effective_training_time))
      missing("$.validation.min_effective_training_time", *limits.min_effective_training_time);
    if (limits.max_recovery_s && !any(&LockedScenario::recovery_s))
      missing("$.validation.max_recovery_s", *limits.max_recovery_s);
    return problems;
  }

  Problems rehearse(const Job& job, LockedPlan& plan, const ValidationSpec& limits) {
    SimulationOptions simulation;
    simulation.seeds = limits.seeds;
    if (!context_.quiet) simulation.progress = context_.progress;
    const Result<Simulated> simulated = simulate(job, simulation);
    if (!simulated) return simulated.problems();
    plan.scenarios.push_back(outcome_of(job, simulated.value(), limits.seeds));
    const LockedScenario& outcome = plan.scenarios.back();
    Problems problems = judge(outcome, limits, ended_well(simulated.value()));
    const bool own = plan.scenarios.size() == 1;
    if (own && limits.max_step_time_s && outcome.step_time_s > *limits.max_step_time_s)
      problems.push_back({job.file, "$.validation.max_step_time_s", fmt::format("{:g}", *limits.max_step_time_s),
                          fmt::format("a step takes {}", format_duration(outcome.step_time_s)),
                          "change the plan, or allow more", ProblemKind::Infeasible});
    return problems;
  }

  // Another scenario of the same model and plan.
  Problems rehearse_file(const std::string& file, const Job& job, LockedPlan& plan) {
    const Result<Job> prepared = prepare(file);
    if (!prepared) return prepared.problems();
    const Job& other = prepared.value();
    if (dump(other.program) != dump(job.program))
      return {{file, "$.plan", "",
               fmt::format("does not rehearse the plan of {}: its step program is another", job.file),
               "let both name the same model and plan files"}};
    return rehearse(other, plan, job.scenario.validation);
  }

  const Options& options_;
  const Context& context_;
};

json report_of(const std::string& lock_file, const LockedPlan& plan) {
  json scenarios = json::array();
  for (const LockedScenario& scenario : plan.scenarios) {
    scenarios.push_back({{"file", scenario.file},
                         {"step_time_s", scenario.step_time_s},
                         {"effective_training_time",
                          scenario.effective_training_time ? json(*scenario.effective_training_time) : json(nullptr)},
                         {"recovery_s", scenario.recovery_s ? json(*scenario.recovery_s) : json(nullptr)},
                         {"trace_hash", scenario.trace_hash}});
  }
  return {{"valid", true},
          {"lock", lock_file},
          {"program", plan.hashes.program},
          {"step_time_s", plan.step_time_s},
          {"memory_peak_bytes", plan.memory_peak_bytes},
          {"scenarios", scenarios}};
}

std::string text_of(const std::string& lock_file, const LockedPlan& plan) {
  std::vector<std::vector<std::string>> rows;
  for (const LockedScenario& scenario : plan.scenarios) {
    rows.push_back(
        {scenario.file, format_duration(scenario.step_time_s),
         scenario.effective_training_time ? fmt::format("{:.2f}%", 100 * *scenario.effective_training_time) : "",
         scenario.recovery_s ? format_duration(*scenario.recovery_s) : "", scenario.trace_hash});
  }
  return fmt::format("valid: the program {} is proved sound, fits ({} a device), and came through {} scenario{}\n\n",
                     plan.hashes.program, format_bytes(plan.memory_peak_bytes), plan.scenarios.size(),
                     plan.scenarios.size() == 1 ? "" : "s") +
         table({"scenario", "step", "effective", "recovery", "trace"}, rows) + fmt::format("\n{}\n", lock_file);
}

int validate_plan(const Options& options, const Context& context) {
  end_in_order_on_signals();
  const Result<LockedPlan> plan = Validation(options, context).run();
  if (!plan) return fail(plan.problems(), context);
  const std::string lock_file = options.lock.empty() ? lock_file_of(options.job) : options.lock;
  LockedPlan locked = plan.value();
  for (LockedScenario& scenario : locked.scenarios)  // locks are kept beside jobs, and read from anywhere
    scenario.file =
        std::filesystem::proximate(scenario.file, std::filesystem::absolute(lock_file).parent_path()).string();
  const Problems problems = write_lock(lock_file, options.job, locked);
  if (!problems.empty()) return fail(problems, context);
  std::cout << (context.json ? report_of(lock_file, plan.value()).dump(2) + "\n" : text_of(lock_file, plan.value()));
  return kOk;
}

}  // namespace

void add_plan_validate(CLI::App& plan, Context& context) {
  CLI::App* command = add_command(
      plan, "validate", "Prove, fit and rehearse a plan, and lock what was seen: exec run asks for it",
      "  trainyard plan validate scenarios/tiny/train-llama.json\n"
      "  trainyard plan validate job.json --lock ci/plan.lock.json   # \"validation\" in the job says what is asked");
  auto options = std::make_shared<Options>();
  command->add_option("job", options->job, "Scenario file")->required();
  command->add_option("--lock", options->lock, "Lock file (default: plan.lock.json beside the job)");
  command->callback(
      [options, &context] { context.run = [options, &context] { return validate_plan(*options, context); }; });
}

}  // namespace trainyard::cli
