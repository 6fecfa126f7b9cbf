// trainyard import|export: models from and to other tools.

#include <filesystem>
#include <iostream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/output_file.h"
#include "exec/saved_state.h"
#include "models/base/units.h"
#include "models/spec/hugging_face.h"
#include "models/spec/nccl_topology.h"
#include "models/spec/scenario.h"

namespace trainyard::cli {

namespace {

struct Options {
  std::string from, to, checkpoint, dtype = "float32";
};

// What a job's training left: the checkpoint that is named, else the newest.
Result<exec::SavedState> saved_by(const Scenario& scenario, const Options& options) {
  if (!options.checkpoint.empty()) return exec::SavedState::open(options.checkpoint);
  if (!scenario.training || scenario.training->checkpoint.folder.empty())
    return Problem{options.from, "$.training.checkpoint", "", "is missing, so the job has no checkpoints",
                   "name one with --checkpoint"};
  const std::vector<std::string> all = exec::list_checkpoints(scenario.training->checkpoint.folder);
  if (all.empty())
    return Problem{scenario.training->checkpoint.folder, "", "", "has no checkpoint yet",
                   "train first: trainyard exec run " + options.from};
  return exec::SavedState::open(all.front());
}

int export_hugging_face(const Options& options, const Context& context) {
  const Result<Scenario> scenario = load_scenario(options.from);
  if (!scenario) return fail(scenario.problems(), context);
  const Result<exec::SavedState> state = saved_by(scenario.value(), options);
  if (!state) return fail(state.problems(), context);
  ParallelPlan whole;  // any plan has all names and shapes
  whole.sequence_length = 1;
  whole.global_batch = 1;
  if (const Problems problems = state.value().fits(lower(scenario.value().model, whole)); !problems.empty())
    return fail(problems, context);
  const Result<std::string> config = hugging_face_config(scenario.value().model, options.dtype);
  if (!config) {
    Problems problems = config.problems();
    for (Problem& problem : problems) problem.file = options.from;
    return fail(problems, context);
  }
  const Dtype dtype = options.dtype == "bfloat16" ? Dtype::Bf16 : Dtype::F32;
  const Problems problems = export_model_folder(state.value(), config.value(), dtype, options.to);
  if (!problems.empty()) return fail(problems, context);
  const std::int64_t parameters = parameter_count(scenario.value().model), step = state.value().manifest().step;
  if (context.json) {
    std::cout << nlohmann::ordered_json{{"folder", options.to}, {"step", step}, {"parameters", parameters}}.dump(2)
              << "\n";
  } else {
    std::cout << fmt::format("{}: {} parameters after {} steps, in {}\n", options.to, format_count(parameters), step,
                             options.dtype);
  }
  return kOk;
}

int import_hugging_face(const Options& options, const Context& context) {
  std::error_code error;
  const bool folder = std::filesystem::is_directory(options.from, error);
  const Result<ModelSpec> model =
      load_hugging_face_config(folder ? (std::filesystem::path(options.from) / "config.json").string() : options.from);
  if (!model) return fail(model.problems(), context);
  const std::string text = model_file_text(model.value());
  if (options.to == "-") {
    std::cout << text;
    return kOk;
  }
  const Problems problems = write_output(options.to, text);
  if (!problems.empty()) return fail(problems, context);
  return kOk;
}

int import_topology(const std::string& from, std::int64_t nodes, const std::string& to, const Context& context) {
  const Result<ClusterSpec> cluster = load_nccl_topology(from, nodes);
  if (!cluster) return fail(cluster.problems(), context);
  const std::string text = cluster_file_text(cluster.value(), from);
  if (to == "-") {
    std::cout << text;
    return kOk;
  }
  const Problems problems = write_output(to, text);
  return problems.empty() ? kOk : fail(problems, context);
}

void add_import_topology(CLI::App& imported, Context& context) {
  struct Asked {
    std::string from, to = "-";
    std::int64_t nodes = 1;
  };
  auto asked = std::make_shared<Asked>();
  CLI::App* topology = add_command(imported, "nccl-topology", "A node as NCCL sees it, as a cluster file for scenarios",
                                   "  NCCL_TOPO_DUMP_FILE=topology.xml ./all_reduce_perf -g 8    # on a node\n"
                                   "  trainyard import nccl-topology topology.xml --nodes 128 -o cluster.json");
  topology->add_option("file", asked->from, "What NCCL_TOPO_DUMP_FILE wrote")->required();
  topology->add_option("--nodes", asked->nodes, "How many such nodes")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{10'000'000}))
      ->capture_default_str();
  topology->add_option("-o,--output", asked->to, "Cluster file, or - for standard output");
  topology->callback([asked, &context] {
    context.run = [asked, &context] { return import_topology(asked->from, asked->nodes, asked->to, context); };
  });
}

}  // namespace

void add_exchange(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* exported = add_command(app, "export", "Write models for other tools",
                                   "  trainyard export huggingface job.json -o my-model/");
  exported->require_subcommand(1);
  CLI::App* to = add_command(*exported, "huggingface", "A model folder: config.json and safetensors",
                             "  trainyard export huggingface job.json -o my-model/\n"
                             "  trainyard export huggingface job.json --checkpoint runs/step-00000200 --dtype bfloat16 "
                             "-o my-model/");
  to->add_option("job", options->from, "The job that trained the model")->required();
  to->add_option("--checkpoint", options->checkpoint, "Which checkpoint (default: the job's newest)");
  to->add_option("--dtype", options->dtype, "float32 or bfloat16")->check(CLI::IsMember({"float32", "bfloat16"}));
  to->add_option("-o,--output", options->to, "Folder to make")->required();
  to->callback([options, &context] { context.run = [=, &context] { return export_hugging_face(*options, context); }; });
  CLI::App* imported = add_command(app, "import", "Read models and machines of other tools",
                                   "  trainyard import huggingface my-model/ -o model.json\n"
                                   "  trainyard import nccl-topology topology.xml --nodes 128 -o cluster.json");
  imported->require_subcommand(1);
  add_import_topology(*imported, context);
  CLI::App* from = add_command(*imported, "huggingface", "A config.json as a model file for scenarios",
                               "  trainyard import huggingface my-model/ -o model.json\n"
                               "  trainyard exec run job.json --from my-model/     # and its weights");
  from->add_option("folder", options->from, "Model folder, or its config.json")->required();
  options->to = "-";
  from->add_option("-o,--output", options->to, "Model file, or - for standard output");
  from->callback(
      [options, &context] { context.run = [=, &context] { return import_hugging_face(*options, context); }; });
}

}  // namespace trainyard::cli
