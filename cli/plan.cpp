// trainyard plan check|show: is the plan sound, and what does it mean?

#include <iostream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/job.h"
#include "cli/terminal.h"
#include "models/base/units.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

int check_plan(const std::string& file, const Context& context) {
  const Result<Job> prepared = prepare(file);
  if (!prepared) return fail(prepared.problems(), context);
  const Job& job = prepared.value();
  Problems problems = check(job.program);
  for (Problem& problem : problems) problem.kind = ProblemKind::Infeasible;
  const Problems memory = check_memory(job);
  problems.insert(problems.end(), memory.begin(), memory.end());
  if (!problems.empty()) return fail(problems, context);
  const double peak = job.memory_peak_bytes();
  if (context.json) {
    std::cout << json{{"ok", true},
                      {"ranks", job.scenario.plan.ranks()},
                      {"memory_peak_bytes", peak},
                      {"memory_capacity_bytes", job.hardware.memory_bytes}}
                     .dump(2)
              << "\n";
  } else {
    std::cout << fmt::format(
        "{}: sound. {} ranks, {} of {} a GPU at stage {}; program proved free of deadlock and of memory hazards.\n",
        job.scenario.name, format_count(job.scenario.plan.ranks()), format_bytes(peak),
        format_bytes(job.hardware.memory_bytes), job.fullest_stage());
  }
  return kOk;
}

const char* split_text(Split split) { return split == Split::Tp ? "tp" : split == Split::Ep ? "ep" : "None"; }

// As a JAX user writes it: one entry for each dimension.
std::string partition_spec(const Param& param) {
  std::string text = param.expert_parallel ? "ep, " : "";
  text += split_text(param.split0);
  const int dims = param.local_shape.rank - (param.expert_parallel ? 1 : 0);
  if (dims > 1) text += fmt::format(", {}", split_text(param.split1));
  return "P(" + text + ")";
}

std::string shape_text(const Shape& shape) {
  std::string text;
  for (int i = 0; i < shape.rank; ++i)
    text += (i > 0 ? " x " : "") + format_count(shape.dims[static_cast<std::size_t>(i)]);
  return text;
}

// Where gradients are summed: over the group at once, or over a shard's ranks and then over its copies.
std::string synchronised_over(const Bucket& bucket) {
  const auto [shards, copies] = bucket.sharding;
  if (shards == bucket.group || copies == bucket.group) return to_string(bucket.group);
  return fmt::format("{}, then {}", to_string(shards), to_string(copies));
}

// Parameters of the first chunk that has a layer, and of those that hold the embedding and the head: the rest repeat.
json sharding_table(const Job& job) {
  json rows = json::array();
  bool layer_shown = false;
  for (const StageProgram& stage : job.program.stages) {
    for (const Chunk& chunk : stage.chunks) {
      for (const Bucket& bucket : chunk.buckets) {
        for (const Param& param : bucket.params) {
          const bool of_layer = param.name.rfind("layer", 0) == 0;
          if (of_layer && (layer_shown || param.name.rfind("layer0.", 0) != 0)) continue;
          rows.push_back({{"param", of_layer ? param.name.substr(7) : param.name},
                          {"spec", partition_spec(param)},
                          {"local_shape", shape_text(param.local_shape)},
                          {"synchronised_over", synchronised_over(bucket)},
                          {"stage", stage.stage}});
        }
      }
      layer_shown |= chunk.layers > 0;
    }
  }
  return rows;
}

int show_plan(const std::string& file, const Context& context) {
  const Result<Job> prepared = prepare(file);
  if (!prepared) return fail(prepared.problems(), context);
  const Job& job = prepared.value();
  json out;
  out["scenario"] = job.scenario.name;
  out["ranks"] = job.scenario.plan.ranks();
  out["sharding"] = sharding_table(job);
  for (const StageProgram& stage : job.program.stages) {
    const MemoryUse use = memory_use(stage);
    std::int64_t layers = 0;
    for (const Chunk& chunk : stage.chunks) layers += chunk.layers;
    json row{{"stage", stage.stage},
             {"layers", layers},
             {"arena_bytes", stage.arena_bytes},
             {"process_peak_bytes", job.cost().process_peak_bytes(job.program, stage)}};
    for (std::size_t r = 0; r < kRoleCount; ++r) row["by_role"][to_string(static_cast<Role>(r))] = use.by_role[r];
    out["stages"].push_back(row);
  }
  if (context.json) {
    std::cout << out.dump(2) << "\n";
    return kOk;
  }
  const ParallelPlan& plan = job.scenario.plan;
  std::cout << fmt::format(
      "{} on mesh (tp {}, cp {}, ep {} over cp x dp, pp {}, dp {}) = {} ranks\n\nSharding, a layer and what is outside "
      "layers\n",
      job.scenario.model.name, plan.tp, plan.cp, plan.ep, plan.pp, plan.dp, format_count(plan.ranks()));
  std::vector<std::vector<std::string>> rows;
  for (const json& row : out["sharding"]) {
    rows.push_back({row["param"], row["spec"], row["local_shape"], row["synchronised_over"]});
  }
  std::cout << table({"parameter", "spec", "on each rank", "gradients over"}, rows) << "\nMemory by stage\n";
  rows.clear();
  for (const json& row : out["stages"]) {
    std::vector<std::string> cells{row["stage"].dump(), row["layers"].dump()};
    for (const char* role : {"params", "grads", "optimizer", "saved", "input", "transient"})
      cells.push_back(format_bytes(row["by_role"][role]));
    cells.push_back(format_bytes(row["arena_bytes"]));
    cells.push_back(format_bytes(row["process_peak_bytes"]));
    rows.push_back(cells);
  }
  std::cout << table(
      {"stage", "layers", "params", "grads", "optimizer", "saved", "inputs", "scratch", "arena", "process"}, rows);
  return kOk;
}

}  // namespace

void add_plan(CLI::App& app, Context& context) {
  CLI::App* plan =
      add_command(app, "plan", "Check and explain plans", "  trainyard plan check scenarios/01-grok1-100k-week.json");
  plan->require_subcommand(1);
  auto file = std::make_shared<std::string>();
  CLI::App* check =
      add_command(*plan, "check", "Is the plan sound? Proves its program and checks that it fits in memory",
                  "  trainyard plan check scenarios/02-llama3-405b-54-days.json");
  check->add_option("scenario", *file, "Scenario file")->required();
  check->callback([file, &context] { context.run = [file, &context] { return check_plan(*file, context); }; });
  CLI::App* show = add_command(
      *plan, "show", "What the plan means: sharding of every parameter, memory of every stage",
      "  trainyard plan show scenarios/01-grok1-100k-week.json\n  trainyard plan show my.json --json | jq .stages");
  show->add_option("scenario", *file, "Scenario file")->required();
  show->callback([file, &context] { context.run = [file, &context] { return show_plan(*file, context); }; });
  add_plan_validate(*plan, context);
}

}  // namespace trainyard::cli
