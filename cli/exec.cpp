// trainyard exec run: a job, trained by real processes on this machine.

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iostream>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/interrupt.h"
#include "cli/preflight.h"
#include "cli/resume.h"
#include "cli/training_report.h"
#include "cli/version.h"
#include "exec/launcher.h"
#include "kernels/open_device.h"
#include "models/base/stop.h"
#include "models/base/units.h"
#include "models/spec/scenario.h"
#include "store/run_writer.h"
#include "store/store_file.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

struct Options {
  std::string job;
  std::optional<std::uint64_t> seed;
  std::optional<std::int64_t> steps;
  std::string data, from, checkpoints, lock;
  std::string communicator = "mesh", device = "auto";
  bool strict_sums = false, graphs = false;
  bool no_store = false, unvalidated = false, changed = false;
};

// --- while it runs

// One line for each step: rewritten on a terminal, every two seconds elsewhere, or as JSON.
class Live {
 public:
  Live(const Context& context, const Scenario& scenario)
      : mode_(context.quiet ? "none" : context.progress),
        terminal_(isatty(STDERR_FILENO) != 0),
        tokens_(static_cast<double>(scenario.plan.global_batch * scenario.plan.sequence_length)),
        steps_(scenario.training->steps) {}
  ~Live() { end_line(); }

