// Trains: starts the ranks of a plan as processes, grants them steps, collects what they say, and makes checkpoints
// whole.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "exec/rank_process.h"
#include "models/spec/training_spec.h"

namespace trainyard::exec {

/// One optimizer step as all ranks saw it.
struct StepReport {
  std::int64_t step = 0;  // counted from 0
  double loss = 0;        // mean cross-entropy of a token, in nats
  double grad_norm = 0;
  std::int64_t begin_ns = 0, end_ns = 0;  // first rank to begin, last to end; monotonic clock
};

struct RankReport {
  std::int64_t arena_bytes = 0;
  std::int64_t rss_bytes = 0;     // of the process, at its highest
  std::int64_t device_bytes = 0;  // in use on the rank's GPU at the end; 0 on processors
  std::vector<OpTime> times;      // of the last step
};

struct TrainingReport {
  std::int64_t first_step = 0;
  std::vector<StepReport> steps;
  std::vector<RankReport> ranks;
  double startup_s = 0;  // until every rank was ready
  double wall_s = 0;
  double checkpoint_stall_s = 0;          // for which training waited, summed over checkpoints
  std::vector<std::int64_t> checkpoints;  // steps at which one became whole
  /// Set when a rank failed or the run was stopped; what came before is here.
  Problems problems;
};

struct TrainingJob {
  const StepProgram* program = nullptr;
  const Corpus* corpus = nullptr;
  TrainingSpec training;
  std::uint64_t seed = 1;
  const SavedState* resume = nullptr;
  /// What checkpoints say was trained, on what: any two names that tell them from others.
  std::string model_id, text_id;
  /// Gloo in place of the mesh.
  bool gloo = false;
  DeviceKind device = DeviceKind::Cpu;
  /// On GPUs: sums in group order, the same bits wherever ranks are.
  bool strict_sums = false;
  /// On GPUs: what is the same in every step is queued as one graph.
  bool graphs = false;
};

struct TrainingEvents {
  std::function<void(const StepReport&)> on_step;
  std::function<void(std::int64_t step)> on_checkpoint;
  /// A few times a second.
  std::function<void()> on_wait;
};

/// Ends when all steps are done, when a rank fails, or in order after a request to stop: then with a checkpoint, if the
/// job has any. Problems that come before any rank has started are the result's, later ones the report's.
Result<TrainingReport> train(const TrainingJob& job, const TrainingEvents& events = {});

}  // namespace trainyard::exec
