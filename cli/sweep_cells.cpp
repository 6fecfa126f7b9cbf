#include "cli/sweep_cells.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include <fmt/format.h>

#include "cli/job_identity.h"
#include "cli/terminal.h"
#include "cli/version.h"
#include "models/base/stop.h"
#include "models/base/units.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

store::SweepCell cell_of(const RunResult& run) {
  store::SweepCell cell;
  cell.seed = run.seed;
  cell.effective_training_time = run.effective_training_time;
  cell.failures = run.failures;
  cell.recoveries = static_cast<std::int64_t>(run.recoveries.size());
  std::vector<double> seconds;
  for (const RunRecovery& recovery : run.recoveries) seconds.push_back(recovery.ledger.total_s());
  if (!seconds.empty()) {
    cell.recovery_median_s = run.median_recovery_s();
    cell.recovery_mean_s = mean(seconds);
    cell.recovery_p99_s = percentile(seconds, 0.99);
  }
  cell.lost_work_ns = run.band_ns[static_cast<std::size_t>(Band::LostWork)];
  for (std::size_t b = 0; b < kBandCount; ++b) {
    if (run.band_ns[b] != 0) cell.bands.push_back({to_string(static_cast<Band>(b)), run.band_ns[b]});
  }
  cell.checkpoint_interval_s = run.checkpoint_interval_s;
  cell.checkpoints = run.checkpoints;
  cell.steps_done = run.steps_done;
  cell.steps_committed = run.steps_committed;
  cell.pages = run.pages;
  cell.spares_configured = run.spares.configured;
  cell.spares_fewest = run.spares.fewest;
  cell.spares_mean = run.spares.mean;
  cell.waiting_for = run.waiting_for;
  cell.trace_hash = fmt::format("{:016x}", run.trace_hash);
  return cell;
}

// What the run simulator finds wrong with a variation, once for each.
Problems check_inputs(const Sweep& sweep, const Job& job, StepMemo& memo) {
  Problems out;
  for (std::size_t v = 0; v < sweep.variations.size(); ++v) {
    for (Problem& problem : validate(run_input(job, job.scenario.policies[v], memo))) {
      problem.file = sweep.spec.file;
      problem.value = fmt::format("{} of {}", problem.value, sweep.variations[v].name);
      out.push_back(std::move(problem));
    }
  }
  return out;
}

// Inputs of this many runs are in memory at a time.
constexpr std::size_t kBatch = 4096;

Problems simulate_batch(const std::vector<SweepCells::Key>& batch, const Job& job, int jobs, StepMemo& memo,
                        Progress& progress, SweepCells& cells) {
  std::vector<RunInput> inputs;
  for (const auto& [variation, seed] : batch) {
    inputs.push_back(run_input(job, job.scenario.policies[variation], memo));
    inputs.back().seed = seed;
  }
  Problems not_stored;
  RunPool pool;
  pool.processes = jobs;
  pool.keep = false;
  pool.on_result = [&](std::size_t i, const RunResult& run) {
    if (not_stored.empty()) not_stored = cells.add(batch[i].first, cell_of(run));
    if (!not_stored.empty()) request_stop();  // there is no use in going on
    progress.step();
  };
  pool.on_wait = [&] { progress.tick(); };
  const Result<std::vector<RunResult>> ended = run_many(inputs, pool);
  if (!not_stored.empty()) return not_stored;
  return ended ? Problems{} : ended.problems();
}

}  // namespace

Result<store::NewSweep> describe(const Sweep& sweep, const Job& job) {
  Result<json> identity = job_identity(job);
  if (!identity) return identity.problems();
  json inputs{{"name", sweep.spec.name}};
  inputs.update(identity.value());
  inputs["faults"] = short_hash(job.scenario.written.faults);
  inputs["duration_s"] = job.scenario.duration_s;
  inputs["job_nodes"] = job.nodes();
  // By name, so that their order does not matter. What is varied is not here: a grid may grow.
  std::map<std::string, std::string> policies;
  for (const std::string& policy : sweep.policies) policies[json::parse(policy)["name"]] = short_hash(policy);
  inputs["policies"] = policies;
  store::NewSweep out;
  out.inputs_json = inputs.dump();
  out.identity = long_hash(out.inputs_json);
  out.name = sweep.spec.name;
  out.scenario = sweep.spec.scenario;
  out.duration_ns = to_ns(job.scenario.duration_s);
  out.version = version_number();
  out.commit_id = commit_id();
  for (const Variation& its : sweep.variations)
    out.variations.push_back({its.name, its.policy, its.changes, its.written});
  return out;
}

