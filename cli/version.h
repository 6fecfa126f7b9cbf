#pragma once

#include <string>

namespace trainyard::cli {

/// "0.1.0".
std::string version_number();
/// Commit that this binary was built from, with "-dirty" for an edited tree; "unknown" outside git.
std::string commit_id();
/// "0.1.0 (a1b2c3d4e5f6)".
std::string version_text();

}  // namespace trainyard::cli
