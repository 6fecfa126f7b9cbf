// What weights are before the first step: pure functions of the seed, the tensor's name and the place in it, so that a
// job starts alike under every plan.
#pragma once

#include <cstdint>

#include "models/program/program.h"

namespace trainyard {

/// Initial values of one Hugging Face tensor of a parameter.
class InitialWeights {
 public:
  InitialWeights(const ModelSpec& model, const Param& param, const ParamPart& part, std::uint64_t seed);
  /// Of element `global`, row-major as Hugging Face stores the tensor.
  [[nodiscard]] double at(std::int64_t global) const;

 private:
  Init init_;
  double deviation_;
  std::uint64_t key_;
};

}  // namespace trainyard
