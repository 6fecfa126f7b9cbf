#include "exec/step_interpreter.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "exec/clock.h"
#include "exec/compute_op.h"
#include "models/base/check.h"
#include "models/base/index.h"
#include "models/program/layout.h"
#include "models/program/step_blocks.h"

namespace trainyard::exec {

namespace {

constexpr std::size_t kArenaAlignment = 4096;
constexpr int kWait_ms = 1000;
constexpr Communicator::Ticket kNone = -1;

// Rows [first, first + count) of a matrix.
Buffer rows_of(const Operand& x, std::int64_t first, std::int64_t count) {
  const std::int64_t row_bytes = x.dims[1] * size_of(x.dtype);
  return {static_cast<std::byte*>(x.data) + first * row_bytes, count * row_bytes};
}

}  // namespace

void StepInterpreter::Free::operator()(std::byte* bytes) const { std::free(bytes); }

StepInterpreter::StepInterpreter(const StepProgram& program, std::int64_t rank, kernels::Kernels& kernels,
                                 Communicator& communicator)
    : program_(program),
      rank_(rank),
      mesh_(program.plan),
      stage_(program.stages[index(mesh_.coordinates(rank).pp)]),
      kernels_(kernels),
      communicator_(communicator) {
  void* memory = nullptr;
  const int failed = posix_memalign(&memory, kArenaAlignment, index(std::max<std::int64_t>(stage_.arena_bytes, 1)));
  TY_CHECK(failed == 0, "the arena fits the machine: memory is checked before ranks start");
  arena_.reset(static_cast<std::byte*>(memory));
  // What nobody has written is not a number, and no valid index.
  std::memset(arena_.get(), 0xff, index(stage_.arena_bytes));
  std::int64_t ops = 0;
  for (std::size_t i = 0; i < stage_.items.size(); ++i) {
    const Item& item = stage_.items[i];
    first_.push_back(ops);
    const std::size_t count = item.block < 0 ? 1 : program_.block(item).ops.size();
    for (std::size_t o = 0; o < count; ++o) {
      const Stream stream = item.block < 0 ? item.stream : program_.block(item).ops[o].stream;
      streams_[static_cast<std::size_t>(stream)].queue.push_back({static_cast<std::int32_t>(i), static_cast<OpId>(o)});
    }
    ops += static_cast<std::int64_t>(count);
  }
  first_.push_back(ops);
}

std::byte* StepInterpreter::frame(Role role, std::int64_t chunk) const {
  for (const Frame& frame : stage_.frames) {
    if (frame.role == role && frame.chunk == chunk) return arena_.get() + frame.offset_bytes;
  }
  TY_CHECK(false, "a stage has a frame for each of its chunks");
}

std::int64_t StepInterpreter::share_begin(const Bucket& bucket) const {
  return mesh_.group_index(bucket.sharding.shards, rank_) * bucket.shard_elements;
}

double StepInterpreter::scalar(std::int64_t offset_bytes) const {
  const std::byte* at = frame(Role::Step, -1) + offset_bytes;
  if (program_.plan.precision == Precision::F64) return *reinterpret_cast<const double*>(at);
  return static_cast<double>(*reinterpret_cast<const float*>(at));
}

// --- the loop

Result<StepOutcome> StepInterpreter::step(const Samples& samples) {
  complete_.assign(index(first_.back()), 0);
  item_left_.resize(stage_.items.size());
  for (std::size_t i = 0; i < item_left_.size(); ++i)
    item_left_[i] = static_cast<std::int32_t>(first_[i + 1] - first_[i]);
  for (StreamState& stream : streams_) stream.head = 0;
  times_.clear();
  times_.reserve(complete_.size());
  fill_batch(samples);
  // Communication first: it goes on while kernels run. Then one kernel, and again.
  while (problems_.empty()) {
    bool moved = false, over = true;
    for (std::size_t s = kStreamCount; s-- > 0;) {
      moved |= advance(s);
      over &= streams_[s].head == streams_[s].queue.size();
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

void StepInterpreter::fill_batch(const Samples& samples) {
  const ParallelPlan& plan = program_.plan;
  const Coordinates where = mesh_.coordinates(rank_);
  const std::int64_t local = plan.sequence_length / plan.cp, rows = plan.micro_batch * local;
  const std::int64_t stride = (rows * 4 + 255) / 256 * 256;
  for (const Frame& frame : stage_.frames) {
    if (frame.role != Role::Batch) continue;
    std::byte* base = arena_.get() + frame.offset_bytes;
    const auto field = [&](std::int64_t k) { return reinterpret_cast<std::int32_t*>(base + k * stride); };
    for (std::int64_t i = 0; i < plan.micro_batch; ++i) {
      const std::int64_t sample = sample_index(plan, where.dp, frame.micro_batch, i);
      const std::int32_t* tokens = samples(sample);
      for (std::int64_t t = 0; t < local; ++t) {
        const std::int64_t row = i * local + t;
        const std::int64_t position = context_position(plan.cp, where.cp, plan.sequence_length, t);
        field(0)[row] = tokens[position];
        field(1)[row] = tokens[position + 1];
        field(2)[row] = static_cast<std::int32_t>(position);
        field(3)[row] = static_cast<std::int32_t>(sample);
      }
    }
  }
}

bool StepInterpreter::ready(const Launch& launch) const {
  const Item& item = stage_.items[index(launch.item)];
  for (const Wait& wait : item.waits) {
    if (wait.op >= 0 ? complete_[index(first_[index(wait.item)] + wait.op)] == 0 : item_left_[index(wait.item)] > 0)
      return false;
  }
  if (item.block < 0) return true;
  const Op& op = program_.block(item).ops[index(launch.op)];
  return std::all_of(op.deps.begin(), op.deps.end(),
                     [&](OpId dep) { return complete_[index(first_[index(launch.item)] + dep)] != 0; });
}

// True when something happened on the stream.
bool StepInterpreter::advance(std::size_t stream_index) {
  StreamState& stream = streams_[stream_index];
  bool moved = false;
  while (problems_.empty() && stream.head < stream.queue.size()) {
    if (stream.ticket != kNone) {
      if (!communicator_.finished(stream.ticket)) return moved;
      complete(stream);
    } else {
      const Launch& next = stream.queue[stream.head];
      if (!ready(next)) return moved;
      launch(stream, next);
      if (stream.ticket == kNone) complete(stream);
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
  const std::vector<Operand> in = operands(item, op.in), out = operands(item, op.out);
  const Chunk* chunk = item.chunk < 0 ? nullptr : &stage_.chunks[index(item.chunk)];
  if (is_communication(op.kind)) {
    stream.ticket = communicate(op, chunk, in, out);
    return;
  }
  compute_op(op, {&program_, chunk, rank_, steps_, seed_}, in, out, kernels_);
  if (observer_) observer_(item, op, out);
}

void StepInterpreter::complete(StreamState& stream) {
  const Launch& done = stream.queue[stream.head++];
  times_.push_back({done.item, done.op, stream.begin_ns, now_ns()});
  complete_[index(first_[index(done.item)] + done.op)] = 1;
  --item_left_[index(done.item)];
  stream.ticket = kNone;
}

std::vector<Operand> StepInterpreter::operands(const Item& item, const std::vector<TensorId>& ids) const {
  std::vector<Operand> out;
  out.reserve(ids.size());
  for (const TensorId id : ids) {
    const Tensor& tensor = program_.block(item).tensors[index(id)];
    const Frame& frame = stage_.frames[index(item.frames[static_cast<std::size_t>(tensor.role)])];
    out.push_back(bind(tensor, arena_.get() + frame.offset_bytes + tensor.offset_bytes));
  }
  return out;
}

// --- communication

const Team& StepInterpreter::team(Group group, Stream stream) {
  Team& team = teams_[static_cast<std::size_t>(group)][static_cast<std::size_t>(stream)];
  if (team.ranks.empty()) {
    team.ranks = mesh_.members(group, rank_);
    team.me = index(mesh_.group_index(group, rank_));
    team.stream = stream;
  }
  return team;
}

Communicator::Ticket StepInterpreter::communicate(const Op& op, const Chunk* chunk, const std::vector<Operand>& in,
                                                  const std::vector<Operand>& out) {
  const Team& us = team(op.group, op.stream);
  const auto g = static_cast<std::int64_t>(us.ranks.size()), me = static_cast<std::int64_t>(us.me);
  const auto part = [](const Operand& all, std::int64_t first, std::int64_t count) {
    return Operand{static_cast<std::byte*>(all.data) + first * size_of(all.dtype), all.dtype, {count, 1, 1}};
  };
  // This rank's block of a tensor that holds one for each member.
  const auto own_block = [&](const Operand& all) { return part(all, me * (all.size() / g), all.size() / g); };
  // This rank's shard of a bucket, of which members hold copies.
  const auto own_shard = [&](const Operand& all) {
    return part(all, share_begin(chunk->buckets[index(op.attr.bucket)]), op.attr.m);
  };
  switch (op.kind) {
    case OpKind::AllReduce:
      if (!op.attr.in_place) return communicator_.all_reduce(us, op.attr.reduce, in[0], out[0]);
      return communicator_.all_reduce(us, op.attr.reduce, own_shard(in[0]), own_shard(out[0]));
    case OpKind::AllGather: return communicator_.all_gather(us, op.attr.in_place ? own_block(out[0]) : in[0], out[0]);
    case OpKind::ReduceScatter:
      return communicator_.reduce_scatter(us, in[0], op.attr.in_place ? own_block(out[0]) : out[0]);
    case OpKind::AllToAllCounts: {
      std::vector<Buffer> send, receive;
      const std::int64_t bytes = in[0].size() / g * size_of(in[0].dtype);
      for (std::int64_t i = 0; i < g; ++i) {
        send.push_back({static_cast<std::byte*>(in[0].data) + i * bytes, bytes});
        receive.push_back({static_cast<std::byte*>(out[0].data) + i * bytes, bytes});
      }
      return communicator_.all_to_all(us, send, receive);
    }
    case OpKind::AllToAllV: return exchange_rows(op, us, in, out[0]);
    case OpKind::RingShift: return communicator_.ring_shift(us, in, out);
    default: TY_CHECK(false, "not a collective");
  }
}

// Rows by expert here, and by (source, expert) where the experts are: out to the experts, or back in reverse.
Communicator::Ticket StepInterpreter::exchange_rows(const Op& op, const Team& us, const std::vector<Operand>& in,
                                                    const Operand& out) {
  const auto* counts = static_cast<const std::int32_t*>(in[1].data);    // [E]: of my rows
  const auto* received = static_cast<const std::int32_t*>(in[2].data);  // [C,El]: of the rows that come here
  const std::int64_t local = op.attr.local_experts;
  const Operand &at_home = op.attr.reverse ? out : in[0], &at_experts = op.attr.reverse ? in[0] : out;
  std::vector<Buffer> home, experts;
  std::int64_t home_row = 0, expert_row = 0;
  for (std::size_t i = 0; i < us.ranks.size(); ++i) {
    const auto sum = [&](const std::int32_t* of) {
      std::int64_t rows = 0;
      for (std::int64_t e = 0; e < local; ++e) rows += of[static_cast<std::int64_t>(i) * local + e];
      return rows;
    };
    home.push_back(rows_of(at_home, home_row, sum(counts)));
    experts.push_back(rows_of(at_experts, expert_row, sum(received)));
    home_row += sum(counts);
    expert_row += sum(received);
  }
  if (expert_row > op.attr.rows_bound) {
    problems_.push_back({fmt::format("rank {}", rank_), "", std::to_string(expert_row),
                         fmt::format("rows are routed to the experts of this rank, whose buffer holds {} ({})",
                                     op.attr.rows_bound, op.label),
                         "raise moe.buffer_factor in the plan", ProblemKind::Infeasible});
    return kNone;
  }
  return op.attr.reverse ? communicator_.all_to_all(us, experts, home) : communicator_.all_to_all(us, home, experts);
}

Communicator::Ticket StepInterpreter::transfer(const Item& item) {
  std::vector<Move> moves;
  for (const Transfer& transfer : item.transfers) {
    Coordinates peer = mesh_.coordinates(rank_);
    peer.pp = transfer.peer_stage;
    std::byte* data = arena_.get() + stage_.frames[index(transfer.frame)].offset_bytes +
                      (transfer.block_of_tp ? peer.tp * transfer.bytes : 0);
    const std::int64_t chunks = program_.plan.pp * program_.plan.virtual_stages;
    const std::int64_t key = (transfer.micro_batch * chunks + transfer.model_chunk) * 2 + (transfer.backward ? 1 : 0);
    moves.push_back({transfer.send, mesh_.rank(peer), key, {data, transfer.bytes}});
  }
  return communicator_.transfer(moves);
}

}  // namespace trainyard::exec
