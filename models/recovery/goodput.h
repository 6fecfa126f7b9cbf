// Closed forms for checkpointing under Poisson failures: what an analyst would compute, and
// what the run simulator is checked against. All times in seconds.
#pragma once

#include <cstdint>

namespace trainyard {

/// Mean time between failures of a job of `gpus` GPUs. Infinite at rate 0.
double mean_time_between_failures_s(double rate_per_gpu_hour, std::int64_t gpus);

/// Productive seconds between checkpoints that minimise the expected completion time, for a
/// save that stops the job for `stall_s`: tau/M = 1 + W0(-exp(-1 - d/M)) (Daly 2006, eq. 20's
/// exact optimum). Independent of the recovery time. mtbf_s and stall_s are > 0 and finite.
double optimal_checkpoint_interval_s(double mtbf_s, double stall_s);

/// The same where it may not apply: hourly for a job that nothing ever happens to; a save that stops nothing counts as
/// 1 s, or the optimum would be to save always. mtbf_s > 0.
double practical_checkpoint_interval_s(double mtbf_s, double stall_s);

/// Expected useful seconds per wall second when failures strike at all times, recoveries and
/// saves included: tau / (M exp(R/M) (exp((tau + d)/M) - 1)) (Daly 2006, eq. 13). `recovery_s`
/// has no recomputation in it: work since the last save is lost and done again.
double expected_effective_time(double mtbf_s, double interval_s, double stall_s, double recovery_s);

}  // namespace trainyard
