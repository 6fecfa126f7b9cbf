#include "exec/gloo_communicator.h"

#include <fmt/format.h>
#include <gloo/allgather.h>
#include <gloo/allreduce.h>
#include <gloo/alltoallv.h>
#include <gloo/math.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/rendezvous/prefix_store.h>
#include <gloo/transport/tcp/device.h>

#include <array>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "models/base/bf16.h"
#include "models/base/check.h"
#include "models/base/index.h"

namespace trainyard::exec {

namespace {

using Context = gloo::rendezvous::Context;

constexpr std::chrono::hours kPatience{24};  // Gloo ends a wait by itself otherwise; a lost rank ends it in any case

// Gloo's calls block, so each stream has a thread that makes them in the stream's order.
class StreamThread {
 public:
  explicit StreamThread(std::function<void(std::function<void()>)> run)
      : run_(std::move(run)), thread_([this] { loop(); }) {}
  ~StreamThread() {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  void add(std::function<void()> task) {
    {
      const std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    changed_.notify_all();
  }

 private:
  void loop() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return ending_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      const auto task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      run_(task);
      lock.lock();
    }
  }

  std::function<void(std::function<void()>)> run_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool ending_ = false;
  std::thread thread_;
};

template <class T>
void reduce(const std::shared_ptr<Context>& context, Reduce how, T* in, T* out, std::size_t count) {
  gloo::AllreduceOptions options(context);
  options.setInput(in, count);
  options.setOutput(out, count);
  const auto function = how == Reduce::Sum
                            ? static_cast<void (*)(void*, const void*, const void*, std::size_t)>(&gloo::sum<T>)
                            : static_cast<void (*)(void*, const void*, const void*, std::size_t)>(&gloo::max<T>);
  options.setReduceFunction(function);
  options.setTimeout(kPatience);
  gloo::allreduce(options);
}

// Gloo does not know bf16: it is summed in f32 and rounded once.
void reduce_bf16(const std::shared_ptr<Context>& context, Reduce how, const Operand& x, const Operand& y) {
  std::vector<float> wide(index(x.size()));
  for (std::size_t i = 0; i < wide.size(); ++i) wide[i] = bf16_to_float(static_cast<const std::uint16_t*>(x.data)[i]);
  reduce(context, how, wide.data(), wide.data(), wide.size());
  for (std::size_t i = 0; i < wide.size(); ++i) static_cast<std::uint16_t*>(y.data)[i] = float_to_bf16(wide[i]);
}

void reduce_tensor(const std::shared_ptr<Context>& context, Reduce how, const Operand& x, const Operand& y) {
  switch (x.dtype) {
    case Dtype::F64:
      return reduce(context, how, static_cast<double*>(x.data), static_cast<double*>(y.data), index(x.size()));
    case Dtype::F32:
      return reduce(context, how, static_cast<float*>(x.data), static_cast<float*>(y.data), index(x.size()));
    case Dtype::Bf16: return reduce_bf16(context, how, x, y);
    case Dtype::I32: TY_CHECK(false, "indices are not summed");
  }
}

class GlooCommunicator final : public Communicator {
 public:
  GlooCommunicator(const StepProgram& program, std::int64_t rank, const std::string& folder) : rank_(rank) {
    const Mesh mesh(program.plan);
    gloo::transport::tcp::attr loopback;
    loopback.hostname = "127.0.0.1";
    auto device = gloo::transport::tcp::CreateDevice(loopback);
    gloo::rendezvous::FileStore files(folder);
    const auto connect = [&](const std::string& name, std::size_t me, std::size_t size) {
      gloo::rendezvous::PrefixStore store(name, files);
      auto context = std::make_shared<Context>(static_cast<int>(me), static_cast<int>(size));
      context->setTimeout(kPatience);
      context->connectFullMesh(store, device);
      return context;
    };
    // All ranks go through the same pairs in the same order, so that nobody waits in a circle.
    for (const auto& [group, stream] : channels(program)) {
      const std::vector<std::int64_t> members = mesh.members(group, rank);
      if (members.size() < 2) continue;
      const auto me = index(mesh.group_index(group, rank));
      contexts_[{group_of(members), stream}] =
          connect(fmt::format("{}.{}.{}", to_string(group), to_string(stream), members.front()), me, members.size());
    }
    if (program.plan.pp > 1) world_ = connect("transfers", index(rank), index(mesh.ranks()));
    for (std::size_t s = 0; s < kStreamCount; ++s)
      threads_[s] = std::make_unique<StreamThread>([this](const auto& task) { guarded(task); });
  }

