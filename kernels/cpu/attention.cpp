// Causal attention in blocks of query rows: scores of a block against the keys that it may see, as matrix products.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/cpu_kernels.h"
#include "models/base/context_position.h"

namespace trainyard::kernels::cpu {

namespace {

constexpr Int kQueryBlock = 64;

// Keys [first, first + count) of one cp block, in columns [column, column + count) of the scores. `stored`: which of
// the blocks in memory it is.
struct KeySpan {
  Int block = 0, stored = 0, first = 0, count = 0, column = 0;
};

// One sequence and one block of its queries: which keys it may see, and which pairs are masked.
class QueryBlock {
 public:
  QueryBlock(const AttentionShape& shape, Int rows, Int begin, Int end)
      : shape_(shape), local_(rows / shape.batch), begin_(begin), end_(end) {
    const Int first = position(shape.cp_index, begin), last = position(shape.cp_index, end - 1);
    const Int lowest = shape.window > 0 ? std::min(first, last) - shape.window + 1 : 0;
    const bool all = shape.key_block < 0;
    for (Int block = all ? 0 : shape.key_block; block < (all ? shape.cp : shape.key_block + 1); ++block) {
      // Positions rise within a block, so what may be seen is one run of it.
      Int from = 0, to = local_;
      while (from < to && position(block, from) < lowest) ++from;
      while (to > from && position(block, to - 1) > std::max(first, last)) --to;
      if (from == to) continue;
      spans_.push_back({block, all ? block : 0, from, to - from, columns_});
      columns_ += to - from;
    }
  }
  [[nodiscard]] Int queries() const { return end_ - begin_; }
  [[nodiscard]] Int columns() const { return columns_; }
  [[nodiscard]] const std::vector<KeySpan>& spans() const { return spans_; }

  /// Calls f(row, column, query position - key position) for each pair; negative, or beyond the window: masked.
  template <class F>
  void for_each_pair(F f) const {
    for (Int q = 0; q < queries(); ++q) {
      const Int at = position(shape_.cp_index, begin_ + q);
      for (const KeySpan& span : spans_) {
        for (Int u = 0; u < span.count; ++u) f(q, span.column + u, at - position(span.block, span.first + u));
      }
    }
  }
  [[nodiscard]] bool masked(Int distance) const {
    return distance < 0 || (shape_.window > 0 && distance >= shape_.window);
  }

 private:
  [[nodiscard]] Int position(Int block, Int t) const {
    return context_position(shape_.cp, block, local_ * shape_.cp, t);
  }

  const AttentionShape& shape_;
  Int local_, begin_, end_;
  std::vector<KeySpan> spans_;
  Int columns_ = 0;
};

// Weights of a row of scores; returns the log of the sum of their exponentials. All masked: no weights, and -inf.
template <class Acc>
Acc softmax(RowMap<Acc> row) {
  const Acc max = row.size() > 0 ? row.maxCoeff() : -std::numeric_limits<Acc>::infinity();
  if (max == -std::numeric_limits<Acc>::infinity()) {
    row.setZero();
    return max;
  }
  row = (row - max).exp();
  const Acc sum = row.sum();
  row /= sum;
  return max + std::log(sum);
}

// Rotates a head by rotate-half rope: forward for sign = 1, its transpose for sign = -1. angles: cosines, then sines.
template <class Acc>
void rotate(Acc* head, const double* angles, Int half, Acc sign) {
  for (Int j = 0; j < half; ++j) {
    const Acc x = head[j], y = head[half + j], c = static_cast<Acc>(angles[j]),
              s = sign * static_cast<Acc>(angles[half + j]);
    head[j] = x * c - y * s;
    head[half + j] = y * c + x * s;
  }
}

// Attention of one query head over one block of queries.
template <class Acc>
class HeadBlock {
 public:
  HeadBlock(const AttentionShape& shape, const QueryBlock& block, Int head, Scratch& scratch)
      : shape_(shape),
        block_(block),
        head_(head),
        scores_(scratch.take<Acc>(block.queries() * block.columns()), block.queries(), block.columns()) {}

