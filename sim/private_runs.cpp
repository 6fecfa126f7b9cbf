#include "sim/private_runs.h"
#include "models/base/index.h"

#include <algorithm>

namespace trainyard {

namespace {

class RunFinder {
 public:
  RunFinder(const Block& block, const std::array<bool, kGroupCount>& alone,
            const std::function<double(const Op&)>& seconds)
      : block_(block), alone_(alone), seconds_(seconds), count_(static_cast<OpId>(block.ops.size())) {}

  std::vector<PrivateRun> find() {
    mark_cuts();
    std::vector<PrivateRun> runs;
    for (OpId first = 0; first < count_;) {
      if (!is_private(first)) {
        ++first;
        continue;
      }
      OpId end = first;
      while (end < count_ && is_private(end)) {
        if (cut_after_[index(end++)]) break;
      }
      if (end - first > 1) {
        PrivateRun run = timed(first, end);
        if (nobody_can_tell(run, first, end)) runs.push_back(std::move(run));
      }
      first = end;
    }
    return runs;
  }

 private:
  const Op& op(OpId id) const { return block_.ops[index(id)]; }
  bool is_private(OpId id) const {
    return !is_communication(op(id).kind) || alone_[static_cast<std::size_t>(op(id).group)];
  }

  // After ops that others may watch: what a shared op depends on, and the last compute op, for which later items wait.
  void mark_cuts() {
    cut_after_.assign(index(count_), false);
    for (OpId id = 0; id < count_; ++id) {
      if (op(id).stream == Stream::Compute) last_compute_ = id;
      if (is_private(id)) continue;
      for (const OpId dep : op(id).deps) cut_after_[index(dep)] = true;
      // Stream order: what is launched before it on its stream is watched too.
      for (OpId before = id - 1; before >= 0; --before) {
        if (op(before).stream != op(id).stream) continue;
        cut_after_[index(before)] = true;
        break;
      }
    }
    if (last_compute_ >= 0) cut_after_[index(last_compute_)] = true;
  }

  PrivateRun timed(OpId first, OpId end) const {
    PrivateRun run;
    std::array<double, kStreamCount> free{};
    std::array<OpId, kStreamCount> last_on{};
    last_on.fill(-1);
    for (OpId id = first; id < end; ++id) {
      const std::size_t stream = static_cast<std::size_t>(op(id).stream);
      PrivateRun::Member member;
      member.op = id;
      member.start_s = free[stream];
      for (const OpId dep : op(id).deps) {
        if (dep < first) {
          run.outside_deps.push_back(dep);
          continue;
        }
        member.start_s = std::max(member.start_s, run.members[index(dep - first)].end_s);
      }
      member.end_s = member.start_s + seconds_(op(id));
      free[stream] = member.end_s;
      if (last_on[stream] < 0) {
        run.streams.push_back(stream);
        run.first_on_stream[stream] = id;
      }
      last_on[stream] = id;
      ++run.count_on_stream[stream];
      run.seconds = std::max(run.seconds, member.end_s);
      run.members.push_back(member);
    }
    return run;
  }

  bool nobody_can_tell(const PrivateRun& run, OpId first, OpId end) const {
    const OpId last = end - 1;
    if (run.members.back().end_s < run.seconds) return false;  // something else ends later
    // Watched from outside: only the last op may be.
    for (OpId id = first; id < last; ++id) {
      if (cut_after_[index(id)]) return false;
    }
    // Whatever comes next on a stream must come after the last op in any case.
    std::vector<bool> after(index(count_), false);
    std::array<bool, kStreamCount> seen{};
    std::array<OpId, kStreamCount> previous{};
    previous.fill(-1);
    after[index(last)] = true;
    previous[static_cast<std::size_t>(op(last).stream)] = last;
    for (OpId id = end; id < count_; ++id) {
      const std::size_t stream = static_cast<std::size_t>(op(id).stream);
      bool follows = previous[stream] >= 0 && after[index(previous[stream])];
      for (const OpId dep : op(id).deps) follows |= dep >= last && after[index(dep)];
      after[index(id)] = follows;
      previous[stream] = id;
      if (!seen[stream] && !follows) return false;
      seen[stream] = true;
    }
    // Beyond the block: later items wait for the last compute op, so it must lie at this run's end or after it.
    return last_compute_ >= last;
  }

  const Block& block_;
  const std::array<bool, kGroupCount>& alone_;
  const std::function<double(const Op&)>& seconds_;
  OpId count_;
  OpId last_compute_ = -1;
  std::vector<bool> cut_after_;
};

}  // namespace

FlatStage flatten(const StepProgram& program, const StageProgram& stage) {
  FlatStage flat;
  flat.stage = &stage;
  for (std::size_t i = 0; i < stage.items.size(); ++i) {
    const Item& item = stage.items[i];
    flat.first.push_back(static_cast<std::int32_t>(flat.ops.size()));
    const auto add = [&](const Op* op, Stream stream, BlockKind kind) {
      flat.queue[static_cast<std::size_t>(stream)].push_back(static_cast<std::int32_t>(flat.ops.size()));
      flat.ops.push_back({static_cast<std::int32_t>(i), op, stream, kind});
    };
    if (item.block < 0) {
      add(nullptr, item.stream, BlockKind::Forward);
    } else {
      const Block& block = program.block(item);
      for (const Op& op : block.ops) add(&op, op.stream, block.kind);
    }
  }
  flat.first.push_back(static_cast<std::int32_t>(flat.ops.size()));
  return flat;
}

PrivateRuns::PrivateRuns(const Block& block, const std::array<bool, kGroupCount>& alone,
                         const std::function<double(const Op&)>& seconds)
    : runs_(RunFinder(block, alone, seconds).find()), run_at_(block.ops.size(), -1) {
  for (std::size_t r = 0; r < runs_.size(); ++r)
    run_at_[index(runs_[r].members.front().op)] = static_cast<std::int32_t>(r);
}

}  // namespace trainyard
