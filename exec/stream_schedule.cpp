#include "exec/stream_schedule.h"

#include <algorithm>
#include <array>

#include "models/base/check.h"
#include "models/base/index.h"
#include "models/program/launch_order.h"

namespace trainyard::exec {

namespace {

// By stream, the last launch of it that is known to be over; -1: none.
using Clock = std::array<std::int32_t, kStreamCount>;

class Scheduler {
 public:
  Scheduler(const StepProgram& program, const StageProgram& stage)
      : program_(program), stage_(stage), order_(launch_order(program, stage)) {
    position_.assign(index(order_.ops()), -1);
    for (Clock& clock : stream_clock_) clock.fill(-1);
  }

  std::vector<ScheduledLaunch> run() {
    while (launches_.size() < index(order_.ops())) {
      bool moved = false;
      // Communication first, then one kernel, and again: as on the processor.
      for (std::size_t s = kStreamCount; s-- > 0;) moved |= advance(s);
      TY_CHECK(moved, "a checked program can be put in an order");
    }
    return std::move(launches_);
  }

 private:
  static std::size_t index_of(Stream stream) { return static_cast<std::size_t>(stream); }

  // Counted through the items.
  std::int32_t number_of(const Launch& launch) const {
    return static_cast<std::int32_t>(order_.first[index(launch.item)]) + launch.op;
  }

  bool advance(std::size_t stream) {
    bool moved = false;
    while (head_[stream] < order_.queue[stream].size()) {
      const Launch place = order_.queue[stream][head_[stream]];
      const std::vector<std::int32_t> needed = dependencies(place);
      if (std::any_of(needed.begin(), needed.end(), [&](std::int32_t op) { return position_[index(op)] < 0; })) break;
      launch(stream, place, needed);
      ++head_[stream];
      moved = true;
      if (stream == index_of(Stream::Compute)) break;
    }
    return moved;
  }

  // Ops, counted through the items.
  std::vector<std::int32_t> dependencies(const Launch& place) const {
    std::vector<std::int32_t> ops;
    const Item& item = stage_.items[index(place.item)];
    for (const Wait& wait : item.waits) {
      const auto first = static_cast<std::int32_t>(order_.first[index(wait.item)]);
      if (wait.op >= 0) {
        ops.push_back(first + wait.op);
      } else {
        for (std::int32_t op = first; op < order_.first[index(wait.item) + 1]; ++op) ops.push_back(op);
      }
    }
    if (item.block < 0) return ops;
    for (const OpId dep : program_.block(item).ops[index(place.op)].deps) ops.push_back(number_of({place.item, dep}));
    return ops;
  }

  void launch(std::size_t stream, const Launch& place, const std::vector<std::int32_t>& needed) {
    Clock last;
    last.fill(-1);
    for (const std::int32_t op : needed) {
      const std::int32_t at = position_[index(op)];
      std::int32_t& its = last[index_of(launches_[index(at)].stream)];
      its = std::max(its, at);
    }
    ScheduledLaunch next{static_cast<Stream>(stream), place.item, place.op, {}, false};
    Clock& known = stream_clock_[stream];
    // The latest first: what it has waited for need not be waited for again.
    std::vector<std::int32_t> candidates;
    for (std::size_t s = 0; s < kStreamCount; ++s) {
      if (s != stream && last[s] >= 0) candidates.push_back(last[s]);
    }
    std::sort(candidates.rbegin(), candidates.rend());
    for (const std::int32_t at : candidates) {
      ScheduledLaunch& awaited = launches_[index(at)];
      if (known[index_of(awaited.stream)] >= at) continue;
      next.waits.push_back(at);
      awaited.awaited = true;
      for (std::size_t s = 0; s < kStreamCount; ++s) known[s] = std::max(known[s], clocks_[index(at)][s]);
    }
    const auto position = static_cast<std::int32_t>(launches_.size());
    known[stream] = position;
    clocks_.push_back(known);
    position_[index(number_of(place))] = position;
    launches_.push_back(std::move(next));
  }

  const StepProgram& program_;
  const StageProgram& stage_;
  LaunchOrder order_;
  std::array<std::size_t, kStreamCount> head_{};
  std::vector<std::int32_t> position_;  // by op: of its launch, or -1
  std::array<Clock, kStreamCount> stream_clock_{};
  std::vector<Clock> clocks_;  // by launch: what is over when it is
  std::vector<ScheduledLaunch> launches_;
};

}  // namespace

std::vector<ScheduledLaunch> schedule_streams(const StepProgram& program, const StageProgram& stage) {
  return Scheduler(program, stage).run();
}

}  // namespace trainyard::exec
