// The run simulator against closed forms of checkpointing under Poisson failures.
//
// Three clocks can be meant by "a failure every M", and they give different answers for the same M and R:
//
//   failures arrive on the wall clock, and start a recovery that they strike over   exp(-R/M)   the simulator; Daly
//   2006 failures arrive on the clock of training alone                                  M/(M + R) failures arrive on
//   the wall clock, each costs a recovery in full                (M - R)/M   FT-HSDP's accounting
//
// (fractions of the time in which no recovery is under way; V6 in run_published_test.cpp simulates all three). Steps
// that a failure undid are lost work, done again in the time of training: they are never in R.
#include <algorithm>
#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include "tests/sim/published_runs.h"

using namespace trainyard;
using namespace trainyard::testing;

namespace {

constexpr double kMtbf_s = 1800;

/// Twenty lines that share nothing with the simulator, nor with the closed forms but what they assume.
double drawn_effective_time(double mtbf_s, double interval_s, double stall_s, double recovery_s, bool spared,
                            std::int64_t saves, RandomStream& draws) {
  double now_s = 0;
  double failure_s = draws.exponential(mtbf_s);
  for (std::int64_t saved = 0; saved < saves;) {
    if (now_s + interval_s + stall_s <= failure_s) {
      now_s += interval_s + stall_s;
      ++saved;
      continue;
    }
    double recovered_s = failure_s + recovery_s;
    failure_s = (spared ? recovered_s : failure_s) + draws.exponential(mtbf_s);
    while (failure_s < recovered_s) {
      recovered_s = failure_s + recovery_s;
      failure_s += draws.exponential(mtbf_s);
    }
    now_s = recovered_s;
  }
  return static_cast<double>(saves) * interval_s / now_s;
}

/// Where the parabola through the points, least squares, is least.
double lowest(const std::vector<double>& x, const std::vector<double>& y) {
  double s1 = 0, s2 = 0, s3 = 0, s4 = 0, t0 = 0, t1 = 0, t2 = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double xx = x[i] * x[i];
    s1 += x[i], s2 += xx, s3 += x[i] * xx, s4 += xx * xx;
    t0 += y[i], t1 += y[i] * x[i], t2 += y[i] * xx;
  }
  const auto s0 = static_cast<double>(x.size());
  // Cramer's rule on the normal equations of a + b x + c x^2, for b and c.
  const double b = s0 * (t1 * s4 - t2 * s3) - s1 * (t0 * s4 - t2 * s2) + s2 * (t0 * s3 - t1 * s2);
  const double c = s0 * (s2 * t2 - s3 * t1) - s1 * (s1 * t2 - s3 * t0) + s2 * (s1 * t1 - s2 * t0);
  REQUIRE(c > 0);
  return -b / (2 * c);
}

}  // namespace

TEST_CASE("V12: Daly's interval is the exact optimum to three digits while a save is short") {
  for (const double ratio : {1e-4, 1e-3, 0.00274, 0.01, 0.02, 0.03, 0.04}) {
    INFO("d/M = " << ratio);
    const double exact_s = optimal_checkpoint_interval_s(kMtbf_s, ratio * kMtbf_s);
    CHECK(daly_interval_s(kMtbf_s, ratio * kMtbf_s) == Approx(exact_s).epsilon(5e-4));
    CHECK(young_interval_s(kMtbf_s, ratio * kMtbf_s) > 1.004 * exact_s);
  }
  CHECK(daly_interval_s(kMtbf_s, kMtbf_s) < 0.99 * optimal_checkpoint_interval_s(kMtbf_s, kMtbf_s));
}

