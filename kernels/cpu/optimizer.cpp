// AdamW, gradient norms, and housekeeping over whole buffers.

#include <xxhash.h>

#include <cmath>

#include "kernels/cpu/cpu_kernels.h"

namespace trainyard::kernels::cpu {

namespace {

Tensor part_of(const Tensor& x, const Range& range) {
  TY_CHECK(range.first >= 0 && range.count >= 0 && range.first + range.count <= x.size(), "a range lies in its buffer");
  return {static_cast<std::byte*>(x.data) + range.first * size_of(x.dtype), x.dtype, {range.count, 1, 1}};
}

}  // namespace

void CpuKernels::zero(const Tensor& x) {
  std::memset(x.data, 0, static_cast<std::size_t>(x.size() * size_of(x.dtype)));
}

void CpuKernels::copy(const Tensor& x, const Tensor& y) {
  if (x.dtype == y.dtype) {
    std::memmove(y.data, x.data, static_cast<std::size_t>(x.size() * size_of(x.dtype)));
    return;
  }
  in_precision_of(y, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> in(x, scratch_);
    const Out<Acc> out(y, scratch_);
    std::copy_n(in.data(), x.size(), out.data());
  });
}

void CpuKernels::accumulate(const Tensor& x, const Tensor& y) {
  in_precision_of(y, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> in(x, scratch_);
    const Out<Acc> out(y, scratch_, true);
    parallel(y.size(), kGrain, [&](Int begin, Int end, Int) {
      RowMap<Acc>(out.data() + begin, end - begin) += ConstRowMap<Acc>(in.data() + begin, end - begin);
    });
  });
}

void CpuKernels::squared_norm(const Tensor& grads, const std::vector<Range>& ranges, const Tensor& sum) {
  in_precision_of(sum, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const Out<Acc> out(sum, scratch_, true);
    for (const Range& range : ranges) {
      const Scratch::Scope inner(scratch_);
      const In<Acc> in(part_of(grads, range), scratch_);
      out[0] += ConstRowMap<Acc>(in.data(), range.count).square().sum();
    }
  });
}

void CpuKernels::adamw(const Adam& adam, const Tensor& grads, const Tensor& squared_norm,
                       const std::vector<Range>& ranges, const Tensor& params, const Tensor& master, const Tensor& m,
                       const Tensor& v) {
  in_precision_of(master, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const double norm = std::sqrt(static_cast<double>(In<Acc>(squared_norm, scratch_)[0]));
    const auto clip = static_cast<Acc>(adam.clip_grad > 0 && norm > adam.clip_grad ? adam.clip_grad / norm : 1.0);
    const auto t = static_cast<double>(adam.step);
    const auto correction1 = static_cast<Acc>(1 - std::pow(adam.beta1, t)),
               correction2 = static_cast<Acc>(1 - std::pow(adam.beta2, t));
    const auto beta1 = static_cast<Acc>(adam.beta1), beta2 = static_cast<Acc>(adam.beta2),
               rate = static_cast<Acc>(adam.learning_rate), eps = static_cast<Acc>(adam.eps);
    for (const Range& range : ranges) {
      const Scratch::Scope inner(scratch_);
      const In<Acc> grad(part_of(grads, range), scratch_);
      const Out<Acc> weight(part_of(master, range), scratch_, true), first(part_of(m, range), scratch_, true),
          second(part_of(v, range), scratch_, true), out(part_of(params, range), scratch_);
      const auto decay = static_cast<Acc>(range.decay ? 1 - adam.learning_rate * adam.weight_decay : 1.0);
      // Plain arithmetic: an element's bits must not depend on where in the buffer it lies, or replicas would part.
      const Acc* __restrict g = grad.data();
      Acc* __restrict w = weight.data(), * __restrict m1 = first.data(), * __restrict m2 = second.data(), * __restrict to = out.data();
      parallel(range.count, kGrain, [&](Int begin, Int end, Int) {
        for (Int i = begin; i < end; ++i) {
          const Acc x = clip * g[i];
          m1[i] = beta1 * m1[i] + (1 - beta1) * x;
          m2[i] = beta2 * m2[i] + (1 - beta2) * x * x;
          w[i] = w[i] * decay - rate * (m1[i] / correction1) / (std::sqrt(m2[i] / correction2) + eps);
          to[i] = w[i];
        }
      });
    }
  });
}

std::uint64_t CpuKernels::hash(const Tensor& x) {
  return XXH3_64bits(x.data, static_cast<std::size_t>(x.size() * size_of(x.dtype)));
}

}  // namespace trainyard::kernels::cpu
