// Norms, and what is computed element by element.

#include <cmath>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/vector.cuh"
#include "models/base/random.h"

namespace trainyard::kernels::cuda {

namespace {

// --- sums over rows, in two stages: blocks sum rows of theirs, then the sums of the blocks are added in their order

constexpr int kSumThreads = 128, kSumWarps = 16;

// out[0, d) += the sum of partial[parts, d]; blockIdx.y chooses between two outputs, whose partials follow each other.
template <class A, class O>
__global__ void __launch_bounds__(32 * kSumWarps)
    add_partials(const A* __restrict__ partial, int parts, Int d, O* first, O* second) {
  __shared__ A sums[kSumWarps][32];
  const Int column = Int{blockIdx.x} * 32 + threadIdx.x;
  const A* from = partial + blockIdx.y * parts * d;
  A sum = 0;
  if (column < d) {
#pragma unroll 4
    for (int p = static_cast<int>(threadIdx.y); p < parts; p += kSumWarps) sum += from[p * d + column];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= d) return;
  for (int w = 1; w < kSumWarps; ++w) sum += sums[w][threadIdx.x];
  O* out = (blockIdx.y == 0 ? first : second) + column;
  store<O, 1>(out, {{load<1>(out).at[0] + sum}});
}

template <class S>
void launch_add_partials(const Acc<S>* partial, Int parts, Int d, const Tensor& first, const Tensor& second,
                         cudaStream_t stream) {
  with_gradient<S>(first.dtype, [&](auto type) {
    using O = typename decltype(type)::type;
    const dim3 grid(blocks_for(d, 32), second.empty() ? 1 : 2);
    add_partials<Acc<S>, O><<<grid, dim3(32, kSumWarps), 0, stream>>>(partial, static_cast<int>(parts), d,
                                                                      elements<O>(first), elements<O>(second));
    check_launch("add_partials");
  });
}

// What gradients of a norm and of a bias need. Of the latter only dy, rows and d; its sums are `partial`.
template <class S>
struct NormGrad {
  const S *dy, *x, *weight;
  const Acc<S>*rstd, *mean;  // mean is null unless centred
  S* dx;
  Acc<S>* partial;  // [parts, d] of weight, then of bias
  Int rows, d;
  int parts;
};

// Normed or not, rows [rows * part / parts, rows * (part + 1) / parts) of N columns a thread.
template <class S, int N, bool Normed>
__global__ void __launch_bounds__(kSumThreads) column_sums(NormGrad<S> a, bool bias) {
  using A = Acc<S>;
  const Int column = (Int{blockIdx.y} * blockDim.x + threadIdx.x) * N, part = blockIdx.x;
  if (column >= a.d) return;
  const Int end = a.rows * (part + 1) / a.parts;
  Lanes<A, N> plain{}, weighted{};
#pragma unroll(Normed ? 4 : 8)
  for (Int t = a.rows * part / a.parts; t < end; ++t) {
    const auto dy = load<N>(a.dy + t * a.d + column);
#pragma unroll
    for (int i = 0; i < N; ++i) plain.at[i] += dy.at[i];
    if constexpr (Normed) {
      const auto x = load<N>(a.x + t * a.d + column);
      const A rstd = a.rstd[t], mean = a.mean != nullptr ? a.mean[t] : A{0};
#pragma unroll
      for (int i = 0; i < N; ++i) weighted.at[i] += dy.at[i] * ((x.at[i] - mean) * rstd);
    }
  }
  A* to = a.partial + part * a.d + column;
  if constexpr (Normed) {
    store<A, N>(to, weighted);
    to += a.parts * a.d;
  }
  if (bias) store<A, N>(to, plain);
}

// Enough blocks that loads of all of them hide memory's latency; more would only leave more sums to add.
Int parts_of_sum(Int rows, Int packs, int multiprocessors) {
  const Int wanted = 4 * multiprocessors / divide_up(packs, kSumThreads);
  return std::clamp<Int>(std::min(wanted, divide_up(rows, 8)), 1, 1024);
}

// --- norm

template <class S>
struct NormRows {
  const S *x, *weight, *bias;
  S* y;
  Acc<S>*rstd, *mean;  // mean is null unless centred
  Int d;
  Acc<S> eps;
};

// A row, one a block: in registers, `Held` packs a thread, or where it is too long for them, read again and again.
template <class S, int N, int Held>
class Row {
 public:
  __device__ __forceinline__ Row(const S* from, Int d) : from_(from), packs_(static_cast<int>(d / N)) {
#pragma unroll
    for (int i = 0; i < Held; ++i) {
      if (pack(i) < packs_) held_[i] = fetch<N>(from_ + pack(i) * N);
    }
  }
  // Calls f(column, lanes).
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    if constexpr (Held > 0) {
#pragma unroll
      for (int i = 0; i < Held; ++i) {
        if (pack(i) < packs_) f(pack(i) * N, unpack(held_[i]));
      }
    } else {
      for (int i = 0; pack(i) < packs_; ++i) f(pack(i) * N, load<N>(from_ + pack(i) * N));
    }
  }

