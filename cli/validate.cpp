// trainyard validate: how well the simulator predicts what others measured.

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <map>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/accuracy.h"
#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/interrupt.h"
#include "cli/job.h"
#include "cli/output_file.h"
#include "cli/terminal.h"
#include "models/base/stop.h"
#include "sim/child_process.h"

namespace trainyard::cli {

namespace {

struct Options {
  std::string set, csv, picture, page, only, stack;
  int jobs = 0;
  std::size_t worst = 15;
};

/// A run with its profiles; one for many runs.
struct Task {
  const PublishedRun* run;
  const Profiles* profiles;
};

/// Profiles, each read once.
class KnownProfiles {
 public:
  explicit KnownProfiles(std::string set_file) : set_file_(std::move(set_file)) {}

  Result<const Profiles*> find(const Scenario& scenario) {
    const std::string key = scenario.cluster.hardware + " " + scenario.stack;
    if (const auto known = known_.find(key); known != known_.end()) return &known->second;
    const Result<ProfileFiles> files = find_profiles(scenario, set_file_);
    if (!files) return files.problems();
    const Result<Profiles> loaded = load_profiles(scenario, set_file_, files.value());
    if (!loaded) return loaded.problems();
    return &known_.emplace(key, loaded.value()).first->second;
  }

  const std::string& stack_for(const PublishedRun& run) {
    const std::string& hardware = run.scenario.cluster.hardware;
    auto& its = stacks_[fmt::format("{}\n{}\n{}", run.framework, hardware, run.before_fused_attention)];
    if (its.empty()) its = cli::stack_for(run.framework, hardware, run.before_fused_attention, set_file_);
    return its;
  }

