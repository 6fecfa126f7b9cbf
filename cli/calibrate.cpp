// trainyard calibrate: measures this machine, and writes the profiles by which the simulator knows it.

#include <unistd.h>
#include <algorithm>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <numeric>
#include <thread>
#include <tuple>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/interrupt.h"
#include "cli/job.h"
#include "cli/output_file.h"
#include "cli/terminal.h"
#include "cli/version.h"
#include "exec/launcher.h"
#include "exec/measure.h"
#include "kernels/kernels.h"
#include "kernels/open_device.h"
#include "models/base/stop.h"
#include "models/cost/op_rate_fit.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

struct Options {
  std::string folder = "profiles", device = "cpu";
  bool quick = false;
};

constexpr std::int64_t kSteps = 3;  // the last is timed
const std::vector<std::int64_t> kMessageSizes{1 << 8, 1 << 12, 1 << 15, 1 << 18, 1 << 20, 1 << 22, 1 << 24};

// --- jobs whose ops are timed: small, of many shapes, and with every kind of op between them

struct Shape {
  std::int64_t layers, hidden, intermediate, sequence, micro_batch, vocab;
};

ModelSpec model_of(ModelFamily family, const Shape& shape) {
  ModelSpec model;
  model.name = "calibration";
  model.family = family;
  model.num_hidden_layers = shape.layers;
  model.hidden_size = shape.hidden;
  model.head_dim = 64;
  model.num_attention_heads = model.num_key_value_heads = shape.hidden / 64;
  model.intermediate_size = shape.intermediate;
  model.vocab_size = shape.vocab;
  model.max_position_embeddings = shape.sequence;
  if (family == ModelFamily::Gpt3) {
    model.norm = NormKind::LayerNorm;
    model.position = PositionKind::Learned;
    model.hidden_act = ActivationKind::GeluTanh;
    model.gated_mlp = false;
    model.attention_bias = model.mlp_bias = true;
    model.hidden_dropout = 0.1;
  }
  if (family == ModelFamily::Mixtral) model.moe = MoeSpec{4, 2, true};
  return model;
}

struct CalibrationJob {
  ModelSpec model;
  ParallelPlan plan;
};

// Some fit the caches, and some do not: so are real models.
std::vector<Shape> shapes_of(exec::DeviceKind device, bool quick) {
  if (device == exec::DeviceKind::Cuda) {
    std::vector<Shape> shapes{{2, 1024, 2816, 1024, 4, 8192},
                              {2, 2048, 5632, 2048, 4, 32000},
                              {2, 2048, 8192, 4096, 2, 8192},
                              {1, 4096, 14336, 2048, 2, 32000},
                              {1, 4096, 11008, 4096, 2, 16384}};
    if (quick) shapes.resize(2);
    return shapes;
  }
  std::vector<Shape> shapes{{2, 128, 384, 128, 1, 256},
                            {3, 128, 512, 256, 4, 1024},
                            {4, 256, 768, 512, 2, 2048},
                            {6, 448, 1152, 256, 4, 256},
                            {5, 512, 1536, 128, 8, 512}};
  if (quick) shapes = {{2, 128, 384, 128, 1, 256}, {2, 256, 512, 128, 2, 512}};
  return shapes;
}

std::vector<CalibrationJob> calibration_jobs(exec::DeviceKind device, Precision precision, std::int64_t ranks,
                                             std::int64_t threads, bool quick) {
  std::vector<CalibrationJob> jobs;
  for (const ModelFamily family : {ModelFamily::Llama, ModelFamily::Gpt3, ModelFamily::Mixtral}) {
    for (const Shape& shape : shapes_of(device, quick)) {
      CalibrationJob job;
      job.model = model_of(family, shape);
      job.plan.dp = ranks;
      job.plan.zero_stage = 2;  // reductions with every micro-batch: accumulation is an op too
      job.plan.cpu_threads = threads;
      job.plan.precision = precision;
      job.plan.sequence_length = shape.sequence;
      job.plan.micro_batch = shape.micro_batch;
      job.plan.global_batch = 2 * shape.micro_batch * ranks;
      jobs.push_back(std::move(job));
    }
  }
  return jobs;
}

// --- what is learnt of them

struct Measured {
  // By kind: a sample for each shape, the mean of its ops, since steps are made of sums.
  std::map<OpKind, std::vector<OpSample>> samples;
  std::vector<double> gaps_s, outside_arena_bytes;
  double best_matmul_flops_per_s = 0;
};

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

