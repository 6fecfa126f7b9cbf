// SimGrid, as the step simulator uses it: links shared max-min by flows, and a clock. The only file of the step
// simulator that includes SimGrid; calls that differ in other versions of it are all in flow_network.cpp.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "sim/fold.h"

namespace trainyard {

/// One engine per process: construct one of these in a process, run it once.
///
/// A flow that meets no other on any of its links goes at the rate of the slowest of them: that is arithmetic, done
/// here. From the moment at which another joins it on one, SimGrid shares their links.
class FlowNetwork {
 public:
  explicit FlowNetwork(const Fold& fold);
  ~FlowNetwork();
  FlowNetwork(const FlowNetwork&) = delete;
  FlowNetwork& operator=(const FlowNetwork&) = delete;

  /// Runs `conductor` as the one actor of the simulation; the calls below are for it.
  void run(const std::function<void()>& conductor);

  /// It is `time_s` now. No flow may end before.
  void sleep_until(double time_s);
  /// Starts `bytes` on the channel class now; at most at `max_bytes_per_s`.
  void start(std::int32_t channel, double bytes, double max_bytes_per_s, std::int64_t tag);
  /// Waits for a flow to end, but not beyond `time_s`. Returns the flow's tag, and sets `now_s`.
  std::optional<std::int64_t> wait(double time_s, double& now_s);
  /// No flow in flight ends before this, whatever the others do.
  [[nodiscard]] double earliest_end() const;
  [[nodiscard]] std::size_t in_flight() const;
  [[nodiscard]] std::int64_t started() const;
  /// A link's new capacity, from now on; 0 stalls its flows.
  void set_capacity(std::int32_t link_class, double bytes_per_s);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace trainyard
