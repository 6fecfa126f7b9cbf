#include "models/plan/parallel_plan.h"

namespace trainyard {

GradSync ParallelPlan::effective_grad_sync() const {
  if (grad_sync) return *grad_sync;
  return zero_stage >= 2 && pp == 1 ? GradSync::EveryMicroBatch : GradSync::LastMicroBatch;
}

std::vector<std::int64_t> layers_per_chunk(const ModelSpec& model, const ParallelPlan& plan) {
  if (!plan.layers_per_chunk.empty()) return plan.layers_per_chunk;
  const std::int64_t chunks = plan.chunks(), even = model.num_hidden_layers / chunks, left = model.num_hidden_layers % chunks;
  std::vector<std::int64_t> layers(static_cast<std::size_t>(chunks), even);
  // The first and last chunks carry the embedding and the head, so what is left over goes in the middle.
  for (std::int64_t i = 0; i < left; ++i) ++layers[static_cast<std::size_t>((chunks - left) / 2 + i)];
  return layers;
}

}  // namespace trainyard
