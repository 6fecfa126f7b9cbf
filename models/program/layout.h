// Where tokens lie: pure functions of coordinates that every interpreter shares.
#pragma once

#include <cstdint>

#include "models/plan/parallel_plan.h"

namespace trainyard {

/// Global position of local position `t` on context rank `cp_index`. The sequence is cut in 2*cp
/// slices and rank r holds slices r and 2*cp-1-r, so that causal work is even.
inline std::int64_t context_position(std::int64_t cp, std::int64_t cp_index, std::int64_t sequence_length,
                                     std::int64_t t) {
  if (cp == 1) return t;
  const std::int64_t slice = sequence_length / (2 * cp);
  return t < slice ? cp_index * slice + t : (2 * cp - 1 - cp_index) * slice + (t - slice);
}

/// Index, within the step's global batch, of sequence `i` of a micro-batch on a dp rank.
inline std::int64_t sample_index(const ParallelPlan& plan, std::int64_t dp_index, std::int64_t micro_batch,
                                 std::int64_t i) {
  return (dp_index * plan.micro_batches() + micro_batch) * plan.micro_batch + i;
}

}  // namespace trainyard
