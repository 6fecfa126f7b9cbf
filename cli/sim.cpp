// trainyard sim run: one scenario, simulated and reported. Its sisters sweep and compare are in sweep.cpp and
// compare.cpp.

#include <iostream>
#include <optional>

#include <fmt/format.h>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/interrupt.h"
#include "cli/job.h"
#include "cli/report.h"
#include "cli/simulation.h"
#include "cli/step_links.h"
#include "cli/version.h"
#include "models/base/units.h"
#include "store/store_file.h"

namespace trainyard::cli {

namespace {

struct Options {
  std::string scenario;
  std::optional<std::uint64_t> seed;
  bool no_store = false, allow_oom = false, explain = false;
  SimulationOptions simulation;
};

// What it is that runs, for whoever wants to run it again.
void announce(const Job& job, const Context& context) {
  if (context.quiet || context.progress == "none") return;
  const Scenario& its = job.scenario;
  if (context.progress == "ndjson") {
    const nlohmann::ordered_json line{
        {"seed", its.seed}, {"commit", commit_id()}, {"model", its.model.name}, {"gpus", its.plan.ranks()}};
    std::cerr << line.dump() + "\n";
    return;
  }
  std::cerr << fmt::format("seed {}, commit {}, {} on {} GPUs\n", its.seed, commit_id(), its.model.name,
                           format_count(its.plan.ranks()));
}

// In a scenario of one step, faults that strike when it is over.
void note_faults_that_came_late(const Job& job, const StepResult& step, bool as_json) {
  if (job.scenario.duration_s > 0) return;
  for (std::size_t i = 0; i < job.scenario.faults.injected.size(); ++i) {
    const double at_s = job.scenario.faults.injected[i].at_s;
    if (at_s < step.time_s) continue;
    const std::string note =
        fmt::format("$.faults.injected[{}] strikes at {:g} s, and the step is over at {:g} s", i, at_s, step.time_s);
    std::cerr << (as_json ? nlohmann::json{{"note", note}}.dump() : "note: " + note) + "\n";
  }
}

int run_scenario(const Options& options, const Context& context) {
  Result<Job> prepared = prepare(options.scenario);
  if (!prepared) return fail(prepared.problems(), context);
  Job job = std::move(prepared).value();
  if (options.seed) job.scenario.seed = *options.seed;
  const Problems memory = check_memory(job);
  if (!memory.empty() && !options.allow_oom) return fail(memory, context);
  announce(job, context);
  SimulationOptions simulation = options.simulation;
  if (!options.no_store)
    simulation.store_file = context.store_file.empty() ? store::default_store_file() : context.store_file;
  if (!context.quiet) simulation.progress = context.progress;
  end_in_order_on_signals();
  const Result<Simulated> result = simulate(job, simulation);
  if (!result) return fail(result.problems(), context);
  const Simulated& simulated = result.value();
  if (!context.quiet) note_faults_that_came_late(job, simulated.step, context.progress == "ndjson");
  nlohmann::ordered_json report = make_report(job, simulated);
  std::string text = context.json ? "" : report_text(report);
  if (options.explain) {
    report["explain"] = explain(job, simulated.step);
    text += explain_text(report["explain"], simulated.step.time_s);
  }
  std::cout << (context.json ? report.dump(2) + "\n" : text) << std::flush;
  return ended_well(simulated) ? kOk : kNotRecovered;
}

}  // namespace

void add_sim(CLI::App& app, Context& context) {
  CLI::App* sim = add_command(app, "sim", "Simulate",
                              "  trainyard sim run scenarios/01-grok1-100k-week.json\n"
                              "  trainyard sim sweep scenarios/01-grok1-100k-week.json --vary spare_nodes=50,100,200");
  sim->require_subcommand(1);
  CLI::App* run = add_command(
      *sim, "run", "Simulate a scenario: one step on the whole cluster, then the run over time",
      "  trainyard sim run scenarios/01-grok1-100k-week.json\n"
      "  trainyard sim run scenarios/02-llama3-405b-54-days.json --seeds 20\n"
      "  trainyard sim run scenarios/tiny/llama.json --timeline && trainyard run export latest -o trace.json\n"
      "  trainyard sim run my.json --json --no-store | jq .step.time_s");
  auto options = std::make_shared<Options>();
  run->add_option("scenario", options->scenario, "Scenario file")->required();
  run->add_option("--seed", options->seed, "Seed, instead of the scenario's")->check(check_seed);
  run->add_option("--seeds", options->simulation.seeds,
                  "Simulate this many seeds, from the seed on, and report their mean")
      ->check(CLI::Range(1, 100000));
  run->add_option("--jobs", options->simulation.jobs, "Simulations at a time (default: one per processor)")
      ->check(CLI::Range(0, 4096));
  run->add_flag("--unfold", options->simulation.unfold, "Simulate every rank on its own (slow beyond a thousand)");
  run->add_flag("--exact-states", options->simulation.exact_states,
                "Simulate every state of slow parts as it is, and not by its like (minutes for large jobs)");
  run->add_flag("--no-merge{false}", options->simulation.merge, "Simulate every op on its own");
  run->add_flag("--timeline", options->simulation.timeline, "Keep the step's timeline, for run export");
  run->add_flag("--explain", options->explain, "Say which links compute waits for, and which ranks the longest");
  run->add_flag("--allow-oom", options->allow_oom, "Simulate a plan that does not fit the device's memory");
  run->add_flag("--no-store", options->no_store, "Do not write to the run store");
  run->callback([options, &context] { context.run = [options, &context] { return run_scenario(*options, context); }; });
  add_sim_fuzz(*sim, context);
  add_sim_sweep(*sim, context);
  add_sim_compare(*sim, context);
}

}  // namespace trainyard::cli
