#include "tests/program/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <stdexcept>

#include "models/base/index.h"
#include "models/program/layout.h"
#include "models/program/parameters.h"
#include "models/program/shards.h"
#include "models/program/step_blocks.h"

namespace trainyard {

namespace {

void poison(std::byte* bytes, std::int64_t count) {
  std::memset(bytes, 0xff, index(count));
}  // NaN as float64, -1 as int32

}  // namespace

Reference::Reference(const StepProgram& program, std::uint64_t seed, Compute compute)
    : program_(program), mesh_(program.plan), compute_(std::move(compute)), random_(seed, "reference") {
  if (program.plan.precision != Precision::F64) throw std::logic_error("the reference computes in float64 only");
  for (std::int64_t id = 0; id < mesh_.ranks(); ++id) {
    Rank rank;
    rank.id = id;
    rank.stage = &program.stages[index(mesh_.coordinates(id).pp)];
    for (const Frame& frame : rank.stage->frames) {
      if (frame.offset_bytes < 0 || frame.offset_bytes + frame.bytes > rank.stage->arena_bytes)
        throw std::runtime_error("a frame does not lie in the arena");
    }
    rank.arena.resize(index(rank.stage->arena_bytes + kPageBytes - 1) / kPageBytes);
    poison(rank.arena.data()->data(), rank.stage->arena_bytes);
    std::int64_t ops = 0;
    for (std::size_t i = 0; i < rank.stage->items.size(); ++i) {
      const Item& item = rank.stage->items[i];
      rank.first.push_back(ops);
      const std::size_t count = item.block < 0 ? 1 : program.block(item).ops.size();
      for (std::size_t o = 0; o < count; ++o) {
        const Stream stream = item.block < 0 ? item.stream : program.block(item).ops[o].stream;
        rank.queue[static_cast<std::size_t>(stream)].push_back({static_cast<std::int32_t>(i), static_cast<OpId>(o)});
      }
      ops += static_cast<std::int64_t>(count);
    }
    rank.first.push_back(ops);
    ranks_.push_back(std::move(rank));
  }
}

std::byte* Reference::at(const Rank& rank, std::int32_t frame) const {
  return const_cast<std::byte*>(rank.arena.data()->data()) + rank.stage->frames[index(frame)].offset_bytes;
}

template <class Visit>
void Reference::for_each_element(Visit visit) const {
  for (const Rank& rank : ranks_) {
    for_each_run(program_, mesh_, rank.id,
                 [&](std::size_t chunk, const Bucket& bucket, const Param& param, std::int64_t element,
                     const ParamPart& part, std::int64_t global, std::int64_t count) {
                   for (std::int64_t i = 0; i < count; ++i)
                     visit(rank, static_cast<std::int32_t>(chunk), bucket, param, element + i, part, global + i);
                 });
  }
}

namespace {

std::int32_t frame_of(const StageProgram& stage, Role role, std::int32_t chunk) {
  for (std::size_t f = 0; f < stage.frames.size(); ++f) {
    if (stage.frames[f].role == role && stage.frames[f].chunk == chunk) return static_cast<std::int32_t>(f);
  }
  throw std::logic_error("a stage lacks a frame");
}

// This rank's share of a bucket's optimizer state: its first element.
std::int64_t share_begin(const Mesh& mesh, const Bucket& bucket, std::int64_t rank) {
  return mesh.group_index(bucket.sharding.shards, rank) * bucket.shard_elements;
}

}  // namespace

void Reference::set_weights(const Weights& weights) {
  // Padding has no owner; it must not poison what reads whole buckets.
  for (Rank& rank : ranks_) {
    for (std::size_t f = 0; f < rank.stage->frames.size(); ++f) {
      const Frame& frame = rank.stage->frames[f];
      if (frame.role == Role::Params || frame.role == Role::Optimizer)
        std::memset(at(rank, static_cast<std::int32_t>(f)), 0, index(frame.bytes));
    }
  }
  for_each_element([&](const Rank& rank, std::int32_t chunk, const Bucket& bucket, const Param&, std::int64_t element,
                       const ParamPart& part, std::int64_t global) {
    const auto found = weights.find(part.name);
    if (found == weights.end()) throw std::runtime_error("no weight named " + part.name);
    if (found->second.shape != part.global_shape)
      throw std::runtime_error("the shape of " + part.name + " is not the table's");
    const double value = found->second.data[index(global)];
    auto* params =
        reinterpret_cast<double*>(at(rank, frame_of(*rank.stage, Role::Params, chunk)) + bucket.param_offset_bytes);
    const std::int64_t share = element - share_begin(mesh_, bucket, rank.id);
    const bool sharded = params_sharded(bucket, program_.plan);
    if (!sharded) params[element] = value;
    if (share < 0 || share >= bucket.shard_elements) return;
    if (sharded) params[share] = value;
    reinterpret_cast<double*>(at(rank, frame_of(*rank.stage, Role::Optimizer, chunk)) +
                              bucket.optimizer_offset_bytes)[share] = value;
  });
}

void Reference::fill_batch(Rank& rank, const GoldenTensor& tokens) {
  const ParallelPlan& plan = program_.plan;
  const Coordinates where = mesh_.coordinates(rank.id);
  const std::int64_t local = plan.sequence_length / plan.cp, rows = plan.micro_batch * local;
  const std::int64_t stride = (rows * 4 + 255) / 256 * 256;
  for (std::size_t f = 0; f < rank.stage->frames.size(); ++f) {
    const Frame& frame = rank.stage->frames[f];
    if (frame.role != Role::Batch) continue;
    std::byte* base = at(rank, static_cast<std::int32_t>(f));
    const auto field = [&](std::int64_t k) { return reinterpret_cast<std::int32_t*>(base + k * stride); };
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t sample = sample_index(plan, where.dp, frame.micro_batch, row / local);
      const std::int64_t position = context_position(plan.cp, where.cp, plan.sequence_length, row % local);
      const double* sequence = tokens.data.data() + sample * (plan.sequence_length + 1);
      field(0)[row] = static_cast<std::int32_t>(sequence[position]);
      field(1)[row] = static_cast<std::int32_t>(sequence[position + 1]);
      field(2)[row] = static_cast<std::int32_t>(position);
      field(3)[row] = static_cast<std::int32_t>(sample);
    }
  }
}