void learn(const StepProgram& program, const exec::RankReport& rank, Measured& out) {
  std::map<std::tuple<OpKind, double, double>, std::vector<double>> seconds;
  const StageProgram& stage = program.stages[0];
  std::int64_t last_end_ns = 0;
  for (const exec::OpTime& time : rank.times) {
    const Item& item = stage.items[static_cast<std::size_t>(time.item)];
    if (item.block < 0) continue;
    const Op& op = program.block(item).ops[static_cast<std::size_t>(time.op)];
    if (op.stream != Stream::Compute || op.kind == OpKind::Join || op.kind == OpKind::HostSync) continue;
    seconds[{op.kind, op.flops, op.bytes_read + op.bytes_written}].push_back(
        static_cast<double>(std::max<std::int64_t>(time.end_ns - time.begin_ns, 1)) * 1e-9);
    if (last_end_ns > 0) out.gaps_s.push_back(static_cast<double>(time.begin_ns - last_end_ns) * 1e-9);
    last_end_ns = time.end_ns;
  }
  for (auto& [key, times] : seconds) {
    const auto& [kind, flops, bytes] = key;
    const double time = std::accumulate(times.begin(), times.end(), 0.0) / static_cast<double>(times.size());
    out.samples[kind].push_back({flops, bytes, time});
    if (kind == OpKind::Matmul) out.best_matmul_flops_per_s = std::max(out.best_matmul_flops_per_s, flops / time);
  }
  const std::int64_t held = rank.device_bytes > 0 ? rank.device_bytes : rank.rss_bytes;
  out.outside_arena_bytes.push_back(static_cast<double>(held - rank.arena_bytes));
}

Result<Measured> measure_ops(exec::DeviceKind device, Precision precision, std::int64_t ranks, std::int64_t threads,
                             bool quick, const exec::Corpus& corpus, Progress& progress) {
  Measured measured;
  for (const CalibrationJob& job : calibration_jobs(device, precision, ranks, threads, quick)) {
    const StepProgram program = lower(job.model, job.plan);
    exec::TrainingJob training;
    training.program = &program;
    training.corpus = &corpus;
    training.training.steps = kSteps;
    training.device = device;
    exec::TrainingEvents events;
    events.on_wait = [&] { progress.tick(); };
    const Result<exec::TrainingReport> report = exec::train(training, events);
    if (!report) return report.problems();
    if (!report.value().problems.empty()) return report.value().problems;
    for (const exec::RankReport& rank : report.value().ranks) learn(program, rank, measured);
    progress.step();
  }
  return measured;
}

// --- what is written

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm day{};
  gmtime_r(&now, &day);
  return fmt::format("{:04}-{:02}-{:02}", day.tm_year + 1900, day.tm_mon + 1, day.tm_mday);
}

std::string processor_name() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("model name", 0) == 0 && line.find(':') + 2 < line.size()) return line.substr(line.find(':') + 2);
  }
  return "unknown processor";
}

class ProfileText {
 public:
  explicit ProfileText(std::string source) : source_(std::move(source)) {}
  [[nodiscard]] json constant(double value, const char* unit) const { return constant(value, unit, source_); }
  [[nodiscard]] static json constant(double value, const char* unit, const std::string& source) {
    return {{"value", value}, {"unit", unit}, {"source", source}, {"date", today()}};
  }
  [[nodiscard]] json described(const char* unit) const {
    return {{"unit", unit}, {"source", source_}, {"date", today()}};
  }

 private:
  std::string source_;
};

json rates_json(const char* precision, std::int64_t threads, const Measured& measured) {
  json kinds = json::object();
  for (const auto& [kind, samples] : measured.samples) {
    const OpRate rate = fit_rate(samples);
    kinds[to_string(kind)] = {{"floor_s", rate.floor_s},
                              {"seconds_per_flop", rate.seconds_per_flop},
                              {"seconds_per_byte", rate.seconds_per_byte},
                              {"samples", samples.size()},
                              {"median_error", median_error(rate, samples)}};
  }
  return {{"precision", precision}, {"threads", threads}, {"kinds", kinds}};
}

void add_curves(json& nvlink, std::int64_t ranks, const exec::CommunicationTimes& times) {
  for (std::size_t kind = 0; kind < kCollectiveCount; ++kind) {
    json x = json::array(), y = json::array();
    for (const exec::CollectiveTime& time : times.collectives) {
      if (time.kind != static_cast<Collective>(kind)) continue;
      x.push_back(std::log2(static_cast<double>(time.bytes)));
      y.push_back(time.seconds);
    }
    nvlink[to_string(static_cast<Collective>(kind))].push_back({{"ranks", ranks}, {"log2_bytes", x}, {"seconds", y}});
  }
}