 private:
  static __device__ __forceinline__ int pack(int i) { return static_cast<int>(threadIdx.x + i * blockDim.x); }

  const S* from_;
  int packs_;
  Pack<S, N> held_[Held > 0 ? Held : 1];
};

template <class S, int N, int Held>
__global__ void __launch_bounds__(1024) norm_rows(NormRows<S> a) {
  using A = Acc<S>;
  const Int t = blockIdx.x;
  const Row<S, N, Held> x(a.x + t * a.d, a.d);
  BlockReduce<Sum, A, 1> sum_up;
  A mean = 0;
  if (a.mean != nullptr) {
    A sum[1] = {0};
    x.each([&](int, const Lanes<A, N>& lanes) {
#pragma unroll
      for (int i = 0; i < N; ++i) sum[0] += lanes.at[i];
    });
    sum_up(sum);
    mean = sum[0] / static_cast<A>(a.d);
  }
  A squares[1] = {0};
  x.each([&](int, const Lanes<A, N>& lanes) {
#pragma unroll
    for (int i = 0; i < N; ++i) squares[0] += (lanes.at[i] - mean) * (lanes.at[i] - mean);
  });
  sum_up(squares);
  const A rstd = A{1} / sqrt(squares[0] / static_cast<A>(a.d) + a.eps);
  if (threadIdx.x == 0) {
    a.rstd[t] = rstd;
    if (a.mean != nullptr) a.mean[t] = mean;
  }
  x.each([&](int column, const Lanes<A, N>& lanes) {
    Lanes<A, N> y;
    const auto weight = load<N>(a.weight + column);
#pragma unroll
    for (int i = 0; i < N; ++i) y.at[i] = (lanes.at[i] - mean) * rstd * weight.at[i];
    if (a.bias != nullptr) {
      const auto bias = load<N>(a.bias + column);
#pragma unroll
      for (int i = 0; i < N; ++i) y.at[i] += bias.at[i];
    }
    store<S, N>(a.y + t * a.d + column, y);
  });
}

// Calls f(Number<Held>, threads) for rows of so many packs.
template <class F>
void with_held(Int packs, F f) {
  if (packs <= 2 * 512) return f(Number<2>{}, threads_for(divide_up(packs, 2), 512));
  if (packs <= 4 * 1024) return f(Number<4>{}, threads_for(divide_up(packs, 4), 1024));
  f(Number<0>{}, 512U);
}

// --- gradient of norm: rows that fit in registers in one pass

constexpr int kFusedThreads = 512, kFusedHeld = 2;

template <class S, int N>
struct GradRow {
  Pack<S, N> x[kFusedHeld], dy[kFusedHeld];
  Acc<S> rstd, mean;