  Ticket all_reduce(const Team& team, Reduce how, const Operand& x, const Operand& y) override {
    return start(team, [how, x, y](const std::shared_ptr<Context>& context) { reduce_tensor(context, how, x, y); });
  }

  Ticket all_gather(const Team& team, const Operand& x, const Operand& y) override {
    return start(team, [x, y](const std::shared_ptr<Context>& context) {
      // From a copy: x may be a block of y, which Gloo writes.
      const Buffer from = bytes_of(x), to = bytes_of(y);
      std::vector<std::byte> own(from.data, from.data + from.bytes);
      gloo::AllgatherOptions options(context);
      options.setInput(reinterpret_cast<char*>(own.data()), own.size());
      options.setOutput(reinterpret_cast<char*>(to.data), index(to.bytes));
      options.setTimeout(kPatience);
      gloo::allgather(options);
    });
  }

  Ticket reduce_scatter(const Team& team, const Operand& x, const Operand& y) override {
    const std::size_t me = team.me;
    return start(team, [x, y, me](const std::shared_ptr<Context>& context) {
      std::vector<std::byte> sum(index(bytes_of(x).bytes));
      const Operand whole{sum.data(), x.dtype, x.dims};
      reduce_tensor(context, Reduce::Sum, x, whole);
      const Buffer to = bytes_of(y);
      std::memcpy(to.data, sum.data() + me * index(to.bytes), index(to.bytes));
    });
  }

  Ticket all_to_all(const Team& team, const std::vector<Buffer>& send, const std::vector<Buffer>& receive) override {
    return start(team, [send, receive](const std::shared_ptr<Context>& context) {
      std::vector<std::int64_t> out_counts, in_counts;
      std::vector<char> out, in;
      for (const Buffer& buffer : send) {
        out_counts.push_back(buffer.bytes);
        const auto* data = reinterpret_cast<const char*>(buffer.data);
        out.insert(out.end(), data, data + buffer.bytes);
      }
      std::size_t total = 0;
      for (const Buffer& buffer : receive) {
        in_counts.push_back(buffer.bytes);
        total += index(buffer.bytes);
      }
      in.resize(total);
      gloo::AlltoallvOptions options(context);
      options.setInput(out.data(), out_counts);
      options.setOutput(in.data(), in_counts);
      options.setTimeout(kPatience);
      gloo::alltoallv(options);
      const char* at = in.data();
      for (const Buffer& buffer : receive) {
        std::memcpy(buffer.data, at, index(buffer.bytes));
        at += buffer.bytes;
      }
    });
  }

  Ticket ring_shift(const Team& team, const std::vector<Operand>& x, const std::vector<Operand>& y) override {
    return start(team, [x, y, me = team.me, g = team.ranks.size()](const std::shared_ptr<Context>& context) {
      for (std::size_t i = 0; i < x.size(); ++i) {
        const Buffer from = bytes_of(x[i]), to = bytes_of(y[i]);
        std::vector<std::int64_t> out_counts(g, 0), in_counts(g, 0);
        out_counts[(me + 1) % g] = from.bytes;
        in_counts[(me + g - 1) % g] = to.bytes;
        gloo::AlltoallvOptions options(context);
        options.setInput(reinterpret_cast<char*>(from.data), out_counts);
        options.setOutput(reinterpret_cast<char*>(to.data), in_counts);
        options.setTimeout(kPatience);
        gloo::alltoallv(options);
      }
    });
  }

