// Reads the golden files: safetensors of float64 and int64.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace trainyard {

struct GoldenTensor {
  std::vector<std::int64_t> shape;
  std::vector<double> data;  // integers too
};

/// Throws std::runtime_error on anything that is not such a file: tests fail loudly.
std::map<std::string, GoldenTensor> read_safetensors(const std::string& path);

}  // namespace trainyard
