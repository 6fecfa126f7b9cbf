// What happened in those minutes: one recovery as a timeline, out of the store. What struck is ground truth, which the
// controller never saw; what it was told and what it did stand beside it.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "cli/stored_run.h"
#include "models/base/status.h"

namespace trainyard::cli {

/// The recovery that `selector` names: its number, counted from 1, or "longest", "median" or "last". As an index.
Result<std::size_t> find_recovery(const StoredRun& run, const std::string& selector);

/// The numbers of the longest ones, from 0, longest first.
std::vector<std::size_t> longest_recoveries(const StoredRun& run, std::size_t count);

/// "timeline" (seconds since the first fault), "phases", and what came of it.
nlohmann::ordered_json recovery_story(const StoredRun& run, std::size_t index);
std::string story_text(const nlohmann::ordered_json& story);

}  // namespace trainyard::cli
