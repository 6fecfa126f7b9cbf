#include "tests/program/safetensors.h"

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace trainyard {

std::map<std::string, GoldenTensor> read_safetensors(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open " + path);
  std::uint64_t header_bytes = 0;
  file.read(reinterpret_cast<char*>(&header_bytes), sizeof header_bytes);
  std::string header(header_bytes, '\0');
  file.read(header.data(), static_cast<std::streamsize>(header_bytes));
  const std::vector<char> body((std::istreambuf_iterator<char>(file)), {});

  std::map<std::string, GoldenTensor> out;
  const nlohmann::json entries = nlohmann::json::parse(header);
  for (const auto& [name, entry] : entries.items()) {
    if (name == "__metadata__") continue;
    GoldenTensor tensor;
    tensor.shape = entry.at("shape").get<std::vector<std::int64_t>>();
    const auto begin = entry.at("data_offsets").at(0).get<std::size_t>();
    const auto end = entry.at("data_offsets").at(1).get<std::size_t>();
    const std::string dtype = entry.at("dtype");
    if (end > body.size() || (dtype != "F64" && dtype != "I64"))
      throw std::runtime_error(path + ": " + name + " is not float64 or int64");
    tensor.data.resize((end - begin) / 8);
    for (std::size_t i = 0; i < tensor.data.size(); ++i) {
      if (dtype == "F64") {
        std::memcpy(&tensor.data[i], &body[begin + 8 * i], 8);
      } else {
        std::int64_t value = 0;
        std::memcpy(&value, &body[begin + 8 * i], 8);
        tensor.data[i] = static_cast<double>(value);
      }
    }
    out[name] = std::move(tensor);
  }
  return out;
}

}  // namespace trainyard
