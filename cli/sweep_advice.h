// What a sweep advises: of each key that it varies the value to take, with the cells that speak for it.
#pragma once

#include <nlohmann/json.hpp>

#include "cli/sweep_table.h"

namespace trainyard::cli {

/// A list; of each entry "text" is for people and the rest are the numbers behind it.
nlohmann::ordered_json advice(const SweepTable& table);

/// The variation of the highest mean effective training time among `candidates`; it is not empty.
std::size_t best_of(const SweepTable& table, const std::vector<std::size_t>& candidates);

}  // namespace trainyard::cli
