// Step times by state of degradation, each simulated once, however many runs come to it: those of earlier processes
// too, where there is a store.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cli/job.h"
#include "sim/run_simulator.h"
#include "sim/step_simulator.h"
#include "sim/step_states.h"
#include "store/step_times.h"

namespace trainyard::cli {

struct StepMemoOptions {
  bool unfold = false;  // every rank on its own
  bool merge = true;    // ops that only follow each other as one
  std::string progress = "none";
  bool exact_states = false;  // slow parts where they are, however large the job
  std::string store_file;     // where answers outlive the process; empty: nowhere
};

struct MemoUse {
  /// Questions about a step whose answer was known, and those that were simulated.
  std::int64_t hits = 0, misses = 0;
  double miss_wall_s = 0;
  /// The step where nothing is degraded was known from an earlier process.
  bool step_known = false;
};

/// With the queue pairs of the job's first policy: of one job its policies hardly differ in this.
StepOptions step_options(const Job& job);

class StepMemo {
 public:
  StepMemo(const Job& job, StepMemoOptions options, MemoUse& use);

  /// Simulates a step under faults that begin in it; nothing is remembered.
  Result<StepResult> simulate(const std::vector<InjectedFault>& degradations, bool timeline);

  /// The step of a run where nothing is degraded. Before the first time_of().
  Result<StepResult> healthy(bool timeline);

  /// For the run simulator: never the healthy time in place of a state that was not simulated.
  StepTime time_of(const JobState& state);

  [[nodiscard]] const StepStates& states();

 private:
  /// Seconds; by memo if it was asked before.
  double answer(const StepQuestion& question);
  double simulated(const StepQuestion& question);
  [[nodiscard]] StepOptions options() const;
  Result<StepResult> simulate(const ClusterSpec& cluster, StepOptions step);
  [[nodiscard]] StepTime of(const StepResult& step) const;

  const Job& job_;
  const StepMemoOptions options_;
  MemoUse& use_;
  StepTime healthy_;
  std::optional<StepStates> states_;
  std::map<std::string, double> memo_;  // seconds, by question
  std::optional<store::StepTimes> stored_;
};

/// A run of the job's scenario under a policy and the scenario's seed. `memo` outlives it.
RunInput run_input(const Job& job, const PolicySpec& policy, StepMemo& memo);

}  // namespace trainyard::cli
