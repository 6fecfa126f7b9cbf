// A device that is this processor: what is queued is done at once. It holds those who use it to a device's rules: a
// stream waits only for events that have been recorded, memory is freed once.
#pragma once

#include <cstdlib>
#include <map>
#include <memory>
#include <stdexcept>
#include <vector>

#include "exec/communicator.h"
#include "kernels/device.h"

namespace trainyard::test {

class HostDevice final : public kernels::Device {
 public:
  explicit HostDevice(kernels::Kernels& kernels) : kernels_(kernels) {}
  kernels::DeviceInfo info() const override { return {"this processor", 0, 1, 0, 0, 0, ""}; }
  std::byte* allocate(std::int64_t bytes) override {
    // Sums come out alike where operands lie alike in their cache lines.
    auto* const memory =
        static_cast<std::byte*>(std::aligned_alloc(4096, (static_cast<std::size_t>(bytes) + 4095) / 4096 * 4096));
    memory_[memory].reset(memory);
    return memory;
  }
  void release(std::byte* memory) override {
    if (memory_.erase(memory) != 1) throw std::logic_error("freed twice, or never allocated");
  }
  std::byte* allocate_host(std::int64_t bytes) override { return allocate(bytes); }
  void release_host(std::byte* memory) override { release(memory); }
  void copy_to_device(std::byte* to, const std::byte* from, std::int64_t bytes, int) override {
    std::copy(from, from + bytes, to);
  }
  void copy_to_host(std::byte* to, const std::byte* from, std::int64_t bytes, int) override {
    std::copy(from, from + bytes, to);
  }
  void fill(std::byte* to, std::uint8_t value, std::int64_t bytes, int) override {
    std::fill(to, to + bytes, std::byte{value});
  }
  kernels::Kernels& kernels(int) override { return kernels_; }
  void* native_stream(int) override { return nullptr; }
  void synchronize(int) override {}
  void synchronize() override {}
  Event create_event() override {
    recorded_.push_back(false);
    return static_cast<Event>(recorded_.size() - 1);
  }
  void record(Event event, int) override { recorded_.at(static_cast<std::size_t>(event)) = true; }
  void wait(int, Event event) override { require(event); }
  bool finished(Event event) override { return require(event); }
  double seconds_between(Event begin, Event end) override { return require(begin) && require(end) ? 1e-6 : 0; }
  void begin_capture(int) override { throw std::logic_error("nothing is noted down here"); }
  Graph end_capture(int) override { throw std::logic_error("nothing is noted down here"); }
  void release_graph(Graph) override {}
  void launch(Graph, int) override { throw std::logic_error("nothing is noted down here"); }

 private:
  bool require(Event event) const {
    if (!recorded_.at(static_cast<std::size_t>(event))) throw std::logic_error("waits for what nobody has recorded");
    return true;
  }

  kernels::Kernels& kernels_;
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::map<std::byte*, std::unique_ptr<std::byte, Free>> memory_;
  std::vector<char> recorded_;
};

/// Another communicator, each of whose calls returns when it is over.
class AtOnce final : public exec::Communicator {
 public:
  explicit AtOnce(exec::Communicator& other) : other_(other) {}
  Ticket all_reduce(const exec::Team& team, Reduce reduce, const exec::Operand& x, const exec::Operand& y) override {
    return over(other_.all_reduce(team, reduce, x, y));
  }
  Ticket all_gather(const exec::Team& team, const exec::Operand& x, const exec::Operand& y) override {
    return over(other_.all_gather(team, x, y));
  }
  Ticket reduce_scatter(const exec::Team& team, const exec::Operand& x, const exec::Operand& y) override {
    return over(other_.reduce_scatter(team, x, y));
  }
  Ticket all_to_all(const exec::Team& team, const std::vector<exec::Buffer>& send,
                    const std::vector<exec::Buffer>& receive) override {
    return over(other_.all_to_all(team, send, receive));
  }
  Ticket ring_shift(const exec::Team& team, const std::vector<exec::Operand>& x,
                    const std::vector<exec::Operand>& y) override {
    return over(other_.ring_shift(team, x, y));
  }
  Ticket transfer(const std::vector<exec::Move>& moves, Stream stream) override {
    return over(other_.transfer(moves, stream));
  }
  bool finished(Ticket) override { return true; }
  Problems progress(int) override { return {}; }
  void abort() override { other_.abort(); }

 private:
  Ticket over(Ticket ticket) {
    while (!other_.finished(ticket)) {
      if (const Problems lost = other_.progress(100); !lost.empty()) throw std::runtime_error(lost.front().rule);
    }
    return ticket;
  }
  exec::Communicator& other_;
};

}  // namespace trainyard::test
