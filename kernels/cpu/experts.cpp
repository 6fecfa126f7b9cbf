// Mixture of experts: routing, moving rows to experts and back, and products by expert.

#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/cpu/cpu_kernels.h"

namespace trainyard::kernels::cpu {

namespace {

std::int32_t* writable_indices(const Tensor& x) {
  TY_CHECK(x.dtype == Dtype::I32, "indices are 32-bit integers");
  return static_cast<std::int32_t*>(x.data);
}

// Counts [segments, sources, experts] of rows in a buffer.
class Counts {
 public:
  Counts(const Tensor& counts, Int rows)
      : count_(indices(counts)), segments_(counts.dims[0]), sources_(counts.dims[1]), experts_(counts.dims[2]) {
    Int total = 0;
    for (Int i = 0; i < counts.size(); ++i) total += index_below(count_[i], rows + 1);
    index_below(total, rows + 1);
  }
  [[nodiscard]] Int at(Int segment, Int source, Int expert) const {
    return count_[(segment * sources_ + source) * experts_ + expert];
  }
  [[nodiscard]] Int segments() const { return segments_; }
  [[nodiscard]] Int sources() const { return sources_; }
  [[nodiscard]] Int experts() const { return experts_; }

  /// Calls f(expert, first row, rows) over a buffer sorted by expert.
  template <class F>
  void for_each_expert(F f) const {
    Int first = 0;
    for (Int e = 0; e < experts_; ++e) {
      Int rows = 0;
      for (Int s = 0; s < segments_ * sources_; ++s) rows += count_[s * experts_ + e];
      if (rows > 0) f(e, first, rows);
      first += rows;
    }
  }

 private:
  const std::int32_t* count_;
  Int segments_, sources_, experts_;
};

}  // namespace

void CpuKernels::router(bool renormalize, const Tensor& logits, const Tensor& probs, const Tensor& experts,
                        const Tensor& softmax) {
  const Int rows = logits.dims[0], e = logits.dims[1], k = probs.dims[1];
  std::int32_t* chosen = writable_indices(experts);
  std::vector<std::int32_t> order(static_cast<std::size_t>(e));
  in_precision_of(probs, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> in(logits, scratch_);
    const Out<Acc> weights(probs, scratch_), all(softmax, scratch_);
    for (Int t = 0; t < rows; ++t) {
      const ConstRowMap<Acc> row(in.row(t, e), e);
      RowMap<Acc> p(all.row(t, e), e);
      p = (row - row.maxCoeff()).exp();
      p /= p.sum();
      std::iota(order.begin(), order.end(), 0);
      std::partial_sort(order.begin(), order.begin() + k, order.end(),
                        [&](std::int32_t x, std::int32_t y) { return p[x] > p[y] || (p[x] == p[y] && x < y); });
      Acc total{0};
      for (Int j = 0; j < k; ++j) total += p[order[static_cast<std::size_t>(j)]];
      for (Int j = 0; j < k; ++j) {
        chosen[t * k + j] = order[static_cast<std::size_t>(j)];
        weights[t * k + j] = p[chosen[t * k + j]] / (renormalize ? total : Acc{1});
      }
    }
  });
}

void CpuKernels::router_grad(bool renormalize, const Tensor& dprobs, const Tensor& experts, const Tensor& softmax,
                             const Tensor& dlogits) {
  const Int rows = dprobs.dims[0], k = dprobs.dims[1], e = dlogits.dims[1];
  const std::int32_t* chosen = indices(experts);
  in_precision_of(dlogits, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> grads(dprobs, scratch_), all(softmax, scratch_);
    const Out<Acc> out(dlogits, scratch_);
    for (Int t = 0; t < rows; ++t) {
      const ConstRowMap<Acc> p(all.row(t, e), e);
      Acc total{0}, weighted{0};
      for (Int j = 0; j < k; ++j) {
        const Acc share = p[index_below(chosen[t * k + j], e)];
        total += share;
        weighted += grads[t * k + j] * share;
      }
      // The gradient of the softmax first, then through it.
      RowMap<Acc> g(out.row(t, e), e);
      g.setZero();
      for (Int j = 0; j < k; ++j) {
        const Acc grad = grads[t * k + j];
        g[chosen[t * k + j]] = renormalize ? grad / total - weighted / (total * total) : grad;
      }
      const Acc mean = (g * p).sum();
      g = p * (g - mean);
    }
  });
}

void CpuKernels::permute(const Tensor& x, const Tensor& experts, const Tensor& rows, const Tensor& row_map,
                         const Tensor& counts) {
  const Int slots = experts.size(), d = x.dims[1], k = slots / x.dims[0];
  const std::int32_t* expert = indices(experts);
  std::int32_t *map = writable_indices(row_map), *count = writable_indices(counts);
  std::fill_n(count, counts.size(), 0);
  for (Int s = 0; s < slots; ++s) ++count[index_below(expert[s], counts.size())];
  std::vector<std::int32_t> next(static_cast<std::size_t>(counts.size()), 0);
  std::partial_sum(count, count + counts.size() - 1, next.begin() + 1);
  for (Int s = 0; s < slots; ++s) map[s] = next[static_cast<std::size_t>(expert[s])]++;
  in_precision_of(rows, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> in(x, scratch_);
    const Out<Acc> out(rows, scratch_);
    parallel(slots, kGrain / d, [&](Int begin, Int end, Int) {
      for (Int s = begin; s < end; ++s) std::copy_n(in.row(s / k, d), d, out.row(map[s], d));
    });
  });
}