  void step(const exec::StepReport& step) {
    if (mode_ == "none") return;
    const double time_s = static_cast<double>(step.end_ns - step.begin_ns) * 1e-9;
    if (begin_ns_ == 0) begin_ns_ = step.begin_ns;
    busy_ns_ += step.end_ns - std::max(step.begin_ns, end_ns_);
    end_ns_ = step.end_ns;
    if (mode_ == "ndjson") {
      std::cerr << json{{"step", step.step + 1},       {"steps", steps_},       {"loss", step.loss},
                        {"grad_norm", step.grad_norm}, {"step_time_s", time_s}, {"tokens_per_s", tokens_ / time_s}}
                           .dump() +
                       "\n";
      return;
    }
    const bool last = step.step + 1 == steps_;
    if (!terminal_ && !last && step.end_ns - shown_ns_ < 2'000'000'000) return;
    shown_ns_ = step.end_ns;
    const double goodput = 100 * static_cast<double>(busy_ns_) / static_cast<double>(end_ns_ - begin_ns_);
    const std::string line = fmt::format(
        "step {}/{}  loss {:.4f}  |grad| {:.3g}  {} tokens/s  {:.3f} s a step  goodput {:.1f}%", step.step + 1, steps_,
        step.loss, step.grad_norm, format_count(std::llround(tokens_ / time_s)), time_s, goodput);
    std::cerr << (terminal_ ? "\r\033[K" + line : line + "\n") << std::flush;
    open_ = terminal_;
  }

  // Until the first step: ranks make their weights, and GPUs are opened.
  void wait() {
    const auto waited_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count();
    if (mode_ == "none" || begin_ns_ != 0 || waited_s < 2 || (!terminal_ && told_)) return;
    told_ = true;
    if (mode_ == "ndjson") {
      std::cerr << json{{"starting_s", waited_s}}.dump() + "\n";
      return;
    }
    const std::string line = fmt::format("starting: {:.0f} s", waited_s);
    std::cerr << (terminal_ ? "\r\033[K" + line : "ranks are starting\n") << std::flush;
    open_ = terminal_;
  }

  void note(const std::string& text) {
    if (mode_ == "none") return;
    end_line();
    std::cerr << (mode_ == "ndjson" ? json{{"note", text}}.dump() : text) + "\n";
  }

 private:
  void end_line() {
    if (open_) std::cerr << "\n";
    open_ = false;
  }

  std::string mode_;
  bool terminal_, open_ = false, told_ = false;
  std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
  double tokens_;
  std::int64_t steps_;
  std::int64_t begin_ns_ = 0, end_ns_ = 0, busy_ns_ = 0, shown_ns_ = 0;
};

// --- what is kept of it

store::NewRun new_run(const Scenario& scenario, const Options& options, const Preflight& preflight) {
  store::NewRun run;
  run.name = scenario.name;
  run.kind = store::RunKind::Exec;
  run.version = version_number();
  run.commit_id = commit_id();
  run.seed = scenario.seed;
  json validated;  // null: it was not
  if (preflight.lock) validated = {{"lock", preflight.lock_file}, {"program", preflight.lock->hashes.program}};
  run.parameters_json = json{{"job", options.job}, {"from", options.from}, {"validated", validated}}.dump();
  for (std::size_t s = 0; s < kStreamCount; ++s) run.streams.emplace_back(to_string(static_cast<Stream>(s)));
  return run;
}

// The last step of every rank, as the simulator stores its classes.
void store_times(store::RunWriter& writer, const StepProgram& program, const exec::TrainingReport& report) {
  if (report.steps.empty()) return;
  const Mesh mesh(program.plan);
  for (std::size_t r = 0; r < report.ranks.size(); ++r) {
    const auto rank = static_cast<std::int64_t>(r);
    const std::int64_t stage_index = mesh.coordinates(rank).pp;
    const StageProgram& stage = program.stages[static_cast<std::size_t>(stage_index)];
    writer.add_rank_class({rank, fmt::format("stage {} rank {}", stage_index, rank), stage_index, rank, 1, {}});
    for (const exec::OpTime& time : report.ranks[r].times) {
      const Item& item = stage.items[static_cast<std::size_t>(time.item)];
      const bool transfers = item.block < 0;
      const Op* op = transfers ? nullptr : &program.block(item).ops[static_cast<std::size_t>(time.op)];
      const auto stream = static_cast<std::int64_t>(transfers ? item.stream : op->stream);
      writer.add_slice({rank, stream, label_of(program, stage, time.item, transfers ? -1 : time.op),
                        to_string(transfers ? OpKind::SendRecv : op->kind),
                        time.begin_ns - report.steps.back().begin_ns, time.end_ns - report.steps.back().begin_ns});
    }
  }
}

Problems store_result(store::RunWriter& writer, const StepProgram& program, const exec::TrainingReport& report,
                      const json& summary) {
  store_times(writer, program, report);
  const auto ns = [](double seconds) { return static_cast<std::int64_t>(seconds * 1e9); };
  const double busy_s = summary["goodput"].get<double>() * report.wall_s;
  writer.add_band({"productive", ns(busy_s)});
  writer.add_band({"startup", ns(report.startup_s)});
  writer.add_band({"checkpoint_stall", ns(report.checkpoint_stall_s)});
  writer.add_band({"other", ns(std::max(report.wall_s - busy_s - report.startup_s - report.checkpoint_stall_s, 0.0))});
  store::RunStatus status = store::RunStatus::Finished;
  if (!report.problems.empty())
    status =
        report.problems.front().kind == ProblemKind::Stopped ? store::RunStatus::Interrupted : store::RunStatus::Failed;
  return writer.finish({status, summary.dump(), ""});
}

// --- the command

// The scenario with what the command line changes of it.
Result<Scenario> load_job(const Options& options) {
  Result<Scenario> loaded = load_scenario(options.job);
  if (!loaded) return loaded.problems();
  Scenario scenario = std::move(loaded).value();
  if (!scenario.training && options.data.empty())
    return Problem{options.job, "$.training", "", "is missing: the job does not say what it trains on",
                   R"(add "training": { "data": "FILE", "steps": N }, or give --data and --steps)"};
  if (!scenario.training) scenario.training.emplace();
  if (!options.data.empty()) scenario.training->data = options.data;
  if (options.steps) scenario.training->steps = *options.steps;
  if (options.seed) scenario.seed = *options.seed;
  if (!options.checkpoints.empty()) scenario.training->checkpoint.folder = options.checkpoints;
  if (scenario.training->steps < 1)
    return Problem{options.job, "$.training.steps", "", "is missing: the job does not say how long it trains",
                   "give --steps"};
  return scenario;
}

// What ranks run on, in words where it is GPUs.
struct Devices {
  exec::DeviceKind kind = exec::DeviceKind::Cpu;
  std::string name = "processors";
  std::vector<kernels::DeviceInfo> gpus;
};

// `auto`: GPUs where there are enough of them; says why not.
Result<Devices> choose_devices(const Options& options, const Scenario& scenario, Live& live) {
  if (options.device == "cuda" && options.communicator == "gloo")
    return Problem{options.job, "", "--communicator gloo", "connects processors, and --device cuda asks for GPUs",
                   "leave out one of the two"};
  if (options.device == "cpu" || options.communicator == "gloo") return Devices{};
  Result<std::vector<kernels::DeviceInfo>> gpus = kernels::list_cuda_devices();
  Problems problems = gpus ? Problems{} : gpus.problems();
  if (gpus && static_cast<std::int64_t>(gpus.value().size()) < scenario.plan.ranks())
    problems.push_back({options.job, "$.plan", std::to_string(scenario.plan.ranks()),
                        fmt::format("ranks take a GPU each, and {} can be used here", gpus.value().size()),
                        "plan for fewer ranks, or run on processors with --device cpu",
                        ProblemKind::MissingCapability});
  if (problems.empty()) return Devices{exec::DeviceKind::Cuda, gpus.value().front().name, std::move(gpus).value()};
  if (options.device == "cuda") return problems;
  live.note("note: on processors, because " + problems.front().rule);
  return Devices{};
}

int train(const Options& options, const Context& context) {
  Result<Scenario> loaded = load_job(options);
  if (!loaded) return fail(loaded.problems(), context);
  const Scenario scenario = std::move(loaded).value();
  const Result<exec::Corpus> corpus = exec::Corpus::open(scenario.training->data);
  if (!corpus) return fail(corpus.problems(), context);
  const StepProgram program = lower(scenario.model, scenario.plan);
  Live live(context, scenario);
  const Result<Devices> chosen = choose_devices(options, scenario, live);
  if (!chosen) return fail(chosen.problems(), context);
  const Devices& devices = chosen.value();
  Problems problems = check_training(options.job, scenario, program, corpus.value(), devices.gpus);
  if (!problems.empty()) return fail(problems, context);
  Preflight preflight;
  if (!options.unvalidated) {
    Result<Preflight> checked = check_lock(options.job, options.lock, scenario, program);
    if (!checked) return fail(checked.problems(), context);
    preflight = std::move(checked).value();
  }

  const std::string& folder = scenario.training->checkpoint.folder;
  std::optional<exec::FolderLock> lock;  // until the run is over
  if (!folder.empty()) {
    Result<exec::FolderLock> taken = exec::FolderLock::take(folder);
    if (!taken) return fail(taken.problems(), context);
    lock.emplace(std::move(taken).value());
  }
  Result<Start> found = find_start(options.job, scenario, program, corpus.value(), options.from, options.changed);
  if (!found) return fail(found.problems(), context);
  const Start start = std::move(found).value();

  exec::TrainingJob job;
  job.program = &program;
  job.corpus = &corpus.value();
  job.training = *scenario.training;
  job.seed = scenario.seed;
  job.resume = start.state ? &*start.state : nullptr;
  job.model_id = model_id(scenario.model);
  job.text_id = text_id(corpus.value());
  job.gloo = options.communicator == "gloo";
  job.device = devices.kind;
  job.strict_sums = options.strict_sums;
  job.graphs = options.graphs;
  const std::int64_t first = start.state ? start.state->manifest().step : 0;
  live.note(fmt::format("seed {}, commit {}, {} of {} parameters on {} rank{} ({}), {} of text{}", scenario.seed,
                        commit_id(), scenario.model.name, format_count(parameter_count(scenario.model)),
                        scenario.plan.ranks(), scenario.plan.ranks() == 1 ? "" : "s", devices.name,
                        format_bytes(static_cast<double>(corpus.value().bytes())),
                        first > 0 ? fmt::format(", going on from step {}", first) : ""));
  for (const std::string& note : preflight.notes) live.note("note: " + note);
  for (const std::string& note : start.notes) live.note("note: " + note);
  std::optional<store::RunWriter> writer;
  if (!options.no_store) {
    Result<store::RunWriter> opened =
        store::RunWriter::open(context.store_file.empty() ? store::default_store_file() : context.store_file,
                               new_run(scenario, options, preflight));
    if (!opened) return fail(opened.problems(), context);
    writer.emplace(std::move(opened).value());
  }
  end_in_order_on_signals();
  std::optional<std::int64_t> begin_ns;
  exec::TrainingEvents events;
  events.on_step = [&](const exec::StepReport& step) {
    live.step(step);
    if (!begin_ns) begin_ns = step.begin_ns;
    if (writer)
      writer->add_training_step(
          {step.step, step.loss, step.grad_norm, step.begin_ns - *begin_ns, step.end_ns - *begin_ns});
  };
  events.on_wait = [&] { live.wait(); };
  events.on_checkpoint = [&](std::int64_t step) { live.note(fmt::format("checkpoint at step {}", step)); };
  const Result<exec::TrainingReport> trained = exec::train(job, events);
  if (!trained) return fail(trained.problems(), context);
  const exec::TrainingReport& report = trained.value();
  json summary = make_training_report(scenario, report, devices.name);
  if (preflight.lock) {
    summary["validated"] = compare_with_lock(summary, *preflight.lock);
    for (const std::string& note : drift_notes(summary)) live.note("note: " + note);
  }
  problems = report.problems;
  if (writer) {
    const Problems stored = store_result(*writer, program, report, summary);
    problems.insert(problems.end(), stored.begin(), stored.end());
  }
  if (!problems.empty()) return fail(problems, context);
  std::cout << (context.json ? summary.dump(2) + "\n" : training_text(summary)) << std::flush;
  return kOk;
}

}  // namespace

