// trainyard plan check|show: is the plan sound, and what does it mean?

#include <algorithm>
#include <iostream>
#include <set>

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

json memory_table(const Job& job) {
  json rows = json::array();
  for (const StageProgram& stage : job.program.stages) {
    const MemoryUse use = memory_use(stage);
    const ProcessMemory process = job.cost().process_memory(job.program, stage);
    std::int64_t layers = 0;
    for (const Chunk& chunk : stage.chunks) layers += chunk.layers;
    json row{{"stage", stage.stage},
             {"layers", layers},
             {"arena_bytes", stage.arena_bytes},
             {"beside_arena",
              {{"fragmentation_bytes", process.fragmentation_bytes},
               {"context_bytes", process.context_bytes},
               {"communicators", process.communicators},
               {"communicator_bytes", process.communicator_bytes},
               {"gradient_copy_bytes", process.gradient_copy_bytes},
               {"step_gradient_bytes", process.step_gradient_bytes},
               {"logit_copy_bytes", process.logit_copy_bytes},
               {"workspace_bytes", process.workspace_bytes}}},
             {"process_peak_bytes", process.total_bytes()}};
    for (std::size_t r = 0; r < kRoleCount; ++r) row["by_role"][to_string(static_cast<Role>(r))] = use.by_role[r];
    rows.push_back(row);
  }
  return rows;
}

/// Of more columns than can be read: the first, the last, the fullest, and some evenly between.
void keep_few(std::vector<std::string>& head, std::vector<const json*>& shown) {
  constexpr std::size_t kColumns = 8;
  if (shown.size() <= kColumns) return;
  std::set<std::size_t> kept;
  for (std::size_t i = 0; i + 1 < kColumns; ++i) kept.insert(i * (shown.size() - 1) / (kColumns - 2));
  const auto fullest = std::max_element(shown.begin(), shown.end(), [](const json* a, const json* b) {
    return (*a)["process_peak_bytes"] < (*b)["process_peak_bytes"];
  });
  kept.insert(static_cast<std::size_t>(fullest - shown.begin()));
  std::vector<std::string> names{head[0] + fmt::format(" ({} of {})", kept.size(), shown.size())};
  std::vector<const json*> few;
  for (const std::size_t i : kept) {
    names.push_back(head[i + 1]);
    few.push_back(shown[i]);
  }
  head = names;
  shown = few;
}

/// A line for each component, a column for each stage whose figures differ from the one before.
std::string memory_by_component(const json& stages, double capacity) {
  std::vector<std::string> head{"of a GPU, by stage"};
  std::vector<const json*> shown;
  for (std::size_t i = 0; i < stages.size(); ++i) {
    const bool repeats = i > 0 && stages[i]["process_peak_bytes"] == stages[i - 1]["process_peak_bytes"] &&
                         stages[i]["by_role"] == stages[i - 1]["by_role"];
    if (repeats) {
      head.back() = fmt::format("{}-{}", (*shown.back())["stage"].dump(), i);
      continue;
    }
    head.push_back(std::to_string(i));
    shown.push_back(&stages[i]);
  }
  keep_few(head, shown);
  std::vector<std::vector<std::string>> rows;
  const auto line = [&](const char* name, auto&& bytes_of) {
    std::vector<std::string> cells{name};
    double most = 0;
    for (const json* stage : shown) {
      const double bytes = bytes_of(*stage);
      most = std::max(most, bytes);
      cells.push_back(format_bytes(bytes));
    }
    if (most > 0) rows.push_back(cells);
  };
  static constexpr std::pair<const char*, const char*> kRoles[] = {
      {"parameters", "params"}, {"gradients", "grads"},    {"optimizer state", "optimizer"},
      {"activations", "saved"}, {"stage inputs", "input"}, {"scratch", "transient"}};
  for (const auto& [name, role] : kRoles)
    line(name, [key = role](const json& stage) { return stage["by_role"][key].get<double>(); });
  const auto role = [](const json& stage, const char* name) { return stage["by_role"][name].get<double>(); };
  line("sends and batch", [&](const json& stage) {
    double bytes = 0;
    for (const char* name : {"output", "output_grad", "input_grad", "batch", "step"}) bytes += role(stage, name);
    return bytes;
  });
  line("gaps between them", [](const json& stage) {
    double bytes = stage["arena_bytes"];
    for (const auto& [name, its] : stage["by_role"].items()) bytes -= its.get<double>();
    return bytes;
  });
  line("arena, at its peak", [](const json& stage) { return stage["arena_bytes"].get<double>(); });
  static constexpr std::pair<const char*, const char*> kBeside[] = {{"fragmentation", "fragmentation_bytes"},
                                                                    {"context, kernels", "context_bytes"},
                                                                    {"communicators", "communicator_bytes"},
                                                                    {"second gradients", "gradient_copy_bytes"},
                                                                    {"gradients in f32", "step_gradient_bytes"},
                                                                    {"logits in f32", "logit_copy_bytes"},
                                                                    {"workspace", "workspace_bytes"}};
  for (const auto& [name, key] : kBeside)
    line(name, [its = key](const json& stage) { return stage["beside_arena"][its].get<double>(); });
  line("process", [](const json& stage) { return stage["process_peak_bytes"].get<double>(); });
  line("of the GPU's", [capacity](const json&) { return capacity; });
  return table(head, rows);
}

int show_plan(const std::string& file, bool only_memory, const Context& context) {
  const Result<Job> prepared = prepare(file);
  if (!prepared) return fail(prepared.problems(), context);
  const Job& job = prepared.value();
  json out;
  out["scenario"] = job.scenario.name;
  out["ranks"] = job.scenario.plan.ranks();
  if (!only_memory) out["sharding"] = sharding_table(job);
  out["stages"] = memory_table(job);
  out["memory_capacity_bytes"] = job.hardware.memory_bytes;
  if (context.json) {
    std::cout << out.dump(2) << "\n";
    return kOk;
  }
  if (only_memory) {
    std::cout << memory_by_component(out["stages"], job.hardware.memory_bytes);
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
      "  trainyard plan show scenarios/01-grok1-100k-week.json\n  trainyard plan show my.json --json | jq .stages\n"
      "  trainyard plan show my.json --memory               # what takes how much of a GPU");
  show->add_option("scenario", *file, "Scenario file")->required();
  auto only_memory = std::make_shared<bool>(false);
  show->add_flag("--memory", *only_memory, "Only memory, by component");
  show->callback([file, only_memory, &context] {
    context.run = [file, only_memory, &context] { return show_plan(*file, *only_memory, context); };
  });
  add_plan_validate(*plan, context);
}

}  // namespace trainyard::cli
