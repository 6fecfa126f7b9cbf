// The report of `sim run`: built once as JSON, from which the text is printed, now or later out of the store.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "cli/job.h"
#include "cli/step_memo.h"
#include "sim/run_result.h"
#include "sim/step_simulator.h"

namespace trainyard::cli {

struct Simulated {
  StepResult step;                    // under the scenario's degradations, where it only simulates a step
  std::optional<StepResult> healthy;  // then, without them
  /// Of each policy: one run per seed.
  std::vector<std::vector<RunResult>> runs;
  MemoUse memo;
  double wall_s = 0;
  std::int64_t peak_rss_bytes = 0;
};

/// Keys are never renamed: see scenarios/README.md for their meanings.
nlohmann::ordered_json make_report(const Job& job, const Simulated& simulated);

/// For people.
std::string report_text(const nlohmann::ordered_json& report);

}  // namespace trainyard::cli
