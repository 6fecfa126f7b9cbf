#include "sim/child_process.h"

#include <cerrno>
#include <cstdio>
#include <cstring>

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>

namespace trainyard {

namespace {

Problem environment(std::string what) {
  return {"", "", "", std::move(what), "free memory or processes and try again", ProblemKind::MissingCapability};
}

[[noreturn]] void be_child(const std::function<std::vector<std::uint8_t>()>& work, int out) {
  const std::vector<std::uint8_t> bytes = work();
  std::size_t written = 0;
  while (written < bytes.size()) {
    const ssize_t count = write(out, bytes.data() + written, bytes.size() - written);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) _exit(1);
    written += static_cast<std::size_t>(count);
  }
  _exit(0);  // no destructors of the parent's objects, and no second flush of its buffers
}

}  // namespace

Result<std::vector<std::uint8_t>> in_child_process(const std::function<std::vector<std::uint8_t>()>& work) {
  int ends[2];
  if (pipe(ends) != 0) return environment(fmt::format("no pipe to a simulation process: {}", std::strerror(errno)));
  std::fflush(nullptr);
  const pid_t pid = fork();
  if (pid == 0) {
    close(ends[0]);
    be_child(work, ends[1]);
  }
  close(ends[1]);
  if (pid < 0) {
    close(ends[0]);
    return environment(fmt::format("cannot start a simulation process: {}", std::strerror(errno)));
  }
  std::vector<std::uint8_t> bytes;
  std::uint8_t buffer[65536];
  while (true) {
    const ssize_t count = read(ends[0], buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    bytes.insert(bytes.end(), buffer, buffer + count);
  }
  close(ends[0]);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
    return environment("a simulation process was killed, likely for memory");
  TY_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a simulation process failed");
  return bytes;
}

}  // namespace trainyard
