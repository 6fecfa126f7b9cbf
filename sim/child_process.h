// Runs computations in forked children and brings their bytes back: SimGrid allows one simulation per process, and
// forking after everything is built costs a few milliseconds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "models/base/status.h"

namespace trainyard {

using Bytes = std::vector<std::uint8_t>;
/// A question from a child to the process that started it, and its answer.
using Ask = std::function<Bytes(const Bytes& question)>;

struct ChildWork {
  std::size_t count = 1;
  /// Children at a time; 0: one per processor.
  int processes = 0;
  /// Called in a child of this process for each index below `count`.
  std::function<Bytes(std::size_t index, const Ask& ask)> work;
  /// Called in this process when a child asks; it may start children of its own. What takes a simulation is asked here,
  /// because a child already runs one.
  std::function<Bytes(std::size_t index, const Bytes& question)> answer;
  /// Called in this process with what came back, in no particular order.
  std::function<void(std::size_t index, const Bytes& bytes)> on_result;
  /// Called in this process a few times a second while children work.
  std::function<void()> on_wait;
};

/// Returns when all children have ended. On a request to stop, or when this process dies, they are killed.
Problems in_children(const ChildWork& work);

}  // namespace trainyard
