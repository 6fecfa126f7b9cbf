// The report of `exec run`: built once as JSON, from which the text is printed, now or later out of the store.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "exec/launcher.h"
#include "models/spec/scenario.h"

namespace trainyard::cli {

/// Keys are never renamed: see scenarios/README.md for their meanings.
nlohmann::ordered_json make_training_report(const Scenario& scenario, const exec::TrainingReport& report);

/// For people, with the loss as a curve.
std::string training_text(const nlohmann::ordered_json& report);

}  // namespace trainyard::cli
