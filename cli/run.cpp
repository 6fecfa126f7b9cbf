// trainyard run list|show|export: what the store holds.

#include <fstream>
#include <iostream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/report.h"
#include "cli/terminal.h"
#include "models/base/units.h"
#include "store/chrome_trace.h"
#include "store/run_reader.h"
#include "store/store_file.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

Result<store::RunReader> open_store(const Context& context) {
  return store::RunReader::open(context.store_file.empty() ? store::default_store_file() : context.store_file);
}

json summary(const store::Run& run) {
  return {{"id", run.id},
          {"name", run.name},
          {"kind", to_string(run.kind)},
          {"status", to_string(run.status)},
          {"seed", run.seed},
          {"commit", run.commit_id},
          {"started_unix_ns", run.started_unix_ns},
          {"trace_hash", run.trace_hash}};
}

int list_runs(const Context& context) {
  Result<store::RunReader> opened = open_store(context);
  if (!opened) return fail(opened.problems());
  store::RunReader reader = std::move(opened).value();
  const Result<std::vector<store::Run>> runs = reader.runs();
  if (!runs) return fail(runs.problems());
  json all = json::array();
  std::vector<std::vector<std::string>> rows;
  for (const store::Run& run : runs.value()) {
    all.push_back(summary(run));
    rows.push_back({std::to_string(run.id), run.name, to_string(run.kind), to_string(run.status),
                    std::to_string(run.seed), run.commit_id, run.trace_hash});
  }
  if (context.json) {
    std::cout << all.dump(2) << "\n";
  } else if (rows.empty()) {
    std::cerr << "no runs yet: try `trainyard sim run scenarios/01-grok1-100k-week.json`\n";
  } else {
    std::cout << table({"id", "name", "kind", "status", "seed", "commit", "trace"}, rows, 0);
  }
  return kOk;
}

int show_run(const std::string& selector, const Context& context) {
  Result<store::RunReader> opened = open_store(context);
  if (!opened) return fail(opened.problems());
  store::RunReader reader = std::move(opened).value();
  const Result<store::Run> found = reader.find(selector);
  if (!found) return fail(found.problems());
  const store::Run& run = found.value();
  const auto events = reader.events(run.id);
  const auto recoveries = reader.recoveries(run.id);
  if (!events) return fail(events.problems());
  if (!recoveries) return fail(recoveries.problems());
  if (context.json) {
    json out = summary(run);
    out["report"] = run.report_json.empty() ? json(nullptr) : json::parse(run.report_json);
    out["events"] = events.value().size();
    out["recoveries"] = recoveries.value().size();
    std::cout << out.dump(2) << "\n";
    return kOk;
  }
  std::cout << fmt::format("run {}: {} ({}), {}; {} events, {} recoveries committed\n\n", run.id, run.name,
                           to_string(run.kind), to_string(run.status), events.value().size(),
                           recoveries.value().size());
  if (!run.report_json.empty()) std::cout << report_text(json::parse(run.report_json));
  return kOk;
}

int export_run(const std::string& selector, const std::string& format, const std::string& target,
               const Context& context) {
  if (format != "chrome") return kInvalidInput;
  Result<store::RunReader> opened = open_store(context);
  if (!opened) return fail(opened.problems());
  store::RunReader reader = std::move(opened).value();
  const Result<store::Run> found = reader.find(selector);
  if (!found) return fail(found.problems());
  std::ofstream file;
  if (target != "-") {
    file.open(target, std::ios::binary | std::ios::trunc);
    if (!file) return fail({{target, "", "", "cannot be written", "check the folder and its permissions"}});
  }
  std::ostream& out = target == "-" ? std::cout : file;
  const Result<store::ChromeTraceCounts> counts = export_chrome(reader, found.value(), out);
  if (!counts) return fail(counts.problems());
  out.flush();
  if (!out) return fail({{target, "", "", "could not be written whole", "free space and try again"}});
  if (!context.quiet) {
    std::cerr << fmt::format("{} slices on {} tracks{}\n", format_count(counts.value().slices),
                             format_count(counts.value().tracks),
                             target == "-" ? "" : "; open " + target + " at https://ui.perfetto.dev");
  }
  return kOk;
}

}  // namespace

void add_run(CLI::App& app, Context& context) {
  CLI::App* run = add_command(app, "run", "Look at stored runs", "  trainyard run list\n  trainyard run show latest");
  run->require_subcommand(1);
  CLI::App* list = add_command(*run, "list", "All runs of the store, oldest first",
                               "  trainyard run list\n  trainyard run list --json | jq '.[].name'");
  list->callback([&context] { context.run = [&context] { return list_runs(context); }; });
  auto selector = std::make_shared<std::string>("latest");
  CLI::App* show =
      add_command(*run, "show", "The report of a run", "  trainyard run show latest\n  trainyard run show 3 --json");
  show->add_option("run", *selector, "Id, name or \"latest\"");
  show->callback([selector, &context] { context.run = [selector, &context] { return show_run(*selector, context); }; });
  auto format = std::make_shared<std::string>("chrome"), target = std::make_shared<std::string>("-");
  CLI::App* exported = add_command(*run, "export", "Write a run for other tools",
                                   "  trainyard run export latest --format chrome -o trace.json   # open in Perfetto");
  exported->add_option("run", *selector, "Id, name or \"latest\"");
  exported->add_option("--format", *format, "chrome: Chrome trace JSON")->check(CLI::IsMember({"chrome"}));
  exported->add_option("-o,--output", *target, "File, or - for standard output");
  exported->callback([selector, format, target, &context] {
    context.run = [=, &context] { return export_run(*selector, *format, *target, context); };
  });
}

}  // namespace trainyard::cli