void add_exec(CLI::App& app, Context& context) {
  CLI::App* exec = add_command(app, "exec", "Execute validated plans for real",
                               "  trainyard plan validate scenarios/tiny/train-llama.json\n"
                               "  trainyard exec run scenarios/tiny/train-llama.json");
  exec->require_subcommand(1);
  CLI::App* run = add_command(
      *exec, "run",
      "Train: every rank of the plan is a process of this machine, on a GPU of its own where there are enough",
      "  trainyard plan validate job.json && trainyard exec run job.json\n"
      "  trainyard exec run scenarios/tiny/train-llama.json --unvalidated\n"
      "  trainyard exec run scenarios/gpu/train-llama-2b.json --unvalidated --device cuda   # a GPU for each rank\n"
      "  trainyard exec run job.json --data notes.txt --steps 500 --checkpoints runs/notes   # again: it goes on\n"
      "  trainyard exec run job.json --from huggingface-model/ --json | jq .losses");
  auto options = std::make_shared<Options>();
  run->add_option("job", options->job, "Scenario file with a \"training\" part")->required();
  run->add_option("--data", options->data, "Text to train on: a file, or a folder of files");
  run->add_option("--steps", options->steps, "Optimizer steps in all")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 40));
  run->add_option("--seed", options->seed, "Seed, instead of the scenario's")->check(check_seed);
  run->add_option("--checkpoints", options->checkpoints,
                  "Folder for checkpoints; the newest sound one in it is resumed");
  run->add_option("--from", options->from,
                  "Start from a checkpoint, or from the weights of a Hugging Face model folder, unless the job has "
                  "checkpoints of its own already");
  run->add_flag("--changed", options->changed,
                "Go on from the job's checkpoints although its seed, text or batch has changed");
  run->add_option("--communicator", options->communicator,
                  "How ranks talk: mesh, or gloo, which is slower and checks it")
      ->check(CLI::IsMember({"mesh", "gloo"}));
  run->add_option("--device", options->device,
                  "auto: a GPU for each rank where there are enough, processors otherwise; cpu; or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  run->add_flag("--strict-sums", options->strict_sums,
                "On GPUs: sums over ranks in their order, the same bits wherever ranks are, at the price of speed");
  run->add_flag("--cuda-graphs", options->graphs,
                "On GPUs: what is the same in every step is queued as one graph, which spares the host");
  run->add_option("--lock", options->lock, "Lock of the validated plan (default: plan.lock.json beside the job)");
  run->add_flag("--unvalidated", options->unvalidated, "Train a plan that plan validate has not seen")
      ->excludes("--lock");
  run->add_flag("--no-store", options->no_store, "Do not write the run store");
  run->callback([options, &context] { context.run = [options, &context] { return train(*options, context); }; });
}

}  // namespace trainyard::cli
