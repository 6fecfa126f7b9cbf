#include "cli/simulation.h"

#include <sys/resource.h>

#include <algorithm>
#include <map>
#include <optional>

#include <fmt/format.h>

#include "cli/recovery_figures.h"
#include "cli/step_links.h"
#include "cli/step_memo.h"
#include "cli/terminal.h"
#include "cli/version.h"
#include "models/base/stop.h"
#include "models/base/units.h"
#include "sim/run_simulator.h"
#include "store/run_writer.h"

namespace trainyard::cli {

namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::int64_t peak_rss_bytes() {
  rusage own{}, children{};
  getrusage(RUSAGE_SELF, &own);
  getrusage(RUSAGE_CHILDREN, &children);
  return std::max(own.ru_maxrss, children.ru_maxrss) * 1024;
}

// --- storing

store::NewRun new_run(const Job& job, const SimulationOptions& options, store::RunKind kind, const std::string& name) {
  store::NewRun run;
  run.name = name;
  run.kind = kind;
  run.version = version_number();
  run.commit_id = commit_id();
  run.seed = job.scenario.seed;
  run.parameters_json =
      nlohmann::json{{"scenario", job.file}, {"seeds", options.seeds}, {"unfold", options.unfold}}.dump();
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
  for (const store::Link& link : links_of(job, step)) writer.add_link(link);
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
  for (const RunRecovery& recovery : run.recoveries) writer.add_recovery(recovery_row(recovery));
  for (const RunRecovery& recovery : run.unfinished) {
    store::Recovery row = recovery_row(recovery);
    row.end_ns.reset();
    writer.add_recovery(row);
  }
  for (const SpareCount& count : run.spares.counts) writer.add_spare_count({count.time_ns, count.free});
  writer.add_controller_log(run.log);
  for (std::size_t b = 0; b < kBandCount; ++b) writer.add_band({to_string(static_cast<Band>(b)), run.band_ns[b]});
}

// Enters each run in the store before it is simulated, so that one which is killed is there too, as interrupted.
class Recorder {
 public:
  Recorder(const Job& job, const SimulationOptions& options) : job_(job), options_(options) {}

  Problems begin(store::RunKind kind, const std::string& name) {
    if (options_.store_file.empty()) return {};
    started_ = std::chrono::steady_clock::now();
    Result<store::RunWriter> opened = store::RunWriter::open(options_.store_file, new_run(job_, options_, kind, name));
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
  const SimulationOptions& options_;
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

// The step, under the faults of a scenario that is no longer than it.
Problems simulate_step_of(const Job& job, const SimulationOptions& options, StepMemo& memo, Recorder& recorder,
                          Simulated& out) {
  const bool only_step = job.scenario.duration_s <= 0;
  const std::vector<InjectedFault>& injected = job.scenario.faults.injected;
  if (Problems problems = recorder.begin(store::RunKind::Step, job.scenario.name); !problems.empty()) return problems;
  const bool degraded = only_step && !injected.empty();
  Result<StepResult> step = degraded ? memo.simulate(injected, options.timeline) : memo.healthy(options.timeline);
  if (!step) return step.problems();
  out.step = std::move(step).value();
  if (degraded) {
    Result<StepResult> healthy = memo.healthy(false);
    if (!healthy) return healthy.problems();
    out.healthy = std::move(healthy).value();
  }
  return recorder.finish_step(out);
}

// The run over time, under every policy.
Problems simulate_runs(const Job& job, const SimulationOptions& options, StepMemo& memo, Recorder& recorder,
                       Simulated& out) {
  const auto seeds = static_cast<std::size_t>(options.seeds);
  Progress progress("simulating runs", job.scenario.policies.size() * seeds, options.progress);
  RunPool pool;
  pool.processes = options.jobs;
  pool.on_result = [&](std::size_t, const RunResult&) { progress.step(); };
  pool.on_wait = [&] { progress.tick(); };
  for (const PolicySpec& policy : job.scenario.policies) {
    Problems problems = recorder.begin(store::RunKind::Run, job.scenario.name + "/" + policy.name);
    if (!problems.empty()) return problems;
    std::vector<RunInput> inputs = with_seeds(run_input(job, policy, memo), options.seeds);
    inputs.front().keep_log = !options.store_file.empty();
    Result<std::vector<RunResult>> results = run_many(inputs, pool);
    if (!results) return of_policy(results.problems(), job, out.runs.size());
    out.runs.push_back(std::move(results).value());
    problems = recorder.finish_run(out);
    if (!problems.empty()) return problems;
  }
  return {};
}

}  // namespace

Result<Simulated> simulate(const Job& job, const SimulationOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  Recorder recorder(job, options);
  Simulated out;
  StepMemo memo(job, {options.unfold, options.merge, options.progress, options.exact_states, options.store_file},
                out.memo);
  Problems problems = simulate_step_of(job, options, memo, recorder, out);
  if (problems.empty() && job.scenario.duration_s > 0) problems = simulate_runs(job, options, memo, recorder, out);
  if (!problems.empty()) return problems;
  out.wall_s = seconds_since(start);
  out.peak_rss_bytes = peak_rss_bytes();
  return out;
}

bool ended_well(const Simulated& simulated) {
  const auto stuck = [](const std::vector<RunResult>& runs) {
    return runs.size() == 1 && !runs.front().waiting_for.empty();
  };
  return simulated.step.communicator_error.empty() && std::none_of(simulated.runs.begin(), simulated.runs.end(), stuck);
}

}  // namespace trainyard::cli
