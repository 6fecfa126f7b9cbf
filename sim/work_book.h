// The work that a run has done and may still lose.
//
// Work is kept in healthy-step time, by the step that it led to. It is safe once a permanent checkpoint holds that
// step, and lost when training goes on from an earlier one.
#pragma once

#include <cstdint>
#include <deque>

namespace trainyard {

class WorkBook {
 public:
  void train(std::int64_t useful_ns) { open_ns_ += useful_ns; }

  /// A snapshot holds all work up to `step`.
  void snapshot(std::int64_t step) {
    if (open_ns_ > 0) closed_.push_back({step, open_ns_});
    open_ns_ = 0;
  }

  /// All work up to `step` is safe; returns how much of it was not before.
  std::int64_t safe(std::int64_t step) {
    std::int64_t safe_ns = 0;
    while (!closed_.empty() && closed_.front().step <= step) {
      safe_ns += closed_.front().work_ns;
      closed_.pop_front();
    }
    return safe_ns;
  }

  /// Training goes on from `step`; returns the work that is to be done again. Of the work since the last snapshot,
  /// `kept_ns` led to that step: live parameters hold it.
  std::int64_t restore(std::int64_t step, std::int64_t kept_ns = 0) {
    kept_ns = kept_ns < open_ns_ ? kept_ns : open_ns_;
    std::int64_t lost_ns = open_ns_ - kept_ns;
    open_ns_ = kept_ns;
    while (!closed_.empty() && closed_.back().step > step) {
      lost_ns += closed_.back().work_ns;
      closed_.pop_back();
    }
    return lost_ns;
  }

  [[nodiscard]] std::int64_t open_ns() const { return open_ns_; }
  [[nodiscard]] std::int64_t unsafe_ns() const {
    std::int64_t sum_ns = open_ns_;
    for (const Segment& segment : closed_) sum_ns += segment.work_ns;
    return sum_ns;
  }

 private:
  /// From the snapshot before it to this one.
  struct Segment {
    std::int64_t step = 0;
    std::int64_t work_ns = 0;
  };
  std::deque<Segment> closed_;  // ascending
  std::int64_t open_ns_ = 0;    // since the last snapshot
};

}  // namespace trainyard
