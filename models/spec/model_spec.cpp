#include "models/spec/model_spec.h"

#include <cmath>

namespace trainyard {

double ModelSpec::attention_scale() const {
  return attention_multiplier.value_or(1.0 / std::sqrt(static_cast<double>(head_dim)));
}

}  // namespace trainyard
