// Inputs that several tests of the run simulator share.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

#include "sim/run_simulator.h"

namespace trainyard::testing {

/// 100,000 H100s in use, 512 spare GPUs behind them, 32 nodes to a leaf.
inline RunInput colossus(const PolicySpec& policy, double duration_s) {
  RunInput input;
  input.job_nodes = 12500;
  input.cluster.nodes = 12600;
  input.cluster.tiers = {{"leaf", 32, 1}};
  input.policy = policy;
  input.duration_s = duration_s;
  input.step_times = [](const JobState&) { return StepTime{8, 500}; };
  return input;
}

/// All causes of Llama 3's Table 5 together: 419 in 54 days on 16,384 GPUs.
inline FaultSpec llama3_total() {
  FaultSpec faults;
  faults.causes = {{"all", FaultScope::Gpu, 1.973e-5, "arXiv:2407.21783 Table 5"}};
  return faults;
}

/// Half an hour from a failure to training.
inline PolicySpec slow_policy() {
  PolicySpec policy;
  policy.name = "slow";
  policy.detection_timeout_s = 600;
  policy.diagnosis_s = 120;
  policy.checkpoint_stall_s = 5;
  policy.spare_nodes = 64;
  policy.fence_s = 30;
  policy.allocate_s = 240;
  policy.process_start_s = 120;
  policy.communicators_s = 360;
  policy.load_state_s = 230;
  policy.first_step_s = 100;
  return policy;
}

/// Ninety seconds, recomputation not included.
inline PolicySpec fast_policy() {
  PolicySpec policy;
  policy.name = "fast";
  policy.detection_timeout_s = 12;
  policy.diagnosis_s = 3;
  policy.checkpoint_stall_s = 5;
  policy.spare_nodes = 64;
  policy.fence_s = 5;
  policy.allocate_s = 10;
  policy.process_start_s = 12;
  policy.communicators_s = 25;
  policy.load_state_s = 15;
  policy.first_step_s = 8;
  return policy;
}

inline double recovery_s(const PolicySpec& p) {
  return p.detection_timeout_s + p.diagnosis_s + p.fence_s + p.allocate_s + p.process_start_s + p.communicators_s +
         p.load_state_s + p.first_step_s;
}

/// Four nodes and two spares, hourly checkpoints of 10 s, a step of 10 s with 10 collectives.
/// Nothing fails unless injected.
inline RunInput small_job() {
  PolicySpec policy = fast_policy();
  policy.name = "small";
  policy.spare_nodes = 2;
  policy.checkpoint_interval_s = 3600;
  policy.checkpoint_stall_s = 10;
  RunInput input;
  input.job_nodes = 4;
  input.cluster.nodes = 8;
  input.cluster.tiers = {{"leaf", 8, 1}};
  input.policy = policy;
  input.duration_s = 86400;
  input.step_times = [](const JobState& state) {
    double factor = 1;
    for (const InjectedFault& fault : state.slow) factor = std::max(factor, fault.factor);
    return StepTime{10 * factor, 10};
  };
  input.keep_log = true;
  return input;
}

inline InjectedFault injected(InjectedKind kind, double at_s, std::int64_t node,
                              std::optional<double> duration_s = std::nullopt, double factor = 1) {
  InjectedFault fault;
  fault.kind = kind;
  fault.at_s = at_s;
  fault.node = node;
  fault.duration_s = duration_s;
  fault.factor = factor;
  return fault;
}

inline FaultSpec one_cause(FaultMode mode, FaultScope scope, double per_gpu_hour) {
  FaultSpec faults;
  faults.causes = {{to_string(mode), scope, per_gpu_hour, "test", mode}};
  return faults;
}

inline double sum_s(const RunResult& result) {
  double sum = 0;
  for (int band = 0; band < kBandCount; ++band) sum += result.band_s(static_cast<Band>(band));
  return sum;
}

inline std::int64_t count(const RunResult& result, RunEventKind kind) {
  return std::count_if(result.events.begin(), result.events.end(), [&](const RunEvent& e) { return e.kind == kind; });
}

inline double phase_s(const RunRecovery& recovery, recovery::Phase phase) {
  return recovery.ledger.phase_s()[static_cast<std::size_t>(phase)];
}

/// Ground truth and the ledgers tell the same story: recoveries' spans are the bands' seconds.
inline void check_ledgers_equal_bands(const RunResult& result) {
  std::array<double, recovery::kPhaseCount> ledger_s{};
  for (const RunRecovery& recovery : result.recoveries)
    for (int i = 0; i < recovery::kPhaseCount; ++i)
      ledger_s[static_cast<std::size_t>(i)] += phase_s(recovery, static_cast<recovery::Phase>(i));
  const std::vector<std::pair<recovery::Phase, Band>> pairs = {{recovery::Phase::Detect, Band::Detect},
                                                               {recovery::Phase::Decide, Band::Decide},
                                                               {recovery::Phase::Fence, Band::Fence},
                                                               {recovery::Phase::Allocate, Band::Allocate},
                                                               {recovery::Phase::WaitForSpare, Band::WaitForSpare},
                                                               {recovery::Phase::WaitForHuman, Band::WaitForHuman},
                                                               {recovery::Phase::ProcessStart, Band::ProcessStart},
                                                               {recovery::Phase::Communicators, Band::Communicators},
                                                               {recovery::Phase::LoadState, Band::LoadState},
                                                               {recovery::Phase::FirstStep, Band::FirstStep}};
  for (const auto& [phase, band] : pairs) {
    INFO(to_string(band));
    CHECK(ledger_s[static_cast<std::size_t>(phase)] == Approx(result.band_s(band)).margin(1e-9));
  }
}

/// What the controller was told gives what it did, with steps told in ranges or one by one.
inline void check_replay(const recovery::ControllerLog& log) {
  for (const bool step_by_step : {false, true}) {
    const auto again = recovery::replay(log, {step_by_step, {}});
    if (!again.ok()) FAIL(to_string(again.problems().front()));
    if (again.value().differs_at) FAIL("the replay differs at " << again.value().differs_at->event);
  }
}

/// With keep_log the controller's work is done again, too.
inline RunResult simulate(const RunInput& input) {
  auto result = simulate_run(input);
  if (!result.ok()) FAIL(to_string(result.problems().front()));
  if (input.keep_log) check_replay(result.value().log);
  return std::move(result).value();
}

}  // namespace trainyard::testing
