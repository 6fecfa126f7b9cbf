// trainyard: rehearse a training run before anyone pays for it.

#include <algorithm>
#include <csignal>
#include <iostream>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/version.h"
#include "models/spec/json_reader.h"

namespace trainyard::cli {

CLI::App* add_command(CLI::App& parent, const std::string& name, const std::string& what, const std::string& examples) {
  CLI::App* command = parent.add_subcommand(name, what + "\n\nExamples:\n" + examples);
  return command;
}

namespace {

const char* to_string(ProblemKind kind) {
  switch (kind) {
    case ProblemKind::Input: return "invalid_input";
    case ProblemKind::Infeasible: return "infeasible";
    case ProblemKind::MissingCapability: return "missing_capability";
    case ProblemKind::Failed: return "failed";
    case ProblemKind::Stopped: return "interrupted";
  }
  return "internal";
}

int exit_code(ProblemKind kind) {
  switch (kind) {
    case ProblemKind::Input: return kInvalidInput;
    case ProblemKind::Infeasible: return kInfeasible;
    case ProblemKind::MissingCapability: return kMissingCapability;
    case ProblemKind::Failed: return kNotRecovered;
    case ProblemKind::Stopped: return kInterrupted;
  }
  return kInternal;
}

}  // namespace

int fail(const Problems& problems, const Context& context) {
  int code = kInternal;
  bool invalid = false;
  auto listed = nlohmann::ordered_json::array();
  for (const Problem& problem : problems) {
    if (context.progress != "ndjson") std::cerr << "trainyard: " << trainyard::to_string(problem) << "\n";
    code = std::max(code, exit_code(problem.kind));
    invalid |= problem.kind == ProblemKind::Input;
    listed.push_back({{"kind", to_string(problem.kind)},
                      {"file", problem.file},
                      {"path", problem.path},
                      {"value", problem.value},
                      {"rule", problem.rule},
                      {"fix", problem.fix}});
  }
  if (context.progress == "ndjson")
    std::cerr << nlohmann::ordered_json{{"problems", listed}}.dump(-1, ' ', false,
                                                                   nlohmann::ordered_json::error_handler_t::replace)
              << std::endl;
  if (context.json) {
    // A value may be of any bytes.
    std::cout << nlohmann::ordered_json{{"problems", listed}}.dump(2, ' ', false,
                                                                   nlohmann::ordered_json::error_handler_t::replace)
              << std::endl;
  }
  // Unreadable input comes before everything that would follow from it.
  return invalid ? kInvalidInput : code;
}

std::string check_seed(const std::string& text) {
  const bool digits = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
  const bool small = text.size() < 20 || (text.size() == 20 && text <= "18446744073709551615");
  return digits && small ? "" : "must be a whole number from 0 to 2^64-1";
}

namespace {

// Names of the subcommands at the level where parsing stopped.
std::vector<std::string> subcommand_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  return names;
}

// Long options that are known where parsing stopped, those of outer levels included.
std::vector<std::string> option_names(const CLI::App* app) {
  std::vector<std::string> names;
  for (; app != nullptr; app = app->get_parent()) {
    for (const CLI::Option* option : app->get_options()) {
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    }
  }
  return names;
}

// What a word that nobody knows may have been meant to be.
void suggest(const CLI::App& app, int argc, char** argv) {
  const CLI::App* level = &app;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i], name = word.substr(0, word.find('='));
    const bool option = name.rfind("--", 0) == 0;
    if (!option && (word.empty() || word[0] == '-')) continue;
    const std::vector<std::string> names = option ? option_names(level) : subcommand_names(*level);
    if (std::find(names.begin(), names.end(), name) != names.end()) {
      if (!option) level = level->get_subcommand(word);
      continue;
    }
    if (names.empty()) continue;  // an argument
    if (const auto guess = did_you_mean(name, names)) {
      std::cerr << fmt::format("trainyard: \"{}\" is not {}; did you mean \"{}\"?\n", name,
                               option ? "an option" : "a command", *guess);
    }
    return;
  }
}

int usage_error(const CLI::App& app, const CLI::ParseError& error, int argc, char** argv) {
  suggest(app, argc, argv);
  Context context;
  context.json = std::any_of(argv + 1, argv + argc, [](const char* word) { return std::string(word) == "--json"; });
  if (!context.json) return app.exit(error), kInvalidInput;
  return fail({{"", "", "", error.what(), "see --help"}}, context);
}

int run(int argc, char** argv) {
  Context context;
  CLI::App app{
      "Rehearse a large training run before anyone pays for it.\n\nExamples:\n"
      "  trainyard sim run scenarios/01-grok1-100k-week.json\n"
      "  trainyard exec run scenarios/tiny/train-llama.json\n"
      "  trainyard plan check scenarios/02-llama3-405b-54-days.json\n"
      "  trainyard run list"};
  app.name("trainyard");
  app.set_version_flag("--version", version_text());
  app.require_subcommand(1);
  app.fallthrough();
  app.add_flag("--json", context.json, "Print the result as JSON");
  app.add_flag("-q,--quiet", context.quiet, "No progress, no messages but errors");
  app.add_option("--progress", context.progress, "On stderr: auto, none, or ndjson (one JSON object a line)")
      ->check(CLI::IsMember({"auto", "none", "ndjson"}));
  app.add_option("--store", context.store_file, "Run store (default: $TRAINYARD_STORE, else ./trainyard.sqlite)");
  add_plan(app, context);
  add_program(app, context);
  add_sim(app, context);
  add_fabric(app, context);
  add_exec(app, context);
  add_run(app, context);
  add_calibrate(app, context);
  add_mup(app, context);
  add_exchange(app, context);
  add_validate(app, context);
  add_doctor(app, context);
  add_completion(app, context);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const bool help = error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success);
    return help ? app.exit(error) : usage_error(app, error, argc, argv);
  }
  const int code = context.run ? context.run() : static_cast<int>(kInvalidInput);
  std::cout.flush();
  if (std::cout || code != kOk) return code;
  return fail({{"standard output", "", "", "could not be written whole", "free space where it goes",
                ProblemKind::MissingCapability}},
              context);
}

}  // namespace

}  // namespace trainyard::cli

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_DFL);  // `trainyard ... | head` ends quietly
  try {
    return trainyard::cli::run(argc, argv);
  } catch (const std::bad_alloc&) {
    std::cerr
        << "trainyard: this takes more memory than the machine gives (fix: simulate fewer ranks, or without --unfold "
           "or --timeline)\n";
    return trainyard::cli::kMissingCapability;
  } catch (const std::exception& error) {
    std::cerr << "trainyard: internal error: " << error.what() << "\n";
    return trainyard::cli::kInternal;
  }
}
