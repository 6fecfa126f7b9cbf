// One rank of a step program: its memory, its operands, and what it says to others. How a step is run is for those who
// derive from it: on the processor (step_interpreter.h) or on a GPU (device_interpreter.h).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
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

class Rank {
 public:
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;
  virtual ~Rank() = default;

  /// Tokens [sequence_length + 1] of a sample of the step's global batch.
  using Samples = std::function<const std::int32_t*(std::int64_t sample)>;
  /// One optimizer step. Ends early, with what went wrong, when a rank is lost or an expert overflows its bound.
  virtual Result<StepOutcome> step(const Samples& samples) = 0;

  // --- state from outside of a step

  /// Bytes of a chunk's frame of this role, to the host.
  virtual void read(Role role, std::int64_t chunk, std::int64_t offset_bytes, std::byte* to,
                    std::int64_t bytes) const = 0;
  /// Memory of the host that stands for the frame until commit(). What it holds before it is written is undefined.
  virtual std::byte* edit(Role role, std::int64_t chunk) = 0;
  /// Makes what was edited the content of the frames.
  virtual void commit() = 0;

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
  /// That are in use on this rank's device; 0 on processors.
  [[nodiscard]] virtual std::int64_t device_bytes() const { return 0; }
  /// Whether the next steps note when each op runs. Always on where that costs nothing.
  virtual void set_timing(bool) {}
  /// Of the last step that was timed, in launch order of each stream.
  [[nodiscard]] const std::vector<OpTime>& times() const { return times_; }

 protected:
  /// The program and the communicator outlive it.
  Rank(const StepProgram& program, std::int64_t rank, Communicator& communicator);

  [[nodiscard]] const Frame& frame_of(Role role, std::int64_t chunk) const;
  [[nodiscard]] std::vector<Operand> operands(const Item& item, const std::vector<TensorId>& ids) const;
  /// Bytes of a micro-batch's Batch frame.
  void fill_batch(const Frame& frame, const Samples& samples, std::byte* to) const;
  /// Starts an op that is communication, or a batch of transfers. -1 when rows overflow their bound: see problems_.
  Communicator::Ticket communicate(const Item& item, const Op& op);
  Communicator::Ticket transfer(const Item& item);
  /// The elements of an i32 tensor, on the host, as they are when the stream has come to here.
  virtual std::vector<std::int32_t> host_counts(const Operand& counts, Stream stream) = 0;

  const StepProgram& program_;
  std::int64_t rank_;
  Mesh mesh_;
  const StageProgram& stage_;
  Communicator& communicator_;
  std::byte* arena_ = nullptr;  // the host's or the device's
  std::vector<OpTime> times_;
  std::int64_t steps_ = 0;
  std::uint64_t seed_ = 0;
  Problems problems_;

 private:
  const Team& team(Group group, Stream stream);
  Communicator::Ticket exchange_rows(const Op& op, const Team& us, const std::vector<Operand>& in, const Operand& out);

  std::array<std::array<Team, kStreamCount>, kGroupCount> teams_;
};

}  // namespace trainyard::exec
