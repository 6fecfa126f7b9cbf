// trainyard run show: the report of a run or of a sweep, and what happened in a run over time.

#include <iostream>
#include <memory>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/recovery_figures.h"
#include "cli/recovery_story.h"
#include "cli/report.h"
#include "cli/spares_report.h"
#include "cli/stored_run.h"
#include "cli/sweep_table.h"
#include "cli/terminal.h"
#include "cli/training_report.h"
#include "models/base/units.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

int show_sweep(const std::string& selector, const Context& context) {
  const Result<SweepTable> found = find_sweep(selector, context);
  if (!found) return fail(found.problems(), context);
  const json report = sweep_report(found.value());
  std::cout << (context.json ? report.dump(2) + "\n" : sweep_text(report));
  return kOk;
}

int show_report(const StoredRun& stored, const Context& context) {
  const store::Run& run = stored.run;
  if (context.json) {
    json out = summary(run);
    out["report"] = run.report_json.empty() ? json(nullptr) : json::parse(run.report_json);
    out["events"] = stored.events.size();
    out["recoveries"] = stored.recoveries.size();
    std::cout << out.dump(2) << "\n";
    return kOk;
  }
  std::cout << fmt::format("run {}: {} ({}), {}; {} events, {} recoveries committed\n\n", run.id, run.name,
                           to_string(run.kind), to_string(run.status), stored.events.size(), stored.recoveries.size());
  if (run.report_json.empty()) return kOk;
  const json report = json::parse(run.report_json);
  std::cout << (run.kind == store::RunKind::Exec ? training_text(report) : report_text(report));
  return kOk;
}

// --- what happened in a run over time

struct ShowOptions {
  std::string selector = "latest";
  bool sweep = false, recoveries = false, spares = false;
  std::string phases, recovery;
  std::vector<std::int64_t> fewer_than;
};

int show_recoveries(const StoredRun& stored, const std::string& phases, const Context& context) {
  constexpr std::size_t kLongest = 5;
  const json figures = recovery_figures(stored.recoveries, 1);
  const std::vector<std::size_t> longest = longest_recoveries(stored, kLongest);
  if (context.json) {
    json out = summary(stored.run);
    out["recoveries"] = figures;
    out["longest"] = json::array();
    for (const std::size_t i : longest) out["longest"].push_back(i + 1);
    std::cout << out.dump(2) << "\n";
    return kOk;
  }
  std::cout << fmt::format("Recoveries of run {} ({}, seed {})\n", stored.run.id, stored.run.name, stored.run.seed)
            << recovery_figures_text(figures, phases);
  if (longest.empty()) return kOk;
  std::vector<std::vector<std::string>> rows;
  for (const std::size_t i : longest) {
    const store::Recovery& recovery = stored.recoveries[i];
    rows.push_back({fmt::format("{}", i + 1), format_duration(total_s(recovery)),
                    "after " + format_duration(static_cast<double>(recovery.start_ns) / kNsPerS), recovery.cause});
  }
  std::cout << "\nThe longest\n"
            << left_table(rows, {true, true, true, false})
            << fmt::format("  what happened in one: `trainyard run show {} --recovery {}`\n", stored.run.id,
                           longest.front() + 1);
  return kOk;
}

int show_recovery(const StoredRun& stored, const std::string& selector, const Context& context) {
  const Result<std::size_t> index = find_recovery(stored, selector);
  if (!index) return fail(index.problems(), context);
  const json story = recovery_story(stored, index.value());
  std::cout << (context.json ? story.dump(2) + "\n" : story_text(story));
  return kOk;
}

int show_spares(const StoredRun& stored, const std::vector<std::int64_t>& fewer_than, const Context& context) {
  const Result<SparesOverTime> spares = spares_of(stored);
  if (!spares) return fail(spares.problems(), context);
  if (context.json) {
    json out = summary(stored.run);
    out["spares"] = spares_report(spares.value(), fewer_than);
    std::cout << out.dump(2) << "\n";
    return kOk;
  }
  std::cout << fmt::format("run {}: {}, seed {}\n", stored.run.id, stored.run.name, stored.run.seed)
            << spares_text(spares.value(), fewer_than);
  return kOk;
}

int show(const ShowOptions& options, const Context& context) {
  if (options.sweep) return show_sweep(options.selector, context);
  const Result<StoredRun> found = find_stored_run(options.selector, context);
  if (!found) return fail(found.problems(), context);
  if (!options.recovery.empty()) return show_recovery(found.value(), options.recovery, context);
  if (options.recoveries || !options.phases.empty()) return show_recoveries(found.value(), options.phases, context);
  if (options.spares || !options.fewer_than.empty()) return show_spares(found.value(), options.fewer_than, context);
  return show_report(found.value(), context);
}

}  // namespace

void add_run_show(CLI::App& run, Context& context) {
  CLI::App* its = add_command(run, "show", "The report of a run or of a sweep, or what happened in a run",
                              "  trainyard run show latest\n  trainyard run show 3 --json\n"
                              "  trainyard run show --recoveries --phases p99      # how long each cause took\n"
                              "  trainyard run show 3 --recovery longest           # what happened in those minutes\n"
                              "  trainyard run show 3 --spares --fewer-than 10\n"
                              "  trainyard run show --sweep latest");
  auto options = std::make_shared<ShowOptions>();
  its->add_option("run", options->selector, "Id, name or \"latest\"");
  CLI::Option* sweep = its->add_flag("--sweep", options->sweep, "Of a sweep");
  CLI::Option* recoveries = its->add_flag("--recoveries", options->recoveries, "The phase ledger of each cause");
  CLI::Option* phases = its->add_option("--phases", options->phases, "And of each phase this figure, by cause")
                            ->check(CLI::IsMember({"median", "mean", "p99"}));
  CLI::Option* recovery = its->add_option("--recovery", options->recovery,
                                          "One recovery as a timeline: its number from 1, longest, median or last");
  CLI::Option* spares = its->add_flag("--spares", options->spares, "How many spares were free, over the run");
  CLI::Option* fewer = its->add_option("--fewer-than", options->fewer_than, "And for how long fewer than this were")
                           ->check(CLI::Range(1, 1000000000))
                           ->allow_extra_args(false);
  recovery->excludes(sweep);
  for (CLI::Option* one : {recoveries, phases, spares, fewer}) one->excludes(sweep)->excludes(recovery);
  for (CLI::Option* one : {recoveries, phases}) one->excludes(spares)->excludes(fewer);
  its->callback([options, &context] { context.run = [options, &context] { return show(*options, context); }; });
}

}  // namespace trainyard::cli
