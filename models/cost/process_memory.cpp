// What a rank's process holds beside its arena.
#include <algorithm>
#include <set>

#include "models/cost/cost.h"
#include "models/program/parameters.h"

namespace trainyard {

namespace {

/// Groups that the stage's ops and transfers speak over, each of which has buffers of its own.
std::int64_t communicators_of(const StepProgram& program, const StageProgram& stage) {
  const Mesh mesh(program.plan);
  std::set<Group> groups;
  std::set<std::int32_t> blocks;
  for (const Item& item : stage.items) {
    if (item.block < 0) groups.insert(Group::Pp);
    if (item.block < 0 || !blocks.insert(item.block).second) continue;
    for (const Op& op : program.block(item).ops)
      if (is_communication(op.kind) && mesh.group_size(op.group) > 1) groups.insert(op.group);
  }
  // A group of all ranks is the world under another name.
  const bool again = std::any_of(groups.begin(), groups.end(), [&](Group group) {
    return group != Group::World && mesh.group_size(group) == mesh.ranks();
  });
  if (again) groups.erase(Group::World);
  return static_cast<std::int64_t>(groups.size());
}

/// Elements of gradients that a rank keeps.
double gradients_of(const StepProgram& program, const StageProgram& stage) {
  double elements = 0;
  for (const Chunk& chunk : stage.chunks)
    for (const Bucket& bucket : chunk.buckets)
      elements += static_cast<double>(reduces_every_micro_batch(bucket, program.plan) ? bucket.shard_elements
                                                                                      : bucket.elements);
  return elements;
}

/// Elements of the parameters that a rank updates.
double updated_by(const StageProgram& stage) {
  double elements = 0;
  for (const Chunk& chunk : stage.chunks)
    for (const Bucket& bucket : chunk.buckets) elements += static_cast<double>(bucket.shard_elements);
  return elements;
}

/// What activations, and all that a pass needs, leave free once the last one is over.
double free_in_the_step(const StageProgram& stage) {
  double persistent = 0;
  for (const Frame& frame : stage.frames) {
    const bool stays = frame.role == Role::Params || frame.role == Role::Grads || frame.role == Role::Optimizer;
    if (stays) persistent += static_cast<double>(frame.bytes);
  }
  return static_cast<double>(stage.arena_bytes) - persistent;
}

/// Of a micro-batch on one rank; only the last stage has any.
double logits_of(const StepProgram& program, const StageProgram& stage) {
  const bool has_head =
      std::any_of(stage.chunks.begin(), stage.chunks.end(), [](const Chunk& chunk) { return chunk.has_head; });
  const ParallelPlan& plan = program.plan;
  const auto rows = static_cast<double>(plan.micro_batch * plan.sequence_length) / static_cast<double>(plan.cp);
  return has_head ? rows * static_cast<double>(program.model.vocab_size) / static_cast<double>(plan.tp) : 0;
}

}  // namespace

double ProcessMemory::total_bytes() const {
  return arena_bytes + fragmentation_bytes + context_bytes + communicator_bytes + gradient_copy_bytes +
         step_gradient_bytes + logit_copy_bytes + workspace_bytes;
}

// GPUs have their workspaces in context_bytes, and kernels of processors have almost none where they compute in the
// type that is stored. Operands in bf16 are converted to f32 whole, but for the optimizer's, which are converted in
// stretches.
double CostModel::workspace_bytes(const StepProgram& program, const StageProgram& stage) const {
  if (!hardware_.of_processors() || precision_ != Precision::Bf16) return 0;
  double most = 0;
  for (const Item& item : stage.items) {
    if (item.block < 0) continue;
    const Block& block = program.block(item);
    if (block.kind != BlockKind::Forward && block.kind != BlockKind::Backward) continue;
    for (const Op& op : block.ops) {
      if (op.kind == OpKind::Zero || op.kind == OpKind::Accumulate || is_communication(op.kind)) continue;
      double in_bf16 = 0;
      for (const auto* operands : {&op.in, &op.out}) {
        for (const TensorId id : *operands) {
          const Tensor& tensor = block.tensors[static_cast<std::size_t>(id)];
          if (tensor.dtype == Dtype::Bf16) in_bf16 += static_cast<double>(tensor.bytes());
        }
      }
      // Of a table only the rows that are looked up.
      most = std::max(most, 2 * std::min(in_bf16, op.bytes_read + op.bytes_written));
    }
  }
  return most;
}

ProcessMemory CostModel::process_memory(const StepProgram& program, const StageProgram& stage) const {
  ProcessMemory out;
  out.arena_bytes = static_cast<double>(stage.arena_bytes);
  out.fragmentation_bytes = out.arena_bytes * stack_.allocator_reserve;
  out.context_bytes = stack_.context_bytes;
  out.communicators = communicators_of(program, stage);
  out.communicator_bytes = static_cast<double>(out.communicators) * stack_.communicator_bytes;
  if (program.plan.precision == Precision::Bf16 && program.plan.fp32_gradients) {
    out.gradient_copy_bytes = stack_.gradient_copy_bytes * gradients_of(program, stage);
  } else if (program.plan.precision == Precision::Bf16) {
    const double needed = stack_.step_gradient_bytes * updated_by(stage);
    out.step_gradient_bytes = std::max(0.0, needed - free_in_the_step(stage));
  }
  out.logit_copy_bytes = stack_.logit_copy_bytes * logits_of(program, stage);
  out.workspace_bytes = workspace_bytes(program, stage);
  return out;
}

}  // namespace trainyard
