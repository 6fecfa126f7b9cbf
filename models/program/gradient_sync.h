// How the gradients of a chunk's buckets are stored, and summed over ranks.
#pragma once

#include <vector>

#include "models/program/block_builder.h"
#include "models/program/program.h"

namespace trainyard {

/// The bucket's gradient buffer in the Grads frame: all of it, or this rank's shard.
TensorId grad_buffer(BlockBuilder& builder, const ParallelPlan& plan, const Chunk& chunk, std::int32_t bucket);

/// Emits the reductions of one bucket that is complete: parameters with partial gradients over
/// tp, then the bucket over its data-parallel group. Where it is sharded that is a reduce-scatter to shards, and under
/// hybrid sharding an all-reduce of each shard over its copies after it.
void emit_bucket_sync(BlockBuilder& builder, const ParallelPlan& plan, const Chunk& chunk, std::int32_t bucket);

/// Follows a backward pass: hands out gradient tensors, and reduces each bucket as soon as its
/// last gradient is written, where the plan wants that.
class GradientSync {
 public:
  GradientSync(BlockBuilder& builder, const ParallelPlan& plan, const Chunk& chunk, bool last_micro_batch);

  /// How many gradients each bucket will get.
  void expect(std::vector<int> per_bucket) { outstanding_ = std::move(per_bucket); }
  /// Where the gradient of a parameter is accumulated.
  TensorId grad_of(std::int32_t bucket, std::int32_t param);
  /// One gradient of the bucket has been written.
  void done(std::int32_t bucket);
  void finish();

 private:
  const Bucket& bucket_at(std::int32_t bucket) const { return chunk_.buckets[static_cast<std::size_t>(bucket)]; }
  TensorId staging(std::int32_t bucket);
  void reduce_staged(std::int32_t bucket);
  void accumulate_pending();

  BlockBuilder& builder_;
  const ParallelPlan& plan_;
  const Chunk& chunk_;
  bool last_micro_batch_;
  std::vector<int> outstanding_;
  std::vector<TensorId> staging_;     // by bucket: whole gradients of this micro-batch, or -1
  std::int32_t pending_bucket_ = -1;  // reduced, not yet added to its shard
  TensorId pending_shard_ = -1;
};

}  // namespace trainyard
