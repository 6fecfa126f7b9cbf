// trainyard sim run: one scenario, simulated and reported.

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <map>

#include <fmt/format.h>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/interrupt.h"
#include "cli/job.h"
#include "cli/report.h"
#include "cli/terminal.h"
#include "cli/version.h"
#include "models/base/stop.h"
#include "models/base/units.h"
#include "sim/run_simulator.h"
#include "sim/step_simulator.h"
#include "store/run_writer.h"
#include "store/store_file.h"

namespace trainyard::cli {

namespace {

struct Options {
  std::string scenario;
  std::optional<std::uint64_t> seed;
  std::int64_t seeds = 1;
  bool unfold = false, no_merge = false, timeline = false, no_store = false, allow_oom = false;
  int jobs = 0;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::int64_t peak_rss_bytes() {
  rusage own{}, children{};
  getrusage(RUSAGE_SELF, &own);
  getrusage(RUSAGE_CHILDREN, &children);
  return std::max(own.ru_maxrss, children.ru_maxrss) * 1024;
}

// Step times by state of degradation, each simulated once.
class StepMemo {
 public:
  StepMemo(const Job& job, const Options& options, std::string progress, Simulated& out)
      : job_(job), options_(options), progress_(std::move(progress)), out_(out) {}

  Result<StepResult> simulate(const std::vector<InjectedFault>& degradations, bool timeline) {
    StepOptions step;
    step.degradations = degradations;
    step.unfold = options_.unfold;
    step.merge = !options_.no_merge;
    step.timeline = timeline;
    Progress progress("simulating a step", 1, progress_);
    step.on_wait = [&progress] { progress.tick(); };
    Result<StepResult> result = simulate_step(job_.program, job_.scenario.cluster, job_.cost(), step);
    progress.step();
    return result;
  }

  // For the run simulator: never the healthy time in place of a state that was not simulated.
  StepTime time_of(const std::vector<InjectedFault>& active) {
    std::string key;
    for (const InjectedFault& fault : active)
      key += fmt::format("{}/{}/{}/{:a};", static_cast<int>(fault.kind), fault.node, fault.device, fault.factor);
    const auto [entry, is_new] = memo_.try_emplace(key);
    if (!is_new) {
      ++out_.memo_hits;
      return entry->second;
    }
    ++out_.memo_misses;
    if (active.empty()) {
      entry->second = of(out_.step);
      return entry->second;
    }
    const auto start = std::chrono::steady_clock::now();
    std::vector<InjectedFault> lasting = active;
    for (InjectedFault& fault : lasting) {
      fault.at_s = 0;
      fault.duration_s.reset();
    }
    const Result<StepResult> result = simulate(lasting, false);
    if (stop_requested()) return of(out_.step);  // the run that asks ends in the same way
    TY_CHECK(result.ok(), "a program that runs healthy runs degraded");
    entry->second = of(result.value());
    out_.memo_miss_wall_s += seconds_since(start);
    return entry->second;
  }

 private:
  StepTime of(const StepResult& step) const {
    std::int64_t collectives = 0;
    for (const Item& item : job_.program.stages[0].items) {
      if (item.block < 0) continue;
      for (const Op& op : job_.program.block(item).ops) collectives += is_communication(op.kind) ? 1 : 0;
    }
    return {step.time_s, std::max<std::int64_t>(collectives, 1)};
  }

