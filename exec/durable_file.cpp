#include "exec/durable_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace trainyard::exec {

Problem not_written(const std::string& file) {
  return {file,
          "",
          "",
          fmt::format("could not be written: {}", std::strerror(errno)),
          "check the folder, its permissions and its free space",
          ProblemKind::MissingCapability};
}

Problems write_synced(const std::string& file, const std::byte* bytes, std::int64_t count) {
  const int descriptor = ::open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor < 0) return {not_written(file)};
  bool good = true;
  while (count > 0 && good) {
    const ssize_t written = ::write(descriptor, bytes, static_cast<std::size_t>(count));
    if (written < 0 && errno == EINTR) continue;
    good = written >= 0;
    if (good) bytes += written, count -= written;
  }
  good = good && ::fdatasync(descriptor) == 0;
  const Problem problem = not_written(file);  // before close() can change errno
  good = ::close(descriptor) == 0 && good;
  return good ? Problems{} : Problems{problem};
}

Problems write_synced(const std::string& file, const std::string& text) {
  return write_synced(file, reinterpret_cast<const std::byte*>(text.data()), static_cast<std::int64_t>(text.size()));
}

bool sync_folder(const std::string& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return false;
  const bool good = ::fsync(descriptor) == 0;
  ::close(descriptor);
  return good;
}

}  // namespace trainyard::exec
