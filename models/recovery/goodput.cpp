#include "models/recovery/goodput.h"

#include <cmath>
#include <limits>

#include "models/base/check.h"

namespace trainyard {

double mean_time_between_failures_s(double rate_per_gpu_hour, std::int64_t gpus) {
  const double per_s = rate_per_gpu_hour * static_cast<double>(gpus) / 3600;
  return per_s > 0 ? 1 / per_s : std::numeric_limits<double>::infinity();
}

double optimal_checkpoint_interval_s(double mtbf_s, double stall_s) {
  TY_CHECK(std::isfinite(mtbf_s) && mtbf_s > 0 && stall_s > 0, "the optimum needs failures and a cost");
  // With u = tau/M = 1 + W, the definition W e^W = -exp(-1 - d/M) reads log(1 - u) + u = -d/M.
  // In this form nothing cancels near the branch point (small d/M). The left side falls
  // monotonically on (0, 1), so bisection is safe.
  const double target = -stall_s / mtbf_s;
  double low = 0;
  double high = 1;
  for (int i = 0; i < 200 && low < high; ++i) {
    const double u = 0.5 * (low + high);
    if (u == low || u == high) break;
    (std::log1p(-u) + u > target ? low : high) = u;
  }
  return mtbf_s * 0.5 * (low + high);
}

double practical_checkpoint_interval_s(double mtbf_s, double stall_s) {
  constexpr double kHourly_s = 3600;
  if (!std::isfinite(mtbf_s)) return kHourly_s;
  return optimal_checkpoint_interval_s(mtbf_s, stall_s > 0 ? stall_s : 1);
}

double expected_effective_time(double mtbf_s, double interval_s, double stall_s, double recovery_s) {
  TY_CHECK(mtbf_s > 0 && interval_s > 0, "times are positive");
  if (std::isinf(mtbf_s)) return interval_s / (interval_s + stall_s);
  return interval_s / (mtbf_s * std::exp(recovery_s / mtbf_s) * std::expm1((interval_s + stall_s) / mtbf_s));
}

}  // namespace trainyard
