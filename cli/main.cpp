// trainyard: rehearse a training run before anyone pays for it.

#include <algorithm>
#include <csignal>
#include <iostream>
#include <vector>

#include <fmt/format.h>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/version.h"
#include "models/spec/json_reader.h"

namespace trainyard::cli {

CLI::App* add_command(CLI::App& parent, const std::string& name, const std::string& what, const std::string& examples) {
  CLI::App* command = parent.add_subcommand(name, what + "\n\nExamples:\n" + examples);
  return command;
}

int fail(const Problems& problems) {
  int code = kInternal;
  for (const Problem& problem : problems) {
    std::cerr << "trainyard: " << to_string(problem) << "\n";
    switch (problem.kind) {
      case ProblemKind::Input: code = std::max<int>(code, kInvalidInput); break;
      case ProblemKind::Infeasible: code = std::max<int>(code, kInfeasible); break;
      case ProblemKind::MissingCapability: code = std::max<int>(code, kMissingCapability); break;
    }
  }
  // Unreadable input comes before everything that would follow from it.
  const bool invalid =
      std::any_of(problems.begin(), problems.end(), [](const Problem& p) { return p.kind == ProblemKind::Input; });
  return invalid ? kInvalidInput : code;
}

namespace {

// Names of the subcommands at the level where parsing stopped.
std::vector<std::string> subcommand_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  return names;
}

void suggest(const CLI::App& app, int argc, char** argv) {
  const CLI::App* level = &app;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.empty() || word[0] == '-') return;
    const std::vector<std::string> names = subcommand_names(*level);
    if (names.empty()) return;
    if (std::find(names.begin(), names.end(), word) == names.end()) {
      if (const auto guess = did_you_mean(word, names))
        std::cerr << fmt::format("trainyard: \"{}\" is not a command; did you mean \"{}\"?\n", word, *guess);
      return;
    }
    level = level->get_subcommand(word);
  }
}

int run(int argc, char** argv) {
  Context context;
  CLI::App app{
      "Rehearse a large training run before anyone pays for it.\n\nExamples:\n"
      "  trainyard sim run scenarios/01-grok1-100k-week.json\n"
      "  trainyard plan check scenarios/02-llama3-405b-54-days.json\n"
      "  trainyard run list"};
  app.name("trainyard");
  app.set_version_flag("--version", version_text());
  app.require_subcommand(1);
  app.fallthrough();
  app.add_flag("--json", context.json, "Print the result as JSON");
  app.add_flag("-q,--quiet", context.quiet, "No progress, no messages but errors");
  app.add_option("--store", context.store_file, "Run store (default: $TRAINYARD_STORE, else ./trainyard.sqlite)");
  add_plan(app, context);
  add_program(app, context);
  add_sim(app, context);
  add_run(app, context);
  add_doctor(app, context);
  add_completion(app, context);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const bool help = error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success);
    if (!help) suggest(app, argc, argv);
    const int code = app.exit(error);
    return code == 0 ? kOk : kInvalidInput;
  }
  return context.run ? context.run() : static_cast<int>(kInvalidInput);
}

}  // namespace

}  // namespace trainyard::cli

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_DFL);  // `trainyard ... | head` ends quietly
  try {
    return trainyard::cli::run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "trainyard: internal error: " << error.what() << "\n";
    return trainyard::cli::kInternal;
  }
}
