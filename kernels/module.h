// Modules that are opened at run time: where they lie.
#pragma once

#include <string>
#include <vector>

namespace trainyard::kernels {

/// Beside the binary, where it was installed, or `built` where it was built.
std::vector<std::string> module_folders(const std::string& built);

}  // namespace trainyard::kernels
