// Reads keys of a row in which absent and null mean the same.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include "models/base/status.h"
#include "models/spec/json_reader.h"

namespace trainyard {

class RowReader {
 public:
  RowReader(const nlohmann::json& row, std::string file, std::string path, Problems& problems)
      : row_(row), file_(std::move(file)), path_(std::move(path)), problems_(problems) {}

  [[nodiscard]] std::string text(const char* key) const {
    const nlohmann::json* its = find(key);
    if (its == nullptr) return "";
    if (its->is_string()) return its->get<std::string>();
    wrong(key, *its, "must be text, or null");
    return "";
  }
  /// Not negative.
  [[nodiscard]] std::optional<double> number(const char* key) const {
    const nlohmann::json* its = find(key);
    if (its == nullptr) return std::nullopt;
    if (its->is_number() && std::isfinite(its->get<double>()) && its->get<double>() >= 0) return its->get<double>();
    wrong(key, *its, "must be a number that is not negative, or null");
    return std::nullopt;
  }
  [[nodiscard]] std::optional<std::int64_t> integer(const char* key) const {
    const std::optional<double> its = number(key);
    if (!its) return std::nullopt;
    if (*its == std::floor(*its) && *its < 1e15) return static_cast<std::int64_t>(*its);
    wrong(key, *find(key), "must be a whole number, or null");
    return std::nullopt;
  }
  [[nodiscard]] std::optional<bool> boolean(const char* key) const {
    const nlohmann::json* its = find(key);
    if (its == nullptr) return std::nullopt;
    if (its->is_boolean()) return its->get<bool>();
    wrong(key, *its, "must be true, false or null");
    return std::nullopt;
  }

 private:
  [[nodiscard]] const nlohmann::json* find(const char* key) const {
    const auto its = row_.find(key);
    return its == row_.end() || its->is_null() ? nullptr : &*its;
  }
  void wrong(const char* key, const nlohmann::json& value, const char* rule) const {
    add_problem(problems_, {file_, path_ + path_step(key), shown(value), rule, "correct the row"});
  }

  const nlohmann::json& row_;
  std::string file_, path_;
  Problems& problems_;
};

}  // namespace trainyard
