#include "models/recovery/goodput.h"

#include <cmath>

#include <catch2/catch.hpp>

using namespace trainyard;

TEST_CASE("The interval satisfies the Lambert W form of the exact optimum") {
  for (const double ratio : {1e-7, 1e-4, 0.0027, 0.1, 1.0, 5.0}) {
    const double mtbf_s = 1800;
    const double w = optimal_checkpoint_interval_s(mtbf_s, ratio * mtbf_s) / mtbf_s - 1;
    CHECK(w * std::exp(w) == Approx(-std::exp(-1 - ratio)).epsilon(1e-12));
  }
}

TEST_CASE("No other interval is better") {
  const double mtbf_s = 1824.6;
  const double best_s = optimal_checkpoint_interval_s(mtbf_s, 5);
  const double best = expected_effective_time(mtbf_s, best_s, 5, 90);
  for (const double factor : {0.5, 0.9, 0.99, 1.01, 1.1, 2.0})
    CHECK(expected_effective_time(mtbf_s, factor * best_s, 5, 90) < best);
}

TEST_CASE("Small costs approach Young's interval") {
  const double mtbf_s = 1e6;
  CHECK(optimal_checkpoint_interval_s(mtbf_s, 0.01) == Approx(std::sqrt(2 * 0.01 * mtbf_s)).epsilon(1e-3));
}

TEST_CASE("100,000 GPUs at Llama 3's rate: thirty minutes against ninety seconds") {
  const double mtbf_s = mean_time_between_failures_s(1.973e-5, 100000);
  CHECK(mtbf_s / 60 == Approx(30.41).epsilon(1e-3));
  const double interval_s = optimal_checkpoint_interval_s(mtbf_s, 5);
  CHECK(expected_effective_time(mtbf_s, interval_s, 5, 1800) == Approx(0.346).margin(0.0005));
  CHECK(expected_effective_time(mtbf_s, interval_s, 5, 90) == Approx(0.883).margin(0.0005));
}

TEST_CASE("Llama 3's own run: twenty-second saves, five-minute recoveries") {
  const double mtbf_s = 54 * 86400.0 / 419;
  const double interval_s = optimal_checkpoint_interval_s(mtbf_s, 20);
  CHECK(expected_effective_time(mtbf_s, interval_s, 20, 300) == Approx(0.917).margin(0.001));
}

TEST_CASE("Without failures only the saves cost") {
  CHECK(std::isinf(mean_time_between_failures_s(0, 100000)));
  CHECK(expected_effective_time(mean_time_between_failures_s(0, 8), 95, 5, 1800) == Approx(0.95));
}
