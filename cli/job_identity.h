// What results of a job depend on, so that a stored one is used again only where it would come out the same.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "cli/job.h"

namespace trainyard::cli {

/// Names the code: the commit, and the program itself where that does not say it all.
std::string code_identity();

/// "code", and hashes of "model", "plan", "program", "cluster", "hardware" and "stack".
Result<nlohmann::ordered_json> job_identity(const Job& job);

/// XXH3, 64 bits in hexadecimal.
std::string short_hash(const std::string& text);
/// The same of 128 bits, where chance must not find two alike.
std::string long_hash(const std::string& text);

}  // namespace trainyard::cli
