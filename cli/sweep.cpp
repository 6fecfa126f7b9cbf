// trainyard sim sweep: one scenario under many policies and seeds, and which of them is best.

#include <cstdlib>
#include <iostream>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/interrupt.h"
#include "cli/job.h"
#include "cli/output_file.h"
#include "cli/shard.h"
#include "cli/sweep_cells.h"
#include "cli/sweep_table.h"
#include "cli/version.h"
#include "models/base/stop.h"
#include "models/base/units.h"
#include "models/spec/sweep_spec.h"
#include "store/store_file.h"

namespace trainyard::cli {

namespace {

struct Options {
  std::string file, csv_file;
  std::optional<std::uint64_t> seed;
  std::optional<std::int64_t> seeds;
  std::vector<std::string> vary;
  ShardOptions shard;
  int jobs = 0;
  bool no_store = false, allow_oom = false;
};

// What was asked for, made ready.
struct Prepared {
  Sweep sweep;
  Job job;
  store::NewSweep described;
};

Result<Sweep> load(const Options& options) {
  Result<SweepSpec> loaded = load_sweep(options.file);
  if (!loaded) return loaded.problems();
  SweepSpec spec = std::move(loaded).value();
  if (options.seeds) spec.seeds = *options.seeds;
  if (options.seed) spec.first_seed = options.seed;
  Problems problems;
  for (const std::string& axis : options.vary) {
    const Problems found = add_axis(axis, spec);
    problems.insert(problems.end(), found.begin(), found.end());
  }
  if (!problems.empty()) return problems;
  return expand(spec);
}

Result<Prepared> make_ready(const Options& options) {
  Result<Sweep> sweep = load(options);
  if (!sweep) return sweep.problems();
  Result<Job> job = prepare(sweep.value().scenario, sweep.value().spec.scenario);
  if (!job) return job.problems();
  const Problems memory = check_memory(job.value());
  if (!memory.empty() && !options.allow_oom) return memory;
  Result<store::NewSweep> described = describe(sweep.value(), job.value());
  if (!described) return described.problems();
  return Prepared{std::move(sweep).value(), std::move(job).value(), std::move(described).value()};
}

// Messages on stderr, as people or programs read them.
class Notes {
 public:
  explicit Notes(const Context& context)
      : ndjson_(context.progress == "ndjson"), silent_(context.quiet || context.progress == "none") {}

  void say(const std::string& note) const {
    if (!silent_) std::cerr << (ndjson_ ? nlohmann::json{{"note", note}}.dump() : note) + "\n";
  }
  void announce(const Prepared& its, const Shard& shard, std::size_t cells) const {
    if (silent_) return;
    const Sweep& sweep = its.sweep;
    const std::uint64_t first = sweep.first_seed(), last = first + static_cast<std::uint64_t>(sweep.spec.seeds) - 1;
    if (ndjson_) {
      const nlohmann::ordered_json line{{"sweep", sweep.spec.name},
                                        {"seed", first},
                                        {"seeds", sweep.spec.seeds},
                                        {"commit", commit_id()},
                                        {"variations", sweep.variations.size()},
                                        {"cells", cells},
                                        {"shard", shard.index},
                                        {"shards", shard.count}};
      std::cerr << line.dump() + "\n";
    } else {
      std::cerr << fmt::format("{}: seeds {} to {}, commit {}, {} variation{}, {} cells\n", sweep.spec.name, first,
                               last, commit_id(), sweep.variations.size(), sweep.variations.size() == 1 ? "" : "s",
                               cells);
    }
    if (!shard.why.empty())
      say(fmt::format("shard {} of {}, counted from 0, by {}", shard.index, shard.count, shard.why));
  }

