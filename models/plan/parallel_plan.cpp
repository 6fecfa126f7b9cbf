#include "models/plan/parallel_plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "models/base/units.h"
#include "models/spec/json_reader.h"

namespace trainyard {

GradSync ParallelPlan::effective_grad_sync() const {
  if (grad_sync) return *grad_sync;
  const bool every = zero_stage >= 3 || (zero_stage == 2 && pp == 1);
  return every ? GradSync::EveryMicroBatch : GradSync::LastMicroBatch;
}

std::vector<std::int64_t> layers_per_chunk(const ModelSpec& model, const ParallelPlan& plan) {
  if (!plan.layers_per_chunk.empty()) return plan.layers_per_chunk;
  const std::int64_t chunks = plan.chunks(), even = model.num_hidden_layers / chunks,
                     left = model.num_hidden_layers % chunks;
  std::vector<std::int64_t> layers(static_cast<std::size_t>(chunks), even);
  // The first and last chunks carry the embedding and the head, so what is left over goes in the middle.
  for (std::int64_t i = 0; i < left; ++i) ++layers[static_cast<std::size_t>((chunks - left) / 2 + i)];
  return layers;
}

namespace {

// Larger than any cluster; below it no product of degrees overflows.
constexpr double kMaxRanks = 1e9;
// Each is an item of the step program, forward and backward.
constexpr double kMaxPasses = 1e6;

// The rules, by what they concern. Each message says what to change.
class PlanRules {
 public:
  PlanRules(const ParallelPlan& plan, const ModelSpec& model, const std::string& path)
      : plan_(plan), model_(model), rule_(path) {}

  Problems check(const ClusterSpec* cluster) {
    sizes();
    if (!rule_.ok()) return rule_.take();  // the rules below divide and multiply
    tensor_axis();
    context_axis();
    expert_axis();
    sharding();
    recompute();
    pipeline_axis();
    batch();
    if (cluster != nullptr) placement(*cluster);
    return rule_.take();
  }

 private:
  static std::string text(std::int64_t x) { return std::to_string(x); }

  void sizes() {
    rule_.expect_positive({{"tp", plan_.tp},
                           {"cp", plan_.cp},
                           {"ep", plan_.ep},
                           {"pp", plan_.pp},
                           {"dp", plan_.dp},
                           {"virtual_stages", plan_.virtual_stages},
                           {"sequence_length", plan_.sequence_length},
                           {"micro_batch_size", plan_.micro_batch},
                           {"global_batch_size", plan_.global_batch}});
    rule_.expect(plan_.zero_shard_size >= 0, "zero_shard_size", text(plan_.zero_shard_size), "must not be negative",
                 "use 0 to shard over all data-parallel ranks");
    if (!rule_.ok()) return;
    // In floating point: a product of degrees that wraps around in 64 bits would look like a small job.
    const double ranks = static_cast<double>(plan_.tp) * static_cast<double>(plan_.cp) * static_cast<double>(plan_.pp) *
                         static_cast<double>(plan_.dp);
    rule_.expect(ranks <= kMaxRanks, "", fmt::format("tp*cp*pp*dp = {:.3g}", ranks),
                 fmt::format("must have at most {:g} ranks", kMaxRanks), "lower the degrees");
    const double passes = static_cast<double>(plan_.global_batch) / static_cast<double>(plan_.dp) /
                          static_cast<double>(plan_.micro_batch) * static_cast<double>(plan_.pp) *
                          static_cast<double>(plan_.virtual_stages);
    rule_.expect(
        passes <= kMaxPasses, "global_batch_size", text(plan_.global_batch),
        fmt::format("makes {:.3g} micro-batch passes over chunks a step; the limit is {:g}", passes, kMaxPasses),
        "raise dp or micro_batch_size, or lower the global batch");
  }

  void tensor_axis() {
    const auto divides = [&](std::int64_t size, const char* what) {
      rule_.expect(size % plan_.tp == 0, "tp", text(plan_.tp),
                   fmt::format("must divide the model's {} = {}", what, size), "choose a divisor of it");
    };
    divides(model_.num_attention_heads, "num_attention_heads");
    divides(model_.num_key_value_heads, "num_key_value_heads");
    divides(model_.intermediate_size, "intermediate_size");
    rule_.expect(model_.vocab_size % plan_.tp == 0, "tp", text(plan_.tp),
                 fmt::format("must divide the model's vocab_size = {}", model_.vocab_size),
                 fmt::format("pad the vocabulary to {}",
                             (model_.vocab_size + 128 * plan_.tp - 1) / (128 * plan_.tp) * 128 * plan_.tp));
    rule_.expect(!plan_.sequence_parallel || rows() % plan_.tp == 0, "sequence_parallel", "true",
                 fmt::format("needs the {} token rows of a micro-batch to be divisible by tp = {}", rows(), plan_.tp),
                 "change tp or the sequence length");
  }