  Ticket transfer(const std::vector<Move>& moves, Stream) override {
    const Ticket ticket = next_ticket_++;
    // Its own thread: transfers that wait must not hold up one another.
    transfers_[ticket] = std::thread([this, moves, ticket] {
      guarded([&] {
        std::vector<std::unique_ptr<gloo::transport::UnboundBuffer>> buffers;
        for (const Move& move : moves) {
          buffers.push_back(world_->createUnboundBuffer(move.buffer.data, index(move.buffer.bytes)));
          const auto peer = static_cast<int>(move.peer);
          const auto slot = static_cast<std::uint64_t>(move.key);
          move.send ? buffers.back()->send(peer, slot) : buffers.back()->recv(peer, slot);
        }
        for (std::size_t i = 0; i < moves.size(); ++i)
          moves[i].send ? buffers[i]->waitSend(kPatience) : buffers[i]->waitRecv(kPatience);
        done(ticket);
      });
    });
    return ticket;
  }

  bool finished(Ticket ticket) override {
    {
      const std::lock_guard lock(mutex_);
      if (done_.erase(ticket) == 0) return false;
    }
    if (const auto thread = transfers_.find(ticket); thread != transfers_.end()) {
      thread->second.join();
      transfers_.erase(thread);
    }
    return true;
  }

  Problems progress(int wait_ms) override {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::milliseconds(wait_ms), [this] { return news_; });
    news_ = false;
    return problems_;
  }

  void abort() override { fail("the communicator was aborted"); }

  ~GlooCommunicator() override {
    // A collective that waits for a lost rank ends when Gloo notices; a process that ends does not wait for that.
    for (auto& thread : threads_) thread.reset();
    for (auto& entry : transfers_) entry.second.join();
  }

 private:
  // Of a program: which groups talk on which streams.
  static std::set<std::pair<Group, Stream>> channels(const StepProgram& program) {
    std::set<std::pair<Group, Stream>> found;
    for (const Block& block : program.blocks) {
      for (const Op& op : block.ops) {
        if (is_communication(op.kind)) found.insert({op.group, op.stream});
      }
    }
    return found;
  }

  // Two groups of the same ranks may share contexts: their operations on one stream come in one order.
  static std::string group_of(const std::vector<std::int64_t>& members) {
    std::string text;
    for (const std::int64_t member : members) text += fmt::format("{},", member);
    return text;
  }

  template <class Work>
  Ticket start(const Team& team, Work work) {
    TY_CHECK(team.ranks.size() > 1, "a rank alone has nobody to talk to");
    const Ticket ticket = next_ticket_++;
    const std::shared_ptr<Context> context = contexts_.at({group_of(team.ranks), team.stream});
    threads_[static_cast<std::size_t>(team.stream)]->add([this, context, work, ticket] {
      work(context);
      done(ticket);
    });
    return ticket;
  }

  // Runs something of Gloo's, which throws when a rank is lost.
  void guarded(const std::function<void()>& task) {
    try {
      task();
    } catch (const std::exception& error) {
      fail(error.what());
    }
  }

  void done(Ticket ticket) {
    {
      const std::lock_guard lock(mutex_);
      done_.insert(ticket);
      news_ = true;
    }
    changed_.notify_all();
  }

  void fail(const std::string& what) {
    {
      const std::lock_guard lock(mutex_);
      problems_.push_back({fmt::format("rank {}", rank_), "", "", what, "", ProblemKind::Failed});
      news_ = true;
    }
    changed_.notify_all();
  }

  std::int64_t rank_;
  std::map<std::pair<std::string, Stream>, std::shared_ptr<Context>> contexts_;
  std::shared_ptr<Context> world_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<Ticket> done_;
  bool news_ = false;  // since progress() looked
  Problems problems_;
  Ticket next_ticket_ = 0;
  std::array<std::unique_ptr<StreamThread>, kStreamCount> threads_;
  std::map<Ticket, std::thread> transfers_;
};

}  // namespace

bool has_gloo() { return true; }

Result<std::unique_ptr<Communicator>> gloo_communicator(const StepProgram& program, std::int64_t rank,
                                                        const std::string& folder) {
  try {
    return std::unique_ptr<Communicator>(std::make_unique<GlooCommunicator>(program, rank, folder));
  } catch (const std::exception& error) {
    return Problem{fmt::format("rank {}", rank), "", "", error.what(), "", ProblemKind::Failed};
  }
}

}  // namespace trainyard::exec
