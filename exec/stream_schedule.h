// In which order a device is handed a rank's ops, and which streams have to wait for which: known before the step, for
// nothing of it depends on when ops end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "models/program/program.h"

namespace trainyard::exec {

struct ScheduledLaunch {
  Stream stream = Stream::Compute;
  std::int32_t item = 0;
  OpId op = 0;  // 0 of a batch of transfers
  /// Earlier launches, on other streams, that must be over before this one begins: none that follow from stream order
  /// or from another wait.
  std::vector<std::int32_t> waits;
  bool awaited = false;  // by a later launch
};

/// Every op of the stage, each after all that it waits for, ops of a stream in their order.
std::vector<ScheduledLaunch> schedule_streams(const StepProgram& program, const StageProgram& stage);

}  // namespace trainyard::exec
