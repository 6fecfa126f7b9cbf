#include "models/cost/op_rate_fit.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <limits>

#include "models/base/check.h"

namespace trainyard {

namespace {

constexpr Eigen::Index kTerms = 3;  // floor, flops, bytes

}  // namespace

double predicted_seconds(const OpRate& rate, double flops, double bytes) {
  return rate.floor_s + flops * rate.seconds_per_flop + bytes * rate.seconds_per_byte;
}

// Three unknowns: the best of all choices of which are nought is the best there is.
OpRate fit_rate(const std::vector<OpSample>& samples) {
  TY_CHECK(!samples.empty(), "a fit needs samples");
  Eigen::MatrixX3d terms(static_cast<Eigen::Index>(samples.size()), kTerms);
  for (std::size_t i = 0; i < samples.size(); ++i) {
    const OpSample& s = samples[i];
    terms.row(static_cast<Eigen::Index>(i)) << 1 / s.seconds, s.flops / s.seconds, s.bytes / s.seconds;
  }
  const Eigen::VectorXd ones = Eigen::VectorXd::Ones(terms.rows());
  // Columns are brought to one size, or the solver would take small units for nought.
  const Eigen::RowVector3d scale = terms.colwise().maxCoeff().cwiseMax(1e-300);
  terms.array().rowwise() /= scale.array();
  Eigen::Vector3d best = Eigen::Vector3d::Zero();
  double least = std::numeric_limits<double>::infinity();
  for (int chosen = 1; chosen < 1 << kTerms; ++chosen) {
    std::vector<Eigen::Index> columns;
    for (Eigen::Index c = 0; c < kTerms; ++c) {
      if ((chosen >> c & 1) != 0) columns.push_back(c);
    }
    const Eigen::VectorXd x = terms(Eigen::all, columns).colPivHouseholderQr().solve(ones);
    const double error = (terms(Eigen::all, columns) * x - ones).squaredNorm();
    if (!(x.minCoeff() >= 0) || !(error < least)) continue;
    least = error;
    best.setZero();
    best(columns) = x;
  }
  best.array() /= scale.transpose().array();
  return {best[0], best[1], best[2]};
}

double median_error(const OpRate& rate, const std::vector<OpSample>& samples) {
  std::vector<double> errors;
  for (const OpSample& sample : samples)
    errors.push_back(std::fabs(predicted_seconds(rate, sample.flops, sample.bytes) / sample.seconds - 1));
  const auto middle = errors.begin() + static_cast<std::ptrdiff_t>(errors.size() / 2);
  std::nth_element(errors.begin(), middle, errors.end());
  return *middle;
}

}  // namespace trainyard
