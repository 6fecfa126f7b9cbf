// The mesh by itself: long sums, and messages that come before anyone has asked for them.
#include <catch2/catch.hpp>

#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>
#include <array>
#include <memory>

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

namespace {

// Two ranks that take turns in this process.
class Pair {
 public:
  Pair() {
    const std::vector<std::vector<int>> sockets = exec::connect_mesh(2).value();
    for (std::int64_t r = 0; r < 2; ++r)
      ranks_[static_cast<std::size_t>(r)] = exec::mesh_communicator(r, sockets[static_cast<std::size_t>(r)]);
  }
  exec::Communicator& operator[](std::size_t rank) { return *ranks_[rank]; }
  void turns(int count) {
    for (int i = 0; i < count; ++i) {
      REQUIRE(ranks_[0]->progress(0).empty());
      REQUIRE(ranks_[1]->progress(1).empty());
    }
  }
  void finish(std::size_t rank, exec::Communicator::Ticket ticket) {
    for (int i = 0; i < 1'000'000 && !ranks_[rank]->finished(ticket); ++i) {
      REQUIRE(ranks_[1 - rank]->progress(0).empty());
      REQUIRE(ranks_[rank]->progress(10).empty());
    }
    REQUIRE(ranks_[rank]->finished(ticket));
  }

 private:
  std::array<std::unique_ptr<exec::Communicator>, 2> ranks_;
};

struct Long {
  std::vector<std::byte> sent = std::vector<std::byte>(32 << 20), received = std::vector<std::byte>(sent.size());
  Long() {
    for (std::size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<std::byte>(i * 7 + i / 1000);
  }
  [[nodiscard]] exec::Move out() { return {true, 1, 0, {sent.data(), static_cast<std::int64_t>(sent.size())}}; }
  [[nodiscard]] exec::Move in() { return {false, 0, 0, {received.data(), static_cast<std::int64_t>(received.size())}}; }
};

std::size_t allocated_bytes() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

}  // namespace

TEST_CASE("a long message takes no memory until somebody asks for it", "[exec]") {
  Pair pair;
  Long message;
  const auto sent = pair[0].transfer({message.out()}, Stream::Pp);
  const std::size_t before = allocated_bytes();
  pair.turns(200);
  CHECK(allocated_bytes() < before + (1 << 20));
  CHECK(!pair[0].finished(sent));
  const auto received = pair[1].transfer({message.in()}, Stream::Pp);
  pair.finish(1, received);
  CHECK(pair[0].finished(sent));
  CHECK(message.received == message.sent);
}

TEST_CASE("what stands behind a long message that nobody asks for arrives all the same", "[exec]") {
  Pair pair;
  Long message;
  std::array<float, 2> all{}, other{};
  const auto gather = [&](std::size_t rank, std::array<float, 2>& into) {
    into[rank] = static_cast<float>(rank + 5);
    return pair[rank].all_gather({{0, 1}, rank, Stream::Dp}, {&into[rank], Dtype::F32, {1, 1, 1}},
                                 {into.data(), Dtype::F32, {2, 1, 1}});
  };
  pair[0].transfer({message.out()}, Stream::Pp);
  gather(0, other);
  pair.finish(1, gather(1, all));
  CHECK(all == std::array<float, 2>{5, 6});
  pair.finish(1, pair[1].transfer({message.in()}, Stream::Pp));
  CHECK(message.received == message.sent);
}