  __device__ __forceinline__ void read(const NormGrad<S>& a, Int t) {
#pragma unroll
    for (int i = 0; i < kFusedHeld; ++i) {
      const Int column = Int{threadIdx.x + i * blockDim.x} * N;
      if (column >= a.d) continue;
      x[i] = fetch<N>(a.x + t * a.d + column);
      dy[i] = fetch<N>(a.dy + t * a.d + column);
    }
    rstd = a.rstd[t];
    mean = a.mean != nullptr ? a.mean[t] : Acc<S>{0};
  }
};

// Every block has rows t, t + blocks, ...; every thread has the same columns in all of them and sums these up. A row is
// read while the one before it is computed.
template <class S, int N, bool Bias>
__global__ void __launch_bounds__(kFusedThreads) norm_grad_fused(NormGrad<S> a) {
  using A = Acc<S>;
  Lanes<A, N> weight_sum[kFusedHeld] = {}, bias_sum[kFusedHeld] = {};
  Pack<S, N> weight[kFusedHeld];
  const auto column = [](int i) { return Int{threadIdx.x + i * blockDim.x} * N; };
#pragma unroll
  for (int i = 0; i < kFusedHeld; ++i) {
    if (column(i) < a.d) weight[i] = fetch<N>(a.weight + column(i));
  }
  BlockReduce<Sum, A, 2> sum_up;
  GradRow<S, N> next;
  next.read(a, blockIdx.x);
  for (Int t = blockIdx.x; t < a.rows; t += gridDim.x) {
    const GradRow<S, N> row = next;
    if (t + gridDim.x < a.rows) next.read(a, t + gridDim.x);
    A sums[2] = {0, 0};  // of g * xhat, and of g
#pragma unroll
    for (int i = 0; i < kFusedHeld; ++i) {
      if (column(i) >= a.d) continue;
      const auto x = unpack(row.x[i]), dy = unpack(row.dy[i]), w = unpack(weight[i]);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const A xhat = (x.at[j] - row.mean) * row.rstd, g = dy.at[j] * w.at[j];
        sums[0] += g * xhat;
        sums[1] += g;
        weight_sum[i].at[j] += dy.at[j] * xhat;
        if constexpr (Bias) bias_sum[i].at[j] += dy.at[j];
      }
    }
    sum_up(sums);
    const A dot = sums[0] / static_cast<A>(a.d), sum = a.mean != nullptr ? sums[1] / static_cast<A>(a.d) : A{0};
#pragma unroll
    for (int i = 0; i < kFusedHeld; ++i) {
      if (column(i) >= a.d) continue;
      const auto x = unpack(row.x[i]), dy = unpack(row.dy[i]), w = unpack(weight[i]);
      Lanes<A, N> dx;
#pragma unroll
      for (int j = 0; j < N; ++j) {
        dx.at[j] = row.rstd * (dy.at[j] * w.at[j] - (x.at[j] - row.mean) * row.rstd * dot - sum);
      }
      store<S, N>(a.dx + t * a.d + column(i), dx);
    }
  }
#pragma unroll
  for (int i = 0; i < kFusedHeld; ++i) {
    if (column(i) >= a.d) continue;
    A* to = a.partial + blockIdx.x * a.d + column(i);
    store<A, N>(to, weight_sum[i]);
    if constexpr (Bias) store<A, N>(to + a.parts * a.d, bias_sum[i]);
  }
}

// Longer rows: dx alone, a row for each block, which is read twice.
template <class S, int N>
__global__ void __launch_bounds__(512) norm_grad_rows(NormGrad<S> a) {
  using A = Acc<S>;
  const Int t = blockIdx.x;
  const A rstd = a.rstd[t], mean = a.mean != nullptr ? a.mean[t] : A{0};
  const Row<S, N, 0> x(a.x + t * a.d, a.d);
  A sums[2] = {0, 0};
  x.each([&](int column, const Lanes<A, N>& lanes) {
    const auto dy = load<N>(a.dy + t * a.d + column), w = load<N>(a.weight + column);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      sums[0] += dy.at[i] * w.at[i] * ((lanes.at[i] - mean) * rstd);
      sums[1] += dy.at[i] * w.at[i];
    }
  });
  BlockReduce<Sum, A, 2>{}(sums);
  const A dot = sums[0] / static_cast<A>(a.d), sum = a.mean != nullptr ? sums[1] / static_cast<A>(a.d) : A{0};
  x.each([&](int column, const Lanes<A, N>& lanes) {
    const auto dy = load<N>(a.dy + t * a.d + column), w = load<N>(a.weight + column);
    Lanes<A, N> dx;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      dx.at[i] = rstd * (dy.at[i] * w.at[i] - (lanes.at[i] - mean) * rstd * dot - sum);
    }
    store<S, N>(a.dx + t * a.d + column, dx);
  });
}