std::vector<std::string> changed_inputs(const std::string& inputs_json, const std::string& other_inputs_json) {
  const json inputs = json::parse(inputs_json, nullptr, false), others = json::parse(other_inputs_json, nullptr, false);
  std::vector<std::string> names;
  for (const auto& [name, value] : inputs.items())
    if (!others.contains(name) || others[name] != value) names.push_back(name);
  return names;
}

std::vector<SweepCells::Key> cells_of(const Sweep& sweep, const Shard& shard) {
  std::vector<SweepCells::Key> out;
  for (std::int64_t k = 0; k < sweep.spec.seeds; ++k) {
    for (std::size_t v = 0; v < sweep.variations.size(); ++v)
      if (shard.has(static_cast<std::int64_t>(v), k))
        out.emplace_back(v, sweep.first_seed() + static_cast<std::uint64_t>(k));
  }
  return out;
}

Result<SweepCells> SweepCells::open(const store::NewSweep& sweep, std::vector<Key> wanted,
                                    const std::string& store_file) {
  SweepCells cells;
  cells.sweep_ = sweep;
  cells.wanted_ = std::move(wanted);
  if (store_file.empty()) return cells;
  Result<store::SweepWriter> writer = store::SweepWriter::open(store_file, sweep);
  if (!writer) return writer.problems();
  cells.writer_.emplace(std::move(writer).value());
  if (Problems problems = cells.read_done(store_file); !problems.empty()) return problems;
  return cells;
}

Problems SweepCells::read_done(const std::string& store_file) {
  Result<store::SweepReader> reader = store::SweepReader::open(store_file);
  if (!reader) return reader.problems();
  store::SweepReader opened = std::move(reader).value();
  const Result<std::vector<store::SweepCell>> stored = opened.cells(writer_->sweep_id());
  if (!stored) return stored.problems();
  std::map<std::int64_t, std::size_t> variation_of;  // by its number in the store
  for (std::size_t v = 0; v < writer_->variations().size(); ++v) variation_of[writer_->variations()[v]] = v;
  for (const store::SweepCell& cell : stored.value()) {
    const auto found = variation_of.find(cell.variation);
    if (found != variation_of.end()) done_[{found->second, cell.seed}] = cell;
  }
  return {};
}

std::vector<SweepCells::Key> SweepCells::missing() const {
  std::vector<Key> out;
  for (const Key& key : wanted_)
    if (done_.count(key) == 0) out.push_back(key);
  return out;
}

Problems SweepCells::add(std::size_t variation, const store::SweepCell& cell) {
  done_[{variation, cell.seed}] = cell;
  if (!writer_) return {};
  store::SweepCell stored = cell;
  stored.variation = writer_->variations()[variation];
  return writer_->add({stored});
}

SweepTable SweepCells::table() const {
  store::SweepRow row;
  static_cast<store::NewSweep&>(row) = sweep_;
  row.id = sweep_id();
  std::vector<store::SweepCell> cells;
  for (const Key& key : wanted_) {
    const auto found = done_.find(key);
    if (found == done_.end()) continue;
    cells.push_back(found->second);
    cells.back().variation = static_cast<std::int64_t>(key.first);
  }
  return make_table(std::move(row), cells);
}

Problems simulate(const Sweep& sweep, const Job& job, const SweepSimulation& options, SweepCells& cells) {
  const std::vector<SweepCells::Key> missing = cells.missing();
  if (missing.empty()) return {};
  MemoUse use;
  StepMemo memo(job, {false, true, options.progress, false, options.store_file}, use);
  if (Problems problems = check_inputs(sweep, job, memo); !problems.empty()) return problems;
  if (const Result<StepResult> step = memo.healthy(false); !step) return step.problems();
  Progress progress("simulating cells", missing.size(), options.progress);
  for (std::size_t begin = 0; begin < missing.size(); begin += kBatch) {
    const std::vector<SweepCells::Key> batch(
        missing.begin() + static_cast<std::ptrdiff_t>(begin),
        missing.begin() + static_cast<std::ptrdiff_t>(std::min(begin + kBatch, missing.size())));
    if (Problems problems = simulate_batch(batch, job, options.jobs, memo, progress, cells); !problems.empty())
      return problems;
  }
  return {};
}

}  // namespace trainyard::cli