struct Calibrated {
  json hardware, stack;
  double gemm_share = 0, peak_flops = 0;
};

// What NVIDIA says of a GPU that it names so; 0: not known here.
double named_peak_flops(const std::string& name) {
  for (const char* hopper : {"H100 80GB HBM3", "H100 SXM", "H200"}) {
    if (name.find(hopper) != std::string::npos) return 989.4e12;
  }
  return 0;
}

// Of the shipped profile, what one GPU cannot tell.
Result<json> shipped_nvlink() {
  const std::string file = (shipped_scenarios() / "profiles/h100-sxm.json").string();
  std::ifstream in(file);
  json profile = json::parse(in, nullptr, false);
  if (!profile.is_object() || !profile.contains("nvlink"))
    return Problem{file, "$.nvlink", "", "is not there: the program's own profiles are damaged", "install it again"};
  return profile;
}

Result<Calibrated> calibrate_gpus(bool quick, const Context& context) {
  const Result<std::vector<kernels::DeviceInfo>> found = kernels::list_cuda_devices();
  if (!found) return found.problems();
  const kernels::DeviceInfo& gpu = found.value().front();
  const auto gpus = static_cast<std::int64_t>(found.value().size());
  std::vector<std::int64_t> groups;
  for (const std::int64_t ranks : {2, 4, 8}) {
    if (ranks <= gpus) groups.push_back(ranks);
  }
  const std::size_t jobs = calibration_jobs(exec::DeviceKind::Cuda, Precision::Bf16, 1, 1, quick).size();
  Progress progress("measuring", jobs + 1 + groups.size(), context.quiet ? "none" : context.progress);
  const ProfileText text(
      fmt::format("trainyard calibrate {} on {} x {}, {}", commit_id(), gpus, gpu.name, gpu.runtime));
  const exec::Corpus corpus = exec::Corpus::of_text(std::string(1 << 16, 'x'));
  Result<Measured> result = measure_ops(exec::DeviceKind::Cuda, Precision::Bf16, 1, 1, quick, corpus, progress);
  if (!result) return result.problems();
  const Measured& measured = result.value();
  const Result<exec::CopyRates> copies = exec::measure_copies(0);
  if (!copies) return copies.problems();
  progress.step();
  const Result<json> shipped = shipped_nvlink();
  if (!shipped) return shipped.problems();
  json nvlink = shipped.value()["nvlink"], constants = shipped.value()["constants"];
  json p2p_bytes = constants["nvlink_p2p_bytes_per_s"], p2p_latency = constants["nvlink_p2p_latency_s"];
  if (!groups.empty()) nvlink = text.described("s");
  for (const std::int64_t ranks : groups) {
    std::vector<std::int64_t> sizes;
    for (std::int64_t bytes = 1 << 10; bytes <= (quick ? 1 << 26 : 1 << 30); bytes *= 4) sizes.push_back(bytes);
    const Result<exec::CommunicationTimes> times = exec::measure_communication(ranks, sizes, exec::DeviceKind::Cuda);
    if (!times) return times.problems();
    add_curves(nvlink, ranks, times.value());
    if (ranks == 2) {
      const exec::TransferTime &shortest = times.value().transfers.front(), &longest = times.value().transfers.back();
      p2p_bytes = text.constant(static_cast<double>(longest.bytes) / longest.seconds, "bytes/s");
      p2p_latency = text.constant(shortest.seconds, "s");
    }
    progress.step();
    if (stop_requested()) return stopped();
  }
  Calibrated out;
  const double named = named_peak_flops(gpu.name);
  out.peak_flops = named > 0 ? named : measured.best_matmul_flops_per_s;
  out.gemm_share = measured.best_matmul_flops_per_s / out.peak_flops;
  out.hardware = {{"schema", 1},
                  {"name", "localhost-cuda"},
                  {"constants",
                   {{"peak_bf16_flops", named > 0 ? ProfileText::constant(named, "FLOP/s", "NVIDIA's data sheet, dense")
                                                  : text.constant(out.peak_flops, "FLOP/s of the best product")},
                    {"peak_f32_flops", constants["peak_f32_flops"]},
                    {"memory_bytes", text.constant(static_cast<double>(gpu.memory_bytes), "bytes")},
                    {"nvlink_p2p_bytes_per_s", p2p_bytes},
                    {"nvlink_p2p_latency_s", p2p_latency},
                    {"nic_latency_s", constants["nic_latency_s"]},
                    {"nic_efficiency", constants["nic_efficiency"]}}},
                  {"op_rates", json::array({rates_json("bf16", 1, measured)})},
                  {"nvlink", nvlink},
                  {"residuals",
                   {{"host_to_device_bytes_per_s", copies.value().to_device},
                    {"device_to_host_bytes_per_s", copies.value().to_host}}}};
  out.stack = {{"schema", 1},
               {"name", "localhost-cuda"},
               {"hardware", {"localhost-cuda"}},
               {"constants",
                {{"sustained_clock", ProfileText::constant(1, "1", "rates are of training itself")},
                 {"attention_relative", ProfileText::constant(1, "1", "rates are of training itself")},
                 {"kernel_gap_s", text.constant(std::max(median(measured.gaps_s), 0.0), "s")},
                 {"host_sync_s", ProfileText::constant(20e-6, "s", "assumed: a copy of counts, and the next launch")},
                 {"context_bytes", text.constant(median(measured.outside_arena_bytes), "bytes")},
                 {"communicator_bytes", ProfileText::constant(0, "bytes", "in context_bytes")},
                 {"allocator_reserve", ProfileText::constant(0, "1", "the arena is allocated once")}}}};
  return out;
}