// Fills a.partial, [a.parts, d] for the weight and, with a bias, as many for it.
template <class S, int N>
void launch_norm_grad(const NormGrad<S>& a, bool bias, bool fused, cudaStream_t stream) {
  const auto parts = static_cast<unsigned>(a.parts);
  if (fused) {
    const unsigned threads = threads_for(divide_up(a.d / N, kFusedHeld), kFusedThreads);
    if (bias) {
      norm_grad_fused<S, N, true><<<parts, threads, 0, stream>>>(a);
    } else {
      norm_grad_fused<S, N, false><<<parts, threads, 0, stream>>>(a);
    }
    check_launch("norm_grad_fused");
    return;
  }
  norm_grad_rows<S, N><<<static_cast<unsigned>(a.rows), 512, 0, stream>>>(a);
  check_launch("norm_grad_rows");
  column_sums<S, N, true><<<dim3(parts, blocks_for(a.d / N, kSumThreads)), kSumThreads, 0, stream>>>(a, bias);
  check_launch("column_sums");
}

// --- activations

// x / y to within two units in the last place for f32; y is at least 1. An exact division takes as long as exp.
__device__ __forceinline__ float quotient(float x, float y) { return __fdividef(x, y); }
__device__ __forceinline__ double quotient(double x, double y) { return x / y; }

template <Act act, class A>
__device__ __forceinline__ A activate(A x) {
  if constexpr (act == Act::Silu) return quotient(x, A{1} + exp(-x));
  if constexpr (act == Act::Gelu) return A(0.5) * x * (A{1} + erf(x * A(0.70710678118654752440)));
  if constexpr (act == Act::GeluTanh) {
    // 1 + tanh(u) = 2 / (1 + exp(-2 u)), which is exact where tanh is near -1.
    return quotient(x, A{1} + exp(A(-2 * 0.79788456080286535588) * (x + A(0.044715) * x * x * x)));
  }
  const A positive = x > A{0} ? x : A{0};
  return positive * positive;
}

// The slope at x, and the value where it is wanted: they share what is dear.
template <Act act, class A>
__device__ __forceinline__ A slope_and_value(A x, A& value) {
  if constexpr (act == Act::Silu) {
    const A s = quotient(A{1}, A{1} + exp(-x));
    value = x * s;
    return s * (A{1} + x * (A{1} - s));
  }
  if constexpr (act == Act::Gelu) {
    const A below = A(0.5) * (A{1} + erf(x * A(0.70710678118654752440)));
    value = x * below;
    return below + x * exp(A(-0.5) * x * x) * A(0.39894228040143267794);
  }
  if constexpr (act == Act::GeluTanh) {
    constexpr A c = A(0.79788456080286535588);
    // As a logistic function of 2 u, whose slope loses no digits where it is near 1.
    const A u = c * (x + A(0.044715) * x * x * x);
    const A e = exp(A(-2) * (u < A{0} ? -u : u)), share = quotient(A{1}, A{1} + e);
    const A below = u < A{0} ? e * share : share;
    value = x * below;
    return below + x * (e * share * share) * A(2) * c * (A{1} + A(3 * 0.044715) * x * x);
  }
  const A positive = x > A{0} ? x : A{0};
  value = positive * positive;
  return A{2} * positive;
}

template <class S>
struct Activation {
  const S *h, *da;
  S *a, *dh;
  Int f;
  const Int* valid_rows;  // null: all
};

constexpr int kActThreads = 256, kActAhead = 2;

// A block has kActAhead packs a thread of one row.
template <class S>
__device__ __forceinline__ bool past_valid_rows(const Activation<S>& a) {
  return a.valid_rows != nullptr && Int{blockIdx.x} >= *a.valid_rows;
}
template <int N>
__device__ __forceinline__ Int act_column(int i) {
  return ((Int{blockIdx.y} * kActAhead + i) * blockDim.x + threadIdx.x) * N;
}

