// trainyard program show|check: the step program that simulator and executor share.

#include <iostream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/job.h"

namespace trainyard::cli {

namespace {

int show_program(const std::string& file, const Context& context) {
  const Result<Job> prepared = prepare(file);
  if (!prepared) return fail(prepared.problems(), context);
  const std::string text = dump(prepared.value().program);
  std::cout << (context.json ? nlohmann::json{{"program", text}}.dump() + "\n" : text);
  return kOk;
}

int check_program(const std::string& file, const Context& context) {
  const Result<Job> prepared = prepare(file);
  if (!prepared) return fail(prepared.problems(), context);
  Problems problems = check(prepared.value().program);
  for (Problem& problem : problems) problem.kind = ProblemKind::Infeasible;
  if (!problems.empty()) return fail(problems, context);
  std::size_t items = 0;
  for (const StageProgram& stage : prepared.value().program.stages) items += stage.items.size();
  if (context.json) {
    std::cout << nlohmann::json{{"ok", true}, {"items", items}}.dump() << "\n";
  } else {
    std::cout << fmt::format(
        "{} stages, {} blocks, {} items: every read follows its write, no memory is reused early, no rendezvous "
        "cycle.\n",
        prepared.value().program.stages.size(), prepared.value().program.blocks.size(), items);
  }
  return kOk;
}

}  // namespace

void add_program(CLI::App& app, Context& context) {
  CLI::App* program = add_command(app, "program", "Show and prove step programs",
                                  "  trainyard program show scenarios/tiny/llama.json | less");
  program->require_subcommand(1);
  auto file = std::make_shared<std::string>();
  CLI::App* show = add_command(*program, "show", "Print the step program as stable text",
                               "  trainyard program show scenarios/tiny/llama.json | less");
  show->add_option("scenario", *file, "Scenario file")->required();
  show->callback([file, &context] { context.run = [file, &context] { return show_program(*file, context); }; });
  CLI::App* check = add_command(*program, "check", "Prove the step program: dataflow, memory reuse, deadlock",
                                "  trainyard program check scenarios/01-grok1-100k-week.json");
  check->add_option("scenario", *file, "Scenario file")->required();
  check->callback([file, &context] { context.run = [file, &context] { return check_program(*file, context); }; });
}

}  // namespace trainyard::cli