void Reference::start_step(Rank& rank, const GoldenTensor& tokens) {
  rank.head.fill(0);
  rank.complete.assign(index(rank.first.back()), false);
  rank.toucher.assign(rank.stage->frames.size(), -1);
  fill_batch(rank, tokens);
}

bool Reference::ready(const Rank& rank, const Launch& launch) const {
  const Item& item = rank.stage->items[index(launch.item)];
  const auto done = [&](std::int64_t op) { return rank.complete[index(op)]; };
  for (const Wait& wait : item.waits) {
    const std::int64_t begin = rank.first[index(wait.item)];
    if (wait.op >= 0) {
      if (!done(begin + wait.op)) return false;
      continue;
    }
    for (std::int64_t o = begin; o < rank.first[index(wait.item + 1)]; ++o) {
      if (!done(o)) return false;
    }
  }
  if (item.block < 0) return true;
  const Op& op = program_.block(item).ops[index(launch.op)];
  return std::all_of(op.deps.begin(), op.deps.end(),
                     [&](OpId dep) { return done(rank.first[index(launch.item)] + dep); });
}

// Memory that nobody has used yet in this step, and transient memory that this item has not, holds
// nothing that anyone may read.
void Reference::touch(Rank& rank, std::int32_t item, std::int32_t frame) {
  const Role role = rank.stage->frames[index(frame)].role;
  std::int32_t& toucher = rank.toucher[index(frame)];
  if (role > Role::Batch && (role == Role::Transient ? toucher != item : toucher < 0))
    poison(at(rank, frame), rank.stage->frames[index(frame)].bytes);
  toucher = item;
}

const Op* Reference::op_of(const Rank& rank, const Launch& launch) const {
  const Item& item = rank.stage->items[index(launch.item)];
  return item.block < 0 ? nullptr : &program_.block(item).ops[index(launch.op)];
}

std::vector<View> Reference::views(Rank& rank, std::int32_t item_index, const std::vector<TensorId>& ids) {
  const Item& item = rank.stage->items[index(item_index)];
  std::vector<View> out;
  for (const TensorId id : ids) {
    const Tensor& tensor = program_.block(item).tensors[index(id)];
    const std::int32_t frame = item.frames[static_cast<std::size_t>(tensor.role)];
    if (frame < 0 || tensor.offset_bytes < 0 ||
        tensor.offset_bytes + tensor.bytes() > rank.stage->frames[index(frame)].bytes)
      throw std::runtime_error(tensor.name + " does not lie in its frame");
    touch(rank, item_index, frame);
    out.push_back({&tensor, at(rank, frame) + tensor.offset_bytes});
  }
  return out;
}

void Reference::finish(Rank& rank, std::size_t stream) {
  const Launch& launch = rank.queue[stream][rank.head[stream]];
  rank.complete[index(rank.first[index(launch.item)] + launch.op)] = true;
  ++rank.head[stream];
}

