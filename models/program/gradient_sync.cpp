#include "models/program/gradient_sync.h"

#include <algorithm>

#include <fmt/format.h>

#include "models/base/check.h"
#include "models/program/parameters.h"

namespace trainyard {

namespace {

std::string bucket_name(std::int32_t bucket, const char* what) { return fmt::format("bucket{}.{}", bucket, what); }

// Parameters with partial gradients lie at the front of their bucket; this is where they end.
std::int64_t partial_elements(const Bucket& bucket) {
  std::int64_t end = 0;
  for (const Param& param : bucket.params) {
    if (param.tp_partial) end = std::max(end, param.offset_elements + param.elements());
  }
  return end;
}

Op collective(OpKind kind, Group group, Stream stream, std::string label, TensorId in, TensorId out,
              std::int32_t bucket) {
  Op op;
  op.kind = kind;
  op.group = group;
  op.stream = stream;
  op.label = std::move(label);
  op.attr.bucket = bucket;
  op.attr.in_place = in == out && kind != OpKind::AllReduce;
  op.in = {in};
  op.out = {out};
  return op;
}

bool spread_over(const ParallelPlan& plan, Group group) { return group_size(plan, group) > 1; }

// Sums shards over their copies. `grads` is the shard, or a bucket that holds it in its place.
void sum_copies(BlockBuilder& builder, const Bucket& b, std::int32_t bucket, TensorId grads) {
  Op sum = collective(OpKind::AllReduce, b.sharding.copies, Stream::DpCopies, bucket_name(bucket, "copies_sync"), grads,
                      grads, bucket);
  sum.attr.in_place = builder.tensor(grads).shape.elements() > b.shard_elements;
  if (sum.attr.in_place) sum.attr.m = b.shard_elements;
  builder.add(std::move(sum));
}

}  // namespace

TensorId grad_buffer(BlockBuilder& builder, const ParallelPlan& plan, const Chunk& chunk, std::int32_t bucket) {
  const Bucket& b = chunk.buckets[static_cast<std::size_t>(bucket)];
  return builder.placed(bucket_name(bucket, "grads"), grad_dtype(plan), Shape(grad_elements(b, plan)), Role::Grads,
                        b.grad_offset_bytes);
}

void emit_bucket_sync(BlockBuilder& builder, const ParallelPlan& plan, const Chunk& chunk, std::int32_t bucket) {
  const Bucket& b = chunk.buckets[static_cast<std::size_t>(bucket)];
  if (const std::int64_t partial = partial_elements(b); partial > 0) {
    const TensorId front = builder.placed(bucket_name(bucket, "grads.partial"), grad_dtype(plan), Shape(partial),
                                          Role::Grads, b.grad_offset_bytes);
    builder.add(
        collective(OpKind::AllReduce, Group::Tp, Stream::Tp, bucket_name(bucket, "tp_sync"), front, front, bucket));
  }
  if (!spread_over(plan, b.group)) return;
  const TensorId grads = grad_buffer(builder, plan, chunk, bucket);
  const bool sharded = spread_over(plan, b.sharding.shards);
  const OpKind kind = sharded ? OpKind::ReduceScatter : OpKind::AllReduce;
  const Group group = sharded ? b.sharding.shards : b.group;
  builder.add(collective(kind, group, Stream::Dp, bucket_name(bucket, "dp_sync"), grads, grads, bucket));
  if (sharded && spread_over(plan, b.sharding.copies)) sum_copies(builder, b, bucket, grads);
}

GradientSync::GradientSync(BlockBuilder& builder, const ParallelPlan& plan, const Chunk& chunk, bool last_micro_batch)
    : builder_(builder),
      plan_(plan),
      chunk_(chunk),
      last_micro_batch_(last_micro_batch),
      staging_(chunk.buckets.size(), -1) {}

TensorId GradientSync::staging(std::int32_t bucket) {
  TensorId& whole = staging_[static_cast<std::size_t>(bucket)];
  if (whole >= 0) return whole;
  whole = builder_.transient(bucket_name(bucket, "staging"), grad_dtype(plan_), Shape(bucket_at(bucket).elements));
  Op zero;
  zero.kind = OpKind::Zero;
  zero.label = bucket_name(bucket, "staging.zero");
  zero.out = {whole};
  builder_.add(std::move(zero));
  return whole;
}

TensorId GradientSync::grad_of(std::int32_t bucket, std::int32_t param) {
  const Bucket& b = bucket_at(bucket);
  const Param& p = b.params[static_cast<std::size_t>(param)];
  const std::int64_t offset = p.offset_elements * size_of(grad_dtype(plan_));
  if (reduces_every_micro_batch(b, plan_))
    return builder_.view(staging(bucket), p.name + ".grad", p.local_shape, offset);
  return builder_.placed(p.name + ".grad", grad_dtype(plan_), p.local_shape, Role::Grads, b.grad_offset_bytes + offset);
}

void GradientSync::done(std::int32_t bucket) {
  int& left = outstanding_[static_cast<std::size_t>(bucket)];
  TY_CHECK(left > 0, "a bucket gets only the gradients that were announced");
  if (--left > 0) return;
  if (reduces_every_micro_batch(bucket_at(bucket), plan_)) {
    reduce_staged(bucket);
  } else if (last_micro_batch_ && !bucket_at(bucket).tied_across_stages) {
    emit_bucket_sync(builder_, plan_, chunk_, bucket);
  }
}

// The previous bucket is added to its shard only now, so that its reduction overlapped with the
// computation of this one and at most two staging buffers are alive.
void GradientSync::reduce_staged(std::int32_t bucket) {
  const Bucket& b = bucket_at(bucket);
  const TensorId whole = staging(bucket);
  if (const std::int64_t partial = partial_elements(b); partial > 0) {
    const TensorId front = builder_.view(whole, bucket_name(bucket, "staging.partial"), Shape(partial), 0);
    builder_.add(
        collective(OpKind::AllReduce, Group::Tp, Stream::Tp, bucket_name(bucket, "tp_sync"), front, front, bucket));
  }
  const TensorId shard =
      builder_.transient(bucket_name(bucket, "staging.shard"), grad_dtype(plan_), Shape(b.shard_elements));
  builder_.add(collective(OpKind::ReduceScatter, b.sharding.shards, Stream::Dp, bucket_name(bucket, "dp_sync"), whole,
                          shard, bucket));
  if (spread_over(plan_, b.sharding.copies)) sum_copies(builder_, b, bucket, shard);
  accumulate_pending();
  pending_bucket_ = bucket;
  pending_shard_ = shard;
}

void GradientSync::accumulate_pending() {
  if (pending_bucket_ < 0) return;
  Op add;
  add.kind = OpKind::Accumulate;
  add.label = bucket_name(pending_bucket_, "accumulate");
  add.in = {pending_shard_};
  add.out = {grad_buffer(builder_, plan_, chunk_, pending_bucket_)};
  builder_.add(std::move(add));
  pending_bucket_ = -1;
}

void GradientSync::finish() {
  accumulate_pending();
  for (const int left : outstanding_) TY_CHECK(left == 0, "every parameter of the chunk gets its gradient");
}

}  // namespace trainyard
