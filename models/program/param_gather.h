// ZeRO 3: a pass gathers the parameters of a bucket when it comes to it, and forgets them after.
#pragma once

#include <cstdint>
#include <vector>

#include "models/program/block_builder.h"
#include "models/program/program.h"

namespace trainyard {

/// Follows a pass over the chunk. The gather of the next bucket runs beside the computation with the last one: it may
/// start once computation has come to the bucket before it, so that two whole buckets are held at most, and a third
/// where they are of both groups.
class ParamGather {
 public:
  ParamGather(BlockBuilder& builder, const ParallelPlan& plan, const Chunk& chunk);

  /// Buckets in the order of their first use; without it each is gathered only when it is needed.
  void expect(std::vector<std::int32_t> order) { expected_ = std::move(order); }
  /// The whole parameters of a bucket.
  TensorId whole(std::int32_t bucket);
  /// The order of first use so far.
  [[nodiscard]] const std::vector<std::int32_t>& order() const { return order_; }

 private:
  void gather(std::int32_t bucket, OpId after);

  BlockBuilder& builder_;
  const ParallelPlan& plan_;
  const Chunk& chunk_;
  std::vector<std::int32_t> expected_, order_;
  std::vector<TensorId> whole_;  // by bucket, or -1
  std::vector<char> used_;       // by bucket
};

}  // namespace trainyard
