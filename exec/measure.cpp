#include "exec/measure.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>

#include <fmt/format.h>

#include "exec/control_channel.h"
#include "exec/gpu.h"
#include "exec/mesh_communicator.h"
#include "kernels/open_device.h"

namespace trainyard::exec {

namespace {

using nlohmann::json;

constexpr int kWarmups = 2, kRepeats = 9;
constexpr std::size_t kElsewhereBytes = 16 << 20;  // more than a processor's own caches hold

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// All ranks.
Team team_of(std::int64_t rank, std::int64_t ranks) {
  Team team;
  for (std::int64_t r = 0; r < ranks; ++r) team.ranks.push_back(r);
  team.me = static_cast<std::size_t>(rank);
  team.stream = Stream::Dp;
  return team;
}

// One of the processes that talk.
class Talker {
 public:
  virtual ~Talker() = default;
  virtual double collective(Collective kind, std::int64_t bytes) = 0;
  virtual double transfer(std::int64_t bytes) = 0;
};

class MeshTalker final : public Talker {
 public:
  MeshTalker(std::int64_t rank, std::int64_t ranks, std::vector<int> sockets)
      : rank_(rank),
        ranks_(ranks),
        communicator_(mesh_communicator(rank, std::move(sockets))),
        team_(team_of(rank, ranks)) {}

  double collective(Collective kind, std::int64_t bytes) override {
    const std::int64_t share = std::max<std::int64_t>(bytes / 4 / ranks_, 1), whole = share * ranks_;
    std::vector<float> x(static_cast<std::size_t>(whole), 1), y(static_cast<std::size_t>(whole), 0);
    const Operand all{x.data(), Dtype::F32, {whole, 1, 1}}, out{y.data(), Dtype::F32, {whole, 1, 1}},
        part{x.data(), Dtype::F32, {share, 1, 1}}, out_part{y.data(), Dtype::F32, {share, 1, 1}};
    return timed([&] {
      switch (kind) {
        case Collective::AllReduce: return communicator_->all_reduce(team_, Reduce::Sum, all, out);
        case Collective::AllGather: return communicator_->all_gather(team_, part, out);
        case Collective::ReduceScatter: return communicator_->reduce_scatter(team_, all, out_part);
        case Collective::AllToAll: return communicator_->all_to_all(team_, blocks(x, share), blocks(y, share));
      }
      return Communicator::Ticket{0};
    });
  }

  double transfer(std::int64_t bytes) override {
    std::vector<std::byte> buffer(static_cast<std::size_t>(bytes));
    return timed([&] {
      std::vector<Move> moves;
      if (rank_ < 2) moves.push_back({rank_ == 0, 1 - rank_, 0, {buffer.data(), bytes}});
      return communicator_->transfer(moves, Stream::Pp);
    });
  }

 private:
  static std::vector<Buffer> blocks(std::vector<float>& x, std::int64_t share) {
    std::vector<Buffer> out;
    for (std::size_t at = 0; at < x.size(); at += static_cast<std::size_t>(share))
      out.push_back({reinterpret_cast<std::byte*>(&x[at]), share * 4});
    return out;
  }

  void finish(Communicator::Ticket ticket) {
    while (!communicator_->finished(ticket)) {
      if (!communicator_->progress(1000).empty()) ::_exit(1);
    }
  }

  // From a barrier until this rank is done, with buffers that have left the near caches, as they have in training,
  // where a step computes between its collectives.
  template <class Start>
  double timed(Start start) {
    std::vector<double> seconds;
    for (int i = 0; i < kWarmups + kRepeats; ++i) {
      std::fill(elsewhere_.begin(), elsewhere_.end(), static_cast<float>(i));
      float one = 1, sum = 0;
      finish(
          communicator_->all_reduce(team_, Reduce::Sum, {&one, Dtype::F32, {1, 1, 1}}, {&sum, Dtype::F32, {1, 1, 1}}));
      const auto begin = std::chrono::steady_clock::now();
      finish(start());
      if (i >= kWarmups)
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    return median(seconds);
  }

  std::vector<float> elsewhere_ = std::vector<float>(kElsewhereBytes / sizeof(float));
  std::int64_t rank_, ranks_;
  std::unique_ptr<Communicator> communicator_;
  Team team_;
};

// On a GPU: several in a row, as a stream of a step has them, so that the host's part of a call is hidden.
class GpuTalker final : public Talker {
 public:
  GpuTalker(std::int64_t rank, std::int64_t ranks, Gpu gpu, std::int64_t most_bytes)
      : rank_(rank), ranks_(ranks), gpu_(std::move(gpu)), team_(team_of(rank, ranks)) {
    kernels::Device& device = *gpu_.device;
    for (std::byte** buffer : {&x_, &y_}) {
      *buffer = device.allocate(most_bytes + 4096);
      device.fill(*buffer, 0, most_bytes + 4096, kStream);
    }
    begin_ = device.create_event();
    end_ = device.create_event();
  }

