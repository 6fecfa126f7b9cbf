#include "models/published/published_run.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <regex>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "models/published/published_model.h"
#include "models/published/row_reader.h"

namespace trainyard {

namespace {

constexpr double kBytesPerGbit = 1e9 / 8;
constexpr double kGiB = 1 << 30;

struct Hardware {
  const char* gpu;
  std::int64_t memory_gb;  // 0: any
  const char* profile;
  double nic_bytes_per_s;  // of the vendor's own node: 8 of them
};
constexpr std::array kHardware{
    Hardware{"A100", 40, "a100-sxm-40gb", 200 * kBytesPerGbit}, Hardware{"A100", 0, "a100-sxm", 200 * kBytesPerGbit},
    Hardware{"H100", 96, "h100-96gb", 400 * kBytesPerGbit}, Hardware{"H100", 0, "h100-sxm", 400 * kBytesPerGbit},
    Hardware{"H200", 0, "h200-sxm", 400 * kBytesPerGbit}};

/// The first that fits.
const Hardware* hardware_of(const std::string& gpu, std::int64_t memory_gb) {
  const auto its = std::find_if(kHardware.begin(), kHardware.end(), [&](const Hardware& h) {
    return gpu == h.gpu && (h.memory_gb == 0 || h.memory_gb == memory_gb);
  });
  return its == kHardware.end() ? nullptr : its;
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

/// Months since the year 0, of a date that begins with a year. Others are releases ("24.11"), all of them later than
/// what is asked of dates here.
std::optional<int> month_of(const std::string& date) {
  static const std::regex form(R"(^(20\d\d)(?:-(0[1-9]|1[0-2]))?(?!\d))");
  std::smatch found;
  if (!std::regex_search(date, found, form)) return std::nullopt;
  return 12 * std::stoi(found[1]) + (found[2].matched ? std::stoi(found[2]) : 1);
}

bool is_before(const std::string& date, int year, int month) {
  const std::optional<int> its = month_of(date);
  return its && *its < 12 * year + month;
}

/// Reads one row. Each step says why the row cannot be simulated, or nothing.
class RunReader {
 public:
  explicit RunReader(const RowReader& row) : row_(row) {}

  std::variant<PublishedRun, std::string> read() {
    run_.id = row_.text("id");
    run_.source = row_.text("source");
    run_.framework = row_.text("framework");
    if (has(row_.text("notes"), "+compile")) run_.framework += ", compiled";
    // FlashAttention is of May 2022 (arXiv 2205.14135), and nothing like it was used before.
    run_.before_fused_attention = is_before(row_.text("source_date"), 2022, 6);
    run_.gpu = row_.text("gpu_type");
    run_.series = series();
    for (const auto step :
         {&RunReader::kind, &RunReader::model, &RunReader::cluster, &RunReader::mesh, &RunReader::batch,
          &RunReader::recompute, &RunReader::sharding, &RunReader::gradients, &RunReader::overlap,
          &RunReader::tensor_overlap, &RunReader::boundaries, &RunReader::stages, &RunReader::measured}) {
      if (std::string reason = (this->*step)(); !reason.empty()) return reason;
    }
    run_.scenario.name = run_.id;
    run_.scenario.model = model_;
    run_.scenario.plan = plan_;
    return std::move(run_);
  }

 private:
  void assume(std::string what) { run_.assumed.push_back(std::move(what)); }

  /// BLOOM's chronicles: nodes were improved on 25 February 2022, "do not compare today's numbers to yesterday's"; and
  /// from the 28th on an optimizer of another precision was at work, "do not compare these numbers to the previous
  /// ones".
  [[nodiscard]] std::string series() const {
    static const std::regex form(R"(\b02-([012]\d);)");
    std::smatch found;
    const std::string notes = row_.text("notes");
    if (!has(run_.source, "BLOOM tr11") || !std::regex_search(notes, found, form)) return "";
    const int day = std::stoi(found[1]);
    return day < 25 ? "before 25 February" : day < 28 ? "25 to 27 February" : "from 28 February on";
  }

  std::string kind() {
    if (!row_.boolean("config_complete").value_or(true)) return "configuration incomplete";
    if (row_.integer("experts").value_or(0) > 0 || row_.text("arch_family") == "moe") return "experts";
    const std::string precision = lower_case(row_.text("precision"));
    if (precision != "bf16" && precision != "fp16")
      return precision.empty() ? "precision unknown" : "computes in " + row_.text("precision");
    if (precision == "fp16") assume("fp16 as bf16");
    const std::string mode = row_.text("training_mode");
    if (!mode.empty() && mode != "pretrain" && mode != "sft") return "training mode " + mode;
    hardware_ = hardware_of(run_.gpu, row_.integer("gpu_mem_gb").value_or(0));
    if (hardware_ == nullptr) return fmt::format("no profile of {}", run_.gpu);
    return "";
  }

  std::string model() {
    std::optional<ModelSpec> model = published_model(row_, run_.assumed);
    if (!model) return "a size of the model is missing";
    model_ = *model;
    plan_.sequence_length = model_.max_position_embeddings;
    return "";
  }

  std::string cluster() {
    const Hardware& hardware = *hardware_;
    const std::int64_t gpus = row_.integer("num_gpus").value_or(0);
    if (gpus <= 0) return "number of GPUs missing";
    ClusterSpec& cluster = run_.scenario.cluster;
    cluster.name = "published";
    cluster.hardware = hardware.profile;
    cluster.nodes = row_.integer("num_nodes").value_or((gpus + 7) / 8);
    if (cluster.nodes <= 0 || gpus % cluster.nodes != 0) return "GPUs are not spread evenly over nodes";
    cluster.gpus_per_node = gpus / cluster.nodes;
    cluster.nics_per_node = 8;
    cluster.nic_bytes_per_s = hardware.nic_bytes_per_s;
    network(row_.text("interconnect"), cluster);
    return "";
  }

  // "4x100G", "1600 Gbps per node", "400 Gb/s RDMA per GPU", "HDR", "NDR".
  void network(const std::string& text, ClusterSpec& cluster) {
    std::smatch found;
    static const std::regex by_nic(R"((?:^|\D)([1-9]\d{0,3})\s*x\s*([1-9]\d{0,3})\s*G)"),
        by_rate(R"((?:^|\D)([1-9]\d{0,5})\s*(?:Gbps|Gb/s)[^;,]*per (node|GPU))");
    if (std::regex_search(text, found, by_nic)) {
      cluster.nics_per_node = std::stoll(found[1]);
      cluster.nic_bytes_per_s = std::stod(found[2]) * kBytesPerGbit;
    } else if (std::regex_search(text, found, by_rate)) {
      const double rate = std::stod(found[1]) * kBytesPerGbit;
      cluster.nic_bytes_per_s = found[2] == "GPU" ? rate : rate / static_cast<double>(cluster.nics_per_node);
      // Nobody cables eight NICs of 50 Gbit/s.
      while (cluster.nic_bytes_per_s < 100 * kBytesPerGbit && cluster.nics_per_node > 1) {
        cluster.nics_per_node /= 2;
        cluster.nic_bytes_per_s *= 2;
      }
    } else if (!has(text, "HDR") && !has(text, "NDR") && cluster.nodes > 1) {
      assume(
          fmt::format("{} NICs of {:g} Gbit/s a node", cluster.nics_per_node, cluster.nic_bytes_per_s / kBytesPerGbit));
    }
    cluster.nics_per_node = std::min(cluster.nics_per_node, cluster.gpus_per_node);
  }

  std::string mesh() {
    plan_.tp = row_.integer("tp").value_or(1);
    plan_.pp = row_.integer("pp").value_or(1);
    plan_.cp = row_.integer("cp").value_or(1);
    // Megatron-Core's default, as Transformer Engine names it; torchtitan's is to gather (rotate_method "allgather").
    if (plan_.cp > 1 && (is_nemo() || has(run_.framework, "Megatron"))) plan_.cp_comm_type = CpCommType::P2p;
    const std::int64_t gpus = run_.scenario.cluster.gpus();
    const std::int64_t shared = plan_.tp * plan_.pp * plan_.cp;
    if (shared <= 0 || gpus % shared != 0) return "tp*pp*cp does not divide the GPUs";
    plan_.dp = gpus / shared;
    plan_.virtual_stages = std::max<std::int64_t>(1, row_.integer("vp").value_or(1));
    if (plan_.virtual_stages > 1) plan_.schedule = PipelineSchedule::Interleaved;
    plan_.sequence_parallel = plan_.tp > 1 && row_.boolean("sequence_parallel").value_or(false);
    // As the frameworks do it.
    if (const std::int64_t multiple = 128 * plan_.tp; model_.vocab_size % multiple != 0) {
      model_.vocab_size = (model_.vocab_size + multiple - 1) / multiple * multiple;
      assume(fmt::format("a vocabulary padded to {}", model_.vocab_size));
    }
    return "";
  }

  std::string batch() {
    const std::int64_t sequences = row_.integer("global_batch_seqs").value_or(0);
    plan_.micro_batch = row_.integer("micro_batch").value_or(0);
    if (sequences <= 0 || plan_.micro_batch <= 0) return "batch missing";
    const std::int64_t together = plan_.dp * plan_.micro_batch;
    plan_.global_batch = sequences / together * together;
    if (plan_.global_batch == 0) return "the batch is smaller than one micro-batch for each replica";
    if (plan_.global_batch != sequences)
      assume(fmt::format("a batch of {} sequences rather than {}", plan_.global_batch, sequences));
    batch_share_ = static_cast<double>(plan_.global_batch) / static_cast<double>(sequences);
    return "";
  }

  std::string recompute() {
    const std::string how = lower_case(row_.text("recompute"));
    if (how.empty()) return "recompute unknown";
    if (how == "none") return "";
    if (how.rfind("full", 0) == 0) {
      plan_.recompute = RecomputeMode::Full;
      if (runs_layers_again_whole()) {
        plan_.recompute_early_stop = false;
        assume("whole layers run again, to their last product, as its framework does");
      }
      return "";
    }
    if (how.rfind("selective (per-block", 0) == 0) return recompute_some_layers();
    plan_.recompute = RecomputeMode::Selective;
    if (how.rfind("selective (core", 0) == 0) return "";
    RecomputeModules& modules = plan_.recompute_modules;
    if (has(how, "gelu")) {
      modules.core_attn = false;
      modules.activation = true;
      return "";
    }
    modules.core_attn = false;
    modules.pointwise = true;
    if (has(how, "every 2nd matmul")) {
      modules.every_second_matmul = true;
      return "";
    }
    if (has(how, "save_dot_with_context_except_mlp")) {
      modules.mlp = true;
      return "";
    }
    return "recompute: " + row_.text("recompute");
  }

  /// Megatron's tensor_parallel.checkpoint and DeepSpeed's run the function again whole, and so did PyTorch's own
  /// before 2.1, of October 2023 (torch.utils.checkpoint.set_checkpoint_early_stop): llm-foundry's tables of A100 are
  /// older than that, those of H100 are not (its commits b2a43a1 and 5e85bd6).
  [[nodiscard]] bool runs_layers_again_whole() const {
    if (has(run_.framework, "Composer")) return run_.gpu == "A100";
    return has(run_.framework, "Megatron") || has(run_.framework, "DeepSpeed") || is_nemo() ||
           has(run_.framework, "NeoX") || is_before(row_.text("source_date"), 2023, 10);
  }

  /// Hardware FLOPs over the model's tell how many: a layer that is recomputed costs four passes for three.
  std::string recompute_some_layers() {
    const std::optional<double> of_hardware = row_.number("hfu_pct"), of_model = row_.number("mfu_pct");
    if (!of_hardware || !of_model || *of_model <= 0) return "recompute: of how many blocks is not said";
    const double share = std::clamp(3 * (*of_hardware / *of_model - 1), 0.0, 1.0);
    const auto a_chunk = static_cast<double>(model_.num_hidden_layers) / static_cast<double>(plan_.chunks());
    plan_.recompute_layers = std::llround(share * a_chunk);
    if (plan_.recompute_layers > 0) plan_.recompute = RecomputeMode::Full;
    assume(fmt::format("{} layers of each stage recomputed, from HFU over MFU", plan_.recompute_layers));
    return "";
  }

  [[nodiscard]] bool is_nemo() const { return has(run_.framework, "NeMo") || has(run_.framework, "Megatron-Bridge"); }

  std::string sharding() {
    const std::optional<std::int64_t> stage = row_.integer("zero_stage");
    plan_.zero_stage = stage.value_or(0);
    if (plan_.zero_stage > 3) return fmt::format("ZeRO {}", plan_.zero_stage);
    if (!stage && is_nemo() && plan_.dp > 1) {
      plan_.zero_stage = 1;
      assume("ZeRO 1, which its recipes have");
    }
    if (plan_.zero_stage == 2 && plan_.pp > 1) {
      plan_.zero_stage = 1;
      assume("ZeRO 1 for 2, which a pipeline cannot use");
    }
    shard_size();
    return "";
  }

  void shard_size() {
    const std::int64_t size = row_.integer("fsdp_shard_size").value_or(0), group = plan_.dp * plan_.cp;
    if (plan_.zero_stage == 0 || size <= 0 || size == group) return;
    if (size < group && group % size == 0)
      plan_.zero_shard_size = size;
    else
      assume(fmt::format("shards over all {} data-parallel ranks rather than over {}", group, size));
  }

  /// Rows do not say in which type gradients are summed.
  std::string gradients() {
    // Its scripts for H100 set optim.grad_sync_dtype=bf16 (NeMo-Framework-Launcher, examples/training).
    const bool nemo = is_nemo();
    // FSDP's mixed precision PURE (llm-foundry, submit_benchmarks.py) and bfSixteen (fms-fsdp) reduce in bf16.
    const bool pure = has(run_.framework, "Composer") || has(run_.framework, "PyTorch FSDP1");
    // accumulate_allreduce_grads_in_fp32 is set for bf16 only (Megatron-LM, arguments.py), and DeepSpeed keeps to fp16.
    const bool fp16 = lower_case(row_.text("precision")) == "fp16";
    const bool megatron = has(run_.framework, "Megatron") || has(run_.framework, "DeepSpeed");
    if (!nemo && !pure && !(fp16 && megatron)) return "";
    plan_.fp32_gradients = false;
    assume("gradients summed in 16 bits, as its framework does");
    return "";
  }

  [[nodiscard]] bool is_early_megatron() const {
    const bool megatron =
        has(run_.framework, "Megatron-LM") || has(run_.framework, "Megatron-DeepSpeed") || has(run_.framework, "NeoX");
    return megatron && is_before(row_.text("source_date"), 2023, 6);
  }

  /// --overlap-grad-reduce and --overlap-param-gather came to Megatron in 2023; DeepSpeed's PipelineEngine reduces
  /// after the last backward pass (_exec_reduce_grads). Without a pipeline Megatron's runs took PyTorch's own
  /// DistributedDataParallel, which overlaps (Megatron-LM, examples/sc21/run_table_1.sh: DDP=torch, and local with
  /// one).
  std::string overlap() {
    if (!is_early_megatron()) return "";
    if (plan_.pp == 1) {
      assume("gradients reduced by PyTorch's DistributedDataParallel, beside the backward pass");
      return "";
    }
    plan_.overlap.grad_reduce = plan_.overlap.param_gather = false;
    assume("gradients reduced after the last backward pass, as its framework did then");
    return "";
  }

  /// Sums over tp beside weight gradients came to Megatron in October 2021 (async_tensor_model_parallel_allreduce;
  /// apex's copy is of its pull request 1183), and forks on DeepSpeed leave it off (deepspeedai/Megatron-DeepSpeed
  /// issue 447).
  std::string tensor_overlap() {
    if (!is_early_megatron() || plan_.tp == 1) return "";
    if (!has(run_.framework, "DeepSpeed") && !has(run_.framework, "NeoX") &&
        !is_before(row_.text("source_date"), 2021, 10))
      return "";
    plan_.overlap.tensor_parallel = false;
    assume("tensor-parallel sums after weight gradients, as its framework did then");
    return "";
  }

  /// Megatron's scatter_gather_tensors_in_pipeline is on by default (arXiv 2104.04473, section 4.1), and DeepSpeed's
  /// PipelineEngine sends partitions of activations wherever there is tensor parallelism (is_pipe_partitioned), and of
  /// gradients in some of its versions (is_grad_partitioned); which one a run had is not said.
  std::string boundaries() {
    if (!is_early_megatron() || plan_.tp == 1 || plan_.pp == 1 || plan_.sequence_parallel) return "";
    plan_.pipeline_scatter_gather = true;
    assume("stage boundaries sent in blocks by the ranks of tp, as its framework does");
    return "";
  }

  /// DeepSpeed's 'type:transformer' fills stages from the front ("78/12=6.5 - so the last stage has 1 block, while the
  /// rest have 7", BLOOM's chronicles); its 'type:transformer|embedding' counts the embedding and the head as layers,
  /// which the default does as well.
  std::string stages() {
    const std::int64_t layers = model_.num_hidden_layers, fullest = (layers + plan_.pp - 1) / plan_.pp;
    if (!has(run_.framework, "DeepSpeed") || plan_.pp == 1 || layers % plan_.pp == 0 || (layers + 2) % plan_.pp == 0 ||
        fullest * (plan_.pp - 1) >= layers)
      return "";
    plan_.layers_per_chunk.assign(static_cast<std::size_t>(plan_.pp - 1), fullest);
    plan_.layers_per_chunk.push_back(layers - fullest * (plan_.pp - 1));
    assume("stages filled with layers from the front, as DeepSpeed does");
    return "";
  }

  std::string measured() {
    run_.out_of_memory = row_.text("quality_flag") == "OOM";
    // nvidia-smi and PyTorch count in powers of two: 80 "GB" of an 80 GB GPU were in use at once.
    if (const auto peak = row_.number("peak_mem_gb"); peak && *peak > 0) run_.peak_memory_bytes = *peak * kGiB;
    for (const char* key : {"iteration_time_s", "derived_iteration_time_s"}) {
      const std::optional<double> seconds = row_.number(key);
      if (!seconds || *seconds <= 0) continue;
      run_.measured_step_s = *seconds * batch_share_;
      return "";
    }
    return run_.out_of_memory ? "" : "no step time or throughput was published";
  }

  const RowReader& row_;
  PublishedRun run_;
  const Hardware* hardware_ = nullptr;
  ModelSpec model_;
  ParallelPlan plan_;
  double batch_share_ = 1;
};

/// Rules of specs that a row breaks, as one reason.
std::string broken_rule(const Scenario& scenario) {
  for (const Problems& problems :
       {validate(scenario.model, "model"), validate(scenario.plan, scenario.model, &scenario.cluster, "plan"),
        validate(scenario.cluster, "cluster")}) {
    if (!problems.empty())
      return fmt::format("{} = {}: {}", problems.front().path, problems.front().value, problems.front().rule);
  }
  return "";
}

}  // namespace

std::variant<PublishedRun, std::string> published_run(const nlohmann::json& row, const std::string& file,
                                                      const std::string& path, Problems& problems) {
  const RowReader reader(row, file, path, problems);
  auto read = RunReader(reader).read();
  if (const auto* run = std::get_if<PublishedRun>(&read))
    if (std::string rule = broken_rule(run->scenario); !rule.empty()) return rule;
  return read;
}

}  // namespace trainyard
