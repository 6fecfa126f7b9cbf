#include "kernels/module.h"

#include <filesystem>

namespace trainyard::kernels {

std::vector<std::string> module_folders(const std::string& built) {
  std::vector<std::string> folders;
  std::error_code error;
  const auto binary = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    folders.push_back(binary.parent_path().string());
    folders.push_back((binary.parent_path() / "../lib/trainyard").string());
  }
  folders.push_back(built);
  return folders;
}

}  // namespace trainyard::kernels