 private:
  std::string set_file_;
  std::map<std::string, Profiles> known_;
  std::map<std::string, std::string> stacks_;
};

Bytes predict(const Task& task) {
  const Scenario& scenario = task.run->scenario;
  const StepProgram program = lower(scenario.model, scenario.plan);
  const CostModel cost(task.profiles->hardware, task.profiles->stack, scenario.plan);
  const Result<StepResult> step = simulate_step(program, scenario.cluster, cost);
  nlohmann::json out{{"peak_bytes", 0.0}};
  for (const StageProgram& stage : program.stages)
    out["peak_bytes"] = std::max(out["peak_bytes"].get<double>(), cost.process_peak_bytes(program, stage));
  if (step) {
    out["step_s"] = step.value().time_s;
    out["part_s"] = step.value().part_s;
    out["contention"] = step.value().contention;
    out["slowest_rank"] = cost.slowest_rank();
  } else {
    out["reason"] = step.problems().front().rule;
  }
  return nlohmann::json::to_cbor(out);
}

Prediction prediction_of(const Task& task, const nlohmann::json& from) {
  Prediction out;
  out.run = task.run;
  out.stack = task.profiles->stack.name;
  const std::vector<std::string>& fitted = task.profiles->stack.fitted_on;
  out.fitted = std::find(fitted.begin(), fitted.end(), task.run->id) != fitted.end();
  out.step_s = from.at("step_s");
  out.part_s = from.at("part_s");
  out.contention = from.at("contention");
  out.slowest_rank = from.at("slowest_rank");
  out.peak_bytes = from.at("peak_bytes");
  out.device_bytes = task.profiles->hardware.memory_bytes;
  const ParallelPlan& plan = task.run->scenario.plan;
  out.flops = model_flops_per_token(task.run->scenario.model, plan.sequence_length, false) *
              static_cast<double>(plan.global_batch * plan.sequence_length);
  return out;
}

Problems predict_all(const std::vector<Task>& tasks, const Options& options, const Context& context, PublishedSet& set,
                     std::vector<Prediction>& out) {
  Progress progress("predicting", tasks.size(), context.quiet ? "none" : context.progress);
  std::vector<nlohmann::json> answers(tasks.size());
  ChildWork work;
  work.count = tasks.size();
  work.processes = options.jobs;
  work.work = [&](std::size_t i, const Ask&) { return predict(tasks[i]); };
  work.on_result = [&](std::size_t i, const Bytes& bytes) {
    answers[i] = nlohmann::json::from_cbor(bytes);
    progress.step();
  };
  work.on_wait = [&] { progress.tick(); };
  if (Problems problems = in_children(work); !problems.empty()) return problems;
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    if (answers[i].contains("reason"))
      set.skipped.push_back({tasks[i].run->id, tasks[i].run->source, answers[i]["reason"]});
    else
      out.push_back(prediction_of(tasks[i], answers[i]));
  }
  return {};
}

/// Rows whose id or source has the text; all for none.
void keep_only(const std::string& text, PublishedSet& set) {
  if (text.empty()) return;
  const auto other = [&](const auto& row) { return (row.id + " " + row.source).find(text) == std::string::npos; };
  std::erase_if(set.runs, other);
  std::erase_if(set.skipped, other);
  set.rows = set.runs.size() + set.skipped.size();
}

int validate_set(const Options& options, const Context& context) {
  end_in_order_on_signals();
  Result<PublishedSet> loaded = load_published_set(options.set);
  if (!loaded) return fail(loaded.problems(), context);
  PublishedSet set = std::move(loaded).value();
  keep_only(options.only, set);
  if (set.rows == 0)
    return fail({{options.set, options.only.empty() ? "$" : "--only", options.only, "there is no such row",
                  "give a part of an id or a source as the report names them"}},
                context);
  KnownProfiles profiles(options.set);
  std::vector<Task> tasks;
  for (PublishedRun& run : set.runs) {
    run.scenario.stack = options.stack.empty() ? profiles.stack_for(run) : options.stack;
    const Result<const Profiles*> its = profiles.find(run.scenario);
    if (its)
      tasks.push_back({&run, its.value()});
    else if (its.problems().front().path == "$.stack")  // it does not speak of this hardware
      set.skipped.push_back({run.id, run.source, its.problems().front().rule});
    else
      return fail(its.problems(), context);
  }
  std::vector<Prediction> predictions;
  Problems problems = predict_all(tasks, options, context, set, predictions);
  if (!problems.empty()) return fail(problems, context);
  const nlohmann::ordered_json report = accuracy_report(set, predictions);
  if (!options.csv.empty()) problems = write_output(options.csv, accuracy_csv(report));
  if (problems.empty() && !options.picture.empty()) problems = write_output(options.picture, accuracy_svg(report));
  if (!options.page.empty() && report["predicted"] == 0)
    problems = {{options.set, "--markdown", options.page, "no row could be predicted", "leave it out to see why"}};
  if (problems.empty() && !options.page.empty()) {
    const std::string beside = std::filesystem::path(options.picture).filename().string();
    problems = write_output(options.page, accuracy_markdown(report, options.worst, beside));
  }
  if (!problems.empty()) return fail(problems, context);
  std::cout << (context.json ? report.dump(2) + "\n" : accuracy_text(report, options.worst)) << std::flush;
  return kOk;
}

}  // namespace

void add_validate(CLI::App& app, Context& context) {
  CLI::App* command = add_command(app, "validate", "Predict published training runs, and say how far off that is",
                                  "  trainyard validate\n"
                                  "  trainyard validate --only llm-foundry --worst 30\n"
                                  "  trainyard validate --set rows.json --json | jq .by_source\n"
                                  "  trainyard validate --csv rows.csv -o scatter.svg");
  auto options = std::make_shared<Options>();
  options->set = (shipped_scenarios() / "measured/runs.json").lexically_normal().string();
  command->add_option("--set", options->set, "Rows to predict (default: those that the project ships)");
  command->add_option("--only", options->only, "Rows whose id or source has this text");
  command->add_option("--stack", options->stack,
                      "This stack for all rows, instead of the one that knows the framework");
  command->add_option("--worst", options->worst, "How many of the worst rows to list")->capture_default_str();
  command->add_option("--csv", options->csv, "Write all rows as CSV");
  command->add_option("-o,--output", options->picture, "Draw all rows, as SVG");
  command->add_option("--markdown", options->page, "Write the report as a page, with the picture of -o beside it");
  command->add_option("-j,--jobs", options->jobs, "Simulations at a time (default: one per processor)")
      ->check(CLI::Range(1, 4096));
  command->callback(
      [options, &context] { context.run = [options, &context] { return validate_set(*options, context); }; });
}

}  // namespace trainyard::cli
