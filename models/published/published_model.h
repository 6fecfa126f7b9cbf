// ModelSpec from a row: sizes are published, and the rest is known of the family that its name tells.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "models/published/row_reader.h"
#include "models/spec/model_spec.h"

namespace trainyard {

/// None where a size is missing; what was filled in is added to `assumed`.
std::optional<ModelSpec> published_model(const RowReader& row, std::vector<std::string>& assumed);

/// In small letters.
std::string lower_case(std::string text);

}  // namespace trainyard
