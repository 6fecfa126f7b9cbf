#include "exec/nccl/nccl_communicator.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

namespace trainyard::exec {

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kPollEvery = std::chrono::microseconds(20);
constexpr double kFarewell_s = 2;

[[noreturn]] void fail(const std::string& what, ncclResult_t result) {
  throw std::runtime_error("NCCL: " + what + ": " + ncclGetErrorString(result) + ": " + ncclGetLastError(nullptr));
}

ncclDataType_t type_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::Bf16: return ncclBfloat16;
    case Dtype::F32: return ncclFloat32;
    case Dtype::F64: return ncclFloat64;
    case Dtype::I32: return ncclInt32;
    default: throw std::runtime_error("NCCL: no collective of this type is in any program");
  }
}

std::size_t count_of(const Operand& x) { return static_cast<std::size_t>(x.size()); }

// Elements [first, first + count) of an operand.
Operand part(const Operand& x, std::int64_t first, std::int64_t count) {
  return {static_cast<std::byte*>(x.data) + first * size_of(x.dtype), x.dtype, {count, 1, 1}};
}

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(const NcclSetup& setup, kernels::Device& device, Communicator& bootstrap)
      : setup_(setup), device_(device), bootstrap_(bootstrap) {
    for (const Team& team : setup.teams.teams) connect(comms_[{team.stream, team.ranks}], team);
    for (const MessageChannel& channel : setup.teams.channels) {
      const Team pair{{channel.sender, channel.receiver}, channel.sender == setup.rank ? 0U : 1U, Stream::Pp};
      connect(channels_[channel], pair);
    }
  }
  // Destruction waits for the other members; after an error, or if they do not come, abortion does not.
  ~NcclCommunicator() override {
    try {
      for (auto& [stream, scratch] : scratch_) release(scratch);
      if (aborted_) return;
      setup_.deadline_s = kFarewell_s;
      for_each([](ncclComm_t comm) { ncclCommFinalize(comm); });
      for_each([this](ncclComm_t comm) { settle(comm); });
      for_each([](ncclComm_t comm) { ncclCommDestroy(comm); });
    } catch (const std::runtime_error&) {
      give_up();
    }
  }

  Ticket all_reduce(const Team& team, Reduce reduce, const Operand& x, const Operand& y) override {
    if (setup_.strict && reduce == Reduce::Sum && team.ranks.size() > 1) return strict_all_reduce(team, x, y);
    return collective(
        team,
        [&](ncclComm_t comm, cudaStream_t stream) {
          return ncclAllReduce(x.data, y.data, count_of(x), type_of(x.dtype), reduce == Reduce::Sum ? ncclSum : ncclMax,
                               comm, stream);
        },
        x, y);
  }
  Ticket all_gather(const Team& team, const Operand& x, const Operand& y) override {
    return collective(
        team,
        [&](ncclComm_t comm, cudaStream_t stream) {
          return ncclAllGather(x.data, y.data, count_of(x), type_of(x.dtype), comm, stream);
        },
        x, y);
  }
  Ticket reduce_scatter(const Team& team, const Operand& x, const Operand& y) override {
    if (setup_.strict && team.ranks.size() > 1) return strict_reduce_scatter(team, x, y);
    return collective(
        team,
        [&](ncclComm_t comm, cudaStream_t stream) {
          return ncclReduceScatter(x.data, y.data, count_of(y), type_of(x.dtype), ncclSum, comm, stream);
        },
        x, y);
  }
  Ticket all_to_all(const Team& team, const std::vector<Buffer>& send, const std::vector<Buffer>& receive) override {
    cudaStream_t stream = stream_of(team);
    if (team.ranks.size() == 1) return copy(send[0], receive[0], stream);
    ncclComm_t comm = comm_of(team);
    return grouped({comm}, [&] {
      for (std::size_t i = 0; i < team.ranks.size(); ++i) {
        put(comm, send[i], static_cast<int>(i), stream);
        take(comm, receive[i], static_cast<int>(i), stream);
      }
    });
  }
  Ticket ring_shift(const Team& team, const std::vector<Operand>& x, const std::vector<Operand>& y) override {
    cudaStream_t stream = stream_of(team);
    const auto size = team.ranks.size();
    if (size == 1) {
      for (std::size_t i = 0; i < x.size(); ++i) copy(bytes_of(x[i]), bytes_of(y[i]), stream);
      return kQueued;
    }
    ncclComm_t comm = comm_of(team);
    return grouped({comm}, [&] {
      for (std::size_t i = 0; i < x.size(); ++i) {
        put(comm, bytes_of(x[i]), static_cast<int>((team.me + 1) % size), stream);
        take(comm, bytes_of(y[i]), static_cast<int>((team.me + size - 1) % size), stream);
      }
    });
  }
  Ticket transfer(const std::vector<Move>& moves, Stream on) override {
    cudaStream_t stream = native(on);
    std::vector<Way> ways;
    std::vector<ncclComm_t> used;
    for (const Move& move : moves) {
      ways.push_back(way_of(move, on));
      used.push_back(ways.back().comm);
    }
    return grouped(used, [&] {
      for (std::size_t i = 0; i < moves.size(); ++i) {
        if (moves[i].send) {
          put(ways[i].comm, moves[i].buffer, ways[i].peer, stream);
        } else {
          take(ways[i].comm, moves[i].buffer, ways[i].peer, stream);
        }
      }
    });
  }

  bool finished(Ticket) override { return false; }  // streams know
  bool can_be_captured() const override { return true; }

  Problems progress(int) override {
    Problems problems;
    if (abort_asked_) give_up();
    for_each([&](ncclComm_t comm) {
      ncclResult_t state = ncclSuccess;
      const ncclResult_t asked = ncclCommGetAsyncError(comm, &state);
      if (asked == ncclSuccess && (state == ncclSuccess || state == ncclInProgress)) return;
      if (problems.empty()) problems.push_back(lost(ncclGetErrorString(asked == ncclSuccess ? state : asked)));
    });
    if (aborted_ && problems.empty()) problems.push_back(lost("aborted"));
    if (!problems.empty()) give_up();
    return problems;
  }
  void abort() override { abort_asked_ = true; }

 private:
  static constexpr Ticket kQueued = 0;
  using Key = std::pair<Stream, std::vector<std::int64_t>>;

  Problem lost(const std::string& why) const {
    return {"rank " + std::to_string(setup_.rank),
            "",
            "",
            "lost a rank that it talks to over NCCL: " + why,
            "see the other ranks",
            ProblemKind::Failed};
  }

  cudaStream_t native(Stream stream) const {
    return static_cast<cudaStream_t>(device_.native_stream(static_cast<int>(stream)));
  }
  cudaStream_t stream_of(const Team& team) const { return native(team.stream); }
  ncclComm_t comm_of(const Team& team) const { return comms_.at({team.stream, team.ranks}); }
  // Over which communicator, and who the peer is there.
  struct Way {
    ncclComm_t comm;
    int peer;
  };
  // Kernels of two communicators on one stream run one after the other: a batch whose moves have to go on together has
  // one communicator for all of them.
  Way way_of(const Move& move, Stream on) const {
    if (on == Stream::Pp) {
      for (const auto& [key, comm] : comms_) {
        const auto peer = std::find(key.second.begin(), key.second.end(), move.peer);
        if (key.first == Stream::Pp && peer != key.second.end())
          return {comm, static_cast<int>(peer - key.second.begin())};
      }
    }
    const MessageChannel channel{move.send ? setup_.rank : move.peer, move.send ? move.peer : setup_.rank,
                                 is_backward(move)};
    return {channels_.at(channel), move.send ? 1 : 0};
  }

  template <class Visit>
  void for_each(Visit visit) {
    for (auto& entry : comms_) visit(entry.second);
    for (auto& entry : channels_) visit(entry.second);
  }

  // --- coming up

  // The first member names the communicator; the name goes round over the bootstrap.
  void connect(ncclComm_t& comm, const Team& team) {
    ncclUniqueId mine{};
    if (team.me == 0) {
      const ncclResult_t named = ncclGetUniqueId(&mine);
      if (named != ncclSuccess) fail("naming a communicator", named);
    }
    std::vector<ncclUniqueId> all(team.ranks.size());
    const auto bytes = static_cast<std::int64_t>(sizeof mine);
    const Ticket ticket =
        bootstrap_.all_gather(team, {&mine, Dtype::I32, {bytes / 4, 1, 1}},
                              {all.data(), Dtype::I32, {bytes / 4 * static_cast<std::int64_t>(all.size()), 1, 1}});
    const auto deadline = deadline_from_now();
    while (!bootstrap_.finished(ticket)) {
      const Problems problems = bootstrap_.progress(100);
      if (!problems.empty()) throw std::runtime_error("NCCL: while ranks meet: " + problems.front().rule);
      if (Clock::now() > deadline) throw std::runtime_error("NCCL: ranks did not meet in time");
    }
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    const ncclResult_t result =
        ncclCommInitRankConfig(&comm, static_cast<int>(team.ranks.size()), all[0], static_cast<int>(team.me), &config);
    if (result != ncclSuccess && result != ncclInProgress) fail("starting a communicator", result);
    settle(comm);
  }

  Clock::time_point deadline_from_now() const {
    return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(setup_.deadline_s));
  }

  // Calls return before they are done; until then nothing else may be asked of the communicator.
  void settle(ncclComm_t comm) const {
    const auto deadline = deadline_from_now();
    while (true) {
      ncclResult_t state = ncclSuccess;
      const ncclResult_t asked = ncclCommGetAsyncError(comm, &state);
      if (asked != ncclSuccess) fail("asking a communicator how it is", asked);
      if (state == ncclSuccess) return;
      if (state != ncclInProgress) fail("a communicator", state);
      if (abort_asked_ || Clock::now() > deadline)
        throw std::runtime_error("NCCL: a communicator did not answer in time");
      std::this_thread::sleep_for(kPollEvery);
    }
  }

  // One abort of all, in one group: a rank that waits for another's abort would wait for ever.
  void give_up() {
    if (aborted_) return;
    aborted_ = true;
    ncclGroupStart();
    for_each([](ncclComm_t comm) { ncclCommAbort(comm); });
    ncclGroupEnd();
    comms_.clear();
    channels_.clear();
  }

  // --- queueing

  template <class Call>
  Ticket collective(const Team& team, Call call, const Operand& x, const Operand& y) {
    cudaStream_t stream = stream_of(team);
    if (team.ranks.size() == 1) return x.data == y.data ? kQueued : copy(bytes_of(x), bytes_of(y), stream);
    ncclComm_t comm = comm_of(team);
    const ncclResult_t result = call(comm, stream);
    if (result != ncclSuccess && result != ncclInProgress) fail("queueing a collective", result);
    settle(comm);
    return kQueued;
  }

  template <class Calls>
  Ticket grouped(const std::vector<ncclComm_t>& used, Calls calls) {
    ncclGroupStart();
    calls();
    const ncclResult_t result = ncclGroupEnd();
    if (result != ncclSuccess && result != ncclInProgress) fail("queueing messages", result);
    for (ncclComm_t comm : used) settle(comm);
    return kQueued;
  }
  static void put(ncclComm_t comm, const Buffer& from, int peer, cudaStream_t stream) {
    if (from.bytes > 0) ncclSend(from.data, static_cast<std::size_t>(from.bytes), ncclInt8, peer, comm, stream);
  }
  static void take(ncclComm_t comm, const Buffer& to, int peer, cudaStream_t stream) {
    if (to.bytes > 0) ncclRecv(to.data, static_cast<std::size_t>(to.bytes), ncclInt8, peer, comm, stream);
  }
  static Ticket copy(const Buffer& from, const Buffer& to, cudaStream_t stream) {
    if (cudaMemcpyAsync(to.data, from.data, static_cast<std::size_t>(from.bytes), cudaMemcpyDeviceToDevice, stream) !=
        cudaSuccess)
      throw std::runtime_error("CUDA: copying on the device");
    return kQueued;
  }

  // --- sums in group order

  struct Scratch {
    std::byte* data = nullptr;
    std::int64_t bytes = 0;
  };

  void release(Scratch& scratch) {
    if (scratch.data != nullptr) device_.release(scratch.data);
    scratch = {};
  }
  // Of a stream; what was taken before is no longer needed by what is queued later. Sizes are met before graphs are
  // made.
  std::byte* scratch(Stream stream, std::int64_t bytes) {
    Scratch& its = scratch_[stream];
    if (its.bytes < bytes) {
      device_.synchronize(static_cast<int>(stream));
      release(its);
      its = {device_.allocate(bytes), bytes};
    }
    return its.data;
  }

  // Blocks [members][n] that came from all members into their sum y[n], first member first.
  void add_up(const Team& team, std::byte* blocks, const Operand& y) {
    kernels::Kernels& kernels = device_.kernels(static_cast<int>(team.stream));
    const std::int64_t block_bytes = y.size() * size_of(y.dtype);
    for (std::size_t i = 0; i < team.ranks.size(); ++i) {
      const Operand block{blocks + static_cast<std::int64_t>(i) * block_bytes, y.dtype, y.dims};
      if (i == 0) {
        kernels.copy(block, y);
      } else {
        kernels.accumulate(block, y);
      }
    }
  }

  Ticket strict_reduce_scatter(const Team& team, const Operand& x, const Operand& y) {
    const auto members = static_cast<std::int64_t>(team.ranks.size());
    const std::int64_t bytes = y.size() * size_of(y.dtype);
    std::byte* blocks = scratch(team.stream, bytes * members);
    std::vector<Buffer> send, receive;
    for (std::int64_t i = 0; i < members; ++i) {
      send.push_back({static_cast<std::byte*>(x.data) + i * bytes, bytes});
      receive.push_back({blocks + i * bytes, bytes});
    }
    all_to_all(team, send, receive);
    add_up(team, blocks, y);
    return kQueued;
  }

  // Each member sums one block, the last ones shorter, and sends it to all.
  Ticket strict_all_reduce(const Team& team, const Operand& x, const Operand& y) {
    const auto members = static_cast<std::int64_t>(team.ranks.size()), me = static_cast<std::int64_t>(team.me);
    const std::int64_t block = (x.size() + members - 1) / members;
    const auto block_of = [&](const Operand& all, std::int64_t i) {
      const std::int64_t first = std::min(i * block, all.size()), last = std::min(first + block, all.size());
      return part(all, first, last - first);
    };
    const Operand mine = block_of(y, me);
    std::byte* blocks = scratch(team.stream, block * size_of(x.dtype) * members);
    std::vector<Buffer> send, receive, gathered, from_me;
    for (std::int64_t i = 0; i < members; ++i) {
      send.push_back(bytes_of(block_of(x, i)));
      receive.push_back({blocks + i * bytes_of(mine).bytes, bytes_of(mine).bytes});
      from_me.push_back(bytes_of(mine));
      gathered.push_back(bytes_of(block_of(y, i)));
    }
    all_to_all(team, send, receive);
    if (mine.size() > 0) add_up(team, blocks, mine);
    // Its own block is in place.
    from_me[static_cast<std::size_t>(me)].bytes = gathered[static_cast<std::size_t>(me)].bytes = 0;
    all_to_all(team, from_me, gathered);
    return kQueued;
  }

  NcclSetup setup_;
  kernels::Device& device_;
  Communicator& bootstrap_;
  std::map<Key, ncclComm_t> comms_;
  std::map<MessageChannel, ncclComm_t> channels_;
  std::map<Stream, Scratch> scratch_;
  std::atomic<bool> abort_asked_ = false;
  bool aborted_ = false;
};

}  // namespace

std::unique_ptr<Communicator> connect_nccl(const NcclSetup& setup, kernels::Device& device, Communicator& bootstrap) {
  return std::make_unique<NcclCommunicator>(setup, device, bootstrap);
}

}  // namespace trainyard::exec

extern "C" __attribute__((visibility("default"))) trainyard::exec::Communicator* trainyard_connect_nccl(
    const trainyard::exec::NcclSetup& setup, trainyard::kernels::Device& device,
    trainyard::exec::Communicator& bootstrap, char* problem, int problem_size) {
  try {
    return trainyard::exec::connect_nccl(setup, device, bootstrap).release();
  } catch (const std::exception& error) {
    std::snprintf(problem, static_cast<std::size_t>(problem_size), "%s", error.what());
    return nullptr;
  }
}
