#include "models/program/schedule.h"

#include <algorithm>

namespace trainyard {

std::int64_t warmup_slots(const ParallelPlan& plan, std::int64_t stage) {
  const std::int64_t pp = plan.pp, vp = plan.virtual_stages, total = plan.micro_batches() * vp;
  const std::int64_t ahead = vp == 1 ? pp - stage - 1 : 2 * (pp - stage - 1) + (vp - 1) * pp;
  // Stages that exchange in step alternate in as many slots more as they lie further on, or none of them does: with so
  // few micro-batches first stages would not get that far (Megatron's all_warmup_microbatches).
  const bool none = vp > 1 && !plan.overlap.p2p && plan.micro_batches() == pp;
  return none ? total : std::min(ahead, total);
}

std::vector<Slot> pipeline_schedule(const ParallelPlan& plan, std::int64_t stage) {
  const std::int64_t pp = plan.pp, vp = plan.virtual_stages, total = plan.micro_batches() * vp;
  // Micro-batches go through a chunk pp at a time, then through the next chunk.
  const auto slot = [&](bool forward, std::int64_t step) {
    const std::int64_t group = step / (pp * vp), within = step % (pp * vp);
    const std::int64_t chunk = vp == 1 ? 0 : within / pp;
    const std::int64_t micro_batch = vp == 1 ? step : group * pp + within % pp;
    return Slot{forward, static_cast<std::int32_t>(forward ? chunk : vp - 1 - chunk),
                static_cast<std::int32_t>(micro_batch)};
  };
  const std::int64_t warmup = warmup_slots(plan, stage);
  std::vector<Slot> slots;
  slots.reserve(static_cast<std::size_t>(2 * total));
  for (std::int64_t i = 0; i < warmup; ++i) slots.push_back(slot(true, i));
  for (std::int64_t i = warmup; i < total; ++i) {
    slots.push_back(slot(true, i));
    slots.push_back(slot(false, i - warmup));
  }
  for (std::int64_t i = total - warmup; i < total; ++i) slots.push_back(slot(false, i));
  return slots;
}

}  // namespace trainyard
