// trainyard run replay: tells a run's events to a new controller and looks whether it does the same.

#include <iostream>
#include <memory>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/stored_run.h"
#include "cli/terminal.h"
#include "models/base/units.h"
#include "models/recovery/replay.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;
using recovery::Action;
using recovery::LoggedEvent;

struct ReplayCommand {
  std::string selector = "latest";
  bool log = false;
};

std::string clock_text(std::int64_t ns) { return fmt::format("{:.9f}", static_cast<double>(ns) / kNsPerS); }

void print_told(const LoggedEvent& told, const std::vector<Action>& actions, const Context& context) {
  if (context.json) {
    json line{{"time_ns", told.at_ns}, {"event", told.event}, {"actions", json::array()}};
    for (const Action& action : actions) line["actions"].push_back(describe(action));
    std::cout << line.dump(-1, ' ', false, json::error_handler_t::replace) << "\n";
    return;
  }
  std::cout << fmt::format("{:>18} s  {}\n", clock_text(told.at_ns), told.event);
  for (const Action& action : actions) std::cout << fmt::format("{:>22}-> {}\n", "", describe(action));
}

// Where it went another way.
json difference(const recovery::Replay& replay, const std::vector<Action>& actions) {
  const LoggedEvent& told = *replay.differs_at;
  json out{{"event_number", replay.events + 1},
           {"time_ns", told.at_ns},
           {"event", told.event},
           {"actions_then", told.actions},
           {"actions_now", json::array()}};
  for (const Action& action : actions) out["actions_now"].push_back(describe(action));
  return out;
}

std::string difference_text(const json& its, bool step_by_step) {
  std::string text =
      fmt::format("event {}{}, at {} s, leads to other actions than it did:\n  {}\n  it led to {}; now to {}:\n",
                  its["event_number"].get<std::int64_t>(), step_by_step ? " (steps told one by one)" : "",
                  clock_text(its["time_ns"]), its["event"].get<std::string>(), its["actions_then"].get<std::int64_t>(),
                  its["actions_now"].size());
  for (const json& action : its["actions_now"]) text += "  -> " + action.get<std::string>() + "\n";
  return text;
}

Result<recovery::ControllerLog> load_log(const ReplayCommand& command, const Context& context, store::Run& run,
                                         std::string& file) {
  Result<store::RunReader> opened = open_store(context);
  if (!opened) return opened.problems();
  store::RunReader reader = std::move(opened).value();
  file = reader.file();
  Result<store::Run> found = reader.find(command.selector);
  if (!found) return found.problems();
  run = std::move(found).value();
  Result<recovery::ControllerLog> log = reader.controller_log(run.id);
  if (!log || !log.value().config.empty()) return log;
  return Problem{file, "", fmt::format("run {} ({})", run.id, run.name), "has no log of a controller",
                 "name a run over time that this version simulated to its end: see `trainyard run list`"};
}

struct Replayed {
  recovery::Replay replay;
  std::vector<Action> last;  // what the last event led to
  bool step_by_step = false;
};

// Told as it was and, if that gives the same, with its steps one by one.
Result<Replayed> replay_twice(const recovery::ControllerLog& log, const ReplayCommand& command,
                              const Context& context) {
  Progress progress("replaying", static_cast<std::size_t>(2 * log.events), context.quiet ? "none" : context.progress);
  Replayed out;
  for (const bool step_by_step : {false, true}) {
    recovery::ReplayOptions options;
    options.step_by_step = out.step_by_step = step_by_step;
    options.on_event = [&](const LoggedEvent& told, const std::vector<Action>& actions) {
      out.last = actions;
      progress.step();
      if (command.log && !step_by_step) print_told(told, actions, context);
    };
    const Result<recovery::Replay> result = recovery::replay(log, options);
    if (!result) return result.problems();
    out.replay = result.value();
    if (out.replay.differs_at) break;
  }
  return out;
}

int replay_run(const ReplayCommand& command, const Context& context) {
  store::Run run;
  std::string file;
  const Result<recovery::ControllerLog> loaded = load_log(command, context, run, file);
  if (!loaded) return fail(loaded.problems(), context);
  const Result<Replayed> result = replay_twice(loaded.value(), command, context);
  if (!result) {
    Problems problems = result.problems();
    for (Problem& problem : problems) problem.file = file;
    return fail(problems, context);
  }
  const Replayed& replayed = result.value();
  const bool same = !replayed.replay.differs_at;
  json report = summary(run);
  report["same"] = same;
  report["events"] = loaded.value().events;
  if (same)
    report["actions"] = replayed.replay.actions;
  else
    report["difference"] = difference(replayed.replay, replayed.last);
  std::ostream& out = command.log ? std::cerr : std::cout;
  if (context.json) {
    if (!command.log) out << report.dump(2, ' ', false, json::error_handler_t::replace) << "\n";
  } else if (same) {
    out << fmt::format(
        "run {}: {}\n  {} events lead to the same {} actions again, also with its steps told one by one\n", run.id,
        run.name, format_count(loaded.value().events), format_count(replayed.replay.actions));
  } else {
    out << difference_text(report["difference"], replayed.step_by_step);
  }
  return same ? kOk : kParityMismatch;
}

}  // namespace

void add_run_replay(CLI::App& run, Context& context) {
  CLI::App* its = add_command(run, "replay", "Do the controller's work again, and see whether it does the same",
                              "  trainyard run replay latest\n"
                              "  trainyard run replay 3 --log | grep -B 3 page_human      # all it was told and did\n"
                              "  trainyard run replay 3 --log --json > log.ndjson");
  auto command = std::make_shared<ReplayCommand>();
  its->add_option("run", command->selector, "Id, name or \"latest\"");
  its->add_flag("--log", command->log, "Print every event with its actions; with --json an object a line");
  its->callback([command, &context] { context.run = [command, &context] { return replay_run(*command, context); }; });
}

}  // namespace trainyard::cli
