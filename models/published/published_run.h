// One published training run as a scenario: what its row says, and what the row leaves open.
#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "models/base/status.h"
#include "models/spec/scenario.h"

namespace trainyard {

struct PublishedRun {
  std::string id, source, framework, gpu;
  /// One step. `stack` is left to whoever knows the profiles.
  Scenario scenario;
  /// Published when attention still wrote out its scores.
  bool before_fused_attention = false;
  double measured_step_s = 0;
  /// Where its source says which of its rows can be compared with one another: the name of that set.
  std::string series;
  /// The largest published figure of a device, as its tool counts it; unset where there is none.
  std::optional<double> peak_memory_bytes;
  /// It did not fit, which is what was measured.
  bool out_of_memory = false;
  /// What the row does not say and we filled in, in words.
  std::vector<std::string> assumed;
};

/// Reads one row; the string is the reason for which it cannot be simulated. `path` is its place in `file`.
std::variant<PublishedRun, std::string> published_run(const nlohmann::json& row, const std::string& file,
                                                      const std::string& path, Problems& problems);

}  // namespace trainyard
