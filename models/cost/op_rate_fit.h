// Op rates from measurements.
#pragma once

#include <vector>

#include "models/cost/cost.h"

namespace trainyard {

struct OpSample {
  double flops = 0, bytes = 0, seconds = 0;
};

/// The rate that is nearest in relative terms (least squares of predicted / measured - 1), its three numbers not
/// negative. Needs a sample.
OpRate fit_rate(const std::vector<OpSample>& samples);

double predicted_seconds(const OpRate& rate, double flops, double bytes);
/// The median of |predicted / measured - 1|.
double median_error(const OpRate& rate, const std::vector<OpSample>& samples);

}  // namespace trainyard
