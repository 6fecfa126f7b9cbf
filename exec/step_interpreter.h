// Runs a step program on the processor: launches each op when its turn on its stream and all that it waits for have
// come. Kernels run where they are launched; communication goes on meanwhile.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "exec/rank.h"
#include "models/program/launch_order.h"

namespace trainyard::exec {

class StepInterpreter final : public Rank {
 public:
  /// The program and both helpers outlive it. Allocates the arena of the rank's stage.
  StepInterpreter(const StepProgram& program, std::int64_t rank, kernels::Kernels& kernels, Communicator& communicator);

  Result<StepOutcome> step(const Samples& samples) override;

  /// Where a chunk's frame of this role lies.
  [[nodiscard]] std::byte* frame(Role role, std::int64_t chunk) const;
  void read(Role role, std::int64_t chunk, std::int64_t offset_bytes, std::byte* to, std::int64_t bytes) const override;
  std::byte* edit(Role role, std::int64_t chunk) override { return frame(role, chunk); }
  void commit() override {}

  /// Calls `observer` after every kernel, with what it has written.
  using Observer = std::function<void(const Item& item, const Op& op, const std::vector<kernels::Tensor>& out)>;
  void observe(Observer observer) { observer_ = std::move(observer); }

 private:
  /// One stream: what is next, and the communication that it waits for.
  struct StreamState {
    std::size_t head = 0;
    Communicator::Ticket ticket = -1;
    std::int64_t begin_ns = 0;  // of what was launched last
  };

  bool ready(const Launch& launch) const;
  bool advance(std::size_t stream);
  void launch(StreamState& stream, const Launch& launch);
  void complete(StreamState& stream, const Launch& done);
  std::vector<std::int32_t> host_counts(const Operand& counts, Stream stream) override;
  double scalar(std::int64_t offset_bytes) const;

  kernels::Kernels& kernels_;
  LaunchOrder order_;
  struct Free {
    void operator()(std::byte* bytes) const;
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::array<StreamState, kStreamCount> streams_;
  std::vector<char> complete_;           // by op
  std::vector<std::int32_t> item_left_;  // by item: ops that have not completed
  Observer observer_;
};

}  // namespace trainyard::exec
