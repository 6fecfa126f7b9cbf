// What PyTorch computed, and how far from it something else is.
#pragma once

#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <string>

#include "tests/program/tiny_models.h"
#include "tests/program/training.h"

namespace trainyard::test {

// Relative L2 distance.
inline double distance(const GoldenTensor& got, const GoldenTensor& want) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < want.data.size(); ++i) {
    difference += (got.data.at(i) - want.data[i]) * (got.data.at(i) - want.data[i]);
    size += want.data[i] * want.data[i];
  }
  return std::sqrt(difference / std::max(size, 1e-300));
}

inline void check_close(const Weights& got, const Weights& want, double tolerance) {
  for (const auto& [name, tensor] : want) {
    INFO(name);
    REQUIRE(got.count(name) == 1);
    CHECK(distance(got.at(name), tensor) < tolerance);
  }
}

inline std::string golden_file(ModelFamily family) {
  const char* names[] = {"llama", "mixtral", "grok1", "gpt3"};
  const ModelFamily families[] = {ModelFamily::Llama, ModelFamily::Mixtral, ModelFamily::Grok1, ModelFamily::Gpt3};
  const auto found = std::find(std::begin(families), std::end(families), family) - std::begin(families);
  return std::string(TRAINYARD_SOURCE_DIR) + "/tests/golden/" + names[found] + "_f64.safetensors";
}

inline Weights section(const Weights& all, const std::string& prefix) {
  Weights out;
  for (const auto& [name, tensor] : all) {
    if (name.rfind(prefix, 0) == 0) out[name.substr(prefix.size())] = tensor;
  }
  return out;
}

// Softmax does not see a bias on keys: its gradient is nought but for rounding, which Adam blows up to full steps.
inline Weights without_key_biases(Weights weights) {
  for (auto& [name, tensor] : weights) {
    if (name.find("attn.c_attn.bias") == std::string::npos) continue;
    const auto third = static_cast<std::ptrdiff_t>(tensor.data.size() / 3);
    tensor.data.erase(tensor.data.begin() + third, tensor.data.begin() + 2 * third);
  }
  return weights;
}

}  // namespace trainyard::test