  void context_axis() {
    rule_.expect(
        plan_.cp == 1 || plan_.sequence_length % (2 * plan_.cp) == 0, "cp", text(plan_.cp),
        fmt::format("needs sequence_length = {} to be divisible by 2*cp, for two slices a rank", plan_.sequence_length),
        "choose a smaller power of two");
    rule_.expect(!plan_.ring_attention() || model_.sliding_window == 0, "cp_comm_type", "p2p",
                 "hands keys on around a ring, most of which a model with a sliding window never looks at",
                 "use \"all_gather\"");
    rule_.expect(model_.position != PositionKind::Learned || plan_.sequence_length <= model_.max_position_embeddings,
                 "sequence_length", text(plan_.sequence_length),
                 fmt::format("exceeds the {} learned positions of the model", model_.max_position_embeddings),
                 "shorten it, or give the model more positions");
  }

  void expert_axis() {
    if (!model_.moe) {
      rule_.expect(plan_.ep == 1, "ep", text(plan_.ep), "means something only for a model with experts", "set it to 1");
      rule_.expect(!plan_.moe.buffer_factor, "moe.buffer_factor", "", "means something only for a model with experts",
                   "remove it");
      rule_.expect(plan_.moe.overflow == MoeOverflow::Fail, "moe.overflow", "drop",
                   "means something only for a model with experts", "remove it");
      return;
    }
    rule_.expect(model_.moe->num_local_experts % plan_.ep == 0, "ep", text(plan_.ep),
                 fmt::format("must divide the model's {} experts", model_.moe->num_local_experts),
                 "choose a divisor of it");
    rule_.expect((plan_.cp * plan_.dp) % plan_.ep == 0, "ep", text(plan_.ep),
                 fmt::format("must divide cp*dp = {}, into which it folds", plan_.cp * plan_.dp),
                 "raise dp, or lower ep");
    rule_.expect(plan_.moe.overflow == MoeOverflow::Fail, "moe.overflow", "drop", "dropping tokens is not lowered yet",
                 "use \"fail\" with a buffer_factor that is large enough");
  }

  // Every copy of what is sharded lies on as many ranks as the next.
  void sharding() {
    const std::int64_t size = plan_.zero_shard_size, dense = plan_.dp * plan_.cp;
    if (size == 0) return;
    rule_.expect(plan_.zero_stage >= 1, "zero_shard_size", text(size), "means something only from ZeRO 1 on",
                 "remove it, or set zero_stage to 1, 2 or 3");
    rule_.expect(dense % size == 0, "zero_shard_size", text(size),
                 fmt::format("must divide dp*cp = {}, the ranks that hold the same parameters", dense),
                 "choose a divisor of it, or 0 for all of them");
    if (plan_.ep == 1 || dense % plan_.ep != 0) return;
    const std::int64_t experts = dense / plan_.ep;
    rule_.expect(experts <= size || experts % size == 0, "zero_shard_size", text(size),
                 fmt::format("must divide dp*cp/ep = {}, the ranks that hold the same experts, or be no less", experts),
                 "choose a divisor of it, or change ep");
  }

  void recompute() {
    const RecomputeModules& modules = plan_.recompute_modules;
    const bool of_dense = plan_.recompute == RecomputeMode::Selective && (modules.mlp || modules.every_second_matmul);
    rule_.expect(!model_.moe || !of_dense, "recompute_modules", modules.mlp ? "mlp" : "every_second_matmul",
                 "counts products of dense layers; experts have none", "leave it out, or recompute whole layers");
    rule_.expect(plan_.recompute_early_stop || plan_.recompute == RecomputeMode::Full, "recompute_early_stop", "false",
                 "means something only for full recompute", "set it to true");
  }

  void scatter_gather() {
    if (!plan_.pipeline_scatter_gather) return;
    const auto expect = [&](bool holds, std::string rule) {
      rule_.expect(holds, "pipeline_scatter_gather", "true", std::move(rule), "set it to false");
    };
    expect(plan_.tp > 1 && plan_.pp > 1, "needs tp and pp above 1: ranks of tp share what a pipeline sends");
    expect(!plan_.sequence_parallel, "means nothing under sequence parallelism, where each rank sends its own rows");
    expect(rows() * model_.hidden_size % plan_.tp == 0,
           fmt::format("needs the {} values of a boundary to be divisible by tp = {}", rows() * model_.hidden_size,
                       plan_.tp));
  }

