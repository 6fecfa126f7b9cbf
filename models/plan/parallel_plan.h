// ParallelPlan: how a model is spread over a mesh of ranks, and how a step is scheduled.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "models/base/status.h"
#include "models/spec/cluster_spec.h"
#include "models/spec/model_spec.h"

namespace trainyard {

enum class PipelineSchedule { OneFOneB, Interleaved };

enum class RecomputeMode { None, Selective, Full };

/// What Selective recomputes in the backward pass instead of keeping it.
struct RecomputeModules {
  bool core_attn = true;
  bool norm = false;
  bool activation = false;
  /// All that is neither a product nor attention: norms, activations, additions, rotations (PyTorch's and JAX's
  /// policies that save products).
  bool pointwise = false;
  /// The products of a dense MLP, and its activation.
  bool mlp = false;
  /// Of a layer's products every second, as PyTorch's selective activation checkpointing counts them. Gate and up are
  /// two of them but one of ours: it is recomputed in every second layer.
  bool every_second_matmul = false;
};

/// F64 is for proofs: every tensor of the program in float64.
enum class Precision { Bf16, F32, F64 };

/// How context-parallel ranks come by one another's keys and values: all of them gathered before attention (Llama 3,
/// arXiv 2407.21783, section 3.3.2), or one block after another, handed on around a ring beside attention to the block
/// before (ring attention, arXiv 2310.01889). Named as Megatron names them.
enum class CpCommType { AllGather, P2p };

/// When gradients are summed over data-parallel ranks.
enum class GradSync { LastMicroBatch, EveryMicroBatch };

/// What happens to a token whose expert buffer is full.
enum class MoeOverflow { Fail, Drop };

struct OverlapSwitches {
  bool grad_reduce = true;   // gradient buckets leave while the backward pass still runs
  bool param_gather = true;  // updated parameters arrive while the forward pass starts
  bool p2p = true;           // pipeline sends and receives beside compute (interleaved only)
  /// Of a product's gradients the one of its input is summed over tp beside the product that makes the one of its
  /// weight.
  bool tensor_parallel = true;
};

struct MoePlan {
  /// Static bound of an expert buffer over its mean load; unset: the worst case.
  std::optional<double> buffer_factor;
  MoeOverflow overflow = MoeOverflow::Fail;
};

struct OptimizerSpec {
  double learning_rate = 3e-4;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  /// Decoupled, on tensors of two dimensions or more.
  double weight_decay = 0.1;
  /// Global gradient norm above which gradients are scaled down; 0: never.
  double clip_grad = 1.0;
  /// The rate rises to learning_rate over this many steps, and from there falls as half a cosine, to min_learning_rate
  /// at decay_steps (0: never).
  std::int64_t warmup_steps = 0;
  std::int64_t decay_steps = 0;
  double min_learning_rate = 0;
};

/// The rate of the step that comes after `steps_taken`.
double learning_rate(const OptimizerSpec& optimizer, std::int64_t steps_taken);

struct ParallelPlan {
  std::string name;
  // Mesh axes. ep folds into cp x dp: it divides their product and adds no ranks.
  std::int64_t tp = 1;
  std::int64_t cp = 1;
  std::int64_t ep = 1;
  std::int64_t pp = 1;
  std::int64_t dp = 1;
  /// Fastest-varying axis first: "tp-cp-ep-dp-pp" or "tp-cp-ep-pp-dp" (Megatron's two orders).
  std::string order = "tp-cp-ep-dp-pp";
  bool sequence_parallel = false;
  CpCommType cp_comm_type = CpCommType::AllGather;
  /// 0: replicated; 1: optimizer state sharded; 2: gradients too; 3: parameters too, gathered bucket by bucket for each
  /// pass (FSDP).
  std::int64_t zero_stage = 0;
  /// Ranks that one copy of what is sharded is spread over (hybrid sharding: HSDP, MiCS): a data-parallel group falls
  /// into blocks of so many of its ranks in their order, each with a copy. 0: all of the group; a smaller group of
  /// experts is one block too.
  std::int64_t zero_shard_size = 0;
  /// Unset: every micro-batch for ZeRO 3, and for ZeRO 2 without pipeline; else the last one.
  std::optional<GradSync> grad_sync;

  PipelineSchedule schedule = PipelineSchedule::OneFOneB;
  std::int64_t virtual_stages = 1;
  /// Every tensor-parallel rank of a stage has the same boundary: each sends its block of it, and the next stage
  /// gathers them (Narayanan et al. 2021, section 4.1). Off: each sends all of it. Under sequence parallelism ranks
  /// have no more than their own rows.
  bool pipeline_scatter_gather = false;
  /// Decoder layers of each stage-chunk, in model order (chunk 0 of stage 0, of stage 1, ...);
  /// empty: even, with what is left over given to the middle of the pipeline.
  std::vector<std::int64_t> layers_per_chunk;

  std::int64_t sequence_length = 0;
  std::int64_t micro_batch = 1;
  std::int64_t global_batch = 0;  // sequences per step

  RecomputeMode recompute = RecomputeMode::None;
  RecomputeModules recompute_modules;
  /// Full recompute leaves out what no backward pass asks for, a layer's last product and its reduction (PyTorch's
  /// early_stop); off: layers are run again whole, as checkpoints that re-enter autograd do.
  bool recompute_early_stop = true;
  /// Of each stage-chunk the first so many layers are recomputed; 0: all.
  std::int64_t recompute_layers = 0;
  Precision precision = Precision::Bf16;
  /// Gradients are accumulated and reduced in float32; off: in the parameters' type.
  bool fp32_gradients = true;
  /// Threads of a rank that computes on processors.
  std::int64_t cpu_threads = 1;
  OverlapSwitches overlap;
  /// Target size of a gradient bucket, in bytes of the gradient type.
  std::int64_t bucket_bytes = std::int64_t{160} << 20;
  MoePlan moe;
  OptimizerSpec optimizer;

  [[nodiscard]] std::int64_t ranks() const { return tp * cp * pp * dp; }
  [[nodiscard]] std::int64_t micro_batches() const { return global_batch / (dp * micro_batch); }
  [[nodiscard]] std::int64_t chunks() const { return pp * virtual_stages; }
  [[nodiscard]] GradSync effective_grad_sync() const;
  [[nodiscard]] bool ring_attention() const { return cp > 1 && cp_comm_type == CpCommType::P2p; }
};

/// Decoder layers of each chunk in model order; `plan.chunks()` entries that sum to the model's layers.
std::vector<std::int64_t> layers_per_chunk(const ModelSpec& model, const ParallelPlan& plan);

/// All rules that the plan breaks on its own and against the model; the cluster is checked
/// when given (enough GPUs, tp within the NVLink domain).
Problems validate(const ParallelPlan& plan, const ModelSpec& model, const ClusterSpec* cluster,
                  const std::string& path = "$");

}  // namespace trainyard