template <class S, int N, Act act, bool Gated>
__global__ void __launch_bounds__(kActThreads) activate_rows(Activation<S> a) {
  if (past_valid_rows(a)) return;
  const Int t = blockIdx.x;
  const S* gate = a.h + t * (Gated ? 2 * a.f : a.f);
  Pack<S, N> x[kActAhead], up[kActAhead];
#pragma unroll
  for (int i = 0; i < kActAhead; ++i) {
    const Int column = act_column<N>(i);
    if (column >= a.f) continue;
    x[i] = fetch<N>(gate + column);
    if constexpr (Gated) up[i] = fetch<N>(gate + a.f + column);
  }
#pragma unroll
  for (int i = 0; i < kActAhead; ++i) {
    const Int column = act_column<N>(i);
    if (column >= a.f) continue;
    auto y = unpack(x[i]);
#pragma unroll
    for (int j = 0; j < N; ++j) y.at[j] = activate<act>(y.at[j]);
    if constexpr (Gated) {
      const auto factor = unpack(up[i]);
#pragma unroll
      for (int j = 0; j < N; ++j) y.at[j] *= factor.at[j];
    }
    store<S, N>(a.a + t * a.f + column, y);
  }
}

template <class S, int N, Act act, bool Gated>
__global__ void __launch_bounds__(kActThreads) activate_grad_rows(Activation<S> a) {
  using A = Acc<S>;
  if (past_valid_rows(a)) return;
  const Int t = blockIdx.x, first = t * (Gated ? 2 * a.f : a.f);
  Pack<S, N> grad[kActAhead], gate[kActAhead], up[kActAhead];
#pragma unroll
  for (int i = 0; i < kActAhead; ++i) {
    const Int column = act_column<N>(i);
    if (column >= a.f) continue;
    grad[i] = fetch<N>(a.da + t * a.f + column);
    gate[i] = fetch<N>(a.h + first + column);
    if constexpr (Gated) up[i] = fetch<N>(a.h + first + a.f + column);
  }
#pragma unroll
  for (int i = 0; i < kActAhead; ++i) {
    const Int column = act_column<N>(i);
    if (column >= a.f) continue;
    const auto da = unpack(grad[i]), x = unpack(gate[i]);
    Lanes<A, N> dgate, dup;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      A value;
      dgate.at[j] = da.at[j] * slope_and_value<act>(x.at[j], value);
      dup.at[j] = da.at[j] * value;
    }
    if constexpr (Gated) {
      const auto factor = unpack(up[i]);
#pragma unroll
      for (int j = 0; j < N; ++j) dgate.at[j] *= factor.at[j];
      store<S, N>(a.dh + first + a.f + column, dup);
    }
    store<S, N>(a.dh + first + column, dgate);
  }
}

// How many rows hold data. A count that cannot be is the end of the context, as it is of the process on a processor.
__global__ void __launch_bounds__(256) sum_counts(const std::int32_t* counts, Int size, Int rows, Int* total) {
  Int sum[1] = {0};
  bool wrong = false;
  for (Int i = threadIdx.x; i < size; i += blockDim.x) {
    wrong |= counts[i] < 0;
    sum[0] += counts[i];
  }
  BlockReduce<Sum, Int, 1>{}(sum);
  if (wrong || sum[0] > rows) __trap();
  if (threadIdx.x == 0) *total = sum[0];
}

const Int* launch_sum_counts(const Tensor& counts, Int rows, std::byte* scratch, cudaStream_t stream) {
  auto* total = reinterpret_cast<Int*>(scratch);
  sum_counts<<<1, 256, 0, stream>>>(index_elements(counts), counts.size(), rows, total);
  check_launch("sum_counts");
  return total;
}

template <class S, int N, Act act>
void launch_activation(const Activation<S>& a, bool gated, Int rows, cudaStream_t stream) {
  const unsigned threads = threads_for(divide_up(a.f / N, kActAhead), kActThreads);
  const dim3 grid(static_cast<unsigned>(rows), blocks_for(a.f / N, threads * kActAhead));
  if (a.da == nullptr && gated) {
    activate_rows<S, N, act, true><<<grid, threads, 0, stream>>>(a);
  } else if (a.da == nullptr) {
    activate_rows<S, N, act, false><<<grid, threads, 0, stream>>>(a);
  } else if (gated) {
    activate_grad_rows<S, N, act, true><<<grid, threads, 0, stream>>>(a);
  } else {
    activate_grad_rows<S, N, act, false><<<grid, threads, 0, stream>>>(a);
  }
  check_launch("activation");
}