bool Reference::advance(Rank& rank, std::size_t stream) {
  if (rank.head[stream] == rank.queue[stream].size()) return false;
  const Launch launch = rank.queue[stream][rank.head[stream]];
  if (!ready(rank, launch)) return false;
  const Item& item = rank.stage->items[index(launch.item)];
  const Op* op = op_of(rank, launch);
  if (op == nullptr) {
    for (const Transfer& move : item.transfers) touch(rank, launch.item, move.frame);
    bool posted = false;
    const bool over = run_transfers(rank, item, posted);
    if (over) finish(rank, stream);
    return over || posted;  // a side that is new may be what another rank waits for
  }
  if (is_communication(op->kind)) return run_collective(rank, stream, *op);
  const Chunk* chunk = item.chunk < 0 ? nullptr : &rank.stage->chunks[index(item.chunk)];
  compute_(*op, {&program_, chunk, rank.id, steps_}, views(rank, launch.item, op->in),
           views(rank, launch.item, op->out));
  finish(rank, stream);
  return true;
}

bool Reference::run_collective(Rank& rank, std::size_t stream, const Op& op) {
  std::vector<std::vector<View>> in, out;
  std::vector<Rank*> members;
  for (const std::int64_t id : mesh_.members(op.group, rank.id)) {
    Rank& member = ranks_[index(id)];
    if (member.head[stream] == member.queue[stream].size())
      throw std::runtime_error("a member has no collective left to match " + op.label);
    const Launch launch = member.queue[stream][member.head[stream]];
    const Op* theirs = op_of(member, launch);
    if (theirs == nullptr || !is_communication(theirs->kind) || theirs->group != op.group || !ready(member, launch))
      return false;
    if (theirs->kind != op.kind || theirs->label != op.label) {
      throw std::runtime_error("members of one communicator disagree: " + op.label + " against " + theirs->label);
    }
    members.push_back(&member);
  }
  Tensor shard;
  for (Rank* member : members) {
    const Launch launch = member->queue[stream][member->head[stream]];
    in.push_back(views(*member, launch.item, op_of(*member, launch)->in));
    out.push_back(views(*member, launch.item, op_of(*member, launch)->out));
    if (op.kind != OpKind::AllReduce || !op.attr.in_place) continue;
    // Of the bucket, this rank's shard.
    const Chunk& chunk = member->stage->chunks[index(member->stage->items[index(launch.item)].chunk)];
    const Bucket& bucket = chunk.buckets[index(op.attr.bucket)];
    shard = *in.back()[0].tensor;
    shard.shape = trainyard::Shape(bucket.shard_elements);
    in.back()[0] = {&shard, in.back()[0].bytes + share_begin(mesh_, bucket, member->id) * size_of(shard.dtype)};
    out.back() = in.back();
  }
  communicate(op, in, out);
  for (Rank* member : members) finish(*member, stream);
  return true;
}

// Posts this side; a transfer moves its bytes once both sides are there.
bool Reference::run_transfers(Rank& rank, const Item& item, bool& posted) {
  bool all = true;
  for (const Transfer& move : item.transfers) {
    Coordinates peer = mesh_.coordinates(rank.id);
    peer.pp = move.peer_stage;
    const std::int64_t other = mesh_.rank(peer);
    auto& sides = posted_[{move.send ? rank.id : other, move.send ? other : rank.id, move.backward, move.model_chunk,
                           move.micro_batch}];
    auto& mine = sides[move.send ? 0 : 1];
    const bool first = mine.first == nullptr;
    posted |= first;
    mine = {&rank, &move};
    if (sides[0].first == nullptr || sides[1].first == nullptr) {
      all = false;
    } else if (first) {
      if (sides[0].second->bytes != sides[1].second->bytes ||
          move.bytes > std::min(sides[0].first->stage->frames[index(sides[0].second->frame)].bytes,
                                sides[1].first->stage->frames[index(sides[1].second->frame)].bytes))
        throw std::runtime_error("two sides of a transfer differ in size");
      const std::int64_t begin = move.block_of_tp ? peer.tp * move.bytes : 0;
      std::memcpy(at(*sides[1].first, sides[1].second->frame) + begin,
                  at(*sides[0].first, sides[0].second->frame) + begin, index(move.bytes));
    }
  }
  return all;
}

void Reference::report_deadlock() const {
  std::string text = "deadlock:";
  for (const Rank& rank : ranks_) {
    for (std::size_t s = 0; s < kStreamCount; ++s) {
      if (rank.head[s] == rank.queue[s].size()) continue;
      const Launch launch = rank.queue[s][rank.head[s]];
      const Op* op = op_of(rank, launch);
      text += " rank " + std::to_string(rank.id) + " " + to_string(static_cast<Stream>(s)) + " item " +
              std::to_string(launch.item) + " " + (op != nullptr ? op->label : "transfers") +
              (ready(rank, launch) ? " (for a partner);" : ";");
    }
  }
  throw std::runtime_error(text);
}

