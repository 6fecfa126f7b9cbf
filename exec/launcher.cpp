#include "exec/launcher.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <optional>
#include <thread>

#include "exec/clock.h"
#include "exec/gloo_communicator.h"
#include "exec/mesh_communicator.h"
#include "models/base/check.h"
#include "models/base/index.h"
#include "models/base/stop.h"

namespace trainyard::exec {

namespace {

using nlohmann::json;

constexpr int kPoll_ms = 200;
constexpr std::int64_t kEnd_ns = 5'000'000'000;
// Steps granted beyond the last one that all ranks have done: nobody waits for a grant, and all stop together.
constexpr std::int64_t kGrantedAhead = 2;

Problem problem_from(const json& message) {
  return {message.value("file", ""),  "",
          message.value("value", ""), message.value("rule", "a rank failed"),
          message.value("fix", ""),   static_cast<ProblemKind>(message.value("kind", 0))};
}

// The process of a rank, as the launcher sees it.
struct Child {
  pid_t process = -1;
  ControlChannel channel;
  bool ready = false;
  std::int64_t steps = 0;  // done
  bool snapshot = false, saved = false, timed = false;
};

// A checkpoint that ranks are writing.
struct OpenCheckpoint {
  std::string folder;
  Manifest manifest;
};

class Launcher {
 public:
  Launcher(const TrainingJob& job, const TrainingEvents& events)
      : job_(job), events_(events), begin_ns_(now_ns()), granted_(first_step()) {
    report_.first_step = first_step();
  }
  ~Launcher() {
    kill_all();
    std::error_code ignored;
    if (!gloo_folder_.empty()) std::filesystem::remove_all(gloo_folder_, ignored);
  }

  Problems start() {
    const std::int64_t count = Mesh(job_.program->plan).ranks();
    if (job_.gloo && !has_gloo()) return gloo_communicator(*job_.program, 0, "").problems();
    if (job_.gloo) {
      std::string folder = (std::filesystem::temp_directory_path() / "trainyard-gloo-XXXXXX").string();
      if (::mkdtemp(folder.data()) == nullptr) return {no_process("a folder for temporary files")};
      gloo_folder_ = folder;
    }
    Result<std::vector<std::vector<int>>> mesh = connect_mesh(count);
    if (!mesh) return mesh.problems();
    const std::vector<std::vector<int>> sockets = std::move(mesh).value();
    std::vector<ControlChannel> far_ends;
    for (std::int64_t r = 0; r < count; ++r) {
      auto ends = ControlChannel::make();
      if (!ends) return {no_process("a socket")};
      ranks_.emplace_back();
      ranks_.back().channel = std::move(ends->first);
      ranks_.back().steps = first_step();
      far_ends.push_back(std::move(ends->second));
    }
    const pid_t launcher = ::getpid();
    for (std::int64_t r = 0; r < count; ++r) {
      const pid_t process = ::fork();
      if (process < 0) return {no_process("a process")};
      if (process == 0) be_rank(r, launcher, sockets, far_ends);
      ranks_[index(r)].process = process;
    }
    for (const auto& row : sockets) {
      for (const int socket : row) {
        if (socket >= 0) ::close(socket);
      }
    }
    report_.ranks.resize(index(count));
    return {};
  }

  TrainingReport run() {
    while (report_.problems.empty() && !over()) {
      if (stop_requested()) stopping_ = true;
      advance();
      listen();
    }
    find_cause();
    if (report_.problems.empty() && stopping_) report_.problems.push_back(stopped());
    send_all({{"type", "end"}});
    if (report_.problems.empty() || report_.problems.front().kind == ProblemKind::Stopped) wait_for_ends();
    kill_all();
    if (checkpoint_) {  // that will not be whole: its space is what may be missing
      std::error_code ignored;
      std::filesystem::remove_all(checkpoint_->folder, ignored);
    }
    report_.wall_s = static_cast<double>(now_ns() - begin_ns_) * 1e-9;
    return std::move(report_);
  }

 private:
  std::int64_t first_step() const { return job_.resume == nullptr ? 0 : job_.resume->manifest().step; }

