// Where the time of a rank's step went, as its compute stream sees it: read off the times of its ops once the step is
// over.
//
// While the compute stream stands idle it waits for the last of what its next op needs. As long as that is a
// communication which this rank has launched, the idle time is exposed communication of its group; before it was
// launched, the stream waited for whatever the communication itself was waiting for, and so on back. What is left is
// bubble, and so is the part of a pipeline transfer in which the partner had not come yet. Where several end together,
// the first in StepPart's order is taken, so that the answer does not hang on rounding.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "sim/private_runs.h"
#include "sim/step_simulator.h"

namespace trainyard {

/// Times of one rank's ops.
struct OpTimes {
  struct Span {
    double start_s = -1, end_s = -1;  // end < 0: it has not come
  };
  std::vector<Span> ops;  // by flat op
  /// Of each item that is a batch of transfers, the last of them: when it began to move, and when it ended.
  std::vector<Span> last_move;

  explicit OpTimes(const FlatStage& stage) : ops(stage.ops.size()), last_move(stage.first.size() - 1) {}
  /// One transfer of a batch has ended. Of two that end together the longer one counts.
  void moved(std::int32_t item, double begin_s, double finish_s);
};

/// What a rank waits in that waits for a communicator.
StepPart exposed_part_of(Group group);

/// Seconds in each part; they add up to `time_s`, when the step was over for all. Every kernel's time has
/// `kernel_gap_s` before it in it.
std::array<double, kStepPartCount> step_parts(const FlatStage& stage, const OpTimes& times, double time_s,
                                              double kernel_gap_s);

}  // namespace trainyard
