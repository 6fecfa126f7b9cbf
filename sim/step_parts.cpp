#include "sim/step_parts.h"

#include <algorithm>
#include <tuple>

#include "models/base/check.h"
#include "models/base/index.h"

namespace trainyard {

StepPart exposed_part_of(Group group) {
  switch (group) {
    case Group::Tp: return StepPart::ExposedTp;
    case Group::Cp: return StepPart::ExposedCp;
    case Group::Ep: return StepPart::ExposedEp;
    case Group::Pp: return StepPart::ExposedPp;
    case Group::DpCp:
    case Group::Edp:
    case Group::DpCpShard:
    case Group::DpCpCopy:
    case Group::EdpShard:
    case Group::EdpCopy:
    case Group::Embedding:
    case Group::World: return StepPart::ExposedDp;
  }
  TY_CHECK(false, "unknown group");
}

namespace {

/// Ends this close, as a share of the step, count as one: rounding differs between folded and unfolded runs.
constexpr double kTogether = 1e-9;

StepPart part_of(const FlatOp& flat) {
  if (flat.op == nullptr) return StepPart::ExposedPp;
  if (is_communication(flat.op->kind)) return exposed_part_of(flat.op->group);
  if (flat.kind != BlockKind::Forward && flat.kind != BlockKind::Backward) return StepPart::Optimizer;
  if (flat.op->recomputed && flat.op->kind != OpKind::HostSync) return StepPart::Recompute;
  switch (flat.op->kind) {
    case OpKind::Matmul:
    case OpKind::GroupedMatmul:
    case OpKind::GroupedMatmulWgrad: return StepPart::Gemm;
    case OpKind::Attention:
    case OpKind::AttentionMerge:
    case OpKind::AttentionGrad: return StepPart::Attention;
    case OpKind::HostSync: return StepPart::Host;
    default: return StepPart::MemoryBound;
  }
}

class StepParts {
 public:
  StepParts(const FlatStage& stage, const OpTimes& times, double time_s, double kernel_gap_s)
      : stage_(stage),
        times_(times),
        time_s_(time_s),
        kernel_gap_s_(kernel_gap_s),
        together_s_(kTogether * time_s),
        last_of_item_(stage.first.size() - 1, kUnknown),
        before_(stage.ops.size(), -1) {
    for (const auto& queue : stage.queue) {
      for (std::size_t i = 1; i < queue.size(); ++i) before_[index(queue[i])] = queue[i - 1];
    }
  }

  std::array<double, kStepPartCount> run() {
    double free_s = 0;
    for (const std::int32_t id : stage_.queue[static_cast<std::size_t>(Stream::Compute)]) {
      const auto [start, end] = times_.ops[index(id)];
      if (end < 0) break;
      if (start > free_s) explain(id, free_s, start);
      const double gap_s = std::min(kernel_gap_s_, end - start);
      add(StepPart::Host, gap_s);
      add(part_of(stage_.ops[index(id)]), end - start - gap_s);
      free_s = end;
    }
    add(StepPart::Bubble, time_s_ - free_s);  // until the whole step ends, the rank stands idle
    return parts_;
  }

 private:
  static constexpr std::int32_t kUnknown = -2;

  void add(StepPart part, double seconds) { parts_[static_cast<std::size_t>(part)] += seconds; }

  // The compute stream was idle from `from` to `until`, when op `id` could start.
  void explain(std::int32_t id, double from, double until) {
    while (until > from) {
      const std::int32_t last = last_needed(id);
      if (last < 0 || stage_.ops[index(last)].stream == Stream::Compute) break;
      const double begin = std::max(from, std::min(until, times_.ops[index(last)].start_s));
      wait_for(last, until - begin);
      until = begin;
      id = last;
    }
    if (until > from) add(StepPart::Bubble, until - from);
  }

  void wait_for(std::int32_t id, double seconds) {
    const FlatOp& flat = stage_.ops[index(id)];
    if (flat.op != nullptr) return add(part_of(flat), seconds);
    const OpTimes::Span& move = times_.last_move[index(flat.item)];
    const double moving = std::min(seconds, move.end_s - move.start_s);
    add(StepPart::ExposedPp, moving);
    add(StepPart::Bubble, seconds - moving);
  }

  // Of what op `id` had to wait for, what ended last; -1 for nothing. What came before it on the compute stream does
  // not count: that ended where the idle time began.
  std::int32_t last_needed(std::int32_t id) {
    candidates_.clear();
    const FlatOp& flat = stage_.ops[index(id)];
    const std::int32_t first = stage_.first[index(flat.item)];
    if (flat.op != nullptr) {
      for (const OpId dep : flat.op->deps) candidates_.push_back(first + dep);
    }
    for (const Wait& wait : stage_.stage->items[index(flat.item)].waits) {
      candidates_.push_back(wait.op >= 0 ? stage_.first[index(wait.item)] + wait.op : last_of_item(wait.item));
    }
    if (flat.stream != Stream::Compute && before_[index(id)] >= 0) candidates_.push_back(before_[index(id)]);
    return last_of(candidates_);
  }

  std::int32_t last_of_item(std::int32_t item) {
    std::int32_t& last = last_of_item_[index(item)];
    if (last == kUnknown) {
      std::vector<std::int32_t> ops;
      for (std::int32_t id = stage_.first[index(item)]; id < stage_.first[index(item) + 1]; ++id) ops.push_back(id);
      last = last_of(ops);
    }
    return last;
  }

  std::int32_t last_of(const std::vector<std::int32_t>& ops) const {
    double latest = -1;
    for (const std::int32_t id : ops) latest = std::max(latest, times_.ops[index(id)].end_s);
    std::int32_t best = -1;
    const auto rank = [&](std::int32_t id) {
      const FlatOp& flat = stage_.ops[index(id)];
      return std::tuple(flat.stream == Stream::Compute, part_of(flat), id);
    };
    for (const std::int32_t id : ops) {
      if (times_.ops[index(id)].end_s < latest - together_s_) continue;
      if (best < 0 || rank(id) < rank(best)) best = id;
    }
    return best;
  }

  const FlatStage& stage_;
  const OpTimes& times_;
  double time_s_, kernel_gap_s_, together_s_;
  std::vector<std::int32_t> last_of_item_;  // by item
  std::vector<std::int32_t> before_;        // by flat op: what precedes it on its stream
  std::vector<std::int32_t> candidates_;
  std::array<double, kStepPartCount> parts_{};
};

}  // namespace

void OpTimes::moved(std::int32_t item, double begin_s, double finish_s) {
  Span& last = last_move[index(item)];
  const bool together = finish_s - last.end_s <= kTogether * finish_s;
  last = {together ? std::min(last.start_s, begin_s) : begin_s, finish_s};
}

std::array<double, kStepPartCount> step_parts(const FlatStage& stage, const OpTimes& times, double time_s,
                                              double kernel_gap_s) {
  return StepParts(stage, times, time_s, kernel_gap_s).run();
}

}  // namespace trainyard
