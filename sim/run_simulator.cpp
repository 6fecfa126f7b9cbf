#include "sim/run_simulator.h"

#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <simgrid/s4u.hpp>

#include "models/base/check.h"
#include "models/recovery/goodput.h"
#include "sim/run_world.h"

namespace trainyard {
namespace {

/// Beyond this many of anything a run would take minutes and gigabytes: a slip in the input.
constexpr double kMaxExpectedEvents = 1e7;
constexpr double kHourlyInterval_s = 3600;

double total_rate_per_gpu_hour(const FaultSpec& faults) {
  double rate = 0;
  for (const FaultCause& cause : faults.causes) rate += cause.rate_per_gpu_hour;
  return rate;
}

double mtbf_s(const RunInput& input) {
  return mean_time_between_failures_s(total_rate_per_gpu_hour(input.faults),
                                      input.job_nodes * input.cluster.gpus_per_node);
}

void check_sizes(const RunInput& input, const std::string& path, Problems& problems) {
  const std::int64_t held = input.job_nodes + input.policy.spare_nodes;
  if (input.job_nodes <= 0)
    problems.push_back({"", path + ".job_nodes", std::to_string(input.job_nodes), "the job needs at least one node",
                        "check the plan's mesh against the GPUs of a node"});
  else if (held > input.cluster.nodes)
    problems.push_back(
        {"", path + ".policy.spare_nodes", std::to_string(input.policy.spare_nodes),
         fmt::format("the job's {} nodes and its spares exceed the cluster's {} nodes", input.job_nodes,
                     input.cluster.nodes),
         fmt::format("have at most {} spares", std::max<std::int64_t>(0, input.cluster.nodes - input.job_nodes)),
         ProblemKind::Infeasible});
  if (!(input.duration_s > 0) || input.duration_s > 1e9)
    problems.push_back({"", path + ".duration_s", fmt::format("{}", input.duration_s),
                        "must be above 0 and at most 1e9 seconds", "give the length of the run in seconds"});
  for (std::size_t i = 0; i < input.faults.injected.size(); ++i) {
    const std::int64_t node = input.faults.injected[i].node;
    if (node < 0 || node >= held)
      problems.push_back({"", fmt::format("{}.faults.injected[{}].node", path, i), std::to_string(node),
                          fmt::format("the run holds nodes 0 to {}: the job's, then its spares", held - 1),
                          "strike one of them"});
  }
  if (input.checkpoint_bytes > 0 && !(input.cluster.storage.remote_write_bytes_per_s > 0))
    problems.push_back({"", path + ".cluster.storage.remote_write_bytes_per_s",
                        fmt::format("{}", input.cluster.storage.remote_write_bytes_per_s),
                        "checkpoints need storage to write to", "give the bandwidth of the remote store"});
}

void check_work(const RunInput& input, const std::string& path, Problems& problems) {
  const double failures = input.duration_s / mtbf_s(input);
  if (!(failures <= kMaxExpectedEvents))
    problems.push_back({"", path + ".faults.causes", fmt::format("{:.3g} failures expected", failures),
                        fmt::format("a run simulates at most {:.0g} failures", kMaxExpectedEvents),
                        "check the unit of the rates: per GPU-hour"});
  const double checkpoints = input.duration_s / (checkpoint_interval_s(input) + input.policy.checkpoint_stall_s);
  if (!(checkpoints <= kMaxExpectedEvents))
    problems.push_back({"", path + ".policy.checkpoint_interval_s", fmt::format("{}", checkpoint_interval_s(input)),
                        fmt::format("a run simulates at most {:.0g} checkpoints", kMaxExpectedEvents),
                        "checkpoint less often, or set 0 for the optimum"});
}

/// States that the injected faults will bring if nothing is ejected, so that the caller's memo
/// is filled before children are forked.
void ask_for_foreseen_states(const RunInput& input) {
  std::vector<double> changes_s = {0};
  for (const InjectedFault& fault : input.faults.injected) changes_s.push_back(fault.at_s);
  for (const InjectedFault& fault : input.faults.injected)
    if (fault.duration_s) changes_s.push_back(fault.at_s + *fault.duration_s);
  std::sort(changes_s.begin(), changes_s.end());
  input.step_times({});
  for (const double now_s : changes_s) {
    std::vector<InjectedFault> active;
    for (InjectedFault fault : input.faults.injected) {
      const bool slow = fault.kind == InjectedKind::GpuSlow || fault.kind == InjectedKind::NicSlow;
      const bool now = fault.at_s <= now_s && (!fault.duration_s || now_s < fault.at_s + *fault.duration_s);
      if (!slow || !now || fault.node >= input.job_nodes || now_s >= input.duration_s) continue;
      fault.at_s = 0;
      fault.duration_s.reset();
      active.push_back(fault);
    }
    std::sort(active.begin(), active.end(), [](const InjectedFault& a, const InjectedFault& b) {
      return std::tuple(a.node, a.device, a.kind, a.factor) < std::tuple(b.node, b.device, b.kind, b.factor);
    });
    if (!active.empty()) input.step_times(active);
  }
}

simgrid::s4u::Host* platform_host() {
  namespace sg4 = simgrid::s4u;
  static int argc = 1;
  static char name[] = "trainyard";
  static char* argv[] = {name, nullptr};
  sg4::Engine* engine = sg4::Engine::get_instance(&argc, argv);
  if (engine->get_host_count() > 0) return engine->get_all_hosts().front();
  sg4::NetZone* zone = sg4::create_empty_zone("run");
  sg4::Host* host = zone->create_host("control", 1e9);
  zone->seal();
  return host;
}

/// Everything or an error number.
int write_all(int fd, const std::vector<std::uint8_t>& bytes) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t count = write(fd, bytes.data() + done, bytes.size() - done);
    if (count < 0 && errno != EINTR) return errno;
    if (count > 0) done += static_cast<std::size_t>(count);
  }
  return 0;
}

