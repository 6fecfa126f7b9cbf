#include "exec/measure.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>

#include "exec/control_channel.h"
#include "exec/mesh_communicator.h"

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

// One of the processes that talk.
class Talker {
 public:
  Talker(std::int64_t rank, std::int64_t ranks, std::vector<int> sockets)
      : rank_(rank), ranks_(ranks), communicator_(mesh_communicator(rank, std::move(sockets))) {
    for (std::int64_t r = 0; r < ranks; ++r) team_.ranks.push_back(r);
    team_.me = static_cast<std::size_t>(rank);
    team_.stream = Stream::Dp;
  }

  double collective(Collective kind, std::int64_t bytes) {
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

  double transfer(std::int64_t bytes) {
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

Result<CommunicationTimes> measure_communication(std::int64_t ranks, const std::vector<std::int64_t>& sizes) {
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
      for (std::size_t other = 0; other < sockets.size(); ++other) {
        for (const int socket : sockets[other]) {
          if (other != static_cast<std::size_t>(r) && socket >= 0) ::close(socket);
        }
      }
      Talker talker(r, ranks, sockets[static_cast<std::size_t>(r)]);
      ends->second.send(measurements(talker, sizes));
      ::_exit(0);
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

}  // namespace trainyard::exec
