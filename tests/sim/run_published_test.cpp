// The run simulator against published figures: checks V1 to V4 and V6 to V8. V5 is in run_llama3_test.cpp, V9 and V11
// in run_partly_published_test.cpp, V12 in run_closed_forms_test.cpp, and V10, a trace that is replayed, in
// tests/faults/source_test.cpp. docs/recovery.md has the table of them all, from the same checks over more seeds.
//
// The clock. Failures arrive on the wall clock: they strike during recoveries too, and start those over. Steps that a
// failure undid are lost work and are done again; they are never in a recovery's seconds. Publications count
// otherwise at times, and what that changes is said at each check.
#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include "tests/sim/published_runs.h"

using namespace trainyard;
using namespace trainyard::testing;

namespace {

constexpr double kDay_s = 86400;

// Meta's two clusters (arXiv:2410.21680): failures of infrastructure in a thousand node-days.
constexpr double kRsc1 = 6.50;
constexpr double kRsc2 = 2.34;

double node_mtbf_s(double per_1000_node_days, std::int64_t nodes) {
  return kDay_s / (per_1000_node_days / 1000 * static_cast<double>(nodes));
}

/// A job that is expected to fail 500 times. How it recovers does not matter.
RunInput failing_job(std::int64_t nodes, double mtbf_s) {
  return plain_job(nodes, plain_policy(60, 4 * mtbf_s, 0), 500 * mtbf_s);
}

Estimate check_hours(const char* check, const RunInput& input, std::int64_t seeds, double expected_h) {
  const Estimate seen = hours_between_failures(input, seeds);
  INFO(seen.mean << " h +- " << seen.standard_error << " against " << expected_h);
  CHECK(std::abs(seen.mean - expected_h) < 4 * seen.standard_error);
  CHECK(seen.standard_error < 0.04 * expected_h);
  report(check, seen, expected_h);
  return seen;
}

// Hours between failures at RSC-1's node rate.
void v1(std::int64_t seeds) {
  for (const auto& [nodes, published_h] : {std::pair(2048, 1.8), std::pair(16384, 0.23)}) {
    const double expected_h = node_mtbf_s(kRsc1, nodes) / 3600;
    CHECK(expected_h == Approx(published_h).epsilon(0.025));
    RunInput input = failing_job(nodes, expected_h * 3600);
    input.faults.causes = {node_failures(kRsc1)};
    check_hours("V1", input, seeds, expected_h);
  }
}

// The same paper measured 7.9 hours on jobs of 1,024 GPUs, and 47.7 days on jobs of 8: its node rate explains 28.8
// hours and 154 days. What else stopped those jobs is not said here, but it grew with them: a term that is the same for
// jobs of any size, and closes the gap at 1,024 GPUs, leaves 11 hours to a job of 8; one per GPU leaves 42 days.
void v2(std::int64_t seeds) {
  constexpr double kMeasured_h = 7.9;
  constexpr std::int64_t kNodes = 128;
  const double nodes_alone_h = node_mtbf_s(kRsc1, kNodes) / 3600;
  CHECK(nodes_alone_h == Approx(28.8).epsilon(0.002));
  RunInput input = failing_job(kNodes, nodes_alone_h * 3600);
  input.faults.causes = {node_failures(kRsc1)};
  const Estimate missed = check_hours("V2, nodes alone", input, seeds, nodes_alone_h);
  CHECK(missed.mean / kMeasured_h == Approx(3.65).epsilon(0.1));

  const double missing_per_h = 1 / kMeasured_h - 1 / nodes_alone_h;
  input.faults.causes.push_back({"not the nodes'", FaultScope::Job, missing_per_h / (kNodes * 8), ""});
  input.duration_s = 500 * kMeasured_h * 3600;
  check_hours("V2, with a cause that stops the job and no node", input, seeds, kMeasured_h);

  // Out of sample, jobs of 8 GPUs: 154, 42 and 0.45 days where 47.7 were measured.
  const double one_node_per_h = 3600 / node_mtbf_s(kRsc1, 1);
  CHECK(1 / one_node_per_h / 24 == Approx(153.8).epsilon(0.001));
  CHECK(1 / (one_node_per_h + missing_per_h / kNodes) / 24 == Approx(42.1).epsilon(0.002));
  CHECK(1 / (one_node_per_h + missing_per_h) == Approx(10.8).epsilon(0.01));
}

// What brings 12,000 GPUs of RSC-1 to 0.9: saves and restarts of five minutes; then a node rate of 1; then saves of ten
// seconds. Published is that the last two each reach 0.9. The authors' form is of first order: they give it 5%.
void v3(std::int64_t seeds) {
  struct Row {
    double per_1000_node_days, save_s, by_their_form;
  };
  for (const Row& row : {Row{kRsc1, 300, 0.740}, Row{1, 300, 0.898}, Row{kRsc1, 10, 0.921}}) {
    const double mtbf_s = node_mtbf_s(row.per_1000_node_days, 1500);
    const double interval_s = young_interval_s(mtbf_s, row.save_s);
    const double first_order = first_order_effective_time(mtbf_s, interval_s, row.save_s, 300);
    CHECK(first_order == Approx(row.by_their_form).margin(0.0006));
    RunInput input = plain_job(1500, plain_policy(300, interval_s, row.save_s), 150 * mtbf_s);
    input.faults.causes = {node_failures(row.per_1000_node_days)};
    const Estimate seen = over_seeds(input, seeds, effective_time);
    const double expected = expected_effective_time(mtbf_s, interval_s, row.save_s, 300);
    INFO("saves of " << row.save_s << " s: " << seen.mean << " +- " << seen.standard_error);
    CHECK(seen.mean == Approx(expected).epsilon(0.02));
    CHECK(seen.mean == Approx(first_order).epsilon(0.05));
    CHECK((seen.mean > 0.89) == (row.by_their_form > 0.89));
    report("V3", seen, expected);
  }
}

// 100,000 GPUs at RSC-2's rate, with two minutes to restart and between saves of no time, and of five seconds.
// Published is 0.9.
void v4(std::int64_t seeds) {
  const double mtbf_s = node_mtbf_s(kRsc2, 12500);
  for (const auto& [save_s, by_their_form] : {std::pair(0.0, 0.939), std::pair(5.0, 0.902)}) {
    CHECK(first_order_effective_time(mtbf_s, 120, save_s, 120) == Approx(by_their_form).margin(0.0006));
    RunInput input = plain_job(12500, plain_policy(120, 120, save_s), 100 * mtbf_s);
    input.faults.causes = {node_failures(kRsc2)};
    const Estimate seen = over_seeds(input, seeds, effective_time);
    const double expected = expected_effective_time(mtbf_s, 120, save_s, 120);
    INFO("saves of " << save_s << " s: " << seen.mean << " +- " << seen.standard_error);
    CHECK(seen.mean == Approx(expected).epsilon(0.02));
    CHECK(seen.mean == Approx(by_their_form).epsilon(0.02));
    CHECK(seen.mean > 0.895);
    report("V4", seen, expected);
  }
}

// FT-HSDP (arXiv:2602.00277): a failure every 18 minutes on 98,304 GPUs, ten minutes to recover; 44% effective by the
// authors' accounting, which counts nothing but recoveries, each in full. The same ten minutes every eighteen are 57%
// where failures arrive at random on the wall clock, because one that strikes a recovery starts it over rather than
// adding another ten minutes; and 64% where training alone brings failures about.
void v6(std::int64_t seeds) {
  constexpr double kBetween_s = 18 * 60;
  constexpr double kRecovery_s = 600;
  const PolicySpec policy = plain_policy(kRecovery_s, 300, 0);

  std::vector<double> every_18_minutes_s;
  for (int i = 0; i < 100; ++i) every_18_minutes_s.push_back(i * kBetween_s);
  const double in_full =
      measure({job_failing_at(every_18_minutes_s, policy, 100 * kBetween_s)}, time_not_recovering)[0];
  CHECK(in_full == Approx((kBetween_s - kRecovery_s) / kBetween_s).epsilon(0.001));
  CHECK(in_full == Approx(0.44).margin(0.005));
  report("V6, each recovery in full", {in_full, 0}, 8.0 / 18);

  const Estimate spared = over_even_failures(kBetween_s, policy, 100, Recoveries::Spared, 4, time_not_recovering);
  CHECK(spared.mean == Approx(18.0 / 28).epsilon(0.005));
  report("V6, failures on the clock of training", spared, 18.0 / 28);

  const double expected = std::exp(-kRecovery_s / kBetween_s);
  const Estimate even = over_even_failures(kBetween_s, policy, 100, Recoveries::Struck, 4, time_not_recovering);
  CHECK(even.mean == Approx(expected).epsilon(0.02));
  const Estimate random = over_seeds(renewal_job(kBetween_s, policy, 300 * kBetween_s), seeds, time_not_recovering);
  CHECK(std::abs(random.mean - expected) < 4 * random.standard_error);
  report("V6, failures on the wall clock", random, expected);

  // 80% with fault-tolerant replicas is simulated in run_restore_test.cpp; by the authors' accounting:
  CHECK((8 + 7 * 11.0 / 12) / 18 == Approx(0.801).margin(0.0005));
}

// xAI's thirty minutes to ninety seconds, at 100,000 GPUs and Llama 3's rate. No effective time was published.
void v7(std::int64_t seeds) {
  struct Row {
    PolicySpec policy;
    double struck, spared;
  };
  for (const Row& row : {Row{slow_policy(), 0.346, 0.467}, Row{fast_policy(), 0.883, 0.884}}) {
    INFO(row.policy.name);
    RunInput input = colossus(row.policy, 7 * kDay_s);
    input.faults = llama3_total();
    const double mtbf_s = mean_time_between_failures_s(failures_per_gpu_hour(input), 100'000);
    const double interval_s = checkpoint_interval_s(input);
    const double recovery_s = row.policy.recovery_s();
    REQUIRE(recovery_s == (row.policy.name == "slow" ? 1800 : 90));
    const double struck = expected_effective_time(mtbf_s, interval_s, 5, recovery_s);
    CHECK(struck == Approx(row.struck).margin(0.001));
    const Estimate random = over_seeds(input, seeds, effective_time);
    CHECK(random.mean == Approx(struck).margin(0.02));
    report("V7, a week of random failures", random, struck);

    const PolicySpec plain = plain_policy(recovery_s, interval_s, 5);
    const Estimate even = over_even_failures(mtbf_s, plain, 100, Recoveries::Struck, 4);
    CHECK(even.mean == Approx(struck).epsilon(0.02));
    report("V7, recoveries struck", even, struck);
    const double safe = effective_time_if_recoveries_are_spared(mtbf_s, interval_s, 5, recovery_s);
    CHECK(safe == Approx(row.spared).margin(0.001));
    const Estimate spared = over_even_failures(mtbf_s, plain, 100, Recoveries::Spared, 4);
    CHECK(spared.mean == Approx(safe).epsilon(0.01));
    report("V7, recoveries spared", spared, safe);
  }
}

// Optics that live five years, one to each of 100,000 links.
void v8(std::int64_t seeds) {
  constexpr double kFiveYears_h = 5 * 365 * 24;
  const double expected_h = kFiveYears_h / 100'000;
  CHECK(60 * expected_h == Approx(26.28).margin(0.005));
  RunInput input = failing_job(12500, expected_h * 3600);
  input.faults.causes = {{"optics", FaultScope::Network, 1 / kFiveYears_h, ""}};
  check_hours("V8", input, seeds, expected_h);
}

}  // namespace

TEST_CASE("V1: RSC-1's node rate is a failure every 1.8 hours at 16,384 GPUs and every 0.23 at 131,072",
          "[statistics]") {
  v1(3);
}

TEST_CASE("V2: nodes alone miss the measured 7.9 hours at 1,024 GPUs 3.6-fold; a cause of the job's own closes the gap",
          "[statistics]") {
  v2(3);
}

TEST_CASE("V3: 0.9 on 12,000 GPUs takes fewer failures or faster saves", "[statistics]") { v3(3); }

TEST_CASE("V4: 100,000 GPUs at RSC-2's rate reach 0.9 with two minutes of everything", "[statistics]") { v4(3); }

TEST_CASE("V6: FT-HSDP's synchronous 44%, and what two other clocks make of it", "[statistics]") { v6(3); }

TEST_CASE("V7: thirty minutes to ninety seconds at 100,000 GPUs, 0.346 to 0.883", "[statistics]") { v7(2); }

TEST_CASE("V8: 100,000 optics that live five years fail every 26.28 minutes", "[statistics]") { v8(3); }

TEST_CASE("Published figures over many seeds", "[.slow]") {
  SECTION("V1") { v1(100); }
  SECTION("V2") { v2(100); }
  SECTION("V3") { v3(100); }
  SECTION("V4") { v4(100); }
  SECTION("V6") { v6(100); }
  SECTION("V7") { v7(100); }
  SECTION("V8") { v8(100); }
}
