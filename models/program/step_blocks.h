// Blocks that run once a step: zeroing gradients, gathering parameters, what is left of gradient
// synchronisation, the gradient norm and the optimizer.
#pragma once

#include "models/program/block_builder.h"
#include "models/program/program.h"

namespace trainyard {

/// Scalars of the Step frame.
inline constexpr std::int64_t kLossOffset = 0;
inline constexpr std::int64_t kGradNormOffset = 256;
inline constexpr std::int64_t kStepFrameBytes = 512;

/// Zeroes the chunk's gradients; the first chunk of a stage also zeroes the step's scalars.
Block step_begin_block(const ParallelPlan& plan, const Chunk& chunk, bool zero_scalars, const std::string& name);

/// All-gathers the parameters that the last optimizer step updated in shards.
Block param_gather_block(const ParallelPlan& plan, const Chunk& chunk, const std::string& name);

/// All-gathers over tp what came in blocks from the stage before (an activation), or from the stage behind (a
/// gradient).
Block boundary_gather_block(const ModelSpec& model, const ParallelPlan& plan, bool gradient);

/// Reductions that did not happen inside the last backward pass: tied embeddings, and all
/// buckets when gradient reduction is not overlapped. Empty when nothing is left.
Block gradient_sync_block(const ParallelPlan& plan, const Chunk& chunk, const std::string& name);

/// Adds the chunk's share of the squared gradient norm.
Block grad_norm_block(const ParallelPlan& plan, const Chunk& chunk, const std::string& name);

/// Sums the squared gradient norm over all ranks and, on the last stage, the loss over data-parallel ones.
Block scalar_reduce_block(const ParallelPlan& plan, bool last_stage, const std::string& name);

/// AdamW on every bucket, then the parameter gather unless the next step overlaps it.
Block optimizer_block(const ParallelPlan& plan, const Chunk& chunk, const std::string& name);

/// True when some bucket's parameters are updated in shards and gathered.
bool gathers_params(const ParallelPlan& plan, const Chunk& chunk);

/// The bucket's parameters as they are stored: all of them, or this rank's shard.
TensorId param_bucket(BlockBuilder& builder, const ParallelPlan& plan, const Bucket& bucket, std::int32_t index);

}  // namespace trainyard
