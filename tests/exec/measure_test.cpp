// The mesh by itself: what long sums give, and how long ranks take to talk.
#include <catch2/catch.hpp>

#include <sys/wait.h>
#include <unistd.h>
#include <cmath>

#include "exec/measure.h"
#include "exec/mesh_communicator.h"

using namespace trainyard;
using kernels::Tensor;

namespace {

constexpr std::int64_t kRanks = 3, kShare = 700'001;  // several segments, the last of them short

// Of element i on rank r. Halves, so that sums of floats are exact.
float value(std::int64_t r, std::int64_t i) { return static_cast<float>((i % 1000) * (r + 1)) / 2; }
float total(std::int64_t i) { return value(0, i) + value(1, i) + value(2, i); }

void finish(exec::Communicator& communicator, exec::Communicator::Ticket ticket) {
  while (!communicator.finished(ticket)) {
    if (!communicator.progress(1000).empty()) ::_exit(2);
  }
}

// 0 when this rank's sums are right.
int sum_as(std::int64_t rank, std::vector<int> sockets) {
  const auto communicator = exec::mesh_communicator(rank, std::move(sockets));
  exec::Team team;
  team.ranks = {0, 1, 2};
  team.me = static_cast<std::size_t>(rank);
  team.stream = Stream::Dp;
  const std::int64_t whole = kRanks * kShare, odd = whole - 2;
  std::vector<float> x(static_cast<std::size_t>(whole)), y(x.size()), part(kShare);
  for (std::int64_t i = 0; i < whole; ++i) x[static_cast<std::size_t>(i)] = value(rank, i);
  finish(*communicator, communicator->all_reduce(team, Reduce::Sum, {x.data(), Dtype::F32, {odd, 1, 1}},
                                                 {y.data(), Dtype::F32, {odd, 1, 1}}));
  for (std::int64_t i = 0; i < odd; ++i) {
    if (y[static_cast<std::size_t>(i)] != total(i)) return 3;
  }
  finish(*communicator, communicator->reduce_scatter(team, {x.data(), Dtype::F32, {whole, 1, 1}},
                                                     {part.data(), Dtype::F32, {kShare, 1, 1}}));
  for (std::int64_t i = 0; i < kShare; ++i) {
    if (part[static_cast<std::size_t>(i)] != total(rank * kShare + i)) return 4;
  }
  return 0;
}

}  // namespace

TEST_CASE("sums that are longer than a segment are right on every rank", "[exec]") {
  const std::vector<std::vector<int>> sockets = exec::connect_mesh(kRanks).value();
  std::vector<pid_t> processes;
  for (std::int64_t r = 0; r < kRanks; ++r) {
    const pid_t process = ::fork();
    if (process == 0) {
      for (std::size_t other = 0; other < sockets.size(); ++other) {
        for (const int socket : sockets[other]) {
          if (other != static_cast<std::size_t>(r) && socket >= 0) ::close(socket);
        }
      }
      ::_exit(sum_as(r, sockets[static_cast<std::size_t>(r)]));
    }
    processes.push_back(process);
  }
  for (const auto& row : sockets) {
    for (const int socket : row) {
      if (socket >= 0) ::close(socket);
    }
  }
  for (const pid_t process : processes) {
    int status = 0;
    ::waitpid(process, &status, 0);
    REQUIRE(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
  }
}

TEST_CASE("measured communication has every kind at every size", "[exec]") {
  const exec::CommunicationTimes times = exec::measure_communication(2, {256, 1 << 22}).value();
  REQUIRE(times.collectives.size() == 2 * kCollectiveCount);
  for (std::size_t kind = 0; kind < kCollectiveCount; ++kind) {
    const exec::CollectiveTime &small = times.collectives[kind], &large = times.collectives[kCollectiveCount + kind];
    CHECK(small.kind == large.kind);
    CHECK(small.seconds > 0);
    CHECK(large.seconds > 0);
    CHECK(small.bytes == 256);
    CHECK(large.bytes == 1 << 22);
  }
  REQUIRE(times.transfers.size() == 2);
  for (const exec::TransferTime& time : times.transfers) CHECK(time.seconds > 0);
}