Result<Calibrated> calibrate_machine(bool quick, const Context& context) {
  const auto processors = static_cast<std::int64_t>(std::max(1U, std::thread::hardware_concurrency()));
  struct Setting {
    Precision precision;
    const char* name;
    std::int64_t ranks, threads;
  };
  // All processors are busy in each, as they are in training.
  std::vector<Setting> settings{{Precision::F32, "f32", processors, 1}, {Precision::Bf16, "bf16", processors, 1}};
  if (processors > 1) {
    settings.push_back({Precision::F32, "f32", 1, processors});
    settings.push_back({Precision::Bf16, "bf16", 1, processors});
  }
  const std::size_t jobs = calibration_jobs(exec::DeviceKind::Cpu, Precision::F32, 1, 1, quick).size();
  Progress progress("measuring", settings.size() * jobs + 3, context.quiet ? "none" : context.progress);
  const ProfileText text(fmt::format("trainyard calibrate {} on {}, {} processors, kernels {}", commit_id(),
                                     processor_name(), processors, kernels::cpu_instruction_set()));
  Calibrated out;
  out.peak_flops = kernels::cpu_peak_flops();
  const exec::Corpus corpus = exec::Corpus::of_text(std::string(1 << 16, 'x'));
  json rates = json::array();
  std::vector<double> gaps, outside;
  for (const Setting& setting : settings) {
    Result<Measured> result =
        measure_ops(exec::DeviceKind::Cpu, setting.precision, setting.ranks, setting.threads, quick, corpus, progress);
    if (!result) return result.problems();
    const Measured& measured = result.value();
    rates.push_back(rates_json(setting.name, setting.threads, measured));
    gaps.insert(gaps.end(), measured.gaps_s.begin(), measured.gaps_s.end());
    if (setting.precision != Precision::F32) continue;  // bf16 has workspaces, which are added by op
    outside.insert(outside.end(), measured.outside_arena_bytes.begin(), measured.outside_arena_bytes.end());
    out.gemm_share = std::max(out.gemm_share,
                              measured.best_matmul_flops_per_s / out.peak_flops / static_cast<double>(setting.threads));
  }
  json nvlink = text.described("s");
  exec::CommunicationTimes pair;
  std::vector<std::int64_t> sizes = kMessageSizes;
  if (quick) sizes.resize(5);
  for (const std::int64_t ranks : {2, 4, 8}) {
    const Result<exec::CommunicationTimes> times = exec::measure_communication(ranks, sizes);
    if (!times) return times.problems();
    add_curves(nvlink, ranks, times.value());
    if (ranks == 2) pair = times.value();
    progress.step();
    if (stop_requested()) return stopped();
  }
  const exec::TransferTime &shortest = pair.transfers.front(), &longest = pair.transfers.back();
  const double memory = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
  out.hardware = {
      {"schema", 1},
      {"name", "localhost"},
      {"constants",
       {{"peak_bf16_flops", text.constant(out.peak_flops, "FLOP/s, computed in f32")},
        {"peak_f32_flops", text.constant(out.peak_flops, "FLOP/s of a thread")},
        {"memory_bytes", text.constant(memory / static_cast<double>(processors), "bytes")},
        {"nvlink_p2p_bytes_per_s", text.constant(static_cast<double>(longest.bytes) / longest.seconds, "bytes/s")},
        {"nvlink_p2p_latency_s", text.constant(shortest.seconds, "s")},
        {"nic_latency_s", ProfileText::constant(1e-4, "s", "not measured: one node has no network")},
        {"nic_efficiency", ProfileText::constant(1, "1", "not measured: one node has no network")}}},
      {"op_rates", rates},
      {"nvlink", nvlink}};
  out.stack = {{"schema", 1},
               {"name", "localhost"},
               {"hardware", {"localhost"}},
               {"constants",
                {{"sustained_clock", ProfileText::constant(1, "1", "rates are of training itself")},
                 {"attention_relative", ProfileText::constant(1, "1", "rates are of training itself")},
                 {"kernel_gap_s", text.constant(std::max(median(gaps), 0.0), "s")},
                 {"host_sync_s", ProfileText::constant(0, "s", "the host is the device")},
                 {"context_bytes", text.constant(median(outside), "bytes")},
                 {"communicator_bytes", ProfileText::constant(0, "bytes", "in context_bytes")},
                 {"allocator_reserve", ProfileText::constant(0, "1", "the arena is allocated once")}}}};
  return out;
}