  const Job& job_;
  const Options& options_;
  std::string progress_;
  Simulated& out_;
  std::map<std::string, StepTime> memo_;
};

// Checkpointed state: bf16 parameters would be 2 bytes; master weights and both moments make 12 more.
double checkpoint_bytes(const Job& job) { return 14.0 * static_cast<double>(parameter_count(job.scenario.model)); }

// --- storing

store::NewRun new_run(const Job& job, const Options& options, store::RunKind kind, const std::string& name) {
  store::NewRun run;
  run.name = name;
  run.kind = kind;
  run.version = version_number();
  run.commit_id = commit_id();
  run.seed = job.scenario.seed;
  run.parameters_json =
      nlohmann::json{{"scenario", options.scenario}, {"seeds", options.seeds}, {"unfold", options.unfold}}.dump();
  for (std::size_t s = 0; s < kStreamCount; ++s) run.streams.emplace_back(to_string(static_cast<Stream>(s)));
  return run;
}

void store_step(store::RunWriter& writer, const Job& job, const StepResult& step) {
  for (std::size_t c = 0; c < step.classes.size(); ++c) {
    const StepClass& its = step.classes[c];
    store::RankClass row;
    row.class_id = static_cast<std::int64_t>(c);
    row.name = fmt::format("stage {} rank {}", its.stage, its.representative);
    row.stage = its.stage;
    row.representative_rank = its.representative;
    row.ranks = its.count;
    writer.add_rank_class(row);
  }
  for (const Slice& slice : step.slices) {
    if (stop_requested()) return;
    store::Slice row;
    row.class_id = slice.rank_class;
    row.stream = static_cast<std::int64_t>(slice.stream);
    const StageProgram& stage =
        job.program.stages[static_cast<std::size_t>(step.classes[static_cast<std::size_t>(slice.rank_class)].stage)];
    row.label = label_of(job.program, stage, slice.item, slice.op);
    const Item& item = stage.items[static_cast<std::size_t>(slice.item)];
    const bool transfers = slice.op < 0;
    row.category =
        to_string(transfers ? OpKind::SendRecv : job.program.block(item).ops[static_cast<std::size_t>(slice.op)].kind);
    row.start_ns = slice.start_ns;
    row.end_ns = slice.end_ns;
    writer.add_slice(row);
  }
}

void store_run(store::RunWriter& writer, const RunResult& run) {
  for (const RunEvent& event : run.events) {
    writer.add_event({event.time_ns, to_string(event.kind),
                      event.node >= 0 ? std::optional<std::int64_t>(event.node) : std::nullopt, event.text});
  }
  for (const RunRecovery& recovery : run.recoveries) {
    store::Recovery row;
    row.start_ns = recovery.ledger.begin_ns();
    row.end_ns = recovery.ledger.end_ns();
    row.cause = recovery.causes.empty() ? "" : recovery.causes.front();
    if (!recovery.ledger.ejected_nodes.empty()) row.node = recovery.ledger.ejected_nodes.front();
    row.lost_work_ns = to_ns(recovery.lost_work_s);
    for (const auto& span : recovery.ledger.spans)
      row.phases.push_back({recovery::to_string(span.phase), span.begin_ns, span.end_ns, span.attempt});
    writer.add_recovery(row);
  }
  for (std::size_t b = 0; b < kBandCount; ++b) writer.add_band({to_string(static_cast<Band>(b)), run.band_ns[b]});
}

// Enters each run in the store before it is simulated, so that one which is killed is there too, as interrupted.
class Recorder {
 public:
  Recorder(const Job& job, const Options& options, std::string file)
      : job_(job), options_(options), file_(std::move(file)) {}

  Problems begin(store::RunKind kind, const std::string& name) {
    if (options_.no_store) return {};
    started_ = std::chrono::steady_clock::now();
    Result<store::RunWriter> opened = store::RunWriter::open(file_, new_run(job_, options_, kind, name));
    if (!opened) return opened.problems();
    writer_.emplace(std::move(opened).value());
    return {};
  }

  Problems finish_step(const Simulated& simulated) {
    if (!writer_) return {};
    store_step(*writer_, job_, simulated.step);
    if (stop_requested()) return {stopped()};
    return finish(simulated, simulated.step.trace_hash);
  }

  Problems finish_run(const Simulated& simulated) {
    if (!writer_) return {};
    const RunResult& run = simulated.runs.back().front();
    store_run(*writer_, run);
    return finish(simulated, run.trace_hash);
  }

 private:
  // The stored report is this run's: of several policies, the one that has just been simulated.
  Problems finish(const Simulated& simulated, std::uint64_t hash) {
    Simulated its = simulated;
    if (its.runs.size() > 1) its.runs.erase(its.runs.begin(), its.runs.end() - 1);
    its.wall_s = seconds_since(started_);
    its.peak_rss_bytes = peak_rss_bytes();
    Problems problems =
        writer_->finish({store::RunStatus::Finished, make_report(job_, its).dump(), fmt::format("{:016x}", hash)});
    writer_.reset();
    return problems;
  }

