#include "store/run_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "models/base/check.h"

namespace trainyard::store {

namespace {

std::string lock_path(const std::string& store_file) { return store_file + "-writer"; }

// Descriptors of the locks this process holds, for the fork handler.
std::vector<int>& held_descriptors() {
  static std::vector<int> descriptors;
  return descriptors;
}

void close_in_child() {
  for (const int descriptor : held_descriptors()) ::close(descriptor);
  held_descriptors().clear();
}

void remember(int descriptor) {
  static const int installed = ::pthread_atfork(nullptr, nullptr, close_in_child);
  static_cast<void>(installed);
  held_descriptors().push_back(descriptor);
}

constexpr std::int64_t kEntrance = 0;

// `length` 0: to the end of the file and beyond.
bool set_lock(int descriptor, short type, std::int64_t first, std::int64_t length) {
  struct flock range {};
  range.l_type = type;
  range.l_whence = SEEK_SET;
  range.l_start = first;
  range.l_len = length;
  return ::fcntl(descriptor, F_OFD_SETLK, &range) == 0;
}

// The last writer to leave removes the file, so the one that we locked may no longer be the one at `path`.
bool is_still_at(int descriptor, const std::string& path) {
  struct stat opened {
  }, named{};
  return ::fstat(descriptor, &opened) == 0 && ::stat(path.c_str(), &named) == 0 && opened.st_dev == named.st_dev &&
         opened.st_ino == named.st_ino;
}

void write_process_id(int descriptor) {
  // Only for the message that another writer prints: a failure here costs nothing.
  const std::string text = fmt::format("{}\n", ::getpid());
  if (::ftruncate(descriptor, 0) != 0 || ::pwrite(descriptor, text.data(), text.size(), 0) < 0) return;
}

std::string read_process_id(int descriptor) {
  char text[32] = {};
  const ssize_t length = ::pread(descriptor, text, sizeof text - 1, 0);
  std::string digits;
  for (ssize_t i = 0; i < length && text[i] >= '0' && text[i] <= '9'; ++i) digits += text[i];
  return digits.empty() ? "?" : digits;
}

Problem busy(const std::string& store_file, const std::string& process_id) {
  return {store_file, "", "", fmt::format("process {} has been entering a run for too long", process_id),
          "see what holds it up, or give this run a store of its own with --store FILE or TRAINYARD_STORE"};
}

Problem cannot_open(const std::string& store_file, int error) {
  return {store_file,
          "",
          "",
          fmt::format("cannot write here: {}", std::strerror(error)),
          "choose a directory that you can write to with --store FILE or TRAINYARD_STORE",
          ProblemKind::MissingCapability};
}

}  // namespace

Result<RunLock> RunLock::enter(const std::string& store_file, double wait_s) {
  const std::string path = lock_path(store_file);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(wait_s);
  while (true) {
    const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (descriptor < 0) return cannot_open(store_file, errno);
    const bool locked = set_lock(descriptor, F_WRLCK, kEntrance, 1);
    if (locked && is_still_at(descriptor, path)) {
      write_process_id(descriptor);
      remember(descriptor);
      return RunLock(descriptor, path);
    }
    const int error = errno;
    const std::string owner = read_process_id(descriptor);
    ::close(descriptor);
    if (locked) continue;
    if (error != EAGAIN && error != EACCES) return cannot_open(store_file, error);
    if (std::chrono::steady_clock::now() >= deadline) return busy(store_file, owner);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

void RunLock::hold(std::int64_t run_id) {
  TY_CHECK(run_id > kEntrance && set_lock(descriptor_, F_WRLCK, run_id, 1), "a new run's byte is nobody's");
}

void RunLock::leave_entrance() { set_lock(descriptor_, F_UNLCK, kEntrance, 1); }

bool RunLock::held(const std::string& store_file, std::int64_t run_id) {
  const int descriptor = ::open(lock_path(store_file).c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return false;
  struct flock range {};
  range.l_type = F_RDLCK;
  range.l_whence = SEEK_SET;
  range.l_start = run_id;
  range.l_len = 1;
  const bool known = ::fcntl(descriptor, F_OFD_GETLK, &range) == 0;
  ::close(descriptor);
  return known && range.l_type != F_UNLCK;
}

RunLock::RunLock(RunLock&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), path_(std::move(other.path_)) {}

RunLock& RunLock::operator=(RunLock&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(path_, other.path_);
  return *this;
}

RunLock::~RunLock() { release(); }

void RunLock::release() {
  auto& descriptors = held_descriptors();
  const auto mine = std::find(descriptors.begin(), descriptors.end(), descriptor_);
  // In a forked child the handler has closed it already, and the file is the parent's to remove.
  if (descriptor_ < 0 || mine == descriptors.end()) return;
  descriptors.erase(mine);
  // Whoever gets all of it is the last one here.
  if (set_lock(descriptor_, F_WRLCK, 0, 0)) ::unlink(path_.c_str());
  ::close(descriptor_);
  descriptor_ = -1;
}

}  // namespace trainyard::store
