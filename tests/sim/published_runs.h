// What tests against published figures and closed forms share: estimates over seeds, closed forms
// that are not the simulator's business, and jobs that are as plain as an analyst takes them to be.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

#include "models/base/random.h"
#include "models/recovery/goodput.h"
#include "tests/sim/run_inputs.h"

namespace trainyard::testing {

// ---- Estimates over seeds -----------------------------------------------------------------

struct Estimate {
  double mean = 0;
  double standard_error = 0;
};

inline Estimate estimate(const std::vector<double>& values) {
  const auto count = static_cast<double>(values.size());
  double sum = 0;
  double squares = 0;
  for (const double value : values) sum += value;
  for (const double value : values) squares += (value - sum / count) * (value - sum / count);
  return {sum / count, std::sqrt(squares / (count - 1) / count)};
}

/// Runs the inputs and keeps one number of each: thousands of runs, events and all, would fill the memory.
inline std::vector<double> measure(const std::vector<RunInput>& inputs,
                                   const std::function<double(const RunResult&)>& figure) {
  std::vector<double> values(inputs.size());
  RunPool pool;
  pool.keep = false;
  pool.on_result = [&](std::size_t index, const RunResult& result) { values[index] = figure(result); };
  const auto results = run_many(inputs, pool);
  if (!results.ok()) FAIL(to_string(results.problems().front()));
  return values;
}

inline Estimate over_seeds(const RunInput& input, std::int64_t seeds,
                           const std::function<double(const RunResult&)>& figure) {
  return estimate(measure(with_seeds(input, seeds), figure));
}

inline double effective_time(const RunResult& result) { return result.effective_training_time; }

/// Fraction of the wall time in which no recovery was under way: trained, saved, or trained in vain.
inline double time_not_recovering(const RunResult& result) {
  const double up_s = result.band_s(Band::Productive) + result.band_s(Band::LostWork) +
                      result.band_s(Band::CheckpointStall) + result.band_s(Band::DegradedSlowdown);
  return up_s / (static_cast<double>(result.duration_ns) / 1e9);
}

/// Of all runs together: the mean of each run's own would be too long. The error is that of a Poisson count.
inline Estimate hours_between_failures(const RunInput& input, std::int64_t seeds) {
  double failures = 0;
  for (const double of_run :
       measure(with_seeds(input, seeds), [](const RunResult& run) { return static_cast<double>(run.failures); }))
    failures += of_run;
  const double hours = static_cast<double>(seeds) * input.duration_s / 3600 / failures;
  return {hours, hours / std::sqrt(failures)};
}

/// For the tables in docs/recovery.md.
inline void report(const std::string& what, const Estimate& seen, double expected) {
  WARN(what << ": simulated " << seen.mean << " +- " << seen.standard_error << ", expected " << expected << ", off by "
            << 100 * (seen.mean / expected - 1) << "%");
}

// ---- Closed forms beside those of models/recovery/goodput.h -------------------------------

/// expected_effective_time where no failure ever strikes a recovery: tau / ((M + R) (exp((tau + d)/M) - 1)).
inline double effective_time_if_recoveries_are_spared(double mtbf_s, double interval_s, double stall_s,
                                                      double recovery_s) {
  return interval_s / ((mtbf_s + recovery_s) * std::expm1((interval_s + stall_s) / mtbf_s));
}

/// Kokolis et al., arXiv:2410.21680: (1 - (u0 + dt/2)/M) / (1 + w/dt), with restarts of u0 and saves of w.
inline double first_order_effective_time(double mtbf_s, double interval_s, double stall_s, double recovery_s) {
  return (1 - (recovery_s + interval_s / 2) / mtbf_s) / (1 + stall_s / interval_s);
}

inline double young_interval_s(double mtbf_s, double stall_s) { return std::sqrt(2 * stall_s * mtbf_s); }

/// Daly 2006, eq. 37, for stalls below 2 M.
inline double daly_interval_s(double mtbf_s, double stall_s) {
  const double root = std::sqrt(stall_s / (2 * mtbf_s));
  return young_interval_s(mtbf_s, stall_s) * (1 + root / 3 + root * root / 9) - stall_s;
}

// ---- Plain jobs ---------------------------------------------------------------------------

/// Phases that sum to `recovery_s`, with a fifth of it until the first symptom. What closed forms leave out is not
/// there: symptoms are not gathered, so that two failures are two recoveries; repairs are instant, so that none waits
/// for a spare; nobody is paged.
inline PolicySpec plain_policy(double recovery_s, double interval_s, double stall_s) {
  PolicySpec policy;
  policy.name = "plain";
  policy.detection_timeout_s = 0.2 * recovery_s;
  policy.diagnosis_s = 0;
  policy.fence_s = 0;
  policy.allocate_s = 0.2 * recovery_s;
  policy.process_start_s = 0.2 * recovery_s;
  policy.communicators_s = 0.2 * recovery_s;
  policy.load_state_s = 0.1 * recovery_s;
  policy.first_step_s = 0.1 * recovery_s;
  policy.checkpoint_interval_s = interval_s;
  policy.checkpoint_stall_s = stall_s;
  policy.spare_nodes = 8;
  policy.spares.warm_extra_s = 0;
  policy.max_ejections_per_domain_per_hour = 1'000'000;
  policy.repair_median_s = 1;
  policy.repair_sigma = 0;
  return policy;
}

/// Steps are short and full of collectives, so that neither a save nor a symptom waits for one. Nothing fails yet.
inline RunInput plain_job(std::int64_t nodes, const PolicySpec& policy, double duration_s) {
  RunInput input;
  input.job_nodes = nodes;
  input.cluster.nodes = nodes + policy.spare_nodes;
  input.cluster.tiers = {{"leaf", 32, 1}};
  input.policy = policy;
  input.duration_s = duration_s;
  input.step_times = [](const JobState&) { return StepTime{0.1, 100}; };
  return input;
}

/// Nodes that fail as fleets are reported: so many times in a thousand node-days.
inline FaultCause node_failures(double per_1000_node_days) {
  return {"node", FaultScope::Node, per_1000_node_days / 1000 / 24 / 8, ""};
}

/// A job with this mean time between failures. Its nodes are many, so that one that is down hardly lowers the rate.
inline RunInput renewal_job(double mtbf_s, const PolicySpec& policy, double duration_s) {
  RunInput input = plain_job(1000, policy, duration_s);
  const auto gpus = static_cast<double>(input.job_nodes * input.cluster.gpus_per_node);
  input.faults.causes = {{"node", FaultScope::Node, 3600 / mtbf_s / gpus, ""}};
  return input;
}

/// A job that fails at these times and at no other: each time another node crashes, is replaced, and is soon a spare.
inline RunInput job_failing_at(const std::vector<double>& times_s, const PolicySpec& policy, double duration_s) {
  const auto count = static_cast<std::int64_t>(times_s.size());
  RunInput input = plain_job(std::max<std::int64_t>(count, 2), policy, duration_s);
  for (std::int64_t i = 0; i < count; ++i)
    input.faults.injected.push_back(injected(InjectedKind::NodeCrash, times_s[static_cast<std::size_t>(i)], i, 1e-3));
  return input;
}

/// Whether a failure may strike while the job recovers from the last one.
enum class Recoveries { Struck, Spared };

/// A job whose failures are a Poisson process but for its luck: the times between them are one draw from each of
/// `failures` equal parts of the exponential distribution, in random order. Many times fewer failures tell as much.
/// Each of these times begins with a failure, the first at the start. Where recoveries are spared, it begins when the
/// recovery is over.
inline RunInput evenly_failing_job(double mtbf_s, const PolicySpec& policy, std::int64_t failures,
                                   Recoveries recoveries, std::uint64_t seed) {
  RandomStream draws(seed, "test.evenly_failing");
  const auto parts = static_cast<double>(failures);
  std::vector<double> gaps_s;
  for (std::int64_t i = 0; i < failures; ++i)
    gaps_s.push_back(-mtbf_s * std::log((static_cast<double>(i) + 1 - draws.uniform()) / parts));
  for (std::size_t i = gaps_s.size(); i > 1; --i) std::swap(gaps_s[i - 1], gaps_s[draws.below(i)]);
  // A recovery is longer than its policy says by the rest of a collective.
  const double spared_s = recoveries == Recoveries::Spared ? policy.recovery_s() + 1e-3 : 0;
  std::vector<double> times_s;
  double now_s = 0;
  for (const double gap_s : gaps_s) {
    times_s.push_back(now_s);
    now_s += spared_s + gap_s;
  }
  return job_failing_at(times_s, policy, now_s);
}

/// What so many such jobs with seeds 1, 2, ... say of a figure.
inline Estimate over_even_failures(double mtbf_s, const PolicySpec& policy, std::int64_t failures,
                                   Recoveries recoveries, std::int64_t seeds,
                                   const std::function<double(const RunResult&)>& figure = effective_time) {
  std::vector<RunInput> inputs;
  for (std::int64_t seed = 1; seed <= seeds; ++seed)
    inputs.push_back(evenly_failing_job(mtbf_s, policy, failures, recoveries, static_cast<std::uint64_t>(seed)));
  return estimate(measure(inputs, figure));
}

}  // namespace trainyard::testing
