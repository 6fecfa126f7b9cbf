#include "sim/child_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <thread>

#include "models/base/check.h"
#include "models/base/stop.h"

namespace trainyard {

namespace {

constexpr int kWait_ms = 200;

Problem environment(std::string what, std::string fix) {
  return {"", "", "", std::move(what), std::move(fix), ProblemKind::MissingCapability};
}

void write_all(int fd, const Bytes& bytes) {
  std::size_t written = 0;
  while (written < bytes.size()) {
    const ssize_t count = write(fd, bytes.data() + written, bytes.size() - written);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) _exit(1);
    written += static_cast<std::size_t>(count);
  }
}

struct Child {
  std::size_t index = 0;
  pid_t pid = 0;
  int fd = -1;
  Bytes bytes;
};

class Children {
 public:
  explicit Children(const ChildWork& work) : work_(work) {
    const unsigned processors = std::max(1U, std::thread::hardware_concurrency());
    limit_ = work.processes > 0 ? static_cast<std::size_t>(work.processes) : processors;
  }
  ~Children() {
    for (const Child& child : running_) abandon(child);
  }
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;

  Problems run() {
    while (problems_.empty() && (next_ < work_.count || !running_.empty())) {
      while (problems_.empty() && next_ < work_.count && running_.size() < limit_) start(next_++);
      if (!running_.empty()) read_some();
      if (stop_requested()) return {stopped()};
    }
    return problems_;
  }

 private:
  void start(std::size_t index) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
      problems_.push_back(environment(fmt::format("no pipe to a simulation process: {}", std::strerror(errno)),
                                      "free memory or processes, or simulate fewer runs at a time"));
      return;
    }
    std::fflush(nullptr);
    const pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
      close(ends[0]);
      be_child(parent, index, ends[1]);
    }
    close(ends[1]);
    if (pid < 0) {
      close(ends[0]);
      problems_.push_back(environment(fmt::format("cannot start a simulation process: {}", std::strerror(errno)),
                                      "free memory or processes, or simulate fewer runs at a time"));
      return;
    }
    running_.push_back({index, pid, ends[0], {}});
  }

  [[noreturn]] void be_child(pid_t parent, std::size_t index, int fd) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);   // no orphans when the parent is killed
    if (getppid() != parent) _exit(1);  // it was, in between
    // An orderly end is the parent's to make.
    std::signal(SIGINT, SIG_DFL);
    std::signal(SIGTERM, SIG_DFL);
    write_all(fd, work_.work(index));
    _exit(0);  // no destructors of the parent's objects, and no second flush of its buffers
  }

  void read_some() {
    std::vector<pollfd> waiting;
    for (const Child& child : running_) waiting.push_back({child.fd, POLLIN, 0});
    const int ready = poll(waiting.data(), waiting.size(), kWait_ms);
    if (work_.on_wait) work_.on_wait();
    if (ready <= 0) return;
    for (std::size_t i = waiting.size(); i-- > 0;) {
      if (waiting[i].revents == 0 || !read_from(running_[i])) continue;
      const Child child = std::move(running_[i]);
      running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(i));
      finish(child);
    }
  }

  /// True at the end of the child's output.
  static bool read_from(Child& child) {
    std::uint8_t buffer[65536];
    const ssize_t count = read(child.fd, buffer, sizeof buffer);
    if (count > 0) child.bytes.insert(child.bytes.end(), buffer, buffer + count);
    return count == 0 || (count < 0 && errno != EINTR && errno != EAGAIN);
  }

  void finish(const Child& child) {
    close(child.fd);
    int status = 0;
    while (waitpid(child.pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (stop_requested()) return;
    if (WIFSIGNALED(status) && WTERMSIG(status) != SIGABRT && WTERMSIG(status) != SIGSEGV) {
      problems_.push_back(environment(fmt::format("a simulation process was ended by signal {} ({})", WTERMSIG(status),
                                                  strsignal(WTERMSIG(status))),
                                      "if memory ran out, simulate fewer runs at a time"));
      return;
    }
    TY_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a simulation process failed");
    work_.on_result(child.index, child.bytes);
  }

  static void abandon(const Child& child) {
    kill(child.pid, SIGKILL);
    close(child.fd);
    while (waitpid(child.pid, nullptr, 0) < 0 && errno == EINTR) {
    }
  }

  const ChildWork& work_;
  std::size_t limit_ = 1;
  std::size_t next_ = 0;
  std::vector<Child> running_;
  Problems problems_;
};

}  // namespace

Problems in_children(const ChildWork& work) { return Children(work).run(); }

}  // namespace trainyard
