#include "exec/stream_schedule.h"

#include <algorithm>
#include <array>

#include "models/base/check.h"
#include "models/base/index.h"

namespace trainyard::exec {

namespace {

// By stream, the last launch of it that is known to be over; -1: none.
using Clock = std::array<std::int32_t, kStreamCount>;

class Scheduler {
 public:
  Scheduler(const StepProgram& program, const StageProgram& stage) : program_(program), stage_(stage) {
    for (std::size_t i = 0; i < stage.items.size(); ++i) {
      const Item& item = stage.items[i];
      first_.push_back(ops_);
      const std::size_t count = item.block < 0 ? 1 : program.block(item).ops.size();
      for (std::size_t o = 0; o < count; ++o)
        queues_[index_of(stream_of(item, static_cast<OpId>(o)))].push_back(
            {static_cast<std::int32_t>(i), static_cast<OpId>(o)});
      ops_ += static_cast<std::int32_t>(count);
    }
    first_.push_back(ops_);
    position_.assign(index(ops_), -1);
    for (Clock& clock : stream_clock_) clock.fill(-1);
  }

  std::vector<ScheduledLaunch> run() {
    while (launches_.size() < index(ops_)) {
      bool moved = false;
      // Communication first, then one kernel, and again: as on the processor.
      for (std::size_t s = kStreamCount; s-- > 0;) moved |= advance(s);
      TY_CHECK(moved, "a checked program can be put in an order");
    }
    return std::move(launches_);
  }

 private:
  struct Place {
    std::int32_t item;
    OpId op;
  };

  static std::size_t index_of(Stream stream) { return static_cast<std::size_t>(stream); }
  Stream stream_of(const Item& item, OpId op) const {
    return item.block < 0 ? item.stream : program_.block(item).ops[index(op)].stream;
  }

  bool advance(std::size_t stream) {
    bool moved = false;
    while (head_[stream] < queues_[stream].size()) {
      const Place place = queues_[stream][head_[stream]];
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
  std::vector<std::int32_t> dependencies(const Place& place) const {
    std::vector<std::int32_t> ops;
    const Item& item = stage_.items[index(place.item)];
    for (const Wait& wait : item.waits) {
      const std::int32_t first = first_[index(wait.item)];
      if (wait.op >= 0) {
        ops.push_back(first + wait.op);
      } else {
        for (std::int32_t op = first; op < first_[index(wait.item) + 1]; ++op) ops.push_back(op);
      }
    }
    if (item.block < 0) return ops;
    for (const OpId dep : program_.block(item).ops[index(place.op)].deps)
      ops.push_back(first_[index(place.item)] + dep);
    return ops;
  }

  void launch(std::size_t stream, const Place& place, const std::vector<std::int32_t>& needed) {
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
    position_[index(first_[index(place.item)] + place.op)] = position;
    launches_.push_back(std::move(next));
  }

  const StepProgram& program_;
  const StageProgram& stage_;
  std::array<std::vector<Place>, kStreamCount> queues_;
  std::array<std::size_t, kStreamCount> head_{};
  std::vector<std::int32_t> first_;  // by item: its first op; and one past the last
  std::int32_t ops_ = 0;
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
