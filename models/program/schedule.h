// Pipeline schedules: in which order a stage runs its forward and backward passes.
#pragma once

#include <cstdint>
#include <vector>

#include "models/plan/parallel_plan.h"

namespace trainyard {

struct Slot {
  bool forward = true;
  std::int32_t chunk = 0;  // on this stage
  std::int32_t micro_batch = 0;
  bool operator==(const Slot&) const = default;
};

/// The slots of a stage in launch order. 1F1B as in PipeDream-Flush (Narayanan et al. 2021),
/// interleaved as in Megatron-LM (arXiv 2104.04473, section 2.2).
std::vector<Slot> pipeline_schedule(const ParallelPlan& plan, std::int64_t stage);

/// Forward slots before a stage alternates between one forward and one backward pass.
std::int64_t warmup_slots(const ParallelPlan& plan, std::int64_t stage);

}  // namespace trainyard
