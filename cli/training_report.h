// The report of `exec run`: built once as JSON, from which the text is printed, now or later out of the store.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "cli/plan_lock.h"
#include "exec/launcher.h"
#include "models/spec/scenario.h"

namespace trainyard::cli {

/// Keys are never renamed: see scenarios/README.md for their meanings.
nlohmann::ordered_json make_training_report(const Scenario& scenario, const exec::TrainingReport& report,
                                            const std::string& device);

/// What was predicted when the plan was validated, beside what the report has: its "validated".
nlohmann::ordered_json compare_with_lock(const nlohmann::ordered_json& report, const LockedPlan& lock);
/// Where the two are further apart than they should be.
std::vector<std::string> drift_notes(const nlohmann::ordered_json& report);

/// For people, with the loss as a curve.
std::string training_text(const nlohmann::ordered_json& report);

}  // namespace trainyard::cli
