// trainyard sim fuzz: nights in which everything goes wrong, and the invariants that must hold in them.

#include <chrono>
#include <filesystem>
#include <iostream>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/interrupt.h"
#include "cli/output_file.h"
#include "cli/terminal.h"
#include "cli/version.h"
#include "models/base/stop.h"
#include "models/base/units.h"
#include "models/spec/json_reader.h"
#include "sim/fuzz/fuzz.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

struct Options {
  fuzz::FuzzOptions fuzz;
  std::string night_file, save_folder = ".";
  bool log = false;
};

std::string night_file_name(const Options& options, const fuzz::Violation& violation) {
  return (std::filesystem::path(options.save_folder) / fmt::format("night-{}.json", violation.seed)).string();
}

/// Cuts the night down and writes it. Says where, and how short it became.
json keep(const Options& options, const fuzz::Violation& violation, Problems& problems) {
  const fuzz::Night night = fuzz::minimise(fuzz::draw_night(violation.seed));
  const std::string file = night_file_name(options, violation);
  problems = write_output(file, [&](std::ostream& out) -> Problems {
    out << to_json(night).dump(2) << "\n";
    return {};
  });
  return {{"seed", violation.seed},
          {"what", violation.what},
          {"at_s", violation.at_s},
          {"night", file},
          {"mischief", night.mischief.size()}};
}

json report_of(const fuzz::FuzzResult& result, const fuzz::FuzzOptions& options, double wall_s) {
  json out;
  out["commit"] = commit_id();
  out["first_seed"] = options.first_seed;
  out["seeds"] = result.nights;
  out["violations"] = json::array();
  out["wall_s"] = wall_s;
  out["seeds_per_s"] = static_cast<double>(result.nights) / wall_s;
  out["median_events"] = result.median_mischief();
  out["recoveries"] = result.recoveries;
  out["checkpoints"] = result.checkpoints;
  out["takeovers"] = result.takeovers;
  out["messages"] = result.messages;
  out["worst_calm_recovery_s"] = result.worst_calm_recovery_s;
  const auto& table = recovery::transition_table();
  out["transitions"] = {{"all", table.size()}, {"covered", result.transitions_covered()}, {"missing", json::array()}};
  for (std::size_t i = 0; i < table.size(); ++i)
    if (result.transitions[i] == 0)
      out["transitions"]["missing"].push_back(
          fmt::format("{} --{}--> {}", to_string(table[i].from), table[i].event, to_string(table[i].to)));
  out["action_hash"] = fmt::format("{:016x}", result.action_hash);
  return out;
}

std::string text_of(const json& report) {
  std::string text = fmt::format(
      "{} nights, median {} events; {} recoveries, {} takeovers by a new launcher; {:.0f} nights a second\n"
      "{} of {} transitions of the controller taken\n",
      format_count(report["seeds"].get<std::int64_t>()), report["median_events"].get<std::int64_t>(),
      format_count(report["recoveries"].get<std::int64_t>()), format_count(report["takeovers"].get<std::int64_t>()),
      report["seeds_per_s"].get<double>(), report["transitions"]["covered"].get<std::int64_t>(),
      report["transitions"]["all"].get<std::int64_t>());
  for (const json& missing : report["transitions"]["missing"])
    text += fmt::format("  not taken: {}\n", missing.get<std::string>());
  text += fmt::format("slowest return to a durable checkpoint once faults had stopped: {:.0f} s\n",
                      report["worst_calm_recovery_s"].get<double>());
  if (report["violations"].empty()) text += "no invariant was violated\n";
  for (const json& violation : report["violations"]) {
    text += fmt::format("VIOLATED, seed {}: {}\n", violation["seed"].get<std::uint64_t>(),
                        violation["what"].get<std::string>());
    if (violation.contains("night"))
      text += fmt::format("  {} events of it are enough: trainyard sim fuzz --night {} --log\n",
                          violation["mischief"].get<std::int64_t>(), violation["night"].get<std::string>());
  }
  return text + fmt::format("actions {}\n", report["action_hash"].get<std::string>());
}