  const Job& job_;
  const Options& options_;
  std::string file_;
  std::chrono::steady_clock::time_point started_;  // the run that is being recorded
  std::optional<store::RunWriter> writer_;
};

// Problems of a run's input, with the places where the scenario has it.
Problems of_policy(Problems problems, const Job& job, std::size_t policy) {
  const std::string in_input = "$.policy.";
  for (Problem& problem : problems) {
    if (!problem.path.empty()) problem.file = job.file;
    if (problem.path.rfind(in_input, 0) == 0)
      problem.path = fmt::format("$.policies[{}].{}", policy, problem.path.substr(in_input.size()));
  }
  return problems;
}

Result<Simulated> simulate(const Job& job, const Options& options, Recorder& recorder,
                           const std::string& progress_mode) {
  Simulated out;
  StepMemo memo(job, options, progress_mode, out);
  const bool only_step = job.scenario.duration_s <= 0;
  const std::vector<InjectedFault>& injected = job.scenario.faults.injected;
  if (const Problems problems = recorder.begin(store::RunKind::Step, job.scenario.name); !problems.empty())
    return problems;
  Result<StepResult> step = memo.simulate(only_step ? injected : std::vector<InjectedFault>{}, options.timeline);
  if (!step) return step.problems();
  out.step = std::move(step).value();
  if (only_step && !injected.empty()) {
    Result<StepResult> healthy = memo.simulate({}, false);
    if (!healthy) return healthy.problems();
    out.healthy = std::move(healthy).value();
  }
  if (const Problems problems = recorder.finish_step(out); !problems.empty()) return problems;
  if (only_step) return out;

  const auto seeds = static_cast<std::size_t>(options.seeds);
  Progress progress("simulating runs", job.scenario.policies.size() * seeds, progress_mode);
  RunPool pool;
  pool.processes = options.jobs;
  pool.on_result = [&](std::size_t, const RunResult&) { progress.step(); };
  pool.on_wait = [&] { progress.tick(); };
  for (const PolicySpec& policy : job.scenario.policies) {
    if (const Problems problems = recorder.begin(store::RunKind::Run, job.scenario.name + "/" + policy.name);
        !problems.empty()) {
      return problems;
    }
    RunInput input;
    input.cluster = job.scenario.cluster;
    input.faults = job.scenario.faults;
    input.policy = policy;
    input.job_nodes = job.nodes();
    input.duration_s = job.scenario.duration_s;
    input.seed = job.scenario.seed;
    input.step_times = [&memo](const std::vector<InjectedFault>& active) { return memo.time_of(active); };
    if (job.scenario.cluster.storage.remote_write_bytes_per_s > 0) input.checkpoint_bytes = checkpoint_bytes(job);
    Result<std::vector<RunResult>> results = run_many(with_seeds(input, options.seeds), pool);
    if (!results) return of_policy(results.problems(), job, out.runs.size());
    out.runs.push_back(std::move(results).value());
    if (const Problems problems = recorder.finish_run(out); !problems.empty()) return problems;
  }
  return out;
}

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
  const auto start = std::chrono::steady_clock::now();
  Result<Job> prepared = prepare(options.scenario);
  if (!prepared) return fail(prepared.problems(), context);
  Job job = std::move(prepared).value();
  if (options.seed) job.scenario.seed = *options.seed;
  const Problems memory = check_memory(job);
  if (!memory.empty() && !options.allow_oom) return fail(memory, context);
  announce(job, context);
  Recorder recorder(job, options, context.store_file.empty() ? store::default_store_file() : context.store_file);
  end_in_order_on_signals();
  Result<Simulated> result = simulate(job, options, recorder, context.quiet ? "none" : context.progress);
  if (!result) return fail(result.problems(), context);
  Simulated simulated = std::move(result).value();
  if (!context.quiet) note_faults_that_came_late(job, simulated.step, context.progress == "ndjson");
  simulated.wall_s = seconds_since(start);
  simulated.peak_rss_bytes = peak_rss_bytes();
  const nlohmann::ordered_json report = make_report(job, simulated);
  std::cout << (context.json ? report.dump(2) + "\n" : report_text(report)) << std::flush;
  // Of many seeds some may end at a bad moment: that is what they are for.
  const bool stuck =
      options.seeds == 1 && std::any_of(simulated.runs.begin(), simulated.runs.end(),
                                        [](const auto& runs) { return !runs.front().waiting_for.empty(); });
  return simulated.step.communicator_error.empty() && !stuck ? kOk : kNotRecovered;
}

}  // namespace

void add_sim(CLI::App& app, Context& context) {
  CLI::App* sim = add_command(app, "sim", "Simulate", "  trainyard sim run scenarios/01-grok1-100k-week.json");
  sim->require_subcommand(1);
  CLI::App* run = add_command(
      *sim, "run", "Simulate a scenario: one step on the whole cluster, then the run over time",
      "  trainyard sim run scenarios/01-grok1-100k-week.json\n"
      "  trainyard sim run scenarios/02-llama3-405b-54-days.json --seeds 20\n"
      "  trainyard sim run scenarios/tiny/llama.json --timeline && trainyard run export latest -o trace.json\n"
      "  trainyard sim run my.json --json --no-store | jq .step.time_s");
  auto options = std::make_shared<Options>();
  run->add_option("scenario", options->scenario, "Scenario file")->required();
  run->add_option("--seed", options->seed, "Seed, instead of the scenario's")->check([](const std::string& text) {
    const bool digits = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
    const bool small = text.size() < 20 || (text.size() == 20 && text <= "18446744073709551615");
    return digits && small ? std::string() : std::string("must be a whole number from 0 to 2^64-1");
  });
  run->add_option("--seeds", options->seeds, "Simulate this many seeds, from the seed on, and report their mean")
      ->check(CLI::Range(1, 100000));
  run->add_option("--jobs", options->jobs, "Simulations at a time (default: one per processor)")
      ->check(CLI::Range(0, 4096));
  run->add_flag("--unfold", options->unfold, "Simulate every rank on its own (slow beyond a thousand)");
  run->add_flag("--no-merge", options->no_merge, "Simulate every op on its own");
  run->add_flag("--timeline", options->timeline, "Keep the step's timeline, for run export");
  run->add_flag("--allow-oom", options->allow_oom, "Simulate a plan that does not fit the device's memory");
  run->add_flag("--no-store", options->no_store, "Do not write to the run store");
  run->callback([options, &context] { context.run = [options, &context] { return run_scenario(*options, context); }; });
}

}  // namespace trainyard::cli