template <class S>
void launch_activation(Act act, const Activation<S>& a, bool gated, Int rows, cudaStream_t stream) {
  with_lanes<S>(a.f, {a.h, a.da, a.a, a.dh}, [&](auto n) {
    constexpr int N = decltype(n)::value;
    switch (act) {
      case Act::Silu: return launch_activation<S, N, Act::Silu>(a, gated, rows, stream);
      case Act::Gelu: return launch_activation<S, N, Act::Gelu>(a, gated, rows, stream);
      case Act::GeluTanh: return launch_activation<S, N, Act::GeluTanh>(a, gated, rows, stream);
      case Act::SquaredRelu: return launch_activation<S, N, Act::SquaredRelu>(a, gated, rows, stream);
    }
    TY_CHECK(false, "unknown activation");
  });
}

// --- sums, and dropout

constexpr int kAddThreads = 256, kAddAhead = 4;

// c may be a or b: a thread has read what it writes.
template <class S, int N>
__global__ void __launch_bounds__(kAddThreads) add_elements(const S* a, const S* b, S* c, Int packs) {
  Pack<S, N> left[kAddAhead], right[kAddAhead];
  const Int first = Int{blockIdx.x} * (kAddThreads * kAddAhead) + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kAddAhead; ++i) {
    const Int pack = first + i * kAddThreads;
    if (pack >= packs) continue;
    left[i] = fetch<N>(a + pack * N);
    right[i] = fetch<N>(b + pack * N);
  }
#pragma unroll
  for (int i = 0; i < kAddAhead; ++i) {
    const Int pack = first + i * kAddThreads;
    if (pack >= packs) continue;
    auto sum = unpack(left[i]);
    const auto other = unpack(right[i]);
#pragma unroll
    for (int j = 0; j < N; ++j) sum.at[j] += other.at[j];
    store<S, N>(c + pack * N, sum);
  }
}

constexpr int kBiasThreads = 128, kBiasRows = 8;

template <class S, int N>
__global__ void __launch_bounds__(kBiasThreads)
    add_bias(const S* x, const S* __restrict__ bias, S* y, Int rows, Int columns) {
  const Int column = (Int{blockIdx.y} * blockDim.x + threadIdx.x) * N, first = Int{blockIdx.x} * kBiasRows;
  if (column >= columns) return;
  const auto shift = load<N>(bias + column);
  Pack<S, N> held[kBiasRows];
#pragma unroll
  for (int i = 0; i < kBiasRows; ++i) {
    if (first + i < rows) held[i] = fetch<N>(x + (first + i) * columns + column);
  }
#pragma unroll
  for (int i = 0; i < kBiasRows; ++i) {
    if (first + i >= rows) break;
    auto sum = unpack(held[i]);
#pragma unroll
    for (int j = 0; j < N; ++j) sum.at[j] += shift.at[j];
    store<S, N>(y + (first + i) * columns + column, sum);
  }
}

// mix64 of models/base/random.h.
__device__ __forceinline__ std::uint64_t mixed(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

constexpr int kDropThreads = 256, kDropAhead = 4;

// A row for each block. keep: the hash is at least `least`.
template <class S, int N>
__global__ void __launch_bounds__(kDropThreads)
    drop(const S* x, const std::int32_t* __restrict__ samples, const std::int32_t* __restrict__ positions, S* y, Int d,
         std::uint64_t site, std::uint64_t least, Acc<S> scale) {
  const Int t = blockIdx.x;
  const std::uint64_t sample = mixed(site ^ static_cast<std::uint64_t>(Int{samples[t]}));
  const std::uint64_t row = mixed(sample ^ static_cast<std::uint64_t>(Int{positions[t]}));
  for (Int first = threadIdx.x * N; first < d; first += Int{blockDim.x} * (kDropAhead * N)) {
    Pack<S, N> held[kDropAhead];
#pragma unroll
    for (int i = 0; i < kDropAhead; ++i) {
      const Int column = first + Int{i * blockDim.x} * N;
      if (column < d) held[i] = fetch<N>(x + t * d + column);
    }
#pragma unroll
    for (int i = 0; i < kDropAhead; ++i) {
      const Int column = first + Int{i * blockDim.x} * N;
      if (column >= d) break;
      auto out = unpack(held[i]);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const bool keep = mixed(row ^ static_cast<std::uint64_t>(column + j)) >= least;
        out.at[j] = keep ? out.at[j] * scale : Acc<S>{0};
      }
      store<S, N>(y + t * d + column, out);
    }
  }
}