  static Problem no_process(const char* what) {
    return {"",
            "",
            "",
            fmt::format("the system gives no more {}", what),
            "run fewer ranks on this machine",
            ProblemKind::MissingCapability};
  }

  [[noreturn]] void be_rank(std::int64_t rank, pid_t launcher, const std::vector<std::vector<int>>& sockets,
                            std::vector<ControlChannel>& channels) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != launcher) ::_exit(1);  // it died in between
    // What asks to stop may reach the whole group, from a terminal or a batch system: the launcher decides.
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) std::signal(signal, SIG_IGN);
    for (Child& other : ranks_) other.channel.close();
    for (std::size_t r = 0; r < sockets.size(); ++r) {
      if (r == index(rank)) continue;
      channels[r].close();
      for (const int socket : sockets[r]) {
        if (socket >= 0) ::close(socket);
      }
    }
    int code = 1;
    try {
      code = run_rank(
          {job_.program, job_.corpus, job_.seed, job_.resume, gloo_folder_, job_.device, job_.strict_sums, job_.graphs},
          rank, sockets[index(rank)], std::move(channels[index(rank)]));
    } catch (const std::exception& error) {
      fmt::print(stderr, "rank {}: {}\n", rank, error.what());
    }
    ::_exit(code);
  }

  // --- what is to be done next

  std::int64_t done() const {
    return std::min_element(ranks_.begin(), ranks_.end(),
                            [](const Child& a, const Child& b) { return a.steps < b.steps; })
        ->steps;
  }
  bool all(bool Child::*what) const {
    return std::all_of(ranks_.begin(), ranks_.end(), [&](const Child& rank) { return rank.*what; });
  }
  bool saves() const { return !job_.training.checkpoint.folder.empty(); }

  // The next step, after this one, at which the state is saved.
  std::int64_t next_save(std::int64_t step) const {
    const std::int64_t every = job_.training.checkpoint.every_steps;
    const std::int64_t end = std::max(job_.training.steps, first_step());
    if (!saves() || every == 0) return end;
    return std::min(end, (step / every + 1) * every);
  }

  bool over() const {
    const bool last = done() == granted_ && (stopping_ || granted_ >= job_.training.steps);
    return last && all(&Child::ready) && !checkpoint_ &&
           (!saves() || saved_step_ == done() || done() == first_step()) && all(&Child::timed);
  }

  void advance() {
    if (!all(&Child::ready)) return;
    const std::int64_t at = done();
    const bool standing = at == granted_;
    const bool ending = stopping_ || at >= job_.training.steps;
    const bool save_here =
        saves() && at > first_step() && saved_step_ != at && asked_save_ != at && (ending || at == next_save(at - 1));
    if (standing && ending && !asked_times_) {
      asked_times_ = true;
      send_all({{"type", "times"}});
    }
    if (standing && save_here && !checkpoint_) begin_save(at);
    // Training goes on once every rank has its snapshot.
    const bool held = save_here || (checkpoint_ && !all(&Child::snapshot));
    if (stopping_ || held) return;
    const std::int64_t until = std::min({at + kGrantedAhead, next_save(at), job_.training.steps});
    if (until <= granted_) return;
    granted_ = until;
    send_all({{"type", "run"}, {"until", until}, {"timed", job_.training.steps - 1}});
  }

  void send_all(const json& message) {
    for (const Child& rank : ranks_) rank.channel.send(message);
  }

  void begin_save(std::int64_t step) {
    asked_save_ = step;
    Result<std::string> folder = begin_checkpoint(job_.training.checkpoint.folder, step);
    if (!folder) {
      append(folder.problems());
      return;
    }
    const ParallelPlan& plan = job_.program->plan;
    checkpoint_ = OpenCheckpoint{
        folder.value(), {step, job_.seed, plan.sequence_length, plan.global_batch, job_.model_id, job_.text_id, {}}};
    for (Child& rank : ranks_) rank.snapshot = rank.saved = false;
    stall_ns_ = 0;
    send_all({{"type", "save"}, {"folder", folder.value()}});
  }

  void end_save() {
    std::sort(checkpoint_->manifest.files.begin(), checkpoint_->manifest.files.end(),
              [](const ManifestFile& a, const ManifestFile& b) { return a.name < b.name; });
    append(commit_checkpoint(job_.training.checkpoint.folder, checkpoint_->manifest, job_.training.checkpoint.keep));
    if (!report_.problems.empty()) return;
    saved_step_ = checkpoint_->manifest.step;
    checkpoint_.reset();
    report_.checkpoints.push_back(saved_step_);
    report_.checkpoint_stall_s += static_cast<double>(stall_ns_) * 1e-9;
    if (events_.on_checkpoint) events_.on_checkpoint(saved_step_);
  }

  void append(const Problems& problems) {
    report_.problems.insert(report_.problems.end(), problems.begin(), problems.end());
  }

  // --- what ranks say

  void listen() {
    std::vector<pollfd> watched;
    for (const Child& rank : ranks_) watched.push_back({rank.channel.socket(), POLLIN, 0});
    const int ready = ::poll(watched.data(), watched.size(), kPoll_ms);
    if (events_.on_wait) events_.on_wait();
    for (std::size_t r = 0; r < watched.size() && ready > 0; ++r) {
      if (watched[r].revents == 0) continue;
      const std::optional<json> message = ranks_[r].channel.receive();
      if (message) {
        hear(r, *message);
      } else {
        lost(r);
        return;
      }
    }
  }

  void hear(std::size_t r, const json& message) {
    Child& rank = ranks_[r];
    RankReport& report = report_.ranks[r];
    const std::string type = message["type"];
    if (type == "ready") {
      rank.ready = true;
      report.arena_bytes = message["arena_bytes"];
      if (all(&Child::ready)) report_.startup_s = static_cast<double>(now_ns() - begin_ns_) * 1e-9;
    } else if (type == "step") {
      step_done(r, message);
    } else if (type == "snapshot") {
      rank.snapshot = true;
      stall_ns_ = std::max<std::int64_t>(stall_ns_, message["stall_ns"]);
    } else if (type == "saved") {
      rank.saved = true;
      if (message.contains("problem")) append({problem_from(message["problem"])});
      if (!message["file"].is_null())
        checkpoint_->manifest.files.push_back({message["file"], message["bytes"], message["crcs"]});
      if (all(&Child::saved) && report_.problems.empty()) end_save();
    } else if (type == "times") {
      for (const json& time : message["times"]) report.times.push_back({time[0], time[1], time[2], time[3]});
      rank.timed = message.contains("last");
      if (rank.timed) report.rss_bytes = message["rss_bytes"], report.device_bytes = message["device_bytes"];
    } else if (type == "problem") {
      append({problem_from(message)});
    }
  }

  void step_done(std::size_t r, const json& message) {
    Child& rank = ranks_[r];
    const std::int64_t step = message["step"];
    rank.steps = step + 1;
    const auto [entry, is_new] = open_steps_.try_emplace(step);
    StepReport& report = entry->second;
    report.step = step;
    report.begin_ns =
        is_new ? message["begin_ns"].get<std::int64_t>() : std::min<std::int64_t>(report.begin_ns, message["begin_ns"]);
    report.end_ns = std::max<std::int64_t>(report.end_ns, message["end_ns"]);
    // The last rank is on the last stage, which knows the loss.
    if (r + 1 == ranks_.size()) report.loss = message["loss"], report.grad_norm = message["grad_norm"];
    if (done() <= step) return;
    report_.steps.push_back(report);
    open_steps_.erase(entry);
    if (events_.on_step) events_.on_step(report_.steps.back());
    if (!std::isfinite(report_.steps.back().loss) || !std::isfinite(report_.steps.back().grad_norm))
      append({diverged(report_.steps.back())});
  }

  // Before any checkpoint of it could push out a good one.
  Problem diverged(const StepReport& step) const {
    return {"",
            "",
            fmt::format("loss {:.4g}, |gradient| {:.4g}", step.loss, step.grad_norm),
            fmt::format("is no number to go on from: training diverged at step {}", step.step + 1),
            saves() ? "lower the learning rate or clip gradients, and run it again: it goes on from the last checkpoint"
                    : "lower the learning rate, or clip gradients",
            ProblemKind::Failed};
  }

  // A rank has closed its end.
  void lost(std::size_t r) {
    int status = 0;
    ::waitpid(ranks_[r].process, &status, 0);
    ranks_[r].process = -1;
    // A rank that was killed is what others miss, whoever was heard first.
    report_.problems.insert(WIFSIGNALED(status) ? report_.problems.begin() : report_.problems.end(), death(r, status));
  }

  Problem death(std::size_t r, int status) const {
    const std::string how = WIFSIGNALED(status) ? fmt::format("was killed by signal {}", WTERMSIG(status))
                                                : fmt::format("ended with code {}", WEXITSTATUS(status));
    return {fmt::format("rank {}", r),
            "",
            "",
            how,
            saves() ? "run it again: it goes on from the last checkpoint"
                    : "give the job a checkpoint folder, so that it can go on",
            ProblemKind::Failed};
  }

  // What ranks have said and nobody has read yet.
  void hear_last_words() {
    for (const Child& rank : ranks_) {
      pollfd watched{rank.channel.socket(), POLLIN, 0};
      while (::poll(&watched, 1, 0) > 0) {
        const std::optional<json> message = rank.channel.receive();
        if (!message) break;
        if (message->value("type", "") == "problem") append({problem_from(*message)});
      }
    }
  }

  // Of what all ranks say at the end, the cause: what stopped one of them, else the death of the one that others miss.
  void find_cause() {
    if (report_.problems.empty()) return;
    hear_last_words();
    const auto cause = std::find_if(report_.problems.begin(), report_.problems.end(),
                                    [](const Problem& problem) { return problem.kind != ProblemKind::Failed; });
    report_.problems = {cause != report_.problems.end() ? *cause : report_.problems.front()};
    if (report_.problems.front().kind != ProblemKind::Failed) return;
    for (int left_ms = 100; left_ms > 0; --left_ms) {
      for (std::size_t r = 0; r < ranks_.size(); ++r) {
        int status = 0;
        if (ranks_[r].process <= 0 || ::waitpid(ranks_[r].process, &status, WNOHANG) != ranks_[r].process) continue;
        ranks_[r].process = -1;
        if (!WIFSIGNALED(status)) continue;
        report_.problems = {death(r, status)};
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  // Libraries may wait for one another when they are taken down; what is done is done, so nobody waits for that for
  // long.
  void wait_for_ends() {
    const std::int64_t deadline_ns = now_ns() + kEnd_ns;
    for (Child& rank : ranks_) {
      while (rank.process > 0 && ::waitpid(rank.process, nullptr, WNOHANG) == 0) {
        if (now_ns() > deadline_ns) return;
        ::usleep(1000);
      }
      rank.process = -1;
    }
  }

  void kill_all() {
    for (const Child& rank : ranks_) {
      if (rank.process > 0) ::kill(rank.process, SIGKILL);
    }
    for (Child& rank : ranks_) {
      if (rank.process > 0) ::waitpid(rank.process, nullptr, 0);
      rank.process = -1;
    }
  }

  const TrainingJob& job_;
  const TrainingEvents& events_;
  std::int64_t begin_ns_;
  std::string gloo_folder_;
  std::vector<Child> ranks_;
  std::int64_t granted_;
  std::int64_t saved_step_ = -1, asked_save_ = -1, stall_ns_ = 0;
  bool asked_times_ = false, stopping_ = false;
  std::optional<OpenCheckpoint> checkpoint_;
  std::map<std::int64_t, StepReport> open_steps_;  // that some ranks have not done yet
  TrainingReport report_;
};

}  // namespace

Result<TrainingReport> train(const TrainingJob& job, const TrainingEvents& events) {
  Launcher launcher(job, events);
  if (Problems problems = launcher.start(); !problems.empty()) return problems;
  return launcher.run();
}

}  // namespace trainyard::exec
