// Runs a step program on one rank: launches each op when its turn on its stream and all that it waits for have come.
// Kernels run where they are launched; communication goes on meanwhile.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "exec/communicator.h"
#include "kernels/kernels.h"
#include "models/program/program.h"

namespace trainyard::exec {

struct StepOutcome {
  double loss = 0;  // known on the last stage; elsewhere 0
  double grad_norm = 0;
};

/// When an op of the last step ran, on the machine's monotonic clock. Communication runs from its start here, before
/// others may have come to it.
struct OpTime {
  std::int32_t item = 0;
  OpId op = 0;
  std::int64_t begin_ns = 0, end_ns = 0;
};

class StepInterpreter {
 public:
  /// The program and both helpers outlive it. Allocates the arena of the rank's stage.
  StepInterpreter(const StepProgram& program, std::int64_t rank, kernels::Kernels& kernels, Communicator& communicator);

  /// Tokens [sequence_length + 1] of a sample of the step's global batch.
  using Samples = std::function<const std::int32_t*(std::int64_t sample)>;
  /// One optimizer step. Ends early, with what went wrong, when a rank is lost or an expert overflows its bound.
  Result<StepOutcome> step(const Samples& samples);

  /// Where a chunk's frame of this role lies.
  [[nodiscard]] std::byte* frame(Role role, std::int64_t chunk) const;
  /// The first element, in the bucket, of this rank's share of optimizer state.
  [[nodiscard]] std::int64_t share_begin(const Bucket& bucket) const;

  [[nodiscard]] const StepProgram& program() const { return program_; }
  [[nodiscard]] const Mesh& mesh() const { return mesh_; }
  [[nodiscard]] const StageProgram& stage() const { return stage_; }
  [[nodiscard]] std::int64_t rank() const { return rank_; }
  [[nodiscard]] std::int64_t steps() const { return steps_; }
  /// When a run goes on from an earlier one.
  void set_steps(std::int64_t steps) { steps_ = steps; }
  /// Of dropout.
  void set_seed(std::uint64_t seed) { seed_ = seed; }
  /// Calls `observer` after every kernel, with what it has written.
  using Observer = std::function<void(const Item& item, const Op& op, const std::vector<kernels::Tensor>& out)>;
  void observe(Observer observer) { observer_ = std::move(observer); }
  /// Of the last step, in launch order of each stream.
  [[nodiscard]] const std::vector<OpTime>& times() const { return times_; }

 private:
  struct Launch {
    std::int32_t item;
    OpId op;
  };
  /// One stream: what is next, and the communication that it waits for.
  struct StreamState {
    std::vector<Launch> queue;
    std::size_t head = 0;
    Communicator::Ticket ticket = -1;
    std::int64_t begin_ns = 0;  // of what was launched last
  };

  void fill_batch(const Samples& samples);
  bool ready(const Launch& launch) const;
  bool advance(std::size_t stream);
  void launch(StreamState& stream, const Launch& launch);
  Communicator::Ticket communicate(const Op& op, const Chunk* chunk, const std::vector<kernels::Tensor>& in,
                                   const std::vector<kernels::Tensor>& out);
  Communicator::Ticket exchange_rows(const Op& op, const Team& team, const std::vector<kernels::Tensor>& in,
                                     const kernels::Tensor& out);
  Communicator::Ticket transfer(const Item& item);
  void complete(StreamState& stream);
  std::vector<kernels::Tensor> operands(const Item& item, const std::vector<TensorId>& ids) const;
  const Team& team(Group group, Stream stream);
  double scalar(std::int64_t offset_bytes) const;

  const StepProgram& program_;
  std::int64_t rank_;
  Mesh mesh_;
  const StageProgram& stage_;
  kernels::Kernels& kernels_;
  Communicator& communicator_;

  struct Free {
    void operator()(std::byte* bytes) const;
  };
  std::unique_ptr<std::byte, Free> arena_;
  std::array<StreamState, kStreamCount> streams_;
  std::vector<std::int64_t> first_;      // by item: its first op; and one past the last
  std::vector<char> complete_;           // by op
  std::vector<std::int32_t> item_left_;  // by item: ops that have not completed
  std::array<std::array<Team, kStreamCount>, kGroupCount> teams_;
  std::vector<OpTime> times_;
  Observer observer_;
  std::int64_t steps_ = 0;
  std::uint64_t seed_ = 0;
  Problems problems_;
};

}  // namespace trainyard::exec
