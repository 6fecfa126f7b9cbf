// How ranks talk: collectives and transfers that are started, and later found to be finished. Nothing here waits while
// other work could be done; what ranks do in which order is the step program's business.
//
// Members of a collective start it in the same order on each stream; messages of one stream between two ranks arrive in
// the order in which they were sent. Sums run in group order, so they are the same bits on every member and in every
// run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "models/base/dtype.h"
#include "models/base/status.h"
#include "models/program/op.h"

namespace trainyard::exec {

/// What ranks run on: processors, or a GPU for each: rank r has the r-th.
enum class DeviceKind : std::uint8_t { Cpu, Cuda };

/// Who takes part in a collective, in group order.
struct Team {
  std::vector<std::int64_t> ranks;
  std::size_t me = 0;
  Stream stream = Stream::Compute;
};

struct Buffer {
  std::byte* data = nullptr;
  std::int64_t bytes = 0;
};

/// What a collective reads or writes.
using Operand = kernels::Tensor;

inline Buffer bytes_of(const Operand& x) { return {static_cast<std::byte*>(x.data), x.size() * size_of(x.dtype)}; }

/// One direction of a transfer between this rank and a peer. `key`, from 0 on, is the same on both sides, and no other
/// transfer between them in this direction has it at the same time. Odd keys are of gradients, even ones of
/// activations.
struct Move {
  bool send = true;
  std::int64_t peer = 0;
  std::int64_t key = 0;
  Buffer buffer;
};

class Communicator {
 public:
  /// Of something that was started; counts up.
  using Ticket = std::int64_t;

  Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  virtual ~Communicator() = default;

  // Operands stay where they are until the ticket is finished.

  /// y = the sum or maximum over members of x; y may be x.
  virtual Ticket all_reduce(const Team& team, Reduce reduce, const Operand& x, const Operand& y) = 0;
  /// y[g*n] = the members' x[n], in group order. x may be this rank's block of y.
  virtual Ticket all_gather(const Team& team, const Operand& x, const Operand& y) = 0;
  /// y[n] = this rank's block of the sum of x[g*n]. y may be that block of x; the rest of x is undefined after.
  virtual Ticket reduce_scatter(const Team& team, const Operand& x, const Operand& y) = 0;
  /// send[i] goes to member i; receive[i] comes from it. Sizes agree on both sides.
  virtual Ticket all_to_all(const Team& team, const std::vector<Buffer>& send, const std::vector<Buffer>& receive) = 0;
  /// y[i] = what the member before this one has as x[i]; before the first is the last.
  virtual Ticket ring_shift(const Team& team, const std::vector<Operand>& x, const std::vector<Operand>& y) = 0;
  /// All of them together, on a stream of this rank.
  virtual Ticket transfer(const std::vector<Move>& moves, Stream stream) = 0;

  /// Whether it is over.
  virtual bool finished(Ticket ticket) = 0;
  /// Moves what can be moved; if nothing can, waits for it, at most so long. Says when a rank is lost or abort() was
  /// called: nothing finishes after that.
  virtual Problems progress(int wait_ms) = 0;
  /// Whether what it starts is queued on a device's streams, by the team's stream, where graphs can note it down.
  [[nodiscard]] virtual bool can_be_captured() const { return false; }
  /// Ends progress() on this rank, from another thread or a signal handler.
  virtual void abort() = 0;
};

}  // namespace trainyard::exec