void CpuKernels::permute_grad(const Tensor& drows, const Tensor& row_map, const Tensor& dx) {
  const Int d = dx.dims[1], slots = row_map.size(), k = slots / dx.dims[0];
  const std::int32_t* map = indices(row_map);
  in_precision_of(dx, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> in(drows, scratch_);
    const Out<Acc> out(dx, scratch_);
    parallel(dx.dims[0], kGrain / d, [&](Int begin, Int end, Int) {
      std::fill_n(out.row(begin, d), (end - begin) * d, Acc{0});
      for (Int s = begin * k; s < end * k; ++s)
        RowMap<Acc>(out.row(s / k, d), d) += ConstRowMap<Acc>(in.row(index_below(map[s], drows.dims[0]), d), d);
    });
  });
}

void CpuKernels::unpermute(const Tensor& rows, const Tensor& row_map, const Tensor& probs, const Tensor& y) {
  const Int d = y.dims[1], slots = row_map.size(), k = slots / y.dims[0];
  const std::int32_t* map = indices(row_map);
  in_precision_of(y, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> in(rows, scratch_), weights(probs, scratch_);
    const Out<Acc> out(y, scratch_);
    parallel(y.dims[0], kGrain / d, [&](Int begin, Int end, Int) {
      std::fill_n(out.row(begin, d), (end - begin) * d, Acc{0});
      for (Int s = begin * k; s < end * k; ++s) {
        RowMap<Acc>(out.row(s / k, d), d) +=
            weights[s] * ConstRowMap<Acc>(in.row(index_below(map[s], rows.dims[0]), d), d);
      }
    });
  });
}

void CpuKernels::unpermute_grad(const Tensor& dy, const Tensor& rows, const Tensor& row_map, const Tensor& probs,
                                const Tensor& drows, const Tensor& dprobs) {
  const Int d = dy.dims[1], slots = row_map.size(), k = slots / dy.dims[0];
  const std::int32_t* map = indices(row_map);
  in_precision_of(drows, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> grads(dy, scratch_), in(rows, scratch_), weights(probs, scratch_);
    const Out<Acc> out(drows, scratch_), dweights(dprobs, scratch_);
    parallel(slots, kGrain / d, [&](Int begin, Int end, Int) {
      for (Int s = begin; s < end; ++s) {
        const Int row = index_below(map[s], rows.dims[0]);
        const ConstRowMap<Acc> grad(grads.row(s / k, d), d);
        RowMap<Acc>(out.row(row, d), d) = weights[s] * grad;
        dweights[s] = (grad * ConstRowMap<Acc>(in.row(row, d), d)).sum();
      }
    });
  });
}

void CpuKernels::sort_by_expert(const ExpertRows& shape, const Tensor& rows, const Tensor& counts,
                                const Tensor& sorted) {
  const Counts count(counts, rows.dims[0]);
  const Int row_bytes = rows.dims[1] * size_of(rows.dtype);
  const auto* from = static_cast<const std::byte*>(rows.data);
  auto* to = static_cast<std::byte*>(sorted.data);
  Int target = 0;
  for (Int e = 0; e < count.experts(); ++e) {
    for (Int s = 0; s < count.segments(); ++s) {
      Int packed = s * shape.rows_bound;  // rows of a segment run by (source, expert)
      for (Int c = 0; c < count.sources(); ++c) {
        for (Int x = 0; x < count.experts(); ++x) {
          const Int n = count.at(s, c, x);
          if (x == e) {
            const Int source_row = shape.reverse ? target : packed, target_row = shape.reverse ? packed : target;
            std::copy_n(from + source_row * row_bytes, n * row_bytes, to + target_row * row_bytes);
            target += n;
          }
          packed += n;
        }
      }
    }
  }
}

void CpuKernels::grouped_matmul(const Gemm& gemm, const Tensor& a, const Tensor& w, const Tensor& counts,
                                const Tensor& c) {
  const Counts count(counts, a.dims[0]);
  in_precision_of(c, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> in(a, scratch_), weights(w, scratch_);
    const Out<Acc> out(c, scratch_, true);  // rows past the counts keep what they held
    count.for_each_expert([&](Int e, Int first, Int rows) {
      const ConstMatrixMap<Acc> A(in.row(first, gemm.k), rows, gemm.k);
      const ConstMatrixMap<Acc> W(weights.data() + e * gemm.n * gemm.k, gemm.trans_b ? gemm.n : gemm.k,
                                  gemm.trans_b ? gemm.k : gemm.n);
      MatrixMap<Acc> C(out.row(first, gemm.n), rows, gemm.n);
      if (gemm.trans_b) {
        C.noalias() = A * W.transpose();
      } else {
        C.noalias() = A * W;
      }
    });
  });
}

void CpuKernels::grouped_matmul_wgrad(const Gemm& gemm, const Tensor& dy, const Tensor& x, const Tensor& counts,
                                      const Tensor& dw) {
  const Counts count(counts, dy.dims[0]);
  in_precision_of(dy, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> grads(dy, scratch_), in(x, scratch_);
    const Out<Acc> out(dw, scratch_, true);
    count.for_each_expert([&](Int e, Int first, Int rows) {
      const ConstMatrixMap<Acc> dY(grads.row(first, gemm.n), rows, gemm.n), X(in.row(first, gemm.k), rows, gemm.k);
      MatrixMap<Acc>(out.data() + e * gemm.n * gemm.k, gemm.n, gemm.k).noalias() += dY.transpose() * X;
    });
  });
}

}  // namespace trainyard::kernels::cpu
