#include "models/program/block_builder.h"

#include <algorithm>
#include <limits>

#include "models/base/check.h"
#include "models/program/op_cost.h"

namespace trainyard {

BlockBuilder::BlockBuilder(BlockKind kind, std::string name) {
  block_.kind = kind;
  block_.name = std::move(name);
}

TensorId BlockBuilder::transient(std::string name, Dtype dtype, Shape shape) {
  const auto id = static_cast<TensorId>(block_.tensors.size());
  block_.tensors.push_back({std::move(name), dtype, shape, Role::Transient, -1});
  base_.push_back(id);
  accesses_.emplace_back();
  return id;
}

TensorId BlockBuilder::placed(const std::string& name, Dtype dtype, Shape shape, Role role, std::int64_t offset_bytes) {
  const auto [entry, is_new] =
      placed_.try_emplace({role, {offset_bytes, name}}, static_cast<TensorId>(block_.tensors.size()));
  if (is_new) {
    block_.tensors.push_back({name, dtype, shape, role, offset_bytes});
    base_.push_back(entry->second);
    accesses_.emplace_back();
    auto& frame = block_.frame_bytes[static_cast<std::size_t>(role)];
    frame = std::max(frame, offset_bytes + block_.tensors.back().bytes());
    if (role == Role::Params || role == Role::Grads)
      bucket_views_[role == Role::Params ? 0 : 1].push_back(entry->second);
  }
  return entry->second;
}

TensorId BlockBuilder::view(TensorId base, std::string name, Shape shape, std::int64_t offset_bytes) {
  TY_CHECK(tensor(base).role == Role::Transient && base_[static_cast<std::size_t>(base)] == base,
           "views are of whole transient tensors");
  const auto id = static_cast<TensorId>(block_.tensors.size());
  block_.tensors.push_back({std::move(name), tensor(base).dtype, shape, Role::Transient, offset_bytes});
  TY_CHECK(offset_bytes + tensor(id).bytes() <= tensor(base).bytes(), "a view lies inside its base");
  base_.push_back(base);
  accesses_.emplace_back();
  return id;
}

TensorId BlockBuilder::storage_of(TensorId id) const { return base_[static_cast<std::size_t>(id)]; }

void BlockBuilder::depend_on(Op& op, OpId earlier) const {
  if (block_.ops[static_cast<std::size_t>(earlier)].stream == op.stream) return;  // stream order
  if (std::find(op.deps.begin(), op.deps.end(), earlier) == op.deps.end()) op.deps.push_back(earlier);
}

OpId BlockBuilder::add(Op op) {
  const auto id = static_cast<OpId>(block_.ops.size());
  // A bucket shares bytes with its parameters, so hazards in those two roles go by byte range.
  // Elsewhere tensors are disjoint, but for views, which share their base's record.
  const auto overlapping = [&](TensorId of, auto&& visit) {
    const Tensor& t = tensor(of);
    if (t.role != Role::Params && t.role != Role::Grads) {
      visit(accesses_[static_cast<std::size_t>(storage_of(of))]);
      return;
    }
    for (const TensorId other : bucket_views_[t.role == Role::Params ? 0 : 1]) {
      const Tensor& o = tensor(other);
      if (o.offset_bytes < t.offset_bytes + t.bytes() && t.offset_bytes < o.offset_bytes + o.bytes()) {
        visit(accesses_[static_cast<std::size_t>(other)]);
      }
    }
  };
  for (const TensorId in : op.in) {
    overlapping(in, [&](Access& access) {
      for (const OpId writer : access.writers) depend_on(op, writer);
    });
  }
  for (const TensorId out : op.out) {
    overlapping(out, [&](Access& access) {
      for (const OpId writer : access.writers) depend_on(op, writer);
      for (const OpId reader : access.readers) depend_on(op, reader);
    });
  }
  // The host launches nothing while it waits, so what is launched later comes after the wait.
  if (last_host_sync_ >= 0) depend_on(op, last_host_sync_);
  if (op.kind == OpKind::HostSync) last_host_sync_ = id;
  for (const TensorId in : op.in) accesses_[static_cast<std::size_t>(storage_of(in))].readers.push_back(id);
  for (const TensorId out : op.out) {
    Access& access = accesses_[static_cast<std::size_t>(storage_of(out))];
    access.readers.clear();
    // An older write on another stream is ordered before this one by the dependency just added; an
    // older write on this stream by stream order. Either way only the newest counts.
    access.writers = {id};
  }
  set_cost(op, block_.tensors);
  std::sort(op.deps.begin(), op.deps.end());
  if (op.stream == Stream::Compute) last_compute_op_ = id;
  block_.ops.push_back(std::move(op));
  return id;
}

namespace {

// For every op: the last compute op that happens before or is it, and the first compute op that
// happens after or is it, as positions on the compute stream.
struct ComputeBounds {
  std::vector<std::int64_t> last_before, first_after;
};

ComputeBounds compute_bounds(const std::vector<Op>& ops) {
  constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max() / 4;
  ComputeBounds bounds{std::vector<std::int64_t>(ops.size(), -1), std::vector<std::int64_t>(ops.size(), kNever)};
  std::vector<OpId> last_on(kStreamCount, -1);
  std::int64_t position = 0;
  for (std::size_t i = 0; i < ops.size(); ++i) {
    auto& before = bounds.last_before[i];
    if (ops[i].stream == Stream::Compute) {
      before = position++;
    } else {
      for (const OpId dep : ops[i].deps) before = std::max(before, bounds.last_before[static_cast<std::size_t>(dep)]);
      const OpId previous = last_on[static_cast<std::size_t>(ops[i].stream)];
      if (previous >= 0) before = std::max(before, bounds.last_before[static_cast<std::size_t>(previous)]);
    }
    last_on[static_cast<std::size_t>(ops[i].stream)] = static_cast<OpId>(i);
  }
  std::vector<OpId> next_on(kStreamCount, -1);
  for (std::size_t i = ops.size(); i-- > 0;) {
    auto& after = bounds.first_after[i];
    const OpId next = next_on[static_cast<std::size_t>(ops[i].stream)];
    if (ops[i].stream == Stream::Compute) {
      after = bounds.last_before[i];
    } else if (next >= 0) {
      after = std::min(after, bounds.first_after[static_cast<std::size_t>(next)]);
    }
    for (const OpId dep : ops[i].deps) {
      auto& earlier = bounds.first_after[static_cast<std::size_t>(dep)];
      earlier = std::min(earlier, after);
    }
    next_on[static_cast<std::size_t>(ops[i].stream)] = static_cast<OpId>(i);
  }
  return bounds;
}

}  // namespace

void BlockBuilder::join_open_transients() {
  const ComputeBounds bounds = compute_bounds(block_.ops);
  Op join;
  join.kind = OpKind::Join;
  join.label = "join";
  for (std::size_t i = 0; i < block_.ops.size(); ++i) {
    const Op& op = block_.ops[i];
    if (op.stream == Stream::Compute || bounds.first_after[i] < static_cast<std::int64_t>(block_.ops.size())) continue;
    const auto touches_transient = [&](TensorId id) { return tensor(id).role == Role::Transient; };
    if (std::any_of(op.in.begin(), op.in.end(), touches_transient) ||
        std::any_of(op.out.begin(), op.out.end(), touches_transient)) {
      join.deps.push_back(static_cast<OpId>(i));
    }
  }
  if (!join.deps.empty()) block_.ops.push_back(std::move(join));
}

void BlockBuilder::pack_transients() {
  // Compute op k holds its operands at time 2k. A comm op that ran between compute ops j and k
  // holds its own over [2j+1, 2k-1]: after j it may write, before k starts it is done.
  const ComputeBounds bounds = compute_bounds(block_.ops);
  std::vector<Interval> intervals(block_.tensors.size(), {std::numeric_limits<std::int64_t>::max(), -1, 0});
  for (std::size_t i = 0; i < block_.ops.size(); ++i) {
    const Op& op = block_.ops[i];
    const bool compute = op.stream == Stream::Compute;
    const std::int64_t begin = 2 * bounds.last_before[i] + (compute ? 0 : 1);
    const std::int64_t end = 2 * bounds.first_after[i] - (compute ? 0 : 1);
    for (const auto* operands : {&op.in, &op.out}) {
      for (const TensorId id : *operands) {
        if (tensor(id).role != Role::Transient) continue;
        Interval& interval = intervals[static_cast<std::size_t>(storage_of(id))];
        interval.begin = std::min(interval.begin, begin);
        interval.end = std::max(interval.end, end);
      }
    }
  }
  std::vector<Interval> used;
  std::vector<TensorId> ids;
  for (std::size_t id = 0; id < intervals.size(); ++id) {
    if (intervals[id].end < 0) continue;
    intervals[id].bytes = align(block_.tensors[id].bytes());
    used.push_back(intervals[id]);
    ids.push_back(static_cast<TensorId>(id));
  }
  const std::vector<std::int64_t> offsets = pack(used);
  for (std::size_t i = 0; i < ids.size(); ++i)
    block_.tensors[static_cast<std::size_t>(ids[i])].offset_bytes = offsets[i];
  for (std::size_t id = 0; id < base_.size(); ++id) {
    if (base_[id] == static_cast<TensorId>(id)) continue;
    const std::int64_t base_offset = tensor(base_[id]).offset_bytes;
    TY_CHECK(base_offset >= 0, "the base of a view is placed");
    block_.tensors[id].offset_bytes += base_offset;
  }
  block_.frame_bytes[static_cast<std::size_t>(Role::Transient)] = offsets.back();
}

Block BlockBuilder::finish() {
  join_open_transients();
  pack_transients();
  return std::move(block_);
}

bool accumulates(const Op& op, std::size_t out_index) {
  switch (op.kind) {
    case OpKind::Matmul: return op.attr.accumulate;
    case OpKind::NormGrad:
    case OpKind::AdamW: return out_index >= 1;
    case OpKind::EmbeddingGrad:
    case OpKind::PositionGrad:
    case OpKind::BiasGrad:
    case OpKind::GroupedMatmulWgrad:
    case OpKind::XentLoss:
    case OpKind::Accumulate:
    case OpKind::SquaredNorm: return true;
    default: return false;
  }
}

std::vector<std::int64_t> pack(const std::vector<Interval>& intervals) {
  std::vector<std::size_t> order(intervals.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    if (intervals[a].begin != intervals[b].begin) return intervals[a].begin < intervals[b].begin;
    return intervals[a].bytes > intervals[b].bytes;
  });
  struct Placed {
    std::int64_t offset, bytes, end;
  };
  std::vector<Placed> active;  // sorted by offset
  std::vector<std::int64_t> offsets(intervals.size() + 1, 0);
  std::int64_t total = 0;
  for (const std::size_t index : order) {
    const Interval& interval = intervals[index];
    std::erase_if(active, [&](const Placed& placed) { return placed.end < interval.begin; });
    // Best fit: the smallest gap that is large enough; else on top.
    std::int64_t best_offset = -1, best_gap = std::numeric_limits<std::int64_t>::max(), cursor = 0;
    for (const Placed& placed : active) {
      const std::int64_t gap = placed.offset - cursor;
      if (gap >= interval.bytes && gap < best_gap) {
        best_gap = gap;
        best_offset = cursor;
      }
      cursor = std::max(cursor, placed.offset + placed.bytes);
    }
    if (best_offset < 0) best_offset = cursor;
    const Placed placed{best_offset, interval.bytes, interval.end};
    active.insert(std::upper_bound(active.begin(), active.end(), placed,
                                   [](const Placed& a, const Placed& b) { return a.offset < b.offset; }),
                  placed);
    offsets[index] = best_offset;
    total = std::max(total, best_offset + interval.bytes);
  }
  offsets.back() = total;
  return offsets;
}

}  // namespace trainyard
