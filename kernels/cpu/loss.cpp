// Cross-entropy over a shard of the vocabulary.

#include <cmath>

#include "kernels/cpu/cpu_kernels.h"

namespace trainyard::kernels::cpu {

namespace {

// softcap(alpha * logits) of one row.
template <class Acc>
Eigen::Array<Acc, Eigen::Dynamic, 1> capped(const Xent& xent, const Acc* row, Int v) {
  Eigen::Array<Acc, Eigen::Dynamic, 1> l = static_cast<Acc>(xent.alpha) * ConstRowMap<Acc>(row, v);
  apply_softcap(l, xent.softcap);
  return l;
}

}  // namespace

void CpuKernels::xent_max(const Xent& xent, const Tensor& logits, const Tensor& max) {
  const Int rows = logits.dims[0], v = logits.dims[1];
  in_precision_of(max, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> in(logits, scratch_);
    const Out<Acc> out(max, scratch_);
    parallel(rows, kGrain / v, [&](Int begin, Int end, Int) {
      for (Int t = begin; t < end; ++t) out[t] = capped(xent, in.row(t, v), v).maxCoeff();
    });
  });
}

void CpuKernels::xent_sum(const Xent& xent, const Tensor& logits, const Tensor& max, const Tensor& labels,
                          const Tensor& stats) {
  const Int rows = logits.dims[0], v = logits.dims[1];
  in_precision_of(stats, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> in(logits, scratch_), maxima(max, scratch_);
    const Out<Acc> out(stats, scratch_);
    parallel(rows, kGrain / v, [&](Int begin, Int end, Int) {
      for (Int t = begin; t < end; ++t) {
        const auto l = capped(xent, in.row(t, v), v);
        const Int label = indices(labels)[t] - xent.first_token;
        out[2 * t] = (l - maxima[t]).exp().sum();
        out[2 * t + 1] = label >= 0 && label < v ? l[label] : Acc{0};
      }
    });
  });
}

void CpuKernels::xent_loss(const Xent& xent, const Tensor& max, const Tensor& stats, const Tensor& loss) {
  in_precision_of(loss, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> maxima(max, scratch_), sums(stats, scratch_);
    const Out<Acc> out(loss, scratch_, true);
    for (Int t = 0; t < max.size(); ++t)
      out[0] += static_cast<Acc>(xent.scale) * (std::log(sums[2 * t]) + maxima[t] - sums[2 * t + 1]);
  });
}

void CpuKernels::xent_grad(const Xent& xent, const Tensor& logits, const Tensor& max, const Tensor& stats,
                           const Tensor& labels, const Tensor& dlogits) {
  const Int rows = logits.dims[0], v = logits.dims[1];
  in_precision_of(dlogits, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> in(logits, scratch_), maxima(max, scratch_), sums(stats, scratch_);
    const Out<Acc> out(dlogits, scratch_);
    const auto cap = static_cast<Acc>(xent.softcap), scale = static_cast<Acc>(xent.scale * xent.alpha);
    parallel(rows, kGrain / v, [&](Int begin, Int end, Int) {
      for (Int t = begin; t < end; ++t) {
        const Eigen::Array<Acc, Eigen::Dynamic, 1> l = capped(xent, in.row(t, v), v);
        const Int label = indices(labels)[t] - xent.first_token;
        RowMap<Acc> grad(out.row(t, v), v);
        grad = (l - maxima[t]).exp() / sums[2 * t];
        if (label >= 0 && label < v) grad[label] -= 1;
        grad *= scale;
        if (cap > 0) grad *= 1 - (l / cap).square();
      }
    });
  });
}

}  // namespace trainyard::kernels::cpu
