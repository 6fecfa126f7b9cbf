// trainyard run list|export: what the store holds. Runs, and with --sweeps sweeps. `run show` is in show.cpp.

#include <functional>
#include <iostream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/interrupt.h"
#include "cli/output_file.h"
#include "cli/recovery_figures.h"
#include "cli/spares_report.h"
#include "cli/stored_run.h"
#include "cli/sweep_table.h"
#include "cli/terminal.h"
#include "models/base/stop.h"
#include "models/base/units.h"
#include "store/chrome_trace.h"
#include "store/run_reader.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

int list_sweeps(const Context& context) {
  Result<store::SweepReader> opened = open_sweeps(context);
  if (!opened) return fail(opened.problems(), context);
  store::SweepReader reader = std::move(opened).value();
  const Result<std::vector<store::SweepRow>> sweeps = reader.sweeps();
  if (!sweeps) return fail(sweeps.problems(), context);
  json all = json::array();
  std::vector<std::vector<std::string>> rows;
  for (const store::SweepRow& sweep : sweeps.value()) {
    const Result<std::vector<store::SweepCell>> cells = reader.cells(sweep.id);
    if (!cells) return fail(cells.problems(), context);
    all.push_back({{"id", sweep.id},
                   {"name", sweep.name},
                   {"scenario", sweep.scenario},
                   {"variations", sweep.variations.size()},
                   {"cells", cells.value().size()},
                   {"commit", sweep.commit_id},
                   {"started_unix_ns", sweep.started_unix_ns},
                   {"identity", sweep.identity}});
    rows.push_back({std::to_string(sweep.id), sweep.name, std::to_string(sweep.variations.size()),
                    std::to_string(cells.value().size()), sweep.commit_id, sweep.identity});
  }
  if (context.json)
    std::cout << all.dump(2) << "\n";
  else if (rows.empty())
    std::cerr << "no sweeps yet: try `trainyard sim sweep scenarios/tiny/grok1-a-day.json`\n";
  else
    std::cout << table({"id", "name", "variations", "cells", "commit", "identity"}, rows, 0);
  return kOk;
}

int export_sweep(const std::string& selector, const std::string& target, const Context& context) {
  const Result<SweepTable> found = find_sweep(selector, context);
  if (!found) return fail(found.problems(), context);
  const auto write = [&](std::ostream& out) {
    write_csv(found.value(), out);
    return Problems{};
  };
  const Problems problems = target == "-" ? write(std::cout) : write_output(target, write);
  return problems.empty() ? static_cast<int>(kOk) : fail(problems, context);
}

// Sweeps are not runs: whoever lists the one shall hear of the other.
void note_sweeps(const Context& context) {
  Result<store::SweepReader> opened = open_sweeps(context);
  if (!opened || context.quiet) return;
  store::SweepReader reader = std::move(opened).value();
  const Result<std::vector<store::SweepRow>> sweeps = reader.sweeps();
  if (sweeps && !sweeps.value().empty())
    std::cerr << fmt::format("and {} sweep{}: `trainyard run list --sweeps`\n", sweeps.value().size(),
                             sweeps.value().size() == 1 ? "" : "s");
}

int list_runs(const Context& context) {
  Result<store::RunReader> opened = open_store(context);
  if (!opened) return fail(opened.problems(), context);
  store::RunReader reader = std::move(opened).value();
  const Result<std::vector<store::Run>> runs = reader.runs();
  if (!runs) return fail(runs.problems(), context);
  json all = json::array();
  std::vector<std::vector<std::string>> rows;
  for (const store::Run& run : runs.value()) {
    all.push_back(summary(run));
    rows.push_back({std::to_string(run.id), run.name, to_string(run.kind), to_string(run.status),
                    std::to_string(run.seed), run.commit_id, run.trace_hash});
  }
  if (context.json) {
    std::cout << all.dump(2) << "\n";
    return kOk;
  }
  note_sweeps(context);
  if (rows.empty()) {
    std::cerr << "no runs yet: try `trainyard sim run scenarios/01-grok1-100k-week.json`\n";
  } else {
    std::cout << table({"id", "name", "kind", "status", "seed", "commit", "trace"}, rows, 0);
  }
  return kOk;
}

// One of the tables of a run as CSV.
int export_table(const std::string& table, const std::string& selector, const std::string& target,
                 const Context& context) {
  const Result<StoredRun> found = find_stored_run(selector, context);
  if (!found) return fail(found.problems(), context);
  const StoredRun& stored = found.value();
  const auto write = [&](std::ostream& out) -> Problems {
    if (table == "recoveries") write_recoveries_csv(stored.recoveries, out);
    if (table == "causes") write_figures_csv(recovery_figures(stored.recoveries, 1), out);
    if (table != "spares") return {};
    const Result<SparesOverTime> spares = spares_of(stored);
    if (!spares) return spares.problems();
    write_csv(spares.value(), out);
    return {};
  };
  const Problems problems = target == "-" ? write(std::cout) : write_output(target, write);
  return problems.empty() ? static_cast<int>(kOk) : fail(problems, context);
}

