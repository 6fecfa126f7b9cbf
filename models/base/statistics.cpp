#include "models/base/statistics.h"

#include <algorithm>
#include <boost/math/distributions/binomial.hpp>
#include <boost/math/distributions/students_t.hpp>
#include <cmath>
#include <limits>
#include <numeric>

#include "models/base/check.h"

namespace trainyard {

namespace {

constexpr double kUpper = 0.975;  // quantile of a two-sided interval of 95%
constexpr double kPower = 0.8;
/// Nobody runs more seeds than this.
constexpr double kMostPairs = 1e9;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

double variance_of_mean(const std::vector<double>& values) {
  const double deviation = standard_deviation(values);
  return deviation * deviation / static_cast<double>(values.size());
}

// Welch's t interval of mean(b) - mean(a), with the degrees of freedom of Welch and Satterthwaite.
double welch_half_width(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() < 2 || b.size() < 2) return kInfinity;
  const double of_a = variance_of_mean(a), of_b = variance_of_mean(b), both = of_a + of_b;
  if (both <= 0) return 0;
  const double degrees =
      both * both / (of_a * of_a / static_cast<double>(a.size() - 1) + of_b * of_b / static_cast<double>(b.size() - 1));
  return student_t_quantile(kUpper, degrees) * std::sqrt(both);
}

double sign_test(std::size_t greater, std::size_t smaller) {
  const std::size_t all = greater + smaller;
  if (all == 0) return 1;
  const boost::math::binomial_distribution<double> coin(static_cast<double>(all), 0.5);
  return std::min(1.0, 2 * boost::math::cdf(coin, static_cast<double>(std::min(greater, smaller))));
}

}  // namespace

double student_t_quantile(double probability, double degrees) {
  TY_CHECK(probability > 0 && probability < 1 && degrees > 0, "a quantile of Student's t");
  return boost::math::quantile(boost::math::students_t_distribution<double>(degrees), probability);
}

double student_t_two_sided(double t, double degrees) {
  if (std::isinf(t)) return 0;
  const boost::math::students_t_distribution<double> distribution(degrees);
  return std::min(1.0, 2 * boost::math::cdf(boost::math::complement(distribution, std::abs(t))));
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

double standard_deviation(const std::vector<double>& values) {
  if (values.size() < 2) return 0;
  const double center = mean(values);
  double squares = 0;
  for (const double value : values) squares += (value - center) * (value - center);
  return std::sqrt(squares / static_cast<double>(values.size() - 1));
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : 0.5 * (values[middle - 1] + values[middle]);
}

double percentile(std::vector<double> values, double share) {
  TY_CHECK(!values.empty() && share > 0 && share <= 1, "a percentile of something");
  const auto rank = static_cast<std::ptrdiff_t>(std::ceil(share * static_cast<double>(values.size()))) - 1;
  const auto at = values.begin() + std::clamp<std::ptrdiff_t>(rank, 0, static_cast<std::ptrdiff_t>(values.size()) - 1);
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

Estimate estimate(const std::vector<double>& values) {
  Estimate out{values.size(), mean(values), kInfinity};
  if (values.size() > 1)
    out.half_width =
        student_t_quantile(kUpper, static_cast<double>(values.size() - 1)) * std::sqrt(variance_of_mean(values));
  return out;
}

PairedDifference paired_difference(const std::vector<double>& a, const std::vector<double>& b) {
  TY_CHECK(!a.empty() && a.size() == b.size(), "pairs are pairs");
  std::vector<double> differences;
  PairedDifference out;
  for (std::size_t i = 0; i < a.size(); ++i) {
    differences.push_back(b[i] - a[i]);
    out.greater += b[i] > a[i] ? 1 : 0;
    out.smaller += b[i] < a[i] ? 1 : 0;
  }
  const Estimate difference = estimate(differences);
  out.pairs = difference.count;
  out.mean = difference.mean;
  out.half_width = difference.half_width;
  out.deviation = standard_deviation(differences);
  out.unpaired_half_width = welch_half_width(a, b);
  out.sign_p_value = sign_test(out.greater, out.smaller);
  if (out.pairs > 1 && out.mean != 0) {
    const double error = std::sqrt(variance_of_mean(differences));
    out.p_value = student_t_two_sided(error > 0 ? out.mean / error : kInfinity, static_cast<double>(out.pairs - 1));
  }
  return out;
}

bool PairedDifference::is_real() const { return std::abs(mean) > half_width; }

std::optional<std::int64_t> PairedDifference::pairs_needed() const {
  if (mean == 0 || pairs < 2) return std::nullopt;
  const double in_deviations = deviation / std::abs(mean);
  double needed = 2;
  // The quantiles depend on the number that is sought; a few rounds settle it.
  for (int i = 0; i < 80; ++i) {
    const double degrees = std::max(1.0, needed - 1);
    const double factor = student_t_quantile(kUpper, degrees) + student_t_quantile(kPower, degrees);
    const double next = std::ceil(std::clamp(factor * factor * in_deviations * in_deviations, 2.0, kMostPairs));
    if (next == needed) break;
    // Halfway: from few degrees of freedom the rounds would swing between two numbers.
    needed = std::ceil((needed + next) / 2);
  }
  return static_cast<std::int64_t>(needed);
}

namespace {

std::vector<double> ranks_of(const std::vector<double>& values) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return values[a] < values[b]; });
  std::vector<double> ranks(values.size());
  for (std::size_t first = 0; first < order.size();) {
    std::size_t end = first + 1;
    while (end < order.size() && values[order[end]] == values[order[first]]) ++end;
    for (std::size_t i = first; i < end; ++i) ranks[order[i]] = static_cast<double>(first + end - 1) / 2;
    first = end;
  }
  return ranks;
}

}  // namespace

double rank_correlation(const std::vector<double>& a, const std::vector<double>& b) {
  TY_CHECK(a.size() == b.size(), "a correlation is of pairs");
  if (a.size() < 2) return 0;
  const std::vector<double> x = ranks_of(a), y = ranks_of(b);
  const double middle = static_cast<double>(a.size() - 1) / 2;
  double together = 0, of_x = 0, of_y = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    together += (x[i] - middle) * (y[i] - middle);
    of_x += (x[i] - middle) * (x[i] - middle);
    of_y += (y[i] - middle) * (y[i] - middle);
  }
  return of_x > 0 && of_y > 0 ? together / std::sqrt(of_x * of_y) : 0;
}

}  // namespace trainyard
