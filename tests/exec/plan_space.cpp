#include "tests/exec/plan_space.h"

#include <algorithm>
#include <functional>
#include <optional>

namespace trainyard::test {

namespace {

// An axis: what each of its choices does to a plan.
using Axis = std::vector<std::function<void(ParallelPlan&)>>;

template <class Value>
Axis axis(Value ParallelPlan::*field, std::initializer_list<Value> values) {
  Axis out;
  for (const Value value : values) out.push_back([=](ParallelPlan& plan) { plan.*field = value; });
  return out;
}

std::function<void(ParallelPlan&)> context(std::int64_t cp, CpCommType type) {
  return [=](ParallelPlan& plan) {
    plan.cp = cp;
    plan.cp_comm_type = type;
  };
}

Axis pipelines() {
  const auto make = [](std::int64_t pp, std::int64_t virtual_stages) {
    return [=](ParallelPlan& plan) {
      plan.pp = pp;
      plan.virtual_stages = virtual_stages;
      plan.schedule = virtual_stages > 1 ? PipelineSchedule::Interleaved : PipelineSchedule::OneFOneB;
    };
  };
  return {make(1, 1), make(2, 1), make(4, 1), make(2, 2)};
}

Axis flags(bool OverlapSwitches::*field) {
  Axis out;
  for (const bool value : {true, false}) out.push_back([=](ParallelPlan& plan) { plan.overlap.*field = value; });
  return out;
}

// Of the axes the last, whatever the others say: a plan is valid with each of their choices or with none.
constexpr std::size_t kFreeAxes = 3;

std::vector<Axis> axes(bool with_switches) {
  std::vector<Axis> out{
      axis(&ParallelPlan::tp, {1L, 2L}),
      axis(&ParallelPlan::sequence_parallel, {false, true}),
      {context(1, CpCommType::AllGather), context(2, CpCommType::AllGather), context(2, CpCommType::P2p)},
      axis(&ParallelPlan::ep, {1L, 2L, 4L}),
      pipelines(),
      axis(&ParallelPlan::dp, {1L, 2L, 4L}),
      axis(&ParallelPlan::zero_stage, {0L, 1L, 2L, 3L}),
      axis(&ParallelPlan::zero_shard_size, {0L, 2L}),
      axis(&ParallelPlan::recompute, {RecomputeMode::None, RecomputeMode::Selective, RecomputeMode::Full}),
      axis(&ParallelPlan::recompute_layers, {std::int64_t{0}, std::int64_t{1}}),
      axis(&ParallelPlan::micro_batch, {1L, 2L})};
  if (!with_switches) return out;
  out.push_back({[](ParallelPlan&) {},
                 [](ParallelPlan& plan) { plan.overlap.p2p = plan.overlap.tensor_parallel = false; },
                 [](ParallelPlan& plan) { plan.pipeline_scatter_gather = true; }});
  out.push_back(axis(&ParallelPlan::grad_sync, {std::optional<GradSync>(), std::optional(GradSync::EveryMicroBatch),
                                                std::optional(GradSync::LastMicroBatch)}));
  // kFreeAxes, which no rule speaks of.
  out.push_back(flags(&OverlapSwitches::grad_reduce));
  out.push_back(flags(&OverlapSwitches::param_gather));
  out.push_back(axis(&ParallelPlan::bucket_bytes, {std::int64_t{1}, std::int64_t{1} << 20}));
  return out;
}

// A number for each pair of choices of two axes.
constexpr std::size_t kMaxAxes = 32, kMaxChoices = 8, kOnes = kMaxAxes * kMaxChoices;

template <class Visit>
void for_each_pair(const Choices& point, Visit visit) {
  for (std::size_t a = 0; a < point.size(); ++a) {
    for (std::size_t b = a + 1; b < point.size(); ++b)
      visit((a * kMaxChoices + point[a]) * kOnes + b * kMaxChoices + point[b]);
  }
}

}  // namespace

PlanSpace::PlanSpace(std::vector<ModelSpec> models, ParallelPlan base, std::int64_t max_ranks, bool with_switches)
    : base_(std::move(base)), with_switches_(with_switches) {
  const std::vector<Axis> all_axes = axes(with_switches);
  const std::size_t bound_axes = all_axes.size() - (with_switches ? kFreeAxes : 0);
  Choices point(all_axes.size() + 1, 0);
  // Axis by axis. A plan that is too large, or says one thing twice, has no valid ones behind it: axes that come later
  // add no ranks that would take them away again.
  const std::function<void(std::size_t, const ParallelPlan&)> choose = [&](std::size_t a, const ParallelPlan& so_far) {
    if (so_far.ranks() > max_ranks || (so_far.sequence_parallel && so_far.tp == 1)) return;
    if (a == bound_axes) {
      const bool idle = so_far.zero_shard_size > 0 && so_far.dp * so_far.cp <= so_far.zero_shard_size;
      if (idle || !validate(so_far, models[point[0]], nullptr).empty()) return;
    }
    if (a == all_axes.size()) {
      points_.push_back(point);
      return;
    }
    for (std::size_t c = 0; c < all_axes[a].size(); ++c) {
      ParallelPlan plan = so_far;
      all_axes[a][c](plan);
      point[a + 1] = static_cast<std::uint8_t>(c);
      choose(a + 1, plan);
    }
  };
  for (std::size_t m = 0; m < models.size(); ++m) {
    point[0] = static_cast<std::uint8_t>(m);
    choose(0, base_);
  }
}

ParallelPlan PlanSpace::plan_of(const Choices& point) const {
  static const std::vector<Axis> kWith = axes(true), kWithout = axes(false);
  const std::vector<Axis>& all_axes = with_switches_ ? kWith : kWithout;
  ParallelPlan plan = base_;
  for (std::size_t a = 0; a < all_axes.size(); ++a) all_axes[a][point[a + 1]](plan);
  return plan;
}

std::vector<Choices> PlanSpace::pairwise() const {
  std::vector<char> open(kOnes * kOnes, 0);
  std::size_t left = 0;
  for (const Choices& point : points_) {
    for_each_pair(point, [&](std::size_t pair) {
      left += open[pair] == 0 ? 1 : 0;
      open[pair] = 1;
    });
  }
  const auto gain = [&](const Choices& point) {
    std::size_t covers = 0;
    for_each_pair(point, [&](std::size_t pair) { covers += open[pair] != 0 ? 1 : 0; });
    return covers;
  };
  std::vector<Choices> chosen;
  while (left > 0) {
    // Any point that covers nearly as much as the best will do: a sample of the space is enough to find one.
    const std::size_t stride = std::max<std::size_t>(1, points_.size() / 4999);
    const Choices* best = nullptr;
    std::size_t most = 0;
    for (std::size_t i = chosen.size() % stride; i < points_.size(); i += stride) {
      if (const std::size_t covers = gain(points_[i]); covers > most) most = covers, best = &points_[i];
    }
    for (std::size_t i = 0; best == nullptr; ++i) {
      if (gain(points_[i]) > 0) best = &points_[i];
    }
    chosen.push_back(*best);
    for_each_pair(*best, [&](std::size_t pair) {
      left -= open[pair] != 0 ? 1 : 0;
      open[pair] = 0;
    });
  }
  return chosen;
}

}  // namespace trainyard::test