int fuzz_seeds(Options options, const Context& context) {
  end_in_order_on_signals();
  const auto start = std::chrono::steady_clock::now();
  fuzz::FuzzResult result;
  {
    Progress progress("playing nights", static_cast<std::size_t>(options.fuzz.seeds),
                      context.quiet ? "none" : context.progress);
    std::int64_t shown = 0;
    options.fuzz.on_wait = [&](std::int64_t played) {
      for (; shown < played; ++shown) progress.step();
      progress.tick();
    };
    result = fuzz::fuzz(options.fuzz);
  }
  const double wall_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  json report = report_of(result, options.fuzz, wall_s);
  // The first few are cut down; a bug that shows on every night need not be cut down a thousand times.
  constexpr std::size_t kKept = 3;
  for (std::size_t i = 0; i < result.violations.size(); ++i) {
    const fuzz::Violation& violation = result.violations[i];
    Problems problems;
    report["violations"].push_back(
        i < kKept && !stop_requested()
            ? keep(options, violation, problems)
            : json{{"seed", violation.seed}, {"what", violation.what}, {"at_s", violation.at_s}});
    if (!problems.empty()) return fail(problems, context);
  }
  std::cout << (context.json ? report.dump(2) + "\n" : text_of(report)) << std::flush;
  if (stop_requested()) return fail({stopped()}, context);
  return result.violations.empty() ? kOk : kInternal;
}

int play_night(const Options& options, const Context& context) {
  const Result<nlohmann::json> parsed = read_json_file(options.night_file);
  if (!parsed) return fail(parsed.problems(), context);
  const Result<fuzz::Night> night = fuzz::night_from_json(parsed.value(), options.night_file);
  if (!night) return fail(night.problems(), context);
  fuzz::PlayOptions play;
  if (options.log)
    play.log = [](double at_s, const std::string& line) { std::cerr << fmt::format("{:10.3f} {}\n", at_s, line); };
  const fuzz::NightResult result = fuzz::play(night.value(), play);
  const json report{{"night", options.night_file},
                    {"violation", result.violation.empty() ? json(nullptr) : json(result.violation)},
                    {"at_s", result.violation_at_s},
                    {"events", result.mischief},
                    {"recoveries", result.recoveries},
                    {"checkpoints", result.checkpoints},
                    {"action_hash", fmt::format("{:016x}", result.action_hash)}};
  if (context.json)
    std::cout << report.dump(2) << "\n";
  else if (result.violation.empty())
    std::cout << fmt::format("{} events, {} recoveries, {} checkpoints: no invariant was violated\nactions {:016x}\n",
                             result.mischief, result.recoveries, result.checkpoints, result.action_hash);
  else
    std::cout << fmt::format("VIOLATED at {:.3f} s: {}\nactions {:016x}\n", result.violation_at_s, result.violation,
                             result.action_hash);
  return result.violation.empty() ? kOk : kInternal;
}

}  // namespace

void add_sim_fuzz(CLI::App& sim, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      add_command(sim, "fuzz", "Play nights in which everything goes wrong, and watch the controller's invariants",
                  "  trainyard sim fuzz --seeds 10000\n"
                  "  trainyard sim fuzz --seeds 2000 --json | jq '{seeds, violations, seeds_per_s}'\n"
                  "  trainyard sim fuzz --night night-1954.json --log      # what happened in a night that was kept");
  command->add_option("--seeds", options->fuzz.seeds, "How many nights")->check(CLI::Range(1, 1'000'000'000));
  command->add_option("--seed", options->fuzz.first_seed, "The first night's seed; the next ones follow")
      ->check(check_seed);
  command->add_option("--jobs", options->fuzz.threads, "Nights at a time (default: one per processor)")
      ->check(CLI::Range(0, 4096));
  command->add_option("--stop-after", options->fuzz.stop_after, "End once this many nights went wrong (default: never)")
      ->check(CLI::Range(0, 1'000'000'000));
  command->add_option("--save", options->save_folder, "Folder for nights that went wrong, cut down (default: here)");
  command->add_option("--night", options->night_file, "Play this night again, instead of seeds");
  command->add_flag("--log", options->log, "With --night: tell on stderr all that happens");
  command->callback([options, &context] {
    context.run = [options, &context] {
      return options->night_file.empty() ? fuzz_seeds(*options, context) : play_night(*options, context);
    };
  });
}

}  // namespace trainyard::cli