struct ExportOptions {
  std::string selector = "latest", format = "chrome", table = "cells", target = "-";
  std::vector<std::int64_t> classes;
};

int export_run(const ExportOptions& options, const Context& context) {
  Result<store::RunReader> opened = open_store(context);
  if (!opened) return fail(opened.problems(), context);
  store::RunReader reader = std::move(opened).value();
  const Result<store::Run> found = reader.find(options.selector);
  if (!found) return fail(found.problems(), context);
  const auto recoveries = reader.recoveries(found.value().id);
  if (!recoveries) return fail(recoveries.problems(), context);
  const auto timeline = reader.has_timeline(found.value().id);
  if (!timeline) return fail(timeline.problems(), context);
  if (!timeline.value() && recoveries.value().empty()) {
    return fail({{reader.file(), "", options.selector, "has no timeline and no recoveries: there is nothing to show",
                  "simulate with --timeline, and name the run of the step (see `trainyard run list`)"}},
                context);
  }
  end_in_order_on_signals();
  Progress progress("exporting", 1, context.quiet ? "none" : context.progress);
  store::ChromeTraceCounts counts;
  const auto write = [&](std::ostream& out) -> Problems {
    Result<store::ChromeTraceCounts> written = export_chrome(reader, found.value(), out, options.classes, [&](double) {
      progress.tick();
      return !stop_requested();
    });
    if (!written) return written.problems();
    counts = written.value();
    return counts.stopped ? Problems{stopped()} : Problems{};
  };
  const Problems problems = options.target == "-" ? write(std::cout) : write_output(options.target, write);
  if (!problems.empty()) return fail(problems, context);
  if (!context.quiet && context.progress == "auto") {
    std::cerr << fmt::format("{} slices on {} tracks{}\n", format_count(counts.slices), format_count(counts.tracks),
                             options.target == "-" ? "" : "; open " + options.target + " at https://ui.perfetto.dev");
  }
  return kOk;
}

}  // namespace

void add_run(CLI::App& app, Context& context) {
  CLI::App* run = add_command(app, "run", "Look at stored runs", "  trainyard run list\n  trainyard run show latest");
  run->require_subcommand(1);
  CLI::App* list = add_command(*run, "list", "All runs of the store, oldest first",
                               "  trainyard run list\n  trainyard run list --json | jq '.[].name'\n"
                               "  trainyard run list --sweeps");
  auto sweeps = std::make_shared<bool>(false);
  list->add_flag("--sweeps", *sweeps, "All sweeps, the one that was last worked on last");
  list->callback([sweeps, &context] {
    context.run = [sweeps, &context] { return *sweeps ? list_sweeps(context) : list_runs(context); };
  });
  add_run_show(*run, context);
  add_run_diff(*run, context);
  add_run_merge(*run, context);
  add_run_replay(*run, context);
  auto options = std::make_shared<ExportOptions>();
  CLI::App* exported = add_command(*run, "export", "Write a run for other tools",
                                   "  trainyard run export latest --format chrome -o trace.json   # open in Perfetto\n"
                                   "  trainyard run export latest --rank-class 0 --rank-class 7 -o two.json\n"
                                   "  trainyard run export latest --format csv -o cells.csv    # of a sweep\n"
                                   "  trainyard run export latest --format csv --table recoveries -o recoveries.csv");
  exported->add_option("run", options->selector, "Id, name or \"latest\"");
  exported->add_option("--format", options->format, "chrome: Chrome trace JSON of a run; csv: a table")
      ->check(CLI::IsMember({"chrome", "csv"}));
  exported
      ->add_option(
          "--table", options->table,
          "With csv: the cells of a sweep; of a run its recoveries, their phase ledger by causes, or its spares "
          "over time")
      ->check(CLI::IsMember({"cells", "recoveries", "causes", "spares"}));
  exported->add_option("--rank-class", options->classes,
                       "Only these classes of ranks, by number: ranks with one and the same timeline are one class");
  exported->add_option("-o,--output", options->target, "File, or - for standard output");
  exported->callback([options, &context] {
    context.run = [options, &context] {
      if (options->format != "csv") return export_run(*options, context);
      return options->table == "cells" ? export_sweep(options->selector, options->target, context)
                                       : export_table(options->table, options->selector, options->target, context);
    };
  });
}

}  // namespace trainyard::cli
