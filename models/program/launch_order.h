// The order in which ops of a stage are launched on each stream, and their numbers: what everyone starts from who goes
// through a step program.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "models/program/program.h"

namespace trainyard {

/// An op of an item; op 0 of a batch of transfers.
struct Launch {
  std::int32_t item = 0;
  OpId op = 0;
};

struct LaunchOrder {
  std::array<std::vector<Launch>, kStreamCount> queue;  // by stream
  /// By item: the number of its first op, counted through the items; and one past the last.
  std::vector<std::int64_t> first;
  [[nodiscard]] std::int64_t ops() const { return first.back(); }
};

LaunchOrder launch_order(const StepProgram& program, const StageProgram& stage);

}  // namespace trainyard
