// The run simulator: weeks of training at job level, with failures.
//
// One SimGrid actor goes through what happens to the job's cluster, others move what storage
// moves. The controller is the very code of models/recovery, fed through its events. Between
// changes of state the job's progress advances at 1/T(state), so nothing costs per step or per
// heartbeat. Conventions:
//
// - Random faults arrive as Poisson processes on the wall clock over the nodes that the job
//   holds (spares too, for causes of scope Gpu and Node), during recoveries as well.
// - A fault stops the job at once; peers notice at the victim's next collective, and the first
//   symptom reaches the controller detection_timeout_s after that (outside training:
//   detection_timeout_s after the fault).
// - Work since the last durable checkpoint is lost and done again: it is booked as lost work,
//   never inside the recovery's seconds.
// - A link that is down stalls the job from the next collective until a queue pair's next
//   retry after it is back (every 4.096 us * 2^20 = 4.3 s); after 7 retries (30.1 s) the
//   communicator is dead (NCCL_IB_TIMEOUT 20, NCCL_IB_RETRY_CNT 7, NCCL's defaults).
// - An injected NodeCrash or fatal LinkDown is mended when its duration ends, never without one;
//   nodes ejected for other reasons are repaired after a lognormal time.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "models/base/status.h"
#include "models/spec/cluster_spec.h"
#include "models/spec/fault_spec.h"
#include "models/spec/policy_spec.h"
#include "sim/job_state.h"
#include "sim/run_result.h"

namespace trainyard {

struct StepTime {
  double step_s = 0;
  /// Collectives of one rank in a step, taken as evenly spread: they decide how soon peers
  /// notice a fault.
  std::int64_t collectives_per_step = 1;
};

/// The step time of the job in this state; an empty one is healthy. Called in the process that called run_many, once
/// for each state that a run comes to; the caller memoises over runs.
using StepTimes = std::function<StepTime(const JobState& state)>;

struct RunInput {
  ClusterSpec cluster;
  FaultSpec faults;
  PolicySpec policy;
  /// The job holds nodes 0..job_nodes-1; the policy's spares follow.
  std::int64_t job_nodes = 0;
  /// Data-parallel replicas that hold whole nodes each; 1 where they do not.
  std::int64_t replicas = 1;
  /// By slot, a replica's slots one after the other: the position in the job. Empty: they are the same.
  std::vector<std::int64_t> positions = {};
  /// Each replica holds the whole training state: nothing of it is sharded over data parallelism.
  bool replicas_hold_all = false;
  double duration_s = 0;
  std::uint64_t seed = 1;
  StepTimes step_times;
  /// Brings a state to a form that step_times is asked about, in the child that simulates; unset: as it is.
  std::function<JobState(const JobState& state)> reduced;
  /// Written to remote storage after each snapshot, while training goes on; the checkpoint is
  /// durable when the stall is over and this is written. 0: durable when the stall is over.
  double checkpoint_bytes = 0;
  /// Keeps what the controller was told and did, in RunResult::log.
  bool keep_log = false;
};

/// All rules that the input breaks, beyond those of its parts.
Problems validate(const RunInput& input, const std::string& path = "$");

struct RunPool {
  /// Simulations at a time; 0: one per processor.
  int processes = 0;
  /// Called in the calling process as each run ends, in no particular order.
  std::function<void(std::size_t index, const RunResult& result)> on_result;
  /// Keep the results to return them. Those of thousands of runs, events and all, fill a memory: then on_result is all
  /// that is made of each.
  bool keep = true;
  /// Called in the calling process a few times a second meanwhile.
  std::function<void()> on_wait;
};

/// Simulates every input in a forked child (one SimGrid engine per process) and returns the
/// results in the order of the inputs (none without `keep`). A platform built before the call is shared by all.
Result<std::vector<RunResult>> run_many(const std::vector<RunInput>& inputs, const RunPool& pool = {});

Result<RunResult> simulate_run(const RunInput& input);

/// The same input under seeds input.seed, input.seed + 1, ...
std::vector<RunInput> with_seeds(const RunInput& input, std::int64_t count);

/// That stop the job, of its GPUs: causes, and the generator's faults of whole nodes spread over their GPUs.
double failures_per_gpu_hour(const RunInput& input);

/// The interval that `input` uses: the policy's, or, where that is 0, the exact optimum for the
/// job's failure rate. Where the rate is 0 too: hourly. A stall of 0 counts as 1 s here, or
/// the optimum would be to save always.
double checkpoint_interval_s(const RunInput& input);

}  // namespace trainyard
