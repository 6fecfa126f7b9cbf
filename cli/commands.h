// One function for each subcommand's file: it adds the subcommand and says what running it does.
#pragma once

#include <functional>
#include <string>

#include <CLI/CLI.hpp>

#include "models/base/status.h"

namespace trainyard::cli {

/// What every command shares. A command sets `run`; main calls it once parsing is over.
struct Context {
  bool json = false;
  bool quiet = false;
  std::string progress = "auto";  // or none, ndjson
  std::string store_file;         // empty: the default
  std::function<int()> run;
};

/// Why a text is no seed; empty when it is one.
std::string check_seed(const std::string& text);

void add_plan(CLI::App& app, Context& context);
void add_program(CLI::App& app, Context& context);
void add_sim(CLI::App& app, Context& context);
void add_calibrate(CLI::App& app, Context& context);
void add_exchange(CLI::App& app, Context& context);
void add_exec(CLI::App& app, Context& context);
void add_fabric(CLI::App& app, Context& context);
void add_run(CLI::App& app, Context& context);
/// Into the command "plan".
void add_plan_validate(CLI::App& plan, Context& context);
/// Into the command "sim".
void add_sim_fuzz(CLI::App& sim, Context& context);
void add_sim_sweep(CLI::App& sim, Context& context);
void add_sim_compare(CLI::App& sim, Context& context);
/// Into the command "run".
void add_run_diff(CLI::App& run, Context& context);
void add_run_merge(CLI::App& run, Context& context);
void add_run_replay(CLI::App& run, Context& context);
void add_run_show(CLI::App& run, Context& context);
void add_mup(CLI::App& app, Context& context);
void add_doctor(CLI::App& app, Context& context);
void add_validate(CLI::App& app, Context& context);
void add_completion(CLI::App& app, Context& context);

/// Adds a subcommand whose help opens with examples.
CLI::App* add_command(CLI::App& parent, const std::string& name, const std::string& what, const std::string& examples);

/// Prints problems to stderr, one a line, with --json also to stdout as {"problems": [...]}. Returns the exit code
/// that they mean.
int fail(const Problems& problems, const Context& context);

}  // namespace trainyard::cli