  /// Scores before softmax, masked by -inf. q: this block's first query of the head; k: first key row of the sequence
  /// in cp block 0; `stride` elements between key rows, `block_stride` between cp blocks.
  MatrixMap<Acc>& score(const Acc* q, Int q_stride, const Acc* k, Int stride, Int block_stride) {
    const ConstStridedMap<Acc> Q(q, block_.queries(), shape_.heads.dim, Eigen::OuterStride<>(q_stride));
    for (const KeySpan& span : block_.spans()) {
      const ConstStridedMap<Acc> K(k + span.stored * block_stride + span.first * stride, span.count, shape_.heads.dim,
                                   Eigen::OuterStride<>(stride));
      scores_.middleCols(span.column, span.count).noalias() = static_cast<Acc>(shape_.scale) * Q * K.transpose();
    }
    return scores_;
  }

  void cap_and_mask() {
    apply_softcap(scores_.array(), shape_.softcap);
    const Acc slope = shape_.alibi.empty() ? Acc{0} : static_cast<Acc>(shape_.alibi[static_cast<std::size_t>(head_)]);
    block_.for_each_pair([&](Int q, Int column, Int distance) {
      Acc& score = scores_(q, column);
      score =
          block_.masked(distance) ? -std::numeric_limits<Acc>::infinity() : score - slope * static_cast<Acc>(distance);
    });
  }

 private:
  const AttentionShape& shape_;
  const QueryBlock& block_;
  Int head_;
  MatrixMap<Acc> scores_;
};

}  // namespace

const RopeTable& CpuKernels::rope_table(double theta, Int dim, const Tensor& positions) {
  RopeTable& table = rope_tables_[{theta, dim}];
  if (theta <= 0) return table;
  Int last = -1;
  for (Int t = 0; t < positions.size(); ++t) last = std::max<Int>(last, indices(positions)[t]);
  table.grow(theta, dim, last + 1);
  return table;
}

void RopeTable::grow(double theta, Int dim, Int positions) {
  half_ = dim / 2;
  for (auto position = static_cast<Int>(angles_.size()) / std::max<Int>(dim, 1); position < positions; ++position) {
    const auto angle = [&](Int j) {
      return static_cast<double>(position) * std::pow(theta, -2.0 * static_cast<double>(j) / static_cast<double>(dim));
    };
    for (Int j = 0; j < half_; ++j) angles_.push_back(std::cos(angle(j)));
    for (Int j = 0; j < half_; ++j) angles_.push_back(std::sin(angle(j)));
  }
}

void CpuKernels::split_qkv(const Heads& heads, double rope_theta, const Tensor& qkv, const Tensor& positions,
                           const Tensor& q, const Tensor& k, const Tensor& v) {
  const Int rows = qkv.dims[0], dim = heads.dim, nq = heads.query * dim, nk = heads.key * dim;
  in_precision_of(q, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> in(qkv, scratch_);
    const Out<Acc> query(q, scratch_), key(k, scratch_), value(v, scratch_);
    const RopeTable& rope = rope_table(rope_theta, dim, positions);
    parallel(rows, kGrain / (nq + 2 * nk), [&](Int begin, Int end, Int) {
      for (Int t = begin; t < end; ++t) {
        const Acc* from = in.row(t, nq + 2 * nk);
        std::copy_n(from, nq, query.row(t, nq));
        std::copy_n(from + nq, nk, key.row(t, nk));
        std::copy_n(from + nq + nk, nk, value.row(t, nk));
        if (rope_theta <= 0) continue;
        const double* angles = rope.at(indices(positions)[t]);
        for (Int h = 0; h < heads.query; ++h) rotate(query.row(t, nq) + h * dim, angles, dim / 2, Acc{1});
        for (Int h = 0; h < heads.key; ++h) rotate(key.row(t, nk) + h * dim, angles, dim / 2, Acc{1});
      }
    });
  });
}

void CpuKernels::merge_qkv_grad(const Heads& heads, double rope_theta, const Tensor& dq, const Tensor& dk,
                                const Tensor& dv, const Tensor& positions, const Tensor& dqkv) {
  const Int rows = dqkv.dims[0], dim = heads.dim, nq = heads.query * dim, nk = heads.key * dim;
  in_precision_of(dqkv, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> query(dq, scratch_), key(dk, scratch_), value(dv, scratch_);
    const Out<Acc> out(dqkv, scratch_);
    const RopeTable& rope = rope_table(rope_theta, dim, positions);
    parallel(rows, kGrain / (nq + 2 * nk), [&](Int begin, Int end, Int) {
      for (Int t = begin; t < end; ++t) {
        Acc* to = out.row(t, nq + 2 * nk);
        std::copy_n(query.row(t, nq), nq, to);
        std::copy_n(key.row(t, nk), nk, to + nq);
        std::copy_n(value.row(t, nk), nk, to + nq + nk);
        if (rope_theta <= 0) continue;
        const double* angles = rope.at(indices(positions)[t]);
        for (Int h = 0; h < heads.query + heads.key; ++h) rotate(to + h * dim, angles, dim / 2, Acc{-1});
      }
    });
  });
}

