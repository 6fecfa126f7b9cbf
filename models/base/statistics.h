// Statistics of a handful of runs: how sure a mean is, and whether one of two policies is really better.
//
// Runs are compared seed by seed: under one seed both policies meet the same faults, so their difference varies far
// less than either does. All intervals are two-sided, of 95% confidence, by Student's t.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace trainyard {

/// x with P(T <= x) = `probability` in (0, 1) for Student's t with `degrees` > 0 degrees of freedom.
double student_t_quantile(double probability, double degrees);
/// P(|T| >= |t|).
double student_t_two_sided(double t, double degrees);

/// 0 for no values.
double mean(const std::vector<double>& values);
/// Of a sample: over n - 1. 0 for fewer than two values.
double standard_deviation(const std::vector<double>& values);
/// The mean of the middle two where their number is even. 0 for no values.
double median(std::vector<double> values);
/// The smallest value that `share` of them do not exceed (nearest rank). Of at least one value.
double percentile(std::vector<double> values, double share);

struct Estimate {
  std::size_t count = 0;
  double mean = 0;
  /// The interval is mean +- half_width; infinite for fewer than two values.
  double half_width = 0;
};
Estimate estimate(const std::vector<double>& values);

/// What n pairs (a_i, b_i) say about b - a.
struct PairedDifference {
  std::size_t pairs = 0;
  double mean = 0;        // of b_i - a_i
  double deviation = 0;   // standard, of b_i - a_i
  double half_width = 0;  // of the interval around the mean; infinite for one pair
  double p_value = 1;     // that chance alone makes a mean as far from 0, by the t test
  /// The same interval if nobody knew what belongs together (Welch's): what pairing saves.
  double unpaired_half_width = 0;
  std::size_t greater = 0, smaller = 0;  // pairs with b_i > a_i, b_i < a_i
  double sign_p_value = 1;               // exact sign test, which supposes nothing about distributions; ties apart

  /// Whether the interval leaves 0 out.
  [[nodiscard]] bool is_real() const;
  /// Pairs with which a difference of this mean and deviation would be found real four times out of five; unset
  /// without a difference.
  [[nodiscard]] std::optional<std::int64_t> pairs_needed() const;
};

/// `a` and `b` have one length, at least 1.
PairedDifference paired_difference(const std::vector<double>& a, const std::vector<double>& b);

/// Spearman's rank correlation of two lists of one length; equal values share their mean rank. 0 for fewer than two, or
/// where one of them is constant.
double rank_correlation(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace trainyard
