// The step program: one training step of one pipeline stage, lowered from model and plan.
//
// All ranks of a stage run the same program; coordinates pick the shard, the group members and
// the random counters. A program is two-level: Blocks are templates (the forward pass of one
// chunk, its backward pass, the optimizer), and Items are their instances in launch order,
// each bound to the frames of memory that it works in.
//
//   StepProgram
//     blocks[]               templates, shared by stages and chunks of equal content
//     stages[]
//       chunks[]             parameters of each model chunk on this stage: the sharding table
//       frames[]             memory: where each instance of each role lies in the arena
//       items[]              launch order: Block instances and point-to-point batches
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "models/plan/parallel_plan.h"
#include "models/program/op.h"

namespace trainyard {

/// What a frame of memory is for. A tensor lives in one role's frame at a fixed offset.
enum class Role : std::uint8_t {
  Params,      // of a chunk: buckets, then their parameters as views
  Grads,       // of a chunk, laid out like Params
  Optimizer,   // of a chunk: master weights and moments
  Step,        // scalars of the step: loss, squared gradient norm
  Batch,       // of a micro-batch: tokens, labels, positions, samples
  Input,       // of (chunk, micro-batch): activation that enters the chunk
  Output,      // activation that leaves it (the Input of the next chunk when that is local)
  OutputGrad,  // gradient that enters the chunk's backward pass
  InputGrad,   // gradient that leaves it
  Saved,       // of (chunk, micro-batch): kept from forward to backward
  Transient,   // within one block only
};
inline constexpr int kRoleCount = static_cast<int>(Role::Transient) + 1;
const char* to_string(Role role);

struct Tensor {
  std::string name;
  Dtype dtype = Dtype::Bf16;
  Shape shape;
  Role role = Role::Transient;
  /// Byte offset in the role's frame. Tensors of Params and Grads may be views of their bucket.
  std::int64_t offset_bytes = -1;
  [[nodiscard]] std::int64_t bytes() const { return shape.elements() * size_of(dtype); }
};

enum class BlockKind : std::uint8_t {
  StepBegin,
  ParamGather,
  BoundaryGather,
  Forward,
  Backward,
  GradientSync,
  GradNorm,
  Optimizer
};
const char* to_string(BlockKind kind);

/// A template: ops in launch order, tensors placed in role frames.
struct Block {
  BlockKind kind = BlockKind::Forward;
  std::string name;
  std::vector<Tensor> tensors;
  std::vector<Op> ops;
  /// Bytes that each role's frame must have for this block.
  std::array<std::int64_t, kRoleCount> frame_bytes{};
};

/// How one dimension of a parameter is split: by the tp axis, by ep, or not at all.
enum class Split : std::uint8_t { None, Tp, Ep };

/// Residual: what is added to the residual stream of all layers, hence smaller.
enum class Init : std::uint8_t { Normal, Residual, Ones, Zeros };

/// One Hugging Face tensor inside a fused parameter, or one expert's slice of it.
struct ParamPart {
  std::string name;                        // "model.layers.3.self_attn.q_proj.weight"
  std::vector<std::int64_t> global_shape;  // as Hugging Face stores it
  /// Hugging Face stores [in, out] where we store [out, in] (GPT-2's Conv1D).
  bool transposed = false;
  /// Rows [first_row, first_row + rows) of our dimension 0 that this part takes of the tensor.
  std::int64_t first_row = 0, rows = 0;
  std::int64_t expert = -1;  // global expert index, or -1
};

/// A parameter as the program stores it: fused parts stacked along dimension 0 (after the
/// expert dimension, where there is one), each part split over tp on its own before stacking.
struct Param {
  std::string name;              // "layers.3.attn.qkv"
  std::vector<ParamPart> parts;  // in stacking order; experts: for each expert, its parts (all E of them)
  Shape local_shape;
  Split split0 = Split::None;    // dimension 0 of each part (columns of output)
  Split split1 = Split::None;    // dimension 1 of each part
  bool expert_parallel = false;  // leading dimension is El = E/ep experts
  bool decay = true;             // weight decay applies
  Init init = Init::Normal;
  /// muP: of the deviation of initial weights, and of the learning rate. Weight decay keeps the common rate.
  double init_scale = 1, rate_scale = 1;
  /// Gradients are partial sums over tp (sequence parallelism) and need an all-reduce there.
  bool tp_partial = false;
  /// A second copy of a tied embedding: excluded from the gradient norm and the parameter count.
  bool tied_copy = false;
  std::int64_t offset_elements = 0;  // in its bucket