[[noreturn]] void be_child(const RunInput& input, int fd) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // no orphans when the parent is killed
  RunWorld world(input, platform_host());
  const RunResult result = world.run();
  // _exit: the parent's buffers and atexit handlers are not ours to run.
  _exit(write_all(fd, nlohmann::json::to_cbor(nlohmann::json(result))) == 0 ? 0 : 1);
}

struct Child {
  std::size_t index = 0;
  pid_t pid = 0;
  int fd = -1;
  std::vector<std::uint8_t> bytes;
};

Problem environment_problem(const std::string& what, const std::string& fix) {
  return {"", "", "", what, fix, ProblemKind::MissingCapability};
}

class Pool {
 public:
  Pool(const std::vector<RunInput>& inputs, const RunPool& options) : inputs_(inputs), options_(options) {
    const unsigned processors = std::max(1U, std::thread::hardware_concurrency());
    limit_ = options.processes > 0 ? static_cast<std::size_t>(options.processes) : processors;
    results_.resize(inputs.size());
  }

  Problems run() {
    while (problems_.empty() && (next_ < inputs_.size() || !children_.empty())) {
      while (problems_.empty() && next_ < inputs_.size() && children_.size() < limit_) start(next_++);
      if (!children_.empty()) read_some();
    }
    for (const Child& child : children_) abandon(child);
    return problems_;
  }

  std::vector<RunResult> take_results() { return std::move(results_); }

 private:
  void start(std::size_t index) {
    int ends[2];
    if (pipe(ends) != 0) {
      problems_.push_back(environment_problem(fmt::format("no pipe to a simulation process: {}", std::strerror(errno)),
                                              "simulate fewer runs at a time"));
      return;
    }
    const pid_t pid = fork();
    if (pid == 0) {
      close(ends[0]);
      be_child(inputs_[index], ends[1]);
    }
    close(ends[1]);
    if (pid < 0) {
      close(ends[0]);
      problems_.push_back(environment_problem(
          fmt::format("cannot start a simulation process: {}", std::strerror(errno)), "simulate fewer runs at a time"));
      return;
    }
    children_.push_back({index, pid, ends[0], {}});
  }

