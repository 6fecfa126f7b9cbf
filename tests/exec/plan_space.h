// All plans of a small job up to so many ranks, and few of them that together hold every pair of choices.
#pragma once

#include <cstdint>
#include <vector>

#include "models/plan/parallel_plan.h"

namespace trainyard::test {

/// A point of the space: an index for each axis. The first axis is the model.
using Choices = std::vector<std::uint8_t>;

class PlanSpace {
 public:
  /// The product of models, tp, sequence parallelism, cp, ep, pipelines of each schedule, dp, ZeRO stage, shard size,
  /// recompute and micro-batch size, of at most `max_ranks` ranks, as far as it is valid. `with_switches`: also of
  /// overlap, gradient synchronisation and bucket size.
  PlanSpace(std::vector<ModelSpec> models, ParallelPlan base, std::int64_t max_ranks, bool with_switches);

  [[nodiscard]] const std::vector<Choices>& points() const { return points_; }
  [[nodiscard]] std::size_t model_of(const Choices& point) const { return point[0]; }
  [[nodiscard]] ParallelPlan plan_of(const Choices& point) const;

  /// A subset in which every two choices of different axes that occur together in the space do so at least once.
  /// Greedy, so not the smallest; the same each time.
  [[nodiscard]] std::vector<Choices> pairwise() const;

 private:
  ParallelPlan base_;
  bool with_switches_;
  std::vector<Choices> points_;
};

}  // namespace trainyard::test