  /// Elements per rank.
  [[nodiscard]] std::int64_t elements() const { return local_shape.elements(); }
  /// Replicated over tp: every tp rank holds the same values.
  [[nodiscard]] bool tp_replicated() const { return split0 != Split::Tp && split1 != Split::Tp; }
};

/// Parameters that are synchronised together, flat and padded so that the group divides them.
struct Bucket {
  Group group = Group::DpCp;                        // DpCp for dense, Edp for expert parameters
  Sharding sharding{Group::DpCp, Group::DpCpCopy};  // of optimizer state; by ZeRO stage of gradients and parameters too
  std::vector<Param> params;
  /// Holds one of the two copies of a tied embedding: summed over both stages before anything else.
  bool tied_across_stages = false;
  std::int64_t elements = 0;            // padded
  std::int64_t param_offset_bytes = 0;  // in the chunk's Params frame
  std::int64_t grad_offset_bytes = 0;   // in the chunk's Grads frame
  /// Elements of optimizer state on one rank: those that one of `sharding.shards` holds.
  std::int64_t shard_elements = 0;
  std::int64_t optimizer_offset_bytes = 0;  // master, m, v one after another, f32 (f64 under Precision::F64)
};

/// One chunk of the model on one stage.
struct Chunk {
  std::int64_t model_chunk = 0;  // virtual_stage * pp + stage
  std::int64_t first_layer = 0, layers = 0;
  bool has_embedding = false, has_head = false;
  std::vector<Bucket> buckets;
};

/// An instance of a role: one range of the arena, fixed over all steps.
struct Frame {
  Role role = Role::Transient;
  std::int32_t chunk = -1;  // local chunk index; -1 where it does not apply
  std::int32_t micro_batch = -1;
  std::int64_t bytes = 0;
  std::int64_t offset_bytes = 0;  // in the arena
  /// First and last item (in launch order) during which the frame holds data; persistent
  /// frames have 0 and the last item.
  std::int32_t first_item = 0, last_item = 0;
};

/// An op of an item that must have completed. op = -1: every op of the item.
struct Wait {
  std::int32_t item = 0;
  OpId op = -1;
  bool operator==(const Wait&) const = default;
};

/// One direction of a pipeline transfer. The peer has the same tp, cp and dp coordinates.
struct Transfer {
  bool send = true;
  std::int32_t peer_stage = 0;
  std::int32_t frame = 0;  // frame that is sent from or received into
  std::int64_t bytes = 0;
  bool block_of_tp = false;      // of the frame only this rank's block moves, one of tp of them
  bool backward = false;         // carries a gradient
  std::int32_t model_chunk = 0;  // chunk that consumes it (forward) or produced it (backward): with
  std::int32_t micro_batch = 0;  //   micro_batch and direction, the match key on both sides
};

/// One launch. Either an instance of a block, or an atomic batch of transfers (they start
/// together once this stage and each peer have reached theirs).
struct Item {
  std::int32_t block = -1;          // index into StepProgram::blocks; -1: a batch of transfers
  Stream stream = Stream::Compute;  // of the batch; a block's ops name their own
  std::int32_t chunk = -1;
  std::int32_t micro_batch = -1;
  std::array<std::int32_t, kRoleCount> frames{};  // frame bound to each role, or -1
  std::vector<Transfer> transfers;
  /// Must have completed before any op of this item starts.
  std::vector<Wait> waits;
};

struct StageProgram {
  std::int32_t stage = 0;
  std::vector<Chunk> chunks;
  std::vector<Frame> frames;
  std::vector<Item> items;
  std::int64_t arena_bytes = 0;
};

struct StepProgram {
  ModelSpec model;
  ParallelPlan plan;
  std::vector<Block> blocks;
  std::vector<StageProgram> stages;

  [[nodiscard]] const Block& block(const Item& item) const { return blocks[static_cast<std::size_t>(item.block)]; }
};

/// Lowers a validated model and plan. Total: what `validate` accepts, this lowers.
StepProgram lower(const ModelSpec& model, const ParallelPlan& plan);

/// Proves what the simulator and the executor rely on: every tensor is written before it is
/// read, no memory is reused before its last reader happens-before the writer, collectives are
/// in one order on all members, and the rendezvous wait-for graph has no cycle. Returns what
/// does not hold, a cycle printed op by op.
Problems check(const StepProgram& program);

/// What an op of an item is called, in both worlds: "layer0.attn.qkv", or "send activation 3" for a batch of transfers
/// (op -1).
std::string label_of(const StepProgram& program, const StageProgram& stage, std::int32_t item, OpId op);

/// Stable text, the same on every machine: goldens compare it.
std::string dump(const StepProgram& program);

/// Where one stage's memory goes, in bytes per role at the moment of its peak.
struct MemoryUse {
  std::int64_t arena_bytes = 0;
  std::array<std::int64_t, kRoleCount> by_role{};
};
MemoryUse memory_use(const StageProgram& stage);

}  // namespace trainyard