double Reference::scalar(const Rank& rank, std::int64_t offset_bytes) const {
  return *reinterpret_cast<const double*>(at(rank, frame_of(*rank.stage, Role::Step, -1)) + offset_bytes);
}

Reference::Step Reference::step(const GoldenTensor& tokens) {
  posted_.clear();
  std::vector<std::pair<Rank*, std::size_t>> cursors;
  for (Rank& rank : ranks_) {
    start_step(rank, tokens);
    for (std::size_t s = 0; s < kStreamCount; ++s) {
      if (!rank.queue[s].empty()) cursors.emplace_back(&rank, s);
    }
  }
  // Streams by priority: those at the back starve, as races need, until a draw moves them.
  for (std::size_t i = cursors.size(); i > 1; --i) std::swap(cursors[i - 1], cursors[random_.below(i)]);
  for (bool progress = true; progress;) {
    progress = std::any_of(cursors.begin(), cursors.end(),
                           [&](auto& cursor) { return advance(*cursor.first, cursor.second); });
    if (random_.below(16) > 0) continue;
    const std::size_t up = random_.below(cursors.size()), down = random_.below(cursors.size());
    std::swap(cursors[up], cursors[down]);
  }
  for (const Rank& rank : ranks_) {
    if (std::find(rank.complete.begin(), rank.complete.end(), false) != rank.complete.end()) report_deadlock();
  }
  ++steps_;
  return scalars();
}

// The last stage knows the loss and every rank the norm, all of them alike.
Reference::Step Reference::scalars() const {
  const double loss = scalar(ranks_.back(), kLossOffset), squares = scalar(ranks_.front(), kGradNormOffset);
  for (const Rank& rank : ranks_) {
    const bool last = mesh_.coordinates(rank.id).pp == program_.plan.pp - 1;
    if (last && scalar(rank, kLossOffset) != loss)
      throw std::runtime_error("ranks disagree about the loss, or it is not a number");
    if (scalar(rank, kGradNormOffset) != squares)
      throw std::runtime_error("ranks disagree about the gradient norm, or it is not a number");
  }
  return {loss, std::sqrt(squares)};
}

namespace {

// Sets one element of a full tensor. Every rank that holds a copy must hold the same bits.
void put(Weights& out, const ParamPart& part, std::int64_t element, double value) {
  GoldenTensor& tensor = out[part.name];
  if (tensor.data.empty()) {
    tensor.shape = part.global_shape;
    std::int64_t size = 1;
    for (const std::int64_t dim : part.global_shape) size *= dim;
    tensor.data.assign(index(size), std::numeric_limits<double>::quiet_NaN());
  }
  double& slot = tensor.data[index(element)];
  if (std::isnan(value)) throw std::runtime_error("not a number in " + part.name);
  if (!std::isnan(slot) && slot != value) throw std::runtime_error("replicas disagree about " + part.name);
  slot = value;
}

}  // namespace

Weights Reference::gradients() const {
  Weights out;
  for_each_element([&](const Rank& rank, std::int32_t chunk, const Bucket& bucket, const Param&, std::int64_t element,
                       const ParamPart& part, std::int64_t global) {
    // Where the buffer was reduced in shards, only the owner's share is valid.
    const std::int64_t share = element - share_begin(mesh_, bucket, rank.id);
    if (share < 0 || share >= bucket.shard_elements) return;
    const bool stored_as_shard = reduces_every_micro_batch(bucket, program_.plan);
    const auto* grads =
        reinterpret_cast<const double*>(at(rank, frame_of(*rank.stage, Role::Grads, chunk)) + bucket.grad_offset_bytes);
    put(out, part, global, grads[stored_as_shard ? share : element]);
  });
  return out;
}

Weights Reference::weights() const {
  Weights out;
  for_each_element([&](const Rank& rank, std::int32_t chunk, const Bucket& bucket, const Param&, std::int64_t element,
                       const ParamPart& part, std::int64_t global) {
    const std::int64_t share = element - share_begin(mesh_, bucket, rank.id);
    if (share < 0 || share >= bucket.shard_elements) return;
    const auto* master = reinterpret_cast<const double*>(at(rank, frame_of(*rank.stage, Role::Optimizer, chunk)) +
                                                         bucket.optimizer_offset_bytes);
    put(out, part, global, master[share]);
  });
  return out;
}

}  // namespace trainyard
