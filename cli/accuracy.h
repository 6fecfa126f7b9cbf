// How well predictions meet what was measured.
#pragma once

#include <array>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "models/published/published_set.h"
#include "sim/step_simulator.h"

namespace trainyard::cli {

/// What the simulator says of a published run.
struct Prediction {
  const PublishedRun* run = nullptr;
  std::string stack;
  double step_s = 0;
  std::array<double, kStepPartCount> part_s{};  // adds up to step_s
  double contention = 1, slowest_rank = 1;      // factors of kernels' times
  double peak_bytes = 0, device_bytes = 0;
  double flops = 0;     // of the model in a step, attention in full
  bool fitted = false;  // its stack's numbers were fitted on it, among others

  [[nodiscard]] double error() const { return step_s / run->measured_step_s - 1; }
  [[nodiscard]] bool fits() const { return peak_bytes <= device_bytes; }
};

/// The whole report: errors are of seconds a step, predicted over measured, less one.
nlohmann::ordered_json accuracy_report(const PublishedSet& set, const std::vector<Prediction>& predictions);

/// The same to read.
std::string accuracy_text(const nlohmann::ordered_json& report, std::size_t worst);

/// The same as a page of documentation: Markdown, with the picture that lies beside it.
std::string accuracy_markdown(const nlohmann::ordered_json& report, std::size_t worst, const std::string& picture);

/// One row for each run: id, source, measured and predicted seconds, parts.
std::string accuracy_csv(const nlohmann::ordered_json& report);

/// Measured seconds across, predicted over measured up.
std::string accuracy_svg(const nlohmann::ordered_json& report);

}  // namespace trainyard::cli
