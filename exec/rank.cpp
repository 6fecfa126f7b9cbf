#include "exec/rank.h"

#include <fmt/format.h>

#include <cstring>

#include "exec/compute_op.h"
#include "models/base/check.h"
#include "models/base/index.h"
#include "models/program/layout.h"
#include "models/program/step_blocks.h"

namespace trainyard::exec {

namespace {

constexpr Communicator::Ticket kRefused = -1;

// Rows [first, first + count) of a matrix.
Buffer rows_of(const Operand& x, std::int64_t first, std::int64_t count) {
  const std::int64_t row_bytes = x.dims[1] * size_of(x.dtype);
  return {static_cast<std::byte*>(x.data) + first * row_bytes, count * row_bytes};
}

}  // namespace

Rank::Rank(const StepProgram& program, std::int64_t rank, Communicator& communicator)
    : program_(program),
      rank_(rank),
      mesh_(program.plan),
      stage_(program.stages[index(mesh_.coordinates(rank).pp)]),
      communicator_(communicator) {}

const Frame& Rank::frame_of(Role role, std::int64_t chunk) const {
  for (const Frame& frame : stage_.frames) {
    if (frame.role == role && frame.chunk == chunk) return frame;
  }
  TY_CHECK(false, "a stage has a frame for each of its chunks");
}

std::int64_t Rank::share_begin(const Bucket& bucket) const {
  return mesh_.group_index(bucket.sharding.shards, rank_) * bucket.shard_elements;
}

std::vector<Operand> Rank::operands(const Item& item, const std::vector<TensorId>& ids) const {
  std::vector<Operand> out;
  out.reserve(ids.size());
  for (const TensorId id : ids) {
    const Tensor& tensor = program_.block(item).tensors[index(id)];
    const Frame& frame = stage_.frames[index(item.frames[static_cast<std::size_t>(tensor.role)])];
    out.push_back(bind(tensor, arena_ + frame.offset_bytes + tensor.offset_bytes));
  }
  return out;
}

void Rank::fill_batch(const Frame& frame, const Samples& samples, std::byte* to) const {
  const ParallelPlan& plan = program_.plan;
  const Coordinates where = mesh_.coordinates(rank_);
  const std::int64_t local = plan.sequence_length / plan.cp, rows = plan.micro_batch * local;
  const std::int64_t stride = (rows * 4 + 255) / 256 * 256;
  const auto field = [&](std::int64_t k) { return reinterpret_cast<std::int32_t*>(to + k * stride); };
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

// --- communication

const Team& Rank::team(Group group, Stream stream) {
  Team& team = teams_[static_cast<std::size_t>(group)][static_cast<std::size_t>(stream)];
  if (team.ranks.empty()) {
    team.ranks = mesh_.members(group, rank_);
    team.me = index(mesh_.group_index(group, rank_));
    team.stream = stream;
  }
  return team;
}

Communicator::Ticket Rank::communicate(const Item& item, const Op& op) {
  const std::vector<Operand> in = operands(item, op.in), out = operands(item, op.out);
  const Chunk* chunk = item.chunk < 0 ? nullptr : &stage_.chunks[index(item.chunk)];
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
Communicator::Ticket Rank::exchange_rows(const Op& op, const Team& us, const std::vector<Operand>& in,
                                         const Operand& out) {
  const std::vector<std::int32_t> counts = host_counts(in[1], us.stream);    // [E]: of my rows
  const std::vector<std::int32_t> received = host_counts(in[2], us.stream);  // [C,El]: of the rows that come here
  if (!problems_.empty()) return kRefused;                                   // nobody may be there any more
  const std::int64_t local = op.attr.local_experts;
  const Operand &at_home = op.attr.reverse ? out : in[0], &at_experts = op.attr.reverse ? in[0] : out;
  std::vector<Buffer> home, experts;
  std::int64_t home_row = 0, expert_row = 0;
  for (std::size_t i = 0; i < us.ranks.size(); ++i) {
    const auto sum = [&](const std::vector<std::int32_t>& of) {
      std::int64_t rows = 0;
      for (std::int64_t e = 0; e < local; ++e) rows += of[i * index(local) + index(e)];
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
    return kRefused;
  }
  return op.attr.reverse ? communicator_.all_to_all(us, experts, home) : communicator_.all_to_all(us, home, experts);
}

Communicator::Ticket Rank::transfer(const Item& item) {
  std::vector<Move> moves;
  for (const Transfer& transfer : item.transfers) {
    Coordinates peer = mesh_.coordinates(rank_);
    peer.pp = transfer.peer_stage;
    std::byte* data = arena_ + stage_.frames[index(transfer.frame)].offset_bytes +
                      (transfer.block_of_tp ? peer.tp * transfer.bytes : 0);
    const std::int64_t chunks = program_.plan.pp * program_.plan.virtual_stages;
    const std::int64_t key = (transfer.micro_batch * chunks + transfer.model_chunk) * 2 + (transfer.backward ? 1 : 0);
    moves.push_back({transfer.send, mesh_.rank(peer), key, {data, transfer.bytes}});
  }
  return communicator_.transfer(moves, item.stream);
}

}  // namespace trainyard::exec
