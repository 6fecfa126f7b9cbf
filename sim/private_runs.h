// Runs of ops that touch only what is private to a rank or to its NVLink domain, timed once for each block and colour
// and replayed as one event.
//
// A run may be replayed only if nobody can tell. Nothing outside may wait for an op of it but its last, which must also
// end last; and whatever is launched after it must come after that op anyway. Runs for which this
// cannot be shown are left out, and their ops go one by one.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "models/program/program.h"

namespace trainyard {

/// One op of a launched program.
struct FlatOp {
  std::int32_t item = 0;
  const Op* op = nullptr;  // null: a batch of transfers
  Stream stream = Stream::Compute;
  BlockKind kind = BlockKind::Forward;
};

/// A stage's items as one list of ops, with the launch order of each stream.
struct FlatStage {
  const StageProgram* stage = nullptr;
  std::vector<FlatOp> ops;
  std::vector<std::int32_t> first;  // by item, and one past the last
  std::array<std::vector<std::int32_t>, kStreamCount> queue;
};
FlatStage flatten(const StepProgram& program, const StageProgram& stage);

struct PrivateRun {
  struct Member {
    OpId op = 0;
    double start_s = 0, end_s = 0;  // after the run's start
  };
  std::vector<Member> members;
  std::vector<OpId> outside_deps;  // ops before the run that members depend on
  std::vector<std::size_t> streams;
  std::array<OpId, kStreamCount> first_on_stream{};
  std::array<std::size_t, kStreamCount> count_on_stream{};
  double seconds = 0;
};

class PrivateRuns {
 public:
  /// `alone`: groups whose collectives are private. `seconds`: what a private op takes.
  PrivateRuns(const Block& block, const std::array<bool, kGroupCount>& alone,
              const std::function<double(const Op&)>& seconds);

  /// The run whose first op this is, or null.
  [[nodiscard]] const PrivateRun* starting_at(OpId op) const {
    const std::int32_t run = run_at_[static_cast<std::size_t>(op)];
    return run < 0 ? nullptr : &runs_[static_cast<std::size_t>(run)];
  }

 private:
  std::vector<PrivateRun> runs_;
  std::vector<std::int32_t> run_at_;  // by op
};

}  // namespace trainyard