// The least 64-bit hash whose upper 53 bits are, as a fraction, no less than the probability.
std::uint64_t least_kept(double probability) {
  return static_cast<std::uint64_t>(std::ceil(probability * 0x1.0p53)) << 11;
}

}  // namespace

void CudaKernels::norm(const NormShape& shape, const Tensor& x, const Tensor& weight, const Tensor& bias,
                       const Tensor& y, const Tensor& rstd, const Tensor& mean) {
  const Int rows = x.dims[0], d = x.dims[1];
  if (rows == 0) return;
  with_storage(y.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    using A = Acc<S>;
    const NormRows<S> a{elements<S>(x),
                        elements<S>(weight),
                        elements<S>(bias),
                        elements<S>(y),
                        elements<A>(rstd),
                        shape.centred ? elements<A>(mean) : nullptr,
                        d,
                        static_cast<A>(shape.eps)};
    with_lanes<S>(d, {a.x, a.weight, a.bias, a.y}, [&](auto n) {
      constexpr int N = decltype(n)::value;
      with_held(d / N, [&](auto held, unsigned threads) {
        norm_rows<S, N, decltype(held)::value><<<static_cast<unsigned>(rows), threads, 0, stream_>>>(a);
      });
    });
    check_launch("norm");
  });
}

void CudaKernels::norm_grad(const NormShape& shape, const Tensor& dy, const Tensor& x, const Tensor& weight,
                            const Tensor& rstd, const Tensor& mean, const Tensor& dx, const Tensor& dweight,
                            const Tensor& dbias) {
  const Int rows = x.dims[0], d = x.dims[1];
  if (rows == 0) return;
  with_storage(dx.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    using A = Acc<S>;
    NormGrad<S> a{elements<S>(dy),
                  elements<S>(x),
                  elements<S>(weight),
                  elements<A>(rstd),
                  shape.centred ? elements<A>(mean) : nullptr,
                  elements<S>(dx),
                  nullptr,
                  rows,
                  d,
                  0};
    with_lanes<S>(d, {a.dy, a.x, a.weight, a.dx}, [&](auto n) {
      constexpr int N = decltype(n)::value;
      const bool fused = d / N <= kFusedHeld * kFusedThreads;
      const Int threads = threads_for(divide_up(d / N, kFusedHeld), kFusedThreads);
      a.parts = static_cast<int>(fused ? std::min<Int>(rows, multiprocessors_ * (kFusedThreads / threads))
                                       : parts_of_sum(rows, d / N, multiprocessors_));
      a.partial = reinterpret_cast<A*>(scratch_.take(2 * a.parts * d * Int{sizeof(A)}));
      launch_norm_grad<S, N>(a, !dbias.empty(), fused, stream_);
    });
    launch_add_partials<S>(a.partial, a.parts, d, dweight, dbias, stream_);
  });
}

void CudaKernels::bias_add(const Tensor& x, const Tensor& bias, const Tensor& y) {
  const Int columns = bias.size(), rows = x.size() / columns;
  if (rows == 0) return;
  with_storage(y.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    with_lanes<S>(columns, {x.data, bias.data, y.data}, [&](auto n) {
      constexpr int N = decltype(n)::value;
      const unsigned threads = threads_for(columns / N, kBiasThreads);
      const dim3 grid(blocks_for(rows, kBiasRows), blocks_for(columns / N, threads));
      add_bias<S, N><<<grid, threads, 0, stream_>>>(elements<S>(x), elements<S>(bias), elements<S>(y), rows, columns);
    });
    check_launch("add_bias");
  });
}

