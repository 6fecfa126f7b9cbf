#include "exec/step_interpreter.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "exec/clock.h"
#include "exec/compute_op.h"
#include "models/base/check.h"
#include "models/base/index.h"
#include "models/program/step_blocks.h"

namespace trainyard::exec {

namespace {

constexpr std::size_t kArenaAlignment = 4096;
constexpr int kWait_ms = 1000;
constexpr Communicator::Ticket kNone = -1;

}  // namespace

void StepInterpreter::Free::operator()(std::byte* bytes) const { std::free(bytes); }

StepInterpreter::StepInterpreter(const StepProgram& program, std::int64_t rank, kernels::Kernels& kernels,
                                 Communicator& communicator)
    : Rank(program, rank, communicator), kernels_(kernels), order_(launch_order(program, stage_)) {
  void* memory = nullptr;
  const int failed = posix_memalign(&memory, kArenaAlignment, index(std::max<std::int64_t>(stage_.arena_bytes, 1)));
  TY_CHECK(failed == 0, "the arena fits the machine: memory is checked before ranks start");
  memory_.reset(static_cast<std::byte*>(memory));
  arena_ = memory_.get();
  // What nobody has written is not a number, and no valid index.
  std::memset(arena_, 0xff, index(stage_.arena_bytes));
}

std::byte* StepInterpreter::frame(Role role, std::int64_t chunk) const {
  return arena_ + frame_of(role, chunk).offset_bytes;
}

void StepInterpreter::read(Role role, std::int64_t chunk, std::int64_t offset_bytes, std::byte* to,
                           std::int64_t bytes) const {
  std::memcpy(to, frame(role, chunk) + offset_bytes, index(bytes));
}

std::vector<std::int32_t> StepInterpreter::host_counts(const Operand& counts, Stream) {
  const auto* first = static_cast<const std::int32_t*>(counts.data);
  return {first, first + counts.size()};
}

double StepInterpreter::scalar(std::int64_t offset_bytes) const {
  const std::byte* at = frame(Role::Step, -1) + offset_bytes;
  if (program_.plan.precision == Precision::F64) return *reinterpret_cast<const double*>(at);
  return static_cast<double>(*reinterpret_cast<const float*>(at));
}

// --- the loop

Result<StepOutcome> StepInterpreter::step(const Samples& samples) {
  complete_.assign(index(order_.ops()), 0);
  item_left_.resize(stage_.items.size());
  for (std::size_t i = 0; i < item_left_.size(); ++i)
    item_left_[i] = static_cast<std::int32_t>(order_.first[i + 1] - order_.first[i]);
  for (StreamState& stream : streams_) stream.head = 0;
  times_.clear();
  times_.reserve(complete_.size());
  for (const Frame& frame : stage_.frames) {
    if (frame.role == Role::Batch) fill_batch(frame, samples, arena_ + frame.offset_bytes);
  }
  // Communication first: it goes on while kernels run. Then one kernel, and again.
  while (problems_.empty()) {
    bool moved = false, over = true;
    for (std::size_t s = kStreamCount; s-- > 0;) {
      moved |= advance(s);
      over &= streams_[s].head == order_.queue[s].size();
    }
    if (over) break;
    const Problems lost = communicator_.progress(moved ? 0 : kWait_ms);
    problems_.insert(problems_.end(), lost.begin(), lost.end());
  }
  if (!problems_.empty()) return problems_;
  ++steps_;
  const bool last = mesh_.coordinates(rank_).pp == program_.plan.pp - 1;
  return StepOutcome{last ? scalar(kLossOffset) : 0, std::sqrt(scalar(kGradNormOffset))};
}

bool StepInterpreter::ready(const Launch& launch) const {
  const Item& item = stage_.items[index(launch.item)];
  for (const Wait& wait : item.waits) {
    if (wait.op >= 0 ? complete_[index(order_.first[index(wait.item)] + wait.op)] == 0
                     : item_left_[index(wait.item)] > 0)
      return false;
  }
  if (item.block < 0) return true;
  const Op& op = program_.block(item).ops[index(launch.op)];
  return std::all_of(op.deps.begin(), op.deps.end(),
                     [&](OpId dep) { return complete_[index(order_.first[index(launch.item)] + dep)] != 0; });
}

// True when something happened on the stream.
bool StepInterpreter::advance(std::size_t stream_index) {
  StreamState& stream = streams_[stream_index];
  bool moved = false;
  while (problems_.empty() && stream.head < order_.queue[stream_index].size()) {
    const Launch& next = order_.queue[stream_index][stream.head];
    if (stream.ticket != kNone) {
      if (!communicator_.finished(stream.ticket)) return moved;
      complete(stream, next);
    } else {
      if (!ready(next)) return moved;
      launch(stream, next);
      if (stream.ticket == kNone) complete(stream, next);
      // After a kernel, communication gets its chance.
      if (stream_index == static_cast<std::size_t>(Stream::Compute)) return true;
    }
    moved = true;
  }
  return moved;
}

void StepInterpreter::launch(StreamState& stream, const Launch& launch) {
  const Item& item = stage_.items[index(launch.item)];
  stream.begin_ns = now_ns();
  if (item.block < 0) {
    stream.ticket = transfer(item);
    return;
  }
  const Op& op = program_.block(item).ops[index(launch.op)];
  if (is_communication(op.kind)) {
    stream.ticket = communicate(item, op);
    return;
  }
  const std::vector<Operand> in = operands(item, op.in), out = operands(item, op.out);
  const Chunk* chunk = item.chunk < 0 ? nullptr : &stage_.chunks[index(item.chunk)];
  compute_op(op, {&program_, chunk, rank_, steps_, seed_}, in, out, kernels_);
  if (observer_) observer_(item, op, out);
}

void StepInterpreter::complete(StreamState& stream, const Launch& done) {
  ++stream.head;
  times_.push_back({done.item, done.op, stream.begin_ns, now_ns()});
  complete_[index(order_.first[index(done.item)] + done.op)] = 1;
  --item_left_[index(done.item)];
  stream.ticket = kNone;
}

}  // namespace trainyard::exec
