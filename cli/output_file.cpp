#include "cli/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <fmt/format.h>

namespace trainyard::cli {

namespace {

namespace fs = std::filesystem;

// A place where nobody could write is a mistake of whoever named it; a full disk is the machine's lack.
Problem not_written(const std::string& file, int error) {
  const bool wrong_place = error == ENOENT || error == ENOTDIR || error == EISDIR || error == EACCES;
  return {file,
          "",
          "",
          fmt::format("cannot be written: {}", std::strerror(error)),
          "check the folder, its permissions and its free space",
          wrong_place ? ProblemKind::Input : ProblemKind::MissingCapability};
}

bool on_disk(const std::string& file) {
  const int descriptor = ::open(file.c_str(), O_WRONLY | O_CLOEXEC);
  if (descriptor < 0) return false;
  const bool synced = ::fdatasync(descriptor) == 0;
  return ::close(descriptor) == 0 && synced;
}

}  // namespace

Problems write_output(const std::string& target, const std::function<Problems(std::ostream&)>& write) {
  std::error_code error;
  const bool special = fs::exists(target, error) && !fs::is_regular_file(target, error);
  const std::string part = special ? target : target + ".part";
  errno = 0;
  std::ofstream file(part, std::ios::binary | std::ios::trunc);
  if (!file) return {not_written(target, errno)};
  Problems problems = write(file);
  file.close();
  if (problems.empty() && (!file || (!special && !on_disk(part)))) problems.push_back(not_written(target, errno));
  if (special) return problems;
  if (problems.empty()) {
    fs::rename(part, target, error);
    if (!error) return {};
    problems.push_back(not_written(target, error.value()));
  }
  fs::remove(part, error);
  return problems;
}

Problems write_output(const std::string& target, const std::string& text) {
  return write_output(target, [&](std::ostream& out) {
    out << text;
    return Problems{};
  });
}

}  // namespace trainyard::cli
