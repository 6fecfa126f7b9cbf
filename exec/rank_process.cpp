#include "exec/rank_process.h"

#include <sys/resource.h>
#include <unistd.h>

#include <fmt/format.h>

#include <memory>
#include <thread>

#include "exec/clock.h"
#include "exec/device_interpreter.h"
#include "exec/gloo_communicator.h"
#include "exec/gpu.h"
#include "exec/mesh_communicator.h"
#include "exec/step_interpreter.h"

namespace trainyard::exec {

namespace {

using nlohmann::json;

constexpr std::size_t kTimesPerMessage = 1024;

// Of this process, at its highest.
std::int64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

json to_json(const Problem& problem) {
  return {{"type", "problem"},    {"file", problem.file}, {"value", problem.value},
          {"rule", problem.rule}, {"fix", problem.fix},   {"kind", static_cast<int>(problem.kind)}};
}

// What a rank runs on, and the rank itself: it goes first.
struct Machine {
  std::unique_ptr<kernels::Kernels> kernels;
  std::unique_ptr<Communicator> communicator;
  Gpu gpu;
  std::unique_ptr<Rank> rank;
};

Result<std::unique_ptr<Machine>> on_processors(const RankJob& job, std::int64_t rank,
                                               std::unique_ptr<Communicator> communicator) {
  auto machine = std::make_unique<Machine>();
  machine->kernels = kernels::cpu_kernels(static_cast<int>(job.program->plan.cpu_threads));
  machine->communicator = std::move(communicator);
  machine->rank = std::make_unique<StepInterpreter>(*job.program, rank, *machine->kernels, *machine->communicator);
  return machine;
}

Result<std::unique_ptr<Machine>> on_gpu(const RankJob& job, std::int64_t rank, std::unique_ptr<Communicator> mesh) {
  auto machine = std::make_unique<Machine>();
  Result<Gpu> gpu = open_gpu(rank, device_teams(*job.program, rank), job.strict_sums, std::move(mesh));
  if (!gpu) return gpu.problems();
  machine->gpu = std::move(gpu).value();
  try {
    machine->rank = std::make_unique<DeviceInterpreter>(*job.program, rank, *machine->gpu.device,
                                                        *machine->gpu.communicator, job.graphs);
  } catch (const kernels::DeviceError& error) {
    return Problem{fmt::format("rank {}", rank), "", "", error.what(), "see `trainyard doctor`", ProblemKind::Failed};
  }
  return machine;
}

class RankProcess {
 public:
  RankProcess(const RankJob& job, std::int64_t rank, std::unique_ptr<Machine> machine, ControlChannel channel)
      : job_(job),
        rank_(rank),
        machine_(std::move(machine)),
        interpreter_(*machine_->rank),
        channel_(std::move(channel)) {}
  ~RankProcess() {
    if (writer_.joinable()) writer_.join();
  }

  int run() {
    try {
      return serve();
    } catch (const std::exception& error) {
      channel_.send(to_json(
          {fmt::format("rank {}", rank_), "", "", error.what(), "see `trainyard doctor`", ProblemKind::Failed}));
      ::_exit(1);  // what a failed device holds may never come back
    }
  }

 private:
  int serve() {
    start();
    while (const auto message = channel_.receive()) {
      const std::string type = message->value("type", "");
      bool good = true;
      if (type == "run") good = take_steps((*message)["until"], (*message)["timed"]);
      if (type == "save") save((*message)["folder"]);
      if (type == "times") send_times();
      if (type == "end") return 0;
      if (!good) return 1;
    }
    return 1;  // nobody is left to train for
  }

  void start() {
    interpreter_.set_seed(job_.seed);
    if (job_.resume != nullptr) {
      job_.resume->load(interpreter_);
      interpreter_.set_steps(job_.resume->manifest().step);
    } else {
      initialise(interpreter_, job_.seed);
    }
    channel_.send({{"type", "ready"}, {"arena_bytes", interpreter_.stage().arena_bytes}});
  }

