#include "models/program/param_gather.h"

#include <fmt/format.h>

#include "models/program/parameters.h"
#include "models/program/step_blocks.h"

namespace trainyard {

ParamGather::ParamGather(BlockBuilder& builder, const ParallelPlan& plan, const Chunk& chunk)
    : builder_(builder), plan_(plan), chunk_(chunk), whole_(chunk.buckets.size(), -1), used_(chunk.buckets.size(), 0) {}

TensorId ParamGather::whole(std::int32_t bucket) {
  const auto at = static_cast<std::size_t>(bucket);
  if (used_[at] != 0) return whole_[at];
  used_[at] = 1;
  order_.push_back(bucket);
  const OpId before = builder_.last_compute_op();
  if (whole_[at] < 0) gather(bucket, before);
  const std::size_t next = order_.size();
  if (next < expected_.size()) gather(expected_[next], before);
  return whole_[at];
}

void ParamGather::gather(std::int32_t bucket, OpId after) {
  const Bucket& b = chunk_.buckets[static_cast<std::size_t>(bucket)];
  TensorId& whole = whole_[static_cast<std::size_t>(bucket)];
  whole = builder_.transient(fmt::format("bucket{}.whole", bucket), param_dtype(plan_), Shape(b.elements));
  Op op;
  op.kind = OpKind::AllGather;
  op.group = b.sharding.shards;
  op.stream = Stream::Dp;
  op.label = fmt::format("bucket{}.gather", bucket);
  op.attr.bucket = bucket;
  op.in = {param_bucket(builder_, plan_, b, bucket)};
  op.out = {whole};
  if (after >= 0) op.deps = {after};
  builder_.add(std::move(op));
}

}  // namespace trainyard