 private:
  bool ndjson_, silent_;
};

// Says when a sweep of this name is there that had other inputs, before this one is entered.
void note_what_changed(const store::NewSweep& sweep, const std::string& store_file, const Notes& notes) {
  Result<store::SweepReader> reader = store::SweepReader::open(store_file);
  if (!reader) return;  // none yet; anything else the writer will tell
  store::SweepReader opened = std::move(reader).value();
  const Result<std::vector<store::SweepRow>> sweeps = opened.sweeps();
  if (!sweeps) return;
  const store::SweepRow* latest = nullptr;
  for (const store::SweepRow& row : sweeps.value()) {
    if (row.identity == sweep.identity) return;
    if (row.name == sweep.name) latest = &row;
  }
  if (latest != nullptr)
    notes.say(fmt::format("not the inputs of sweep {} ({} changed): this is a new sweep", latest->id,
                          fmt::join(changed_inputs(sweep.inputs_json, latest->inputs_json), ", ")));
}

std::string store_of(const Options& options, const Context& context, const Shard& shard) {
  if (options.no_store) return "";
  return shard_store(context.store_file.empty() ? store::default_store_file() : context.store_file, shard);
}

int report(const SweepTable& table, const Options& options, const Context& context) {
  if (!options.csv_file.empty()) {
    const Problems problems = write_output(options.csv_file, [&](std::ostream& out) {
      write_csv(table, out);
      return Problems{};
    });
    if (!problems.empty()) return fail(problems, context);
  }
  const nlohmann::ordered_json its = sweep_report(table);
  std::cout << (context.json ? its.dump(2) + "\n" : sweep_text(its)) << std::flush;
  return kOk;
}

int run_sweep(const Options& options, const Context& context) {
  const Result<Shard> found = find_shard(options.shard, [](const char* name) { return std::getenv(name); });
  if (!found) return fail(found.problems(), context);
  const Shard& shard = found.value();
  const Result<Prepared> prepared = make_ready(options);
  if (!prepared) return fail(prepared.problems(), context);
  const Prepared& its = prepared.value();
  const Notes notes(context);
  const std::string store_file = store_of(options, context, shard);
  std::vector<SweepCells::Key> wanted = cells_of(its.sweep, shard);
  notes.announce(its, shard, wanted.size());
  if (!store_file.empty()) note_what_changed(its.described, store_file, notes);
  end_in_order_on_signals();
  Result<SweepCells> opened = SweepCells::open(its.described, std::move(wanted), store_file);
  if (!opened) return fail(opened.problems(), context);
  SweepCells cells = std::move(opened).value();
  const auto done = [&] { return cells.wanted() - cells.missing().size(); };
  if (done() > 0) notes.say(fmt::format("{} of {} cells are in {} already", done(), cells.wanted(), store_file));
  const Problems problems =
      simulate(its.sweep, its.job, {options.jobs, store_file, context.quiet ? "none" : context.progress}, cells);
  if (!problems.empty()) {
    if (stop_requested() && !store_file.empty())
      notes.say(fmt::format("{} of {} cells are in {}: the same command goes on from there", done(), cells.wanted(),
                            store_file));
    return fail(problems, context);
  }
  if (!shard.is_whole() && !store_file.empty())
    notes.say(fmt::format("this shard is in {}: join them all with trainyard run merge", store_file));
  return report(cells.table(), options, context);
}

}  // namespace

void add_sim_sweep(CLI::App& sim, Context& context) {
  CLI::App* sweep = add_command(
      sim, "sweep",
      "Simulate a scenario under many policies and seeds, and say which is best; what is done is never done again",
      "  trainyard sim sweep scenarios/01-grok1-100k-week.json --seeds 20\n"
      "  trainyard sim sweep scenarios/01-grok1-100k-week.json --vary checkpoint_interval_s=30,60,120 "
      "--vary spare_nodes=50,100,200\n"
      "  trainyard sim sweep scenarios/sweeps/grok1-a-day.json --csv cells.csv\n"
      "  trainyard sim sweep my-sweep.json --shard 0/4    # read from Slurm arrays, Kubernetes indexed Jobs and MPI\n"
      "  trainyard run merge trainyard.shard-*.sqlite -o all.sqlite && trainyard --store all.sqlite sim compare A B");
  auto options = std::make_shared<Options>();
  sweep->add_option("file", options->file, "Sweep file, or a scenario file")->required();
  sweep->add_option("--seeds", options->seeds, "Seeds of each variation (default: the sweep's, else 20)")
      ->check(CLI::Range(std::int64_t{1}, kMaxSweepSeeds));
  sweep->add_option("--seed", options->seed, "First seed, instead of the sweep's or the scenario's")->check(check_seed);
  sweep->add_option("--vary", options->vary, "A key of every policy with its values: key=v1,v2,...; may be repeated")
      ->allow_extra_args(false);
  sweep->add_option("--jobs", options->jobs, "Simulations at a time (default: one per processor)")
      ->check(CLI::Range(0, 4096));
  sweep->add_option("--shard", options->shard.shard,
                    "i/n: only the i-th of n parts, counted from 0, into a store of its own "
                    "(default: as Slurm, Kubernetes or MPI say)");
  sweep
      ->add_option("--shards", options->shard.count,
                   "How many parts, where the surroundings tell the index alone (or TRAINYARD_SHARD_COUNT)")
      ->check(CLI::Range(1, 1'000'000));
  sweep->add_option("--csv", options->csv_file, "Write every cell to this file too");
  sweep->add_flag("--allow-oom", options->allow_oom, "Simulate a plan that does not fit the device's memory");
  sweep->add_flag("--no-store", options->no_store, "Do not write to the run store");
  sweep->callback([options, &context] { context.run = [options, &context] { return run_sweep(*options, context); }; });
}

}  // namespace trainyard::cli
