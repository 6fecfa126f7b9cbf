// Links of a simulated step, by name, and what ranks wait for.
#pragma once

#include <vector>

#include <nlohmann/json.hpp>

#include "cli/job.h"
#include "sim/step_simulator.h"
#include "store/run_records.h"

namespace trainyard::cli {

/// By tier from the NICs up, the busiest first.
std::vector<store::Link> links_of(const Job& job, const StepResult& step);

/// Of each kind of communication that compute waits for (a thousandth of the step at least, of some rank): how long,
/// for which link, and who the longest. The longest wait first.
nlohmann::ordered_json explain(const Job& job, const StepResult& step);
std::string explain_text(const nlohmann::ordered_json& explained, double step_s);

}  // namespace trainyard::cli
