// Files that commands write: each appears whole or not at all.
#pragma once

#include <functional>
#include <ostream>
#include <string>

#include "models/base/status.h"

namespace trainyard::cli {

/// Runs `write` into a file beside `target`, brings that to the disk, and moves it into place. Pipes and devices are
/// written as they are. What `write` finds wrong is returned.
Problems write_output(const std::string& target, const std::function<Problems(std::ostream&)>& write);
Problems write_output(const std::string& target, const std::string& text);

}  // namespace trainyard::cli