TEST_CASE("V12: drawn failures agree with both closed forms, and tell them apart", "[statistics]") {
  RandomStream draws(1, "test.drawn");
  const double mtbf_s = 1824.6;
  const double interval_s = optimal_checkpoint_interval_s(mtbf_s, 5);
  for (const double recovery_s : {1800.0, 90.0}) {
    for (const bool spared : {false, true}) {
      std::vector<double> drawn;
      for (int i = 0; i < 20; ++i)
        drawn.push_back(drawn_effective_time(mtbf_s, interval_s, 5, recovery_s, spared, 100'000, draws));
      const Estimate seen = estimate(drawn);
      const double struck = expected_effective_time(mtbf_s, interval_s, 5, recovery_s);
      const double safe = effective_time_if_recoveries_are_spared(mtbf_s, interval_s, 5, recovery_s);
      INFO("R = " << recovery_s << " s, spared " << spared << ": " << seen.mean << " +- " << seen.standard_error);
      CHECK(seen.standard_error < 0.003 * seen.mean);
      CHECK(std::abs(seen.mean - (spared ? safe : struck)) < 4 * seen.standard_error);
      if (recovery_s > 1000) CHECK(std::abs(seen.mean - (spared ? struck : safe)) > 20 * seen.standard_error);
      WARN("V12: R = " << recovery_s << " s, recoveries " << (spared ? "spared" : "struck") << ": drawn " << seen.mean
                       << ", closed form " << (spared ? safe : struck));
    }
  }
}

namespace {

/// Within 2% of the form that applies, with an error small enough to say so, and far from the form that does not.
void check_grid(const std::vector<double>& recoveries, const std::vector<double>& stalls,
                const std::vector<double>& factors, std::int64_t failures, std::int64_t seeds) {
  double worst = 0;
  for (const double recovery : recoveries)
    for (const double stall : stalls)
      for (const double factor : factors)
        for (const Recoveries which : {Recoveries::Struck, Recoveries::Spared}) {
          const double recovery_s = recovery * kMtbf_s;
          const double stall_s = stall * kMtbf_s;
          const double interval_s = factor * optimal_checkpoint_interval_s(kMtbf_s, stall_s);
          const double struck = expected_effective_time(kMtbf_s, interval_s, stall_s, recovery_s);
          const double spared = effective_time_if_recoveries_are_spared(kMtbf_s, interval_s, stall_s, recovery_s);
          const double expected = which == Recoveries::Struck ? struck : spared;
          const double other = which == Recoveries::Struck ? spared : struck;
          const PolicySpec policy = plain_policy(recovery_s, interval_s, stall_s);
          const Estimate seen = over_even_failures(kMtbf_s, policy, failures, which, seeds);
          INFO("R/M = " << recovery << ", d/M = " << stall << ", tau/M = " << interval_s / kMtbf_s << ", recoveries "
                        << (which == Recoveries::Struck ? "struck" : "spared") << ": " << seen.mean << " +- "
                        << seen.standard_error << ", closed form " << expected);
          CHECK(seen.mean == Approx(expected).epsilon(0.02));
          CHECK(seen.standard_error < 0.006 * expected);
          if (std::abs(other / expected - 1) > 0.1) CHECK(std::abs(seen.mean - other) > 0.08 * other);
          worst = std::max(worst, std::abs(seen.mean / expected - 1));
        }
  WARN("closed forms: at worst " << 100 * worst << "% off");
}

/// Of a sweep over intervals, each with the same failures: the best found, in units of the exact optimum. Young's
/// interval is in the middle of the sweep.
Estimate best_interval(double stall, int points, double spacing, std::int64_t failures, std::int64_t seeds) {
  const double stall_s = stall * kMtbf_s;
  const double middle_s = young_interval_s(kMtbf_s, stall_s);
  std::vector<double> logs;
  std::vector<RunInput> inputs;
  for (int i = 0; i < points; ++i) {
    logs.push_back(spacing * (i - (points - 1) / 2.0));
    const PolicySpec policy = plain_policy(0.02 * kMtbf_s, middle_s * std::exp(logs.back()), stall_s);
    for (std::int64_t seed = 1; seed <= seeds; ++seed)
      inputs.push_back(
          evenly_failing_job(kMtbf_s, policy, failures, Recoveries::Struck, static_cast<std::uint64_t>(seed)));
  }
  const std::vector<double> effective = measure(inputs, effective_time);
  std::vector<double> found;
  for (std::size_t seed = 0; seed < static_cast<std::size_t>(seeds); ++seed) {
    // Time per work is nearly a hyperbolic cosine of the interval's logarithm: a parabola fits it far out.
    std::vector<double> time_per_work;
    for (std::size_t i = 0; i < logs.size(); ++i)
      time_per_work.push_back(1 / effective[i * static_cast<std::size_t>(seeds) + seed]);
    found.push_back(middle_s * std::exp(lowest(logs, time_per_work)) / optimal_checkpoint_interval_s(kMtbf_s, stall_s));
  }
  return estimate(found);
}

void check_best_interval(double stall, const Estimate& best) {
  INFO("d/M = " << stall << ": " << best.mean << " +- " << best.standard_error);
  CHECK(best.mean == Approx(1).epsilon(0.05));
  CHECK(best.standard_error < 0.017);
  WARN("d/M = " << stall << ": best interval found is " << best.mean << " +- " << best.standard_error
                << " of the exact optimum, Young's is "
                << young_interval_s(1, stall) / optimal_checkpoint_interval_s(1, stall));
}

}  // namespace

TEST_CASE("Effective time is within 2% of the closed form that applies, and not of the other", "[statistics]") {
  check_grid({0.1, 1}, {0.02}, {1.5}, 200, 4);
}

TEST_CASE("A sweep finds the exact optimum, not Young's", "[statistics]") {
  const Estimate best = best_interval(0.1, 5, 0.3, 150, 5);
  check_best_interval(0.1, best);
  CHECK(young_interval_s(1, 0.1) / optimal_checkpoint_interval_s(1, 0.1) > best.mean + 5 * best.standard_error);
}

TEST_CASE("Effective time over a grid of recoveries, saves and intervals", "[.slow]") {
  check_grid({0.05, 0.3, 1}, {0.003, 0.01, 0.03, 0.1}, {0.5, 1, 2}, 400, 8);
}

TEST_CASE("The best interval for short saves and long ones", "[.slow]") {
  for (const double stall : {0.003, 0.01, 0.03, 0.1}) check_best_interval(stall, best_interval(stall, 9, 0.15, 400, 8));
}