  double collective(Collective kind, std::int64_t bytes) override {
    const std::int64_t share = std::max<std::int64_t>(bytes / 4 / ranks_, 1), whole = share * ranks_;
    const Operand all{x_, Dtype::F32, {whole, 1, 1}}, out{y_, Dtype::F32, {whole, 1, 1}},
        part{x_, Dtype::F32, {share, 1, 1}}, out_part{y_, Dtype::F32, {share, 1, 1}};
    std::vector<Buffer> from, to;
    for (std::int64_t r = 0; r < ranks_; ++r) {
      from.push_back({x_ + r * share * 4, share * 4});
      to.push_back({y_ + r * share * 4, share * 4});
    }
    return timed([&] {
      switch (kind) {
        case Collective::AllReduce: return gpu_.communicator->all_reduce(team_, Reduce::Sum, all, out);
        case Collective::AllGather: return gpu_.communicator->all_gather(team_, part, out);
        case Collective::ReduceScatter: return gpu_.communicator->reduce_scatter(team_, all, out_part);
        case Collective::AllToAll: return gpu_.communicator->all_to_all(team_, from, to);
      }
      return Communicator::Ticket{0};
    });
  }

  double transfer(std::int64_t bytes) override {
    return timed([&] {
      std::vector<Move> moves;
      if (rank_ < 2) moves.push_back({rank_ == 0, 1 - rank_, 0, {x_, bytes}});
      return moves.empty() ? 0 : gpu_.communicator->transfer(moves, team_.stream);
    });
  }

 private:
  static constexpr int kStream = static_cast<int>(Stream::Dp), kInARow = 10;

  template <class Start>
  double timed(Start start) {
    kernels::Device& device = *gpu_.device;
    std::vector<double> seconds;
    for (int i = 0; i < kWarmups + kRepeats; ++i) {
      const Operand one{x_, Dtype::F32, {1, 1, 1}};
      gpu_.communicator->all_reduce(team_, Reduce::Sum, one, one);
      device.record(begin_, kStream);
      for (int call = 0; call < kInARow; ++call) start();
      device.record(end_, kStream);
      wait_for_end();
      const double time = device.seconds_between(begin_, end_) / kInARow;
      if (i >= kWarmups) seconds.push_back(time);
    }
    return median(seconds);
  }

  // A rank that has died is not always noticed by those that wait for it on their GPUs.
  void wait_for_end() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!gpu_.device->finished(end_)) {
      if (!gpu_.communicator->progress(0).empty() || std::chrono::steady_clock::now() > deadline) ::_exit(1);
    }
  }

  std::int64_t rank_, ranks_;
  Gpu gpu_;
  Team team_;
  std::byte *x_ = nullptr, *y_ = nullptr;
  kernels::Device::Event begin_ = -1, end_ = -1;
};

std::unique_ptr<Talker> talker_on(DeviceKind on, std::int64_t rank, std::int64_t ranks, std::vector<int> sockets,
                                  std::int64_t most_bytes) {
  if (on == DeviceKind::Cpu) return std::make_unique<MeshTalker>(rank, ranks, std::move(sockets));
  DeviceTeams teams;
  teams.teams.push_back(team_of(rank, ranks));
  if (rank < 2) teams.channels.push_back({0, 1, false});
  Result<Gpu> gpu = open_gpu(rank, teams, false, mesh_communicator(rank, std::move(sockets)));
  if (!gpu) {
    fmt::print(stderr, "{}\n", to_string(gpu.problems().front()));
    ::_exit(1);
  }
  return std::make_unique<GpuTalker>(rank, ranks, std::move(gpu).value(), most_bytes);
}

// Nothing that goes wrong in a child may go on in the code of its parent.
template <class Work>
[[noreturn]] void in_child(Work work) {
  try {
    work();
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    ::_exit(1);
  }
  ::_exit(0);
}

json measurements(Talker& talker, const std::vector<std::int64_t>& sizes) {
  json out{{"collectives", json::array()}, {"transfers", json::array()}};
  for (const std::int64_t bytes : sizes) {
    json row = json::array();
    for (std::size_t kind = 0; kind < kCollectiveCount; ++kind)
      row.push_back(talker.collective(static_cast<Collective>(kind), bytes));
    out["collectives"].push_back(row);
    out["transfers"].push_back(talker.transfer(bytes));
  }
  return out;
}

}  // namespace

