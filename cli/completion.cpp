// trainyard completion bash|zsh|fish: scripts made from the command tree, so that they cannot fall behind it.

#include <functional>
#include <iostream>

#include <fmt/format.h>

#include "cli/commands.h"
#include "cli/exit_code.h"

namespace trainyard::cli {

namespace {

struct Level {
  std::string path;   // "sim run"; empty at the top
  std::string words;  // subcommands and options
};

std::vector<Level> levels(const CLI::App& app) {
  std::vector<Level> out;
  const std::function<void(const CLI::App&, const std::string&)> visit = [&](const CLI::App& at,
                                                                             const std::string& path) {
    std::string words;
    for (const CLI::App* command : at.get_subcommands([](const CLI::App*) { return true; }))
      words += command->get_name() + " ";
    for (const CLI::App* from : {&at, &app}) {
      for (const CLI::Option* option : from->get_options()) {
        for (const std::string& name : option->get_lnames()) words += "--" + name + " ";
      }
      if (&at == &app) break;
    }
    out.push_back({path, words});
    for (const CLI::App* command : at.get_subcommands([](const CLI::App*) { return true; })) {
      visit(*command, path.empty() ? command->get_name() : path + " " + command->get_name());
    }
  };
  visit(app, "");
  return out;
}

std::string bash_script(const CLI::App& app) {
  std::string cases;
  for (const Level& level : levels(app)) cases += fmt::format("    \"{}\") words=\"{}\" ;;\n", level.path, level.words);
  return "_trainyard() {\n  local current=\"${COMP_WORDS[COMP_CWORD]}\" path=\"\" words=\"\" word\n"
         "  for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n    case \"$word\" in -*|*/*|*.*) ;; *) "
         "path=\"${path:+$path }$word\" ;; esac\n  done\n"
         "  case \"$path\" in\n" +
         cases +
         "    *) words=\"\" ;;\n  esac\n"
         "  COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n  [ ${#COMPREPLY[@]} -eq 0 ] && COMPREPLY=($(compgen "
         "-f -- \"$current\"))\n}\n"
         "complete -o filenames -F _trainyard trainyard\n";
}

std::string fish_script(const CLI::App& app) {
  std::string out = "complete -c trainyard -f\n";
  for (const Level& level : levels(app)) {
    const std::string condition = level.path.empty() ? "__fish_use_subcommand"
                                                     : fmt::format("__fish_seen_subcommand_from {}",
                                                                   level.path.substr(level.path.rfind(' ') + 1));
    out += fmt::format("complete -c trainyard -n '{}' -a '{}'\n", condition, level.words);
  }
  return out + "complete -c trainyard -n '__fish_seen_subcommand_from run check show' -F\n";
}

int completion(const CLI::App& app, const std::string& shell) {
  if (shell == "fish") {
    std::cout << fish_script(app);
  } else {
    if (shell == "zsh") std::cout << "autoload -U +X bashcompinit && bashcompinit\n";
    std::cout << bash_script(app);
  }
  return kOk;
}

}  // namespace

void add_completion(CLI::App& app, Context& context) {
  CLI::App* command = add_command(
      app, "completion", "Completion script for a shell",
      "  source <(trainyard completion bash)\n  trainyard completion fish > ~/.config/fish/completions/trainyard.fish");
  auto shell = std::make_shared<std::string>();
  command->add_option("shell", *shell, "bash, zsh or fish")->required()->check(CLI::IsMember({"bash", "zsh", "fish"}));
  command->callback([&app, shell, &context] { context.run = [&app, shell] { return completion(app, *shell); }; });
}

}  // namespace trainyard::cli