void CpuKernels::attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                           const Tensor& o, const Tensor& lse) {
  const Int rows = q.dims[0], local = rows / shape.batch, dim = shape.heads.dim;
  const Int nq = shape.heads.query * dim, nk = shape.heads.key * dim, group = shape.heads.query / shape.heads.key;
  in_precision_of(o, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> query(q, scratch_), key(k, scratch_), value(v, scratch_);
    const Out<Acc> out(o, scratch_), logs(lse, scratch_);
    // Each thread has some of the query heads of some of the sequences.
    parallel(shape.batch * shape.heads.query, 1, [&](Int from, Int to, Int thread) {
      Scratch& scratch = scratches_[static_cast<std::size_t>(thread)];
      for (Int begin = 0; begin < local; begin += kQueryBlock) {
        const QueryBlock block(shape, rows, begin, std::min(local, begin + kQueryBlock));
        for (Int ih = from; ih < to; ++ih) {
          const Int i = ih / shape.heads.query, h = ih % shape.heads.query, first = i * local + begin;
          const Scratch::Scope inner(scratch);
          HeadBlock<Acc> head(shape, block, h, scratch);
          const Int key_at = i * local * nk + h / group * dim;
          MatrixMap<Acc>& scores =
              head.score(query.data() + first * nq + h * dim, nq, key.data() + key_at, nk, rows * nk);
          head.cap_and_mask();
          for (Int t = 0; t < block.queries(); ++t) {
            logs[(first + t) * shape.heads.query + h] =
                softmax(RowMap<Acc>(scores.data() + t * block.columns(), block.columns()));
          }
          StridedMap<Acc> O(out.data() + first * nq + h * dim, block.queries(), dim, Eigen::OuterStride<>(nq));
          O.setZero();
          for (const KeySpan& span : block.spans()) {
            const ConstStridedMap<Acc> V(value.data() + key_at + (span.stored * rows + span.first) * nk, span.count,
                                         dim, Eigen::OuterStride<>(nk));
            O.noalias() += scores.middleCols(span.column, span.count) * V;
          }
        }
      }
    });
  });
}

void CpuKernels::attention_merge(const Heads& heads, const std::vector<Tensor>& parts, const Tensor& o,
                                 const Tensor& lse) {
  const Int rows = o.dims[0], dim = heads.dim, width = heads.query * dim;
  const std::size_t count = parts.size() / 2;
  in_precision_of(o, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    std::vector<In<Acc>> outs, logs;
    for (std::size_t p = 0; p < count; ++p) {
      outs.emplace_back(parts[2 * p], scratch_);
      logs.emplace_back(parts[2 * p + 1], scratch_);
    }
    const Out<Acc> out(o, scratch_), log(lse, scratch_);
    parallel(rows, kGrain / width, [&](Int begin, Int end, Int) {
      for (Int at = begin * heads.query; at < end * heads.query; ++at) {
        Acc max = -std::numeric_limits<Acc>::infinity(), sum = 0;
        for (const In<Acc>& part : logs) max = std::max(max, part[at]);
        RowMap<Acc> merged(out.data() + at * dim, dim);
        merged.setZero();
        for (std::size_t p = 0; p < count; ++p) {
          const Acc weight = std::exp(logs[p][at] - max);
          sum += weight;
          merged += weight * ConstRowMap<Acc>(outs[p].data() + at * dim, dim);
        }
        merged /= sum;
        log[at] = max + std::log(sum);
      }
    });
  });
}