  void read_some() {
    std::vector<pollfd> waiting;
    for (const Child& child : children_) waiting.push_back({child.fd, POLLIN, 0});
    if (poll(waiting.data(), waiting.size(), -1) < 0) return;  // interrupted: the caller's loop asks again
    for (std::size_t i = waiting.size(); i-- > 0;) {
      if (waiting[i].revents == 0 || !read_from(children_[i])) continue;
      finish(children_[i]);
      children_.erase(children_.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }

  /// True at the end of the child's output.
  static bool read_from(Child& child) {
    std::uint8_t buffer[65536];
    const ssize_t count = read(child.fd, buffer, sizeof buffer);
    if (count > 0) child.bytes.insert(child.bytes.end(), buffer, buffer + count);
    return count == 0 || (count < 0 && errno != EINTR && errno != EAGAIN);
  }

  void finish(Child& child) {
    close(child.fd);
    int status = 0;
    while (waitpid(child.pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (WIFSIGNALED(status) && WTERMSIG(status) != SIGABRT && WTERMSIG(status) != SIGSEGV) {
      problems_.push_back(environment_problem(fmt::format("a simulation process was ended by signal {} ({})",
                                                          WTERMSIG(status), strsignal(WTERMSIG(status))),
                                              "if memory ran out, simulate fewer runs at a time"));
      return;
    }
    TY_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a simulation process failed");
    const nlohmann::json json = nlohmann::json::from_cbor(child.bytes, true, false);
    TY_CHECK(!json.is_discarded(), "a simulation process sends a whole result");
    results_[child.index] = json.get<RunResult>();
    if (options_.on_result) options_.on_result(child.index, results_[child.index]);
  }

  static void abandon(const Child& child) {
    kill(child.pid, SIGKILL);
    close(child.fd);
    while (waitpid(child.pid, nullptr, 0) < 0 && errno == EINTR) {
    }
  }

  const std::vector<RunInput>& inputs_;
  const RunPool& options_;
  std::size_t limit_ = 1;
  std::size_t next_ = 0;
  std::vector<Child> children_;
  std::vector<RunResult> results_;
  Problems problems_;
};

}  // namespace

Problems validate(const RunInput& input, const std::string& path) {
  Problems problems;
  check_sizes(input, path, problems);
  if (problems.empty()) check_work(input, path, problems);
  return problems;
}

double checkpoint_interval_s(const RunInput& input) {
  if (input.policy.checkpoint_interval_s > 0) return input.policy.checkpoint_interval_s;
  const double mtbf = mtbf_s(input);
  if (!std::isfinite(mtbf)) return kHourlyInterval_s;
  const double stall_s = input.policy.checkpoint_stall_s > 0 ? input.policy.checkpoint_stall_s : 1;
  return optimal_checkpoint_interval_s(mtbf, stall_s);
}

Result<std::vector<RunResult>> run_many(const std::vector<RunInput>& inputs, const RunPool& pool) {
  Problems problems;
  for (const RunInput& input : inputs) {
    const Problems found = validate(input);
    problems.insert(problems.end(), found.begin(), found.end());
  }
  if (!problems.empty()) return problems;
  for (const RunInput& input : inputs) ask_for_foreseen_states(input);
  Pool children(inputs, pool);
  problems = children.run();
  if (!problems.empty()) return problems;
  return children.take_results();
}

Result<RunResult> simulate_run(const RunInput& input) {
  Result<std::vector<RunResult>> results = run_many({input});
  if (!results.ok()) return results.problems();
  return std::move(results).value().front();
}

std::vector<RunInput> with_seeds(const RunInput& input, std::int64_t count) {
  std::vector<RunInput> inputs;
  for (std::int64_t i = 0; i < count; ++i) {
    inputs.push_back(input);
    inputs.back().seed = input.seed + static_cast<std::uint64_t>(i);
  }
  return inputs;
}

}  // namespace trainyard
