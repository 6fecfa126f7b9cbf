// Where tokens lie: pure functions of coordinates that every interpreter shares.
#pragma once

#include <cstdint>

#include "models/base/context_position.h"
#include "models/plan/parallel_plan.h"

namespace trainyard {

/// Index, within the step's global batch, of sequence `i` of a micro-batch on a dp rank.
inline std::int64_t sample_index(const ParallelPlan& plan, std::int64_t dp_index, std::int64_t micro_batch,
                                 std::int64_t i) {
  return (dp_index * plan.micro_batches() + micro_batch) * plan.micro_batch + i;
}

}  // namespace trainyard