void CpuKernels::attention_grad(const AttentionShape& shape, const Tensor& dout, const Tensor& q, const Tensor& k,
                                const Tensor& v, const Tensor& o, const Tensor& lse, const Tensor& dq, const Tensor& dk,
                                const Tensor& dv) {
  const Int rows = q.dims[0], local = rows / shape.batch, dim = shape.heads.dim;
  const Int nq = shape.heads.query * dim, nk = shape.heads.key * dim, group = shape.heads.query / shape.heads.key;
  in_precision_of(dq, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> grads(dout, scratch_), query(q, scratch_), key(k, scratch_), value(v, scratch_), result(o, scratch_),
        logs(lse, scratch_);
    const Out<Acc> dquery(dq, scratch_), dkey(dk, scratch_), dvalue(dv, scratch_);
    std::fill_n(dquery.data(), dq.size(), Acc{0});
    std::fill_n(dkey.data(), dk.size(), Acc{0});
    std::fill_n(dvalue.data(), dv.size(), Acc{0});
    const auto scale = static_cast<Acc>(shape.scale), cap = static_cast<Acc>(shape.softcap);
    // Each thread has some of the key heads of some of the sequences, with all query heads of their groups.
    parallel(shape.batch * shape.heads.key, 1, [&](Int from, Int to, Int thread) {
      Scratch& scratch = scratches_[static_cast<std::size_t>(thread)];
      for (Int begin = 0; begin < local; begin += kQueryBlock) {
        const QueryBlock block(shape, rows, begin, std::min(local, begin + kQueryBlock));
        const Int columns = block.columns();
        for (Int ih = from * group; ih < to * group; ++ih) {
          const Int i = ih / shape.heads.query, h = ih % shape.heads.query, first = i * local + begin;
          const Scratch::Scope inner(scratch);
          HeadBlock<Acc> head(shape, block, h, scratch);
          const Int head_at = first * nq + h * dim, key_at = i * local * nk + h / group * dim;
          MatrixMap<Acc>& p = head.score(query.data() + head_at, nq, key.data() + key_at, nk, rows * nk);
          // d softcap(x) / dx, from the scores before masking.
          MatrixMap<Acc> slope(scratch.take<Acc>(cap > 0 ? p.size() : 0), cap > 0 ? p.rows() : 0, columns);
          if (cap > 0) slope = (1 - (p.array() / cap).tanh().square()).matrix();
          head.cap_and_mask();
          const ConstStridedMap<Acc> dO(grads.data() + head_at, block.queries(), dim, Eigen::OuterStride<>(nq));
          const ConstStridedMap<Acc> O(result.data() + head_at, block.queries(), dim, Eigen::OuterStride<>(nq));
          const ConstStridedMap<Acc> Q(query.data() + head_at, block.queries(), dim, Eigen::OuterStride<>(nq));
          StridedMap<Acc> dQ(dquery.data() + head_at, block.queries(), dim, Eigen::OuterStride<>(nq));
          MatrixMap<Acc> ds(scratch.take<Acc>(p.size()), p.rows(), columns);
          for (Int t = 0; t < block.queries(); ++t) {
            RowMap<Acc> row(p.data() + t * columns, columns);
            row = (row - logs[(first + t) * shape.heads.query + h]).exp();
          }
          for (const KeySpan& span : block.spans()) {
            const Int at = key_at + (span.stored * rows + span.first) * nk;
            const Eigen::OuterStride<> stride(nk);
            const ConstStridedMap<Acc> V(value.data() + at, span.count, dim, stride);
            StridedMap<Acc> dV(dvalue.data() + at, span.count, dim, stride);
            dV.noalias() += p.middleCols(span.column, span.count).transpose() * dO;
            ds.middleCols(span.column, span.count).noalias() = dO * V.transpose();
          }
          for (Int t = 0; t < block.queries(); ++t) {
            const Acc delta = dO.row(t).dot(O.row(t));
            RowMap<Acc> row(ds.data() + t * columns, columns);
            row = (row - delta) * ConstRowMap<Acc>(p.data() + t * columns, columns) * scale;
            if (cap > 0) row *= ConstRowMap<Acc>(slope.data() + t * columns, columns);
          }
          for (const KeySpan& span : block.spans()) {
            const Int at = key_at + (span.stored * rows + span.first) * nk;
            const Eigen::OuterStride<> stride(nk);
            const ConstStridedMap<Acc> K(key.data() + at, span.count, dim, stride);
            StridedMap<Acc> dK(dkey.data() + at, span.count, dim, stride);
            dQ.noalias() += ds.middleCols(span.column, span.count) * K;
            dK.noalias() += ds.middleCols(span.column, span.count).transpose() * Q;
          }
        }
      }
    });
  });
}

}  // namespace trainyard::kernels::cpu