  void pipeline_axis() {
    const bool interleaved = plan_.schedule == PipelineSchedule::Interleaved;
    rule_.expect(interleaved == (plan_.virtual_stages > 1), "virtual_stages", text(plan_.virtual_stages),
                 "must be above 1 for an interleaved schedule, and 1 otherwise",
                 "set both \"schedule\": \"interleaved\" and virtual_stages");
    rule_.expect(!interleaved || plan_.pp > 1, "schedule", "interleaved", "needs pp above 1", "use 1f1b");
    scatter_gather();
    rule_.expect(!interleaved || plan_.global_batch % (plan_.dp * plan_.micro_batch) != 0 ||
                     plan_.micro_batches() % plan_.pp == 0,
                 "virtual_stages", text(plan_.virtual_stages),
                 fmt::format("an interleaved schedule needs the {} micro-batches to be divisible by pp = {}",
                             plan_.micro_batches(), plan_.pp),
                 "change the global batch");
    if (plan_.layers_per_chunk.empty()) {
      rule_.expect(model_.num_hidden_layers >= plan_.chunks(), "pp", text(plan_.pp),
                   fmt::format("pp*virtual_stages = {} chunks need at least as many layers; the model has {}",
                               plan_.chunks(), model_.num_hidden_layers),
                   "lower pp or virtual_stages");
      return;
    }
    const auto& layers = plan_.layers_per_chunk;
    const std::int64_t sum = std::accumulate(layers.begin(), layers.end(), std::int64_t{0});
    rule_.expect(static_cast<std::int64_t>(layers.size()) == plan_.chunks(), "layers_per_chunk",
                 fmt::format("{} entries", layers.size()),
                 fmt::format("must have pp*virtual_stages = {} entries", plan_.chunks()),
                 "one entry for each chunk, in model order");
    rule_.expect(sum == model_.num_hidden_layers, "layers_per_chunk", fmt::format("sum {}", sum),
                 fmt::format("must add up to the model's {} layers", model_.num_hidden_layers),
                 "give every layer a chunk");
    for (std::size_t i = 1; i + 1 < layers.size(); ++i) {
      rule_.expect(layers[i] > 0, fmt::format("layers_per_chunk[{}]", i), "0",
                   "only the first and the last chunk may go without layers", "give it one");
    }
  }

  void batch() {
    const std::int64_t per_step = plan_.dp * plan_.micro_batch;
    rule_.expect(
        plan_.global_batch % per_step == 0 && plan_.global_batch > 0, "global_batch_size", text(plan_.global_batch),
        fmt::format("must be a multiple of dp*micro_batch_size = {}", per_step),
        fmt::format("use {}", std::max<std::int64_t>(1, (plan_.global_batch + per_step - 1) / per_step) * per_step));
    rule_.expect(plan_.zero_stage >= 2 || plan_.grad_sync != GradSync::EveryMicroBatch, "grad_sync",
                 "every_micro_batch", "means something only from ZeRO 2 on, which keeps no whole gradients",
                 "remove it, or set zero_stage to 2 or 3");
  }

  void placement(const ClusterSpec& cluster) {
    const std::int64_t gpus = cluster.gpus();
    rule_.expect(plan_.ranks() <= gpus, "dp", text(plan_.dp),
                 fmt::format("tp*cp*pp*dp = {} ranks, but cluster {} has {} GPUs", format_count(plan_.ranks()),
                             cluster.name, format_count(gpus)),
                 fmt::format("lower dp to {} or use a larger cluster", gpus / (plan_.tp * plan_.cp * plan_.pp)));
    const bool fits = plan_.tp <= cluster.gpus_per_node && cluster.gpus_per_node % plan_.tp == 0;
    rule_.expect(fits, "tp", text(plan_.tp),
                 fmt::format("must divide the {} GPUs of a node: tensor parallelism stays inside the NVLink domain",
                             cluster.gpus_per_node),
                 "choose a divisor of it");
  }

  std::int64_t rows() const { return plan_.micro_batch * plan_.sequence_length / plan_.cp; }

  const ParallelPlan& plan_;
  const ModelSpec& model_;
  RuleChecker rule_;
};

}  // namespace

Problems validate(const ParallelPlan& plan, const ModelSpec& model, const ClusterSpec* cluster,
                  const std::string& path) {
  return PlanRules(plan, model, path).check(cluster);
}

double learning_rate(const OptimizerSpec& optimizer, std::int64_t steps_taken) {
  const auto step = static_cast<double>(steps_taken + 1), warmup = static_cast<double>(optimizer.warmup_steps);
  if (step < warmup) return optimizer.learning_rate * step / warmup;
  if (optimizer.decay_steps == 0) return optimizer.learning_rate;
  const double end = std::max(static_cast<double>(optimizer.decay_steps), warmup + 1);
  const double progress = std::min((step - warmup) / (end - warmup), 1.0);
  const double share = 0.5 * (1 + std::cos(progress * std::acos(-1.0)));
  return optimizer.min_learning_rate + (optimizer.learning_rate - optimizer.min_learning_rate) * share;
}

}  // namespace trainyard
