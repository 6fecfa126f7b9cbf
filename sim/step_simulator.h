// The step simulator: one training step, timed op by op on the folded cluster.
//
// One conductor plays all rank classes. It keeps its own queue of events for what is private to a rank or to its NVLink
// domain (kernels, and collectives whose members share a node), and hands what is shared to SimGrid: every
// collective or transfer that leaves a node is one max-min flow, started when its last member has
// arrived and its latency has passed.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "models/base/status.h"
#include "models/cost/cost.h"
#include "models/program/program.h"
#include "models/spec/cluster_spec.h"
#include "models/spec/fault_spec.h"
#include "models/spec/policy_spec.h"
#include "sim/job_state.h"

namespace trainyard {

struct StepOptions {
  /// What slows GPUs, NICs and leaves, or takes their links down; times are relative to the start of the step, `node`
  /// is a position in the job.
  std::vector<InjectedFault> degradations;
  /// After which a queue pair whose link is down gives up, in so many tries: NCCL's defaults.
  double queue_pair_timeout_s = DetectionLadder().link_s;
  double queue_pair_tries = static_cast<double>(DetectionLadder().ib_retry_cnt);
  /// Spares that fill a position from elsewhere.
  std::vector<MovedNode> moved;
  /// Spares that stand among the job's nodes, as JobState has them.
  std::int64_t spares_among = 0;
  /// Simulate every rank on its own.
  bool unfold = false;
  /// Replay runs of private ops as one event each.
  bool merge = true;
  bool timeline = false;
  /// Called in the calling process a few times a second while a child simulates.
  std::function<void()> on_wait;
};

/// Where a step's time goes, as the compute stream sees it. Every second of a rank is in exactly one part.
enum class StepPart : std::uint8_t {
  Gemm,
  Attention,
  MemoryBound,
  Recompute,  // kernels of all three sorts that run a second time
  Host,       // waits for it to read a value, and gaps between kernels in which it launches the next
  Optimizer,
  ExposedTp,
  ExposedCp,
  ExposedEp,
  ExposedPp,
  ExposedDp,
  Bubble
};
inline constexpr int kStepPartCount = static_cast<int>(StepPart::Bubble) + 1;
const char* to_string(StepPart part);

/// Ranks with one and the same timeline.
struct StepClass {
  std::int64_t representative = 0, count = 0, stage = 0;
  double end_s = 0;
  std::array<double, kStreamCount> busy_s{};
  std::array<double, kStepPartCount> part_s{};
  /// Of exposed communication: which of the links that it crosses is the slowest for it, by the LinkId of one such; -1:
  /// it stays inside nodes, or there is none.
  std::array<std::int32_t, kStepPartCount> slowest_link{};
};

/// Links that carry alike.
struct StepLink {
  std::int32_t representative = 0;  // a LinkId of the platform
  std::int64_t count = 0;
  double capacity_bytes_per_s = 0;  // of one of them, healthy
  double bytes = 0;                 // that one of them carried
};

struct Slice {
  std::int32_t rank_class = 0;
  Stream stream = Stream::Compute;
  std::int32_t item = 0;
  OpId op = -1;  // -1: a batch of transfers
  std::int64_t start_ns = 0, end_ns = 0;
};

struct StepResult {
  double time_s = 0;
  /// Set when a queue pair gave up: the step does not end, time_s is when the communicator failed.
  std::string communicator_error;
  /// Averaged over ranks; adds up to time_s.
  std::array<double, kStepPartCount> part_s{};
  /// How many times as long kernels took for the collectives beside them, averaged over ranks.
  double contention = 1;
  std::vector<StepClass> classes;
  std::vector<StepLink> links;  // that anything crossed and that could have slowed it
  std::vector<Slice> slices;    // with options.timeline, by class, stream and start

  std::int64_t link_classes = 0, channel_classes = 0;
  std::int64_t flows = 0;   // SimGrid activities
  std::int64_t events = 0;  // of the conductor's own queue
  std::int64_t ops = 0;     // completed, over classes
  int fold_rounds = 0;
  double fold_wall_s = 0, simulate_wall_s = 0;
  std::uint64_t trace_hash = 0;
};

/// Plain memory, for another process of the same program. What to_bytes() did not give reads as none.
std::vector<std::uint8_t> to_bytes(const StepResult& step);
std::optional<StepResult> step_result_from(const std::vector<std::uint8_t>& bytes);

/// Simulates one step in a forked child (SimGrid allows one simulation per process). A deadlock is a problem that names
/// the ops that wait. Where the stack says that collectives slow the kernels beside them, twice: first without, to
/// see how much of the collectives' time lies beside kernels, then with kernels longer by the stack's share of that.
Result<StepResult> simulate_step(const StepProgram& program, const ClusterSpec& cluster, const CostModel& cost,
                                 const StepOptions& options = {});

}  // namespace trainyard