Result<CommunicationTimes> measure_communication(std::int64_t ranks, const std::vector<std::int64_t>& sizes,
                                                 DeviceKind on) {
  Result<std::vector<std::vector<int>>> mesh = connect_mesh(ranks);
  if (!mesh) return mesh.problems();
  const std::vector<std::vector<int>> sockets = std::move(mesh).value();
  std::vector<ControlChannel> channels;
  std::vector<pid_t> processes;
  for (std::int64_t r = 0; r < ranks; ++r) {
    auto ends = ControlChannel::make();
    const pid_t process = ends ? ::fork() : -1;
    if (process < 0)
      return Problem{"", "", "", "the system gives no more processes", "try again", ProblemKind::MissingCapability};
    if (process == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ends->first.close();  // or it would never hear that the other end is gone
      for (ControlChannel& other : channels) other.close();
      for (std::size_t other = 0; other < sockets.size(); ++other) {
        for (const int socket : sockets[other]) {
          if (other != static_cast<std::size_t>(r) && socket >= 0) ::close(socket);
        }
      }
      in_child([&] {
        const std::unique_ptr<Talker> talker = talker_on(on, r, ranks, sockets[static_cast<std::size_t>(r)],
                                                         *std::max_element(sizes.begin(), sizes.end()));
        ends->second.send(measurements(*talker, sizes));
        // Until all are done: others may still read this one's memory.
        (void)ends->second.receive();
      });
    }
    processes.push_back(process);
    channels.push_back(std::move(ends->first));
  }
  for (const auto& row : sockets) {
    for (const int socket : row) {
      if (socket >= 0) ::close(socket);
    }
  }
  CommunicationTimes times;
  // Of each number, that of the rank for which it took longest.
  for (const ControlChannel& channel : channels) {
    const auto message = channel.receive();
    if (!message) continue;  // told by the child's exit below
    for (std::size_t s = 0; s < sizes.size(); ++s) {
      for (std::size_t kind = 0; kind < kCollectiveCount; ++kind) {
        const std::size_t at = s * kCollectiveCount + kind;
        if (times.collectives.size() <= at) times.collectives.push_back({static_cast<Collective>(kind), sizes[s], 0});
        times.collectives[at].seconds =
            std::max(times.collectives[at].seconds, (*message)["collectives"][s][kind].get<double>());
      }
      if (times.transfers.size() <= s) times.transfers.push_back({sizes[s], 0});
      times.transfers[s].seconds = std::max(times.transfers[s].seconds, (*message)["transfers"][s].get<double>());
    }
  }
  channels.clear();
  bool failed = false;
  for (const pid_t process : processes) {
    int status = 0;
    ::waitpid(process, &status, 0);
    failed |= !WIFEXITED(status) || WEXITSTATUS(status) != 0;
  }
  if (failed)
    return Problem{"", "", "", "a process that measures communication ended early", "try again", ProblemKind::Failed};
  return times;
}

Result<CopyRates> measure_copies(int gpu) {
  auto ends = ControlChannel::make();
  const pid_t process = ends ? ::fork() : -1;
  if (process < 0)
    return Problem{"", "", "", "the system gives no more processes", "try again", ProblemKind::MissingCapability};
  if (process == 0) {
    in_child([&] {
      constexpr std::int64_t kBytes = std::int64_t{256} << 20;
      const Result<std::unique_ptr<kernels::Device>> opened = kernels::open_cuda_device(gpu, 1);
      if (!opened) ::_exit(1);
      kernels::Device& device = *opened.value();
      std::byte *here = device.allocate_host(kBytes), *there = device.allocate(kBytes);
      const auto begin = device.create_event(), end = device.create_event();
      const auto rate = [&](auto copy) {
        copy();
        device.record(begin, 0);
        copy();
        device.record(end, 0);
        return static_cast<double>(kBytes) / device.seconds_between(begin, end);
      };
      const double to_device = rate([&] { device.copy_to_device(there, here, kBytes, 0); });
      const double to_host = rate([&] { device.copy_to_host(here, there, kBytes, 0); });
      ends->second.send({{"to_device", to_device}, {"to_host", to_host}});
    });
  }
  ends->second.close();
  const auto message = ends->first.receive();
  ::waitpid(process, nullptr, 0);
  if (!message)
    return Problem{
        "", "", "", "copies to the GPU could not be measured", "see `trainyard doctor`", ProblemKind::Failed};
  return CopyRates{(*message)["to_device"], (*message)["to_host"]};
}

}  // namespace trainyard::exec