  bool take_steps(std::int64_t until, std::int64_t timed) {
    const ParallelPlan& plan = job_.program->plan;
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(plan.sequence_length + 1));
    while (interpreter_.steps() < until) {
      const std::int64_t step = interpreter_.steps(), begin = now_ns();
      interpreter_.set_timing(step == timed);
      const Result<StepOutcome> outcome = interpreter_.step([&](std::int64_t sample) {
        job_.corpus->sample(job_.seed, step, sample, plan.global_batch, plan.sequence_length, tokens.data());
        return tokens.data();
      });
      if (!outcome) {
        channel_.send(to_json(outcome.problems().front()));
        return false;
      }
      channel_.send({{"type", "step"},
                     {"step", step},
                     {"loss", outcome.value().loss},
                     {"grad_norm", outcome.value().grad_norm},
                     {"begin_ns", begin},
                     {"end_ns", now_ns()}});
    }
    return true;
  }

  // The state is copied, and written while training goes on. One at a time: a disk that is too slow shows as a stall.
  void save(const std::string& folder) {
    const std::int64_t begin = now_ns();
    if (writer_.joinable()) writer_.join();
    if (!snapshot_) snapshot_ = std::make_unique<RankSnapshot>(interpreter_);
    snapshot_->take(interpreter_);
    channel_.send({{"type", "snapshot"}, {"stall_ns", now_ns() - begin}});
    writer_ = std::thread([this, folder] {
      json message{{"type", "saved"}, {"file", nullptr}};
      if (!snapshot_->empty()) {
        const Result<ManifestFile> file = snapshot_->write(folder, rank_);
        if (file) {
          message["file"] = file.value().name;
          message["bytes"] = file.value().bytes;
          message["crcs"] = file.value().crcs;
        } else {
          message["problem"] = to_json(file.problems().front());
        }
      }
      channel_.send(message);
    });
  }

  void send_times() {
    const std::vector<OpTime>& times = interpreter_.times();
    json list = json::array();
    for (const OpTime& time : times) {
      list.push_back({time.item, time.op, time.begin_ns, time.end_ns});
      if (list.size() < kTimesPerMessage) continue;
      channel_.send({{"type", "times"}, {"times", std::move(list)}});
      list = json::array();
    }
    channel_.send({{"type", "times"},
                   {"times", std::move(list)},
                   {"last", true},
                   {"rss_bytes", peak_rss_bytes()},
                   {"device_bytes", interpreter_.device_bytes()}});
  }

  const RankJob& job_;
  std::int64_t rank_;
  std::unique_ptr<Machine> machine_;
  Rank& interpreter_;
  ControlChannel channel_;
  std::unique_ptr<RankSnapshot> snapshot_;
  std::thread writer_;
};

}  // namespace

int run_rank(const RankJob& job, std::int64_t rank, std::vector<int> mesh_sockets, ControlChannel channel) {
  std::unique_ptr<Communicator> communicator;
  if (job.gloo_folder.empty()) {
    communicator = mesh_communicator(rank, std::move(mesh_sockets));
  } else {
    Result<std::unique_ptr<Communicator>> connected = gloo_communicator(*job.program, rank, job.gloo_folder);
    if (!connected) {
      channel.send(to_json(connected.problems().front()));
      return 1;
    }
    communicator = std::move(connected).value();
  }
  Result<std::unique_ptr<Machine>> machine = job.device == DeviceKind::Cuda
                                                 ? on_gpu(job, rank, std::move(communicator))
                                                 : on_processors(job, rank, std::move(communicator));
  if (!machine) {
    channel.send(to_json(machine.problems().front()));
    return 1;
  }
  return RankProcess(job, rank, std::move(machine).value(), std::move(channel)).run();
}

}  // namespace trainyard::exec
