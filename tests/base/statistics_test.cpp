// Against tables, and against R on Student's own data (1908): `sleep`, ten patients under two drugs.
#include <catch2/catch.hpp>

#include <cmath>

#include "models/base/statistics.h"

using namespace trainyard;

namespace {

const std::vector<double> kFirstDrug = {0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0};
const std::vector<double> kSecondDrug = {1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4};

PairedDifference of_deviation(double mean, double deviation) {
  PairedDifference difference;
  difference.pairs = 10;
  difference.mean = mean;
  difference.deviation = deviation;
  return difference;
}

}  // namespace

TEST_CASE("quantiles of Student's t are those of the tables") {
  CHECK(student_t_quantile(0.975, 1) == Approx(12.706205));
  CHECK(student_t_quantile(0.975, 10) == Approx(2.228139));
  CHECK(student_t_quantile(0.975, 30) == Approx(2.042272));
  CHECK(student_t_quantile(0.95, 5) == Approx(2.015048));
  CHECK(student_t_quantile(0.5, 7) == Approx(0).margin(1e-12));
  CHECK(student_t_two_sided(2.228139, 10) == Approx(0.05).epsilon(1e-5));
  CHECK(student_t_two_sided(0, 3) == Approx(1));
}

TEST_CASE("an estimate is a mean with its interval") {
  const Estimate two = estimate({1, 3});
  CHECK(two.mean == 2);
  CHECK(two.half_width == Approx(12.706205));  // t(1) * sqrt(2) / sqrt(2)
  CHECK(std::isinf(estimate({5}).half_width));
  CHECK(estimate({4, 4, 4}).half_width == 0);
  CHECK(estimate({}).count == 0);
}

TEST_CASE("the median of an even number lies between the middle two") {
  CHECK(median({}) == 0);
  CHECK(median({300, 90, 100}) == 100);
  CHECK(median({300, 90}) == 195);
}

TEST_CASE("percentiles are values that were there") {
  std::vector<double> hundred;
  for (int i = 100; i >= 1; --i) hundred.push_back(i);
  CHECK(percentile(hundred, 0.99) == 99);
  CHECK(percentile(hundred, 0.5) == 50);
  CHECK(percentile(hundred, 1) == 100);
  CHECK(percentile({7}, 0.01) == 7);
}

TEST_CASE("rank correlation is R's: cor(a, b, method = \"spearman\")") {
  CHECK(rank_correlation({1, 2, 3, 4}, {10, 20, 30, 1000}) == Approx(1));
  CHECK(rank_correlation({1, 2, 3, 4}, {4, 3, 2, 1}) == Approx(-1));
  CHECK(rank_correlation({1, 2, 3, 4, 5}, {5, 6, 7, 8, 7}) == Approx(0.8207826817));  // a tie
  CHECK(rank_correlation({1, 2, 3}, {5, 5, 5}) == 0);
  CHECK(rank_correlation({1}, {1}) == 0);
}

TEST_CASE("paired differences are R's: t.test(second, first, paired = TRUE)") {
  const PairedDifference difference = paired_difference(kFirstDrug, kSecondDrug);
  CHECK(difference.pairs == 10);
  CHECK(difference.mean == Approx(1.58));
  CHECK(difference.mean - difference.half_width == Approx(0.7001142));
  CHECK(difference.mean + difference.half_width == Approx(2.4598858));
  CHECK(difference.p_value == Approx(0.002833).epsilon(1e-3));
  CHECK(difference.unpaired_half_width == Approx(1.7854832));  // Welch: -3.3654832 to 0.2054832
  CHECK(difference.greater == 9);
  CHECK(difference.smaller == 0);
  CHECK(difference.sign_p_value == Approx(0.00390625));  // binom.test(9, 9)
  CHECK(difference.is_real());
}

TEST_CASE("what cannot differ does not") {
  const PairedDifference same = paired_difference(kFirstDrug, kFirstDrug);
  CHECK(same.mean == 0);
  CHECK(same.half_width == 0);
  CHECK(same.p_value == 1);
  CHECK(same.sign_p_value == 1);
  CHECK_FALSE(same.is_real());
  CHECK_FALSE(same.pairs_needed().has_value());
}

TEST_CASE("one pair says nothing, and equal differences everything") {
  const PairedDifference one = paired_difference({1}, {2});
  CHECK(std::isinf(one.half_width));
  CHECK_FALSE(one.is_real());
  CHECK_FALSE(one.pairs_needed().has_value());
  const PairedDifference shifted = paired_difference({1, 2, 4}, {2, 3, 5});
  CHECK(shifted.mean == 1);
  CHECK(shifted.half_width == 0);
  CHECK(shifted.p_value == 0);
  CHECK(shifted.is_real());
}

TEST_CASE("the pairs that a difference takes are those of tables of power") {
  // Two-sided 5%, power 80%: 199, 34 and 10 pairs for effects of 0.2, 0.5 and 1 (Cohen 1988, table 2.4.1; G*Power).
  CHECK(of_deviation(0.2, 1).pairs_needed().value() == Approx(199).margin(1));
  CHECK(of_deviation(0.5, 1).pairs_needed().value() == Approx(34).margin(1));
  CHECK(of_deviation(1, 1).pairs_needed().value() == Approx(10).margin(1));
  CHECK(of_deviation(1, 0).pairs_needed().value() == 2);
  CHECK(of_deviation(1e-12, 1).pairs_needed().value() == 1'000'000'000);
}