int calibrate(const Options& options, const Context& context) {
  end_in_order_on_signals();
  const bool gpu = options.device == "cuda";
  const Result<Calibrated> result =
      gpu ? calibrate_gpus(options.quick, context) : calibrate_machine(options.quick, context);
  if (!result) return fail(result.problems(), context);
  const Calibrated& machine = result.value();
  std::error_code error;
  std::filesystem::create_directories(options.folder, error);
  const std::string name = gpu ? "localhost-cuda" : "localhost";
  const std::string hardware = fmt::format("{}/{}.json", options.folder, name),
                    stack = fmt::format("{}/stack-{}.json", options.folder, name);
  Problems problems = write_output(hardware, machine.hardware.dump(2) + "\n");
  if (problems.empty()) problems = write_output(stack, machine.stack.dump(2) + "\n");
  if (!problems.empty()) return fail(problems, context);
  if (context.json) {
    std::cout << json{{"hardware", hardware},
                      {"stack", stack},
                      {"peak_flops_per_thread", machine.peak_flops},
                      {"gemm_share_of_peak", machine.gemm_share},
                      {"kernels", gpu ? "cuda" : kernels::cpu_instruction_set()}}
                     .dump(2)
              << "\n";
    return kOk;
  }
  std::cout << fmt::format("{} and {}\n  {} peak   {:.1f} GFLOP/s in {}\n  best GEMM         {:.1f}% of it\n\n",
                           hardware, stack, gpu ? "the GPU's    " : "a thread's   ", machine.peak_flops * 1e-9,
                           gpu ? "bf16" : fmt::format("f32 (kernels {})", kernels::cpu_instruction_set()),
                           100 * machine.gemm_share);
  std::vector<std::vector<std::string>> rows;
  for (const json& rates : machine.hardware["op_rates"]) {
    for (const char* kind : {"Matmul", "Attention", "AttentionGrad", "Norm", "Activation", "Add", "AdamW"}) {
      if (!rates["kinds"].contains(kind)) continue;
      const json& rate = rates["kinds"][kind];
      const auto per = [](double seconds) {
        return seconds > 0 ? fmt::format("{:.1f}", 1e-9 / seconds) : std::string();
      };
      rows.push_back({kind, fmt::format("{} x{}", rates["precision"].get<std::string>(), rates["threads"].get<int>()),
                      fmt::format("{:.1f}", 1e6 * rate["floor_s"].get<double>()), per(rate["seconds_per_flop"]),
                      per(rate["seconds_per_byte"]), fmt::format("{:.1f}%", 100 * rate["median_error"].get<double>())});
    }
  }
  std::cout << table({"op", "", "floor us", "GFLOP/s", "GB/s", "off by"}, rows);
  return kOk;
}

}  // namespace

void add_calibrate(CLI::App& app, Context& context) {
  CLI::App* command = add_command(
      app, "calibrate",
      "Measure this machine: profiles for \"hardware\": \"localhost\" and \"stack\": \"localhost\", or localhost-cuda",
      "  trainyard calibrate                # profiles/, which scenarios run from here will find\n"
      "  trainyard calibrate --quick        # small models only: seconds, and surer of small models than of others\n"
      "  trainyard calibrate --device cuda  # the GPUs of this node: \"localhost-cuda\"\n"
      "  trainyard calibrate -o my-profiles");
  auto options = std::make_shared<Options>();
  command->add_option("-o,--output", options->folder, "Folder for the profiles");
  command->add_option("--device", options->device, "What to measure: cpu, or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  command->add_flag("--quick", options->quick, "Time small models only");
  command->callback(
      [options, &context] { context.run = [options, &context] { return calibrate(*options, context); }; });
}

}  // namespace trainyard::cli
