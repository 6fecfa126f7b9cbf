// The run simulator against published figures and closed forms.
#include <cmath>
#include <numeric>

#include <catch2/catch.hpp>

#include "models/recovery/goodput.h"
#include "tests/sim/run_inputs.h"

using namespace trainyard;
using namespace trainyard::testing;

namespace {

constexpr double kWeek_s = 7 * 86400;

double mean_effective_time(const std::vector<RunResult>& results) {
  double sum = 0;
  for (const RunResult& result : results) sum += result.effective_training_time;
  return sum / static_cast<double>(results.size());
}

/// Table 5 of the Llama 3 report (arXiv:2407.21783): 419 unexpected interruptions in 54 days on
/// 16,384 GPUs. Rates are counts over 21,233,664 GPU-hours.
FaultSpec llama3_table5() {
  const std::vector<std::tuple<std::string, FaultScope, int>> rows = {
      {"Faulty GPU", FaultScope::Gpu, 148},
      {"GPU HBM3 memory", FaultScope::Gpu, 72},
      {"Software bug", FaultScope::Job, 54},
      {"Network switch/cable", FaultScope::Network, 35},
      {"Host maintenance", FaultScope::Node, 32},
      {"GPU SRAM", FaultScope::Gpu, 19},
      {"GPU system processor", FaultScope::Gpu, 17},
      {"NIC", FaultScope::Network, 7},
      {"NCCL watchdog timeout", FaultScope::Job, 7},
      {"Silent data corruption", FaultScope::Gpu, 6},
      {"GPU thermal interface", FaultScope::Gpu, 6},
      {"SSD", FaultScope::Node, 3},
      {"Power supply", FaultScope::Node, 3},
      {"Server chassis", FaultScope::Node, 2},
      {"IO expansion board", FaultScope::Node, 2},
      {"Dependency", FaultScope::Job, 2},
      {"CPU", FaultScope::Node, 2},
      {"System memory", FaultScope::Node, 2},
  };
  FaultSpec faults;
  for (const auto& [name, scope, count] : rows)
    faults.causes.push_back({name, scope, count / (16384 * 54 * 24.0), "arXiv:2407.21783 Table 5"});
  return faults;
}

}  // namespace

TEST_CASE("Thirty minutes to ninety seconds at 100,000 GPUs: 0.346 to 0.883") {
  for (const auto& [policy, published] : {std::pair(slow_policy(), 0.346), std::pair(fast_policy(), 0.883)}) {
    INFO(policy.name);
    RunInput input = colossus(policy, kWeek_s);
    input.faults = llama3_total();
    REQUIRE(recovery_s(policy) == Approx(policy.name == "slow" ? 1800 : 90));
    const auto results = run_many(with_seeds(input, 20));
    REQUIRE(results.ok());
    const double measured = mean_effective_time(results.value());
    CHECK(measured == Approx(published).margin(0.02));
    const RunResult& first = results.value().front();
    const double expected = expected_effective_time(first.mean_time_between_failures_s, first.checkpoint_interval_s,
                                                    policy.checkpoint_stall_s, recovery_s(policy));
    CHECK(expected == Approx(published).margin(0.001));
    CHECK(measured == Approx(expected).margin(0.01));
    WARN(policy.name << ": simulated " << measured << ", closed form " << expected << ", published " << published);
    // An undisturbed recovery takes what the policy's phases sum to, and half a collective gap.
    CHECK(first.median_recovery_s() >= recovery_s(policy));
  }
}

TEST_CASE("Llama 3's 54 days: counts by cause, and more than 90% effective") {
  PolicySpec policy = fast_policy();
  policy.name = "llama3";
  policy.checkpoint_stall_s = 20;
  policy.detection_timeout_s = 60;
  policy.diagnosis_s = 30;
  policy.communicators_s = 60;
  policy.load_state_s = 60;
  policy.first_step_s = 60;
  policy.spare_nodes = 32;
  RunInput input;
  input.job_nodes = 2048;
  input.cluster.nodes = 3072;
  input.cluster.tiers = {{"rack", 2, 1}, {"pod", 384, 1}};
  input.policy = policy;
  input.duration_s = 54 * 86400.0;
  input.faults = llama3_table5();
  input.step_times = [](const JobState&) { return StepTime{10, 1000}; };
  constexpr int kSeeds = 20;
  const auto results = run_many(with_seeds(input, kSeeds));
  REQUIRE(results.ok());

  std::int64_t total = 0;
  for (std::size_t cause = 0; cause < input.faults.causes.size(); ++cause) {
    double count = 0;
    for (const RunResult& result : results.value()) count += static_cast<double>(result.by_cause[cause].failures);
    const double expected = input.faults.causes[cause].rate_per_gpu_hour * 16384 * 54 * 24 * kSeeds;
    INFO(input.faults.causes[cause].name << ": " << count / kSeeds << " against " << expected / kSeeds);
    CHECK(std::abs(count - expected) < 3.5 * std::sqrt(expected));
    total += static_cast<std::int64_t>(count);
  }
  CHECK(static_cast<double>(total) / kSeeds == Approx(419).margin(3.5 * std::sqrt(419.0 / kSeeds)));
  for (const RunResult& result : results.value()) CHECK(result.effective_training_time > 0.9);
  WARN("Llama 3: " << total / kSeeds << " interruptions, effective " << mean_effective_time(results.value()));
}
