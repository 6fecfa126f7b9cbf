#include "sim/child_process.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "models/base/check.h"
#include "models/base/stop.h"

namespace trainyard {

namespace {

constexpr int kWait_ms = 200;

Problem environment(std::string what, std::string fix) {
  return {"", "", "", std::move(what), std::move(fix), ProblemKind::MissingCapability};
}

// Between parent and child go messages: a kind, a length, and so many bytes.
enum class Kind : std::uint8_t { Result, Question, Answer };
constexpr std::size_t kHeader = 1 + sizeof(std::uint64_t);

/// False when the other end is gone; never a SIGPIPE, so that the parent lives to say so.
bool write_all(int fd, const std::uint8_t* bytes, std::size_t count) {
  while (count > 0) {
    const ssize_t written = ::send(fd, bytes, count, MSG_NOSIGNAL);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    bytes += written;
    count -= static_cast<std::size_t>(written);
  }
  return true;
}

bool send_message(int fd, Kind kind, const Bytes& bytes) {
  std::uint8_t header[kHeader];
  header[0] = static_cast<std::uint8_t>(kind);
  const std::uint64_t length = bytes.size();
  std::memcpy(header + 1, &length, sizeof length);
  return write_all(fd, header, kHeader) && write_all(fd, bytes.data(), bytes.size());
}

/// Takes the first message out of what has arrived, if it is there whole.
std::optional<std::pair<Kind, Bytes>> take_message(Bytes& arrived) {
  if (arrived.size() < kHeader) return std::nullopt;
  std::uint64_t length = 0;
  std::memcpy(&length, arrived.data() + 1, sizeof length);
  if (arrived.size() - kHeader < length) return std::nullopt;
  const auto begin = arrived.begin() + kHeader, end = begin + static_cast<std::ptrdiff_t>(length);
  std::pair<Kind, Bytes> message{static_cast<Kind>(arrived[0]), Bytes(begin, end)};
  arrived.erase(arrived.begin(), end);
  return message;
}

/// Appends what can be read now. False at the end.
bool read_more(int fd, Bytes& arrived) {
  std::uint8_t buffer[65536];
  const ssize_t count = read(fd, buffer, sizeof buffer);
  if (count > 0) arrived.insert(arrived.end(), buffer, buffer + count);
  return count > 0 || (count < 0 && (errno == EINTR || errno == EAGAIN));
}

struct Child {
  std::size_t index = 0;
  pid_t pid = 0;
  int socket = -1;
  Bytes arrived;
  std::optional<Bytes> result;
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
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return cannot_start();
    std::fflush(nullptr);
    const pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
      close(ends[0]);
      // Another child's end must not keep it waiting for an answer from a parent that is gone.
      for (const Child& child : running_) close(child.socket);
      be_child(parent, index, ends[1]);
    }
    if (pid < 0) cannot_start();
    close(ends[1]);
    if (pid < 0) {
      close(ends[0]);
      return;
    }
    running_.push_back({index, pid, ends[0], {}, {}});
  }

  void cannot_start() {
    problems_.push_back(environment(fmt::format("cannot start a simulation process: {}", std::strerror(errno)),
                                    "free memory or processes, or simulate fewer runs at a time"));
  }

  [[noreturn]] void be_child(pid_t parent, std::size_t index, int socket) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);   // no orphans when the parent is killed
    if (getppid() != parent) _exit(1);  // it was, in between
    // An orderly end is the parent's to make.
    std::signal(SIGINT, SIG_DFL);
    std::signal(SIGTERM, SIG_DFL);
    Bytes arrived;
    const Ask ask = [&](const Bytes& question) {
      if (!send_message(socket, Kind::Question, question)) _exit(1);
      while (true) {
        if (auto message = take_message(arrived)) return std::move(message->second);
        if (!read_more(socket, arrived)) _exit(1);
      }
    };
    // No destructors of the parent's objects, and no second flush of its buffers.
    _exit(send_message(socket, Kind::Result, work_.work(index, ask)) ? 0 : 1);
  }

  void read_some() {
    std::vector<pollfd> waiting;
    for (const Child& child : running_) waiting.push_back({child.socket, POLLIN, 0});
    const int ready = poll(waiting.data(), waiting.size(), kWait_ms);
    if (work_.on_wait) work_.on_wait();
    if (ready <= 0) return;
    for (std::size_t i = waiting.size(); i-- > 0;) {
      if (waiting[i].revents == 0 || go_on(running_[i])) continue;
      const Child child = std::move(running_[i]);
      running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(i));
      finish(child);
    }
  }

  /// Reads, answers; false when the child has ended.
  bool go_on(Child& child) {
    const bool alive = read_more(child.socket, child.arrived);
    while (auto message = take_message(child.arrived)) {
      if (message->first == Kind::Result) {
        child.result = std::move(message->second);
      } else if (!stop_requested()) {
        send_message(child.socket, Kind::Answer, work_.answer(child.index, message->second));
      }
    }
    return alive;
  }

  void finish(const Child& child) {
    close(child.socket);
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
    TY_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0 && child.result, "a simulation process failed");
    work_.on_result(child.index, *child.result);
  }

  static void abandon(const Child& child) {
    kill(child.pid, SIGKILL);
    close(child.socket);
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
