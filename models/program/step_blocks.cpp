#include "models/program/step_blocks.h"

#include <algorithm>

#include <fmt/format.h>

#include "models/program/block_builder.h"
#include "models/program/gradient_sync.h"
#include "models/program/parameters.h"

namespace trainyard {

namespace {

Dtype scalar_dtype(const ParallelPlan& plan) { return plan.precision == Precision::F64 ? Dtype::F64 : Dtype::F32; }

TensorId loss(BlockBuilder& builder, const ParallelPlan& plan) {
  return builder.placed("loss", scalar_dtype(plan), Shape(1), Role::Step, kLossOffset);
}
TensorId grad_norm(BlockBuilder& builder, const ParallelPlan& plan) {
  return builder.placed("grad_norm_squared", scalar_dtype(plan), Shape(1), Role::Step, kGradNormOffset);
}

Op op_on_bucket(OpKind kind, std::int32_t bucket, const char* what) {
  Op op;
  op.kind = kind;
  op.label = fmt::format("bucket{}.{}", bucket, what);
  op.attr.bucket = bucket;
  return op;
}

void zero(BlockBuilder& builder, TensorId tensor, std::string label) {
  Op op;
  op.kind = OpKind::Zero;
  op.label = std::move(label);
  op.out = {tensor};
  builder.add(std::move(op));
}

void sum_over(BlockBuilder& builder, Group group, TensorId scalar, const char* label) {
  Op op;
  op.kind = OpKind::AllReduce;
  op.group = group;
  op.stream = Stream::Dp;
  op.label = label;
  op.in = {scalar};
  op.out = {scalar};
  builder.add(std::move(op));
}

// The optimizer writes a shard of a bucket that is stored whole: the step gathers it.
bool gathered_by_step(const ParallelPlan& plan, const Bucket& bucket) {
  return plan.zero_stage >= 1 && group_size(plan, bucket.sharding.shards) > 1 && !params_sharded(bucket, plan);
}

void gather_params(BlockBuilder& builder, const ParallelPlan& plan, const Chunk& chunk) {
  // Forward order: the last bucket holds the first layers.
  for (std::size_t i = chunk.buckets.size(); i-- > 0;) {
    const Bucket& bucket = chunk.buckets[i];
    if (!gathered_by_step(plan, bucket)) continue;
    const auto index = static_cast<std::int32_t>(i);
    Op op = op_on_bucket(OpKind::AllGather, index, "gather");
    op.group = bucket.sharding.shards;
    op.stream = Stream::Dp;
    op.attr.in_place = true;
    op.in = {param_bucket(builder, plan, bucket, index)};
    op.out = op.in;
    builder.add(std::move(op));
  }
}

}  // namespace

TensorId param_bucket(BlockBuilder& builder, const ParallelPlan& plan, const Bucket& bucket, std::int32_t index) {
  return builder.placed(fmt::format("bucket{}.params", index), param_dtype(plan), Shape(param_elements(bucket, plan)),
                        Role::Params, bucket.param_offset_bytes);
}

bool gathers_params(const ParallelPlan& plan, const Chunk& chunk) {
  return std::any_of(chunk.buckets.begin(), chunk.buckets.end(),
                     [&](const Bucket& bucket) { return gathered_by_step(plan, bucket); });
}

Block step_begin_block(const ParallelPlan& plan, const Chunk& chunk, bool zero_scalars, const std::string& name) {
  BlockBuilder builder(BlockKind::StepBegin, name);
  if (zero_scalars) {
    zero(builder, loss(builder, plan), "loss.zero");
    zero(builder, grad_norm(builder, plan), "grad_norm.zero");
  }
  for (std::size_t i = 0; i < chunk.buckets.size(); ++i) {
    const auto index = static_cast<std::int32_t>(i);
    zero(builder, grad_buffer(builder, plan, chunk, index), fmt::format("bucket{}.grads.zero", i));
  }
  return builder.finish();
}

Block param_gather_block(const ParallelPlan& plan, const Chunk& chunk, const std::string& name) {
  BlockBuilder builder(BlockKind::ParamGather, name);
  gather_params(builder, plan, chunk);
  return builder.finish();
}

Block boundary_gather_block(const ModelSpec& model, const ParallelPlan& plan, bool gradient) {
  const char* name = gradient ? "boundary_gather.gradient" : "boundary_gather.activation";
  BlockBuilder builder(BlockKind::BoundaryGather, name);
  const Shape whole(plan.micro_batch * plan.sequence_length / plan.cp * model.hidden_size);
  Op op;
  op.kind = OpKind::AllGather;
  op.group = Group::Tp;
  op.stream = Stream::Tp;
  op.label = name;
  op.attr.in_place = true;
  op.in = {builder.placed(gradient ? "gradient" : "activation", param_dtype(plan), whole,
                          gradient ? Role::OutputGrad : Role::Input, 0)};
  op.out = op.in;
  builder.add(std::move(op));
  return builder.finish();
}

Block gradient_sync_block(const ParallelPlan& plan, const Chunk& chunk, const std::string& name) {
  BlockBuilder builder(BlockKind::GradientSync, name);
  for (std::size_t i = 0; i < chunk.buckets.size(); ++i) {
    const Bucket& bucket = chunk.buckets[i];
    const auto index = static_cast<std::int32_t>(i);
    if (bucket.tied_across_stages) {
      Op op = op_on_bucket(OpKind::AllReduce, index, "embedding_sync");
      op.group = Group::Embedding;
      op.stream = Stream::Dp;
      op.label = "embedding_sync";  // one name on both stages: it is one collective
      const Param& table = *std::find_if(bucket.params.begin(), bucket.params.end(), [](const Param& param) {
        return param.tied_copy || param.name == "embedding";
      });
      const bool in_shards = reduces_every_micro_batch(bucket, plan);
      op.in = {in_shards
                   ? grad_buffer(builder, plan, chunk, index)
                   : builder.placed("embedding.grad", grad_dtype(plan), table.local_shape, Role::Grads,
                                    bucket.grad_offset_bytes + table.offset_elements * size_of(grad_dtype(plan)))};
      op.out = op.in;
      builder.add(std::move(op));
    }
    const bool left_over =
        (bucket.tied_across_stages || !plan.overlap.grad_reduce) && !reduces_every_micro_batch(bucket, plan);
    if (left_over) emit_bucket_sync(builder, plan, chunk, index);
  }
  return builder.finish();
}

Block grad_norm_block(const ParallelPlan& plan, const Chunk& chunk, const std::string& name) {
  BlockBuilder builder(BlockKind::GradNorm, name);
  for (std::size_t i = 0; i < chunk.buckets.size(); ++i) {
    const auto index = static_cast<std::int32_t>(i);
    Op op = op_on_bucket(OpKind::SquaredNorm, index, "squared_norm");
    op.attr.m = chunk.buckets[i].shard_elements;
    op.in = {grad_buffer(builder, plan, chunk, index)};
    op.out = {grad_norm(builder, plan)};
    builder.add(std::move(op));
  }
  return builder.finish();
}

Block scalar_reduce_block(const ParallelPlan& plan, bool last_stage, const std::string& name) {
  BlockBuilder builder(BlockKind::GradNorm, name);
  if (plan.ranks() > 1) sum_over(builder, Group::World, grad_norm(builder, plan), "grad_norm.reduce");
  if (last_stage && group_size(plan, Group::DpCp) > 1)
    sum_over(builder, Group::DpCp, loss(builder, plan), "loss.reduce");
  return builder.finish();
}

Block optimizer_block(const ParallelPlan& plan, const Chunk& chunk, const std::string& name) {
  BlockBuilder builder(BlockKind::Optimizer, name);
  for (std::size_t i = 0; i < chunk.buckets.size(); ++i) {
    const Bucket& bucket = chunk.buckets[i];
    const auto index = static_cast<std::int32_t>(i);
    const std::int64_t stride = optimizer_stride_bytes(bucket, plan);
    const auto state = [&](const char* what, std::int64_t slot) {
      return builder.placed(fmt::format("bucket{}.{}", i, what), state_dtype(plan), Shape(bucket.shard_elements),
                            Role::Optimizer, bucket.optimizer_offset_bytes + slot * stride);
    };
    Op op = op_on_bucket(OpKind::AdamW, index, "adamw");
    op.in = {grad_buffer(builder, plan, chunk, index), grad_norm(builder, plan)};
    op.out = {param_bucket(builder, plan, bucket, index), state("master", 0), state("m", 1), state("v", 2)};
    builder.add(std::move(op));
  }
  if (!plan.overlap.param_gather) gather_params(builder, plan, chunk);
  return builder.finish();
}

}  // namespace trainyard