void CudaKernels::bias_grad(const Tensor& dy, const Tensor& dbias) {
  const Int columns = dbias.size(), rows = dy.size() / columns;
  if (rows == 0) return;
  with_storage(dy.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    NormGrad<S> a{};
    a.dy = elements<S>(dy), a.rows = rows, a.d = columns;
    with_lanes<S>(columns, {a.dy}, [&](auto n) {
      constexpr int N = decltype(n)::value;
      a.parts = static_cast<int>(parts_of_sum(rows, columns / N, multiprocessors_));
      a.partial = reinterpret_cast<Acc<S>*>(scratch_.take(a.parts * columns * Int{sizeof(Acc<S>)}));
      const dim3 grid(static_cast<unsigned>(a.parts), blocks_for(columns / N, kSumThreads));
      column_sums<S, N, false><<<grid, kSumThreads, 0, stream_>>>(a, true);
      check_launch("column_sums");
    });
    launch_add_partials<S>(a.partial, a.parts, columns, dbias, {}, stream_);
  });
}

void CudaKernels::activation(Act act, bool gated, const Tensor& h, const Tensor& counts, const Tensor& a) {
  const Int rows = a.dims[0];
  if (rows == 0) return;
  const Int* valid =
      counts.empty() ? nullptr : launch_sum_counts(counts, rows, scratch_.take(Int{sizeof(Int)}), stream_);
  with_storage(a.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    launch_activation<S>(act, {elements<S>(h), nullptr, elements<S>(a), nullptr, a.dims[1], valid}, gated, rows,
                         stream_);
  });
}

void CudaKernels::activation_grad(Act act, bool gated, const Tensor& da, const Tensor& h, const Tensor& counts,
                                  const Tensor& dh) {
  const Int rows = da.dims[0];
  if (rows == 0) return;
  const Int* valid =
      counts.empty() ? nullptr : launch_sum_counts(counts, rows, scratch_.take(Int{sizeof(Int)}), stream_);
  with_storage(dh.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    launch_activation<S>(act, {elements<S>(h), elements<S>(da), nullptr, elements<S>(dh), da.dims[1], valid}, gated,
                         rows, stream_);
  });
}

void CudaKernels::add(const Tensor& a, const Tensor& b, const Tensor& c) {
  const Int size = c.size();
  if (size == 0) return;
  with_storage(c.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    with_lanes<S>(size, {a.data, b.data, c.data}, [&](auto n) {
      constexpr int N = decltype(n)::value;
      add_elements<S, N><<<blocks_for(size / N, kAddThreads * kAddAhead), kAddThreads, 0, stream_>>>(
          elements<S>(a), elements<S>(b), elements<S>(c), size / N);
    });
    check_launch("add");
  });
}

void CudaKernels::dropout(const DropoutSeed& seed, const Tensor& x, const Tensor& samples, const Tensor& positions,
                          const Tensor& y) {
  const Int rows = x.dims[0], d = x.dims[1];
  if (rows == 0) return;
  const auto fold = [](std::uint64_t key, Int part) { return mix64(key ^ static_cast<std::uint64_t>(part)); };
  const std::uint64_t step = mix64(mix64(seed.seed) ^ static_cast<std::uint64_t>(seed.step));
  const std::uint64_t site = fold(fold(step, seed.layer), seed.salt);
  with_storage(y.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    with_lanes<S>(d, {x.data, y.data}, [&](auto n) {
      constexpr int N = decltype(n)::value;
      const unsigned threads = threads_for(divide_up(d / N, kDropAhead), kDropThreads);
      drop<S, N><<<static_cast<unsigned>(rows), threads, 0, stream_>>>(
          elements<S>(x), index_elements(samples), index_elements(positions), elements<S>(y), d, site,
          least_kept(seed.probability), static_cast<Acc<S>>(1 / (1 - seed.probability)));
    });
    check_launch("dropout");
  });
}

}  // namespace trainyard::kernels::cuda
