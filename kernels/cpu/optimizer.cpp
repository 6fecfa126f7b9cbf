// AdamW, gradient norms, and housekeeping over whole buffers.

#include <cmath>
#include <numeric>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/hash.h"

namespace trainyard::kernels::cpu {

namespace {

Tensor part_of(const Tensor& x, const Range& range) {
  TY_CHECK(range.first >= 0 && range.count >= 0 && range.first + range.count <= x.size(), "a range lies in its buffer");
  return {static_cast<std::byte*>(x.data) + range.first * size_of(x.dtype), x.dtype, {range.count, 1, 1}};
}

// Elements that are converted at a time: buckets are long, and what is converted should stay in the near caches.
constexpr Int kStretch = 16384;

// Calls f(first, count) for stretches that cover [begin, end).
template <class F>
void in_stretches(Int begin, Int end, F f) {
  for (Int first = begin; first < end; first += kStretch) f(first, std::min(kStretch, end - first));
}

Range stretch_of(const Range& range, Int first, Int count) {
  return {range.first + first, count, range.decay, range.rate_scale};
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
    parallel(x.size(), kGrain, [&](Int begin, Int end, Int thread) {
      Scratch& scratch = scratches_[static_cast<std::size_t>(thread)];
      in_stretches(begin, end, [&](Int first, Int count) {
        const Scratch::Scope scope(scratch);
        const In<Acc> in(part_of(x, {first, count}), scratch);
        const Out<Acc> out(part_of(y, {first, count}), scratch);
        std::copy_n(in.data(), count, out.data());
      });
    });
  });
}

void CpuKernels::accumulate(const Tensor& x, const Tensor& y) {
  in_precision_of(y, [&](auto zero) {
    using Acc = decltype(zero);
    parallel(y.size(), kGrain, [&](Int begin, Int end, Int thread) {
      Scratch& scratch = scratches_[static_cast<std::size_t>(thread)];
      in_stretches(begin, end, [&](Int first, Int count) {
        const Scratch::Scope scope(scratch);
        const In<Acc> in(part_of(x, {first, count}), scratch);
        const Out<Acc> out(part_of(y, {first, count}), scratch, true);
        RowMap<Acc>(out.data(), count) += ConstRowMap<Acc>(in.data(), count);
      });
    });
  });
}

void CpuKernels::squared_norm(const Tensor& grads, const std::vector<Range>& ranges, const Tensor& sum) {
  in_precision_of(sum, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const Out<Acc> out(sum, scratch_, true);
    for (const Range& range : ranges) {
      in_stretches(0, range.count, [&](Int first, Int count) {
        const Scratch::Scope inner(scratch_);
        const In<Acc> in(part_of(grads, stretch_of(range, first, count)), scratch_);
        out[0] += ConstRowMap<Acc>(in.data(), count).square().sum();
      });
    }
  });
}

namespace {

// AdamW's numbers for one step, in Acc.
template <class Acc>
struct AdamStep {
  AdamStep(const Adam& adam, double norm)
      : clip(static_cast<Acc>(adam.clip_grad > 0 && norm > adam.clip_grad ? adam.clip_grad / norm : 1.0)),
        correction1(static_cast<Acc>(1 - std::pow(adam.beta1, static_cast<double>(adam.step)))),
        correction2(static_cast<Acc>(1 - std::pow(adam.beta2, static_cast<double>(adam.step)))),
        beta1(static_cast<Acc>(adam.beta1)),
        beta2(static_cast<Acc>(adam.beta2)),
        eps(static_cast<Acc>(adam.eps)) {}

  // Plain arithmetic: an element's bits must not depend on where in the buffer it lies, or replicas would part.
  void update(Acc rate, Acc decay, Int count, const Acc* __restrict g, Acc* __restrict w, Acc* __restrict m,
              Acc* __restrict v, Acc* __restrict to) const {
    for (Int i = 0; i < count; ++i) {
      const Acc x = clip * g[i];
      m[i] = beta1 * m[i] + (1 - beta1) * x;
      v[i] = beta2 * v[i] + (1 - beta2) * x * x;
      w[i] = w[i] * decay - rate * (m[i] / correction1) / (std::sqrt(v[i] / correction2) + eps);
      to[i] = w[i];
    }
  }

  Acc clip, correction1, correction2, beta1, beta2, eps;
};

}  // namespace

void CpuKernels::adamw(const Adam& adam, const Tensor& grads, const Tensor& squared_norm,
                       const std::vector<Range>& ranges, const Tensor& params, const Tensor& master, const Tensor& m,
                       const Tensor& v) {
  in_precision_of(master, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const AdamStep<Acc> step(adam, std::sqrt(static_cast<double>(In<Acc>(squared_norm, scratch_)[0])));
    for (const Range& range : ranges) {
      const auto rate = static_cast<Acc>(adam.learning_rate * range.rate_scale);
      const auto decay = static_cast<Acc>(range.decay ? 1 - adam.learning_rate * adam.weight_decay : 1.0);
      parallel(range.count, kGrain, [&](Int begin, Int end, Int thread) {
        Scratch& scratch = scratches_[static_cast<std::size_t>(thread)];
        in_stretches(begin, end, [&](Int first, Int count) {
          const Scratch::Scope inner(scratch);
          const Range part = stretch_of(range, first, count);
          const In<Acc> grad(part_of(grads, part), scratch);
          const Out<Acc> weight(part_of(master, part), scratch, true), moment1(part_of(m, part), scratch, true),
              moment2(part_of(v, part), scratch, true), out(part_of(params, part), scratch);
          step.update(rate, decay, count, grad.data(), weight.data(), moment1.data(), moment2.data(), out.data());
        });
      });
    }
  });
}

std::uint64_t CpuKernels::hash(const Tensor& x) {
  const Int bytes = x.size() * size_of(x.dtype);
  const auto* data = static_cast<const std::byte*>(x.data);
  std::vector<std::uint64_t> sums(static_cast<std::size_t>(threads_), 0);
  parallel((bytes + 7) / 8, kGrain, [&](Int begin, Int end, Int thread) {
    std::uint64_t sum = 0;
    for (Int i = begin; i < end; ++i) {
      std::uint64_t word = 0;
      std::memcpy(&word, data + 8 * i, static_cast<std::size_t>(std::min<Int>(8, bytes - 8 * i)));
      sum += hash_word(word, static_cast<std::uint64_t>(i));
    }
    sums[static_cast<std::size_t>(thread)] = sum;
  });
  return hash_finish(std::accumulate(sums.begin(), sums.end(), std::uint64_t{0}), static_cast<std::uint64_t>(bytes));
}

}  // namespace trainyard::kernels::cpu
