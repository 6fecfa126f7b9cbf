#include "models/program/initial_weights.h"

#include <cmath>

#include "models/base/random.h"

namespace trainyard {

InitialWeights::InitialWeights(const ModelSpec& model, const Param& param, const ParamPart& part, std::uint64_t seed)
    : init_(param.init),
      deviation_(model.initializer_range * param.init_scale),
      key_(RandomStream(seed, part.name).next_u64()) {
  if (init_ == Init::Residual) deviation_ /= std::sqrt(2.0 * static_cast<double>(model.num_hidden_layers));
}

double InitialWeights::at(std::int64_t global) const {
  if (init_ == Init::Ones) return 1;
  if (init_ == Init::Zeros) return 0;
  // Box and Muller, with two draws of this element's own.
  const auto draw = 2 * static_cast<std::uint64_t>(global);
  const auto uniform = [&](std::uint64_t counter) {
    return (static_cast<double>(mix64(key_ ^ mix64(counter)) >> 11) + 0.5) * 0x1p-53;
  };
  const double radius = std::sqrt(-2 * std::log(uniform(draw)));
  return deviation_ * radius * std::cos(2 * std::acos(-1.0) * uniform(draw + 1));
}

}  // namespace trainyard
