// Cross-entropy over a shard of the vocabulary. A row is long: each has a block of its own, which reads it once.

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/vector.cuh"

namespace trainyard::kernels::cuda {

namespace {

constexpr int kRowThreads = 512;
template <class S>
constexpr int kRowAhead = sizeof(S) == 8 ? 2 : 4;

template <class S>
struct Rows {
  const S* logits;
  const Acc<S>* max;
  const Acc<S>* stats;
  const std::int32_t* labels;
  Int columns, first_token;
  Acc<S> alpha, cap, inverse_cap, scale;
};

template <class S>
__device__ __forceinline__ Acc<S> capped(const Rows<S>& a, Acc<S> logit) {
  const Acc<S> l = a.alpha * logit;
  return a.cap > 0 ? a.cap * tanh(l * a.inverse_cap) : l;
}

// Calls f(column, lanes) over this block's row, with kRowAhead<S> loads on their way.
template <int N, class S, class F>
__device__ __forceinline__ void for_row(const Rows<S>& a, F f) {
  const S* row = a.logits + blockIdx.x * a.columns;
  const Int step = Int{blockDim.x} * N;
  for (Int first = Int{threadIdx.x} * N; first < a.columns; first += step * kRowAhead<S>) {
    Pack<S, N> held[kRowAhead<S>];
#pragma unroll
    for (int i = 0; i < kRowAhead<S>; ++i) {
      if (first + i * step < a.columns) held[i] = fetch<N>(row + first + i * step);
    }
#pragma unroll
    for (int i = 0; i < kRowAhead<S>; ++i) {
      if (first + i * step < a.columns) f(first + i * step, unpack(held[i]));
    }
  }
}

// The soft cap keeps order, so that it is taken of the largest alone.
template <class S, int N>
__global__ void __launch_bounds__(kRowThreads) row_max(Rows<S> a, Acc<S>* max) {
  using A = Acc<S>;
  A largest[1] = {Max::none<A>()};
  for_row<N>(a, [&](Int, const Lanes<A, N>& logits) {
#pragma unroll
    for (int i = 0; i < N; ++i) largest[0] = Max::of(a.alpha * logits.at[i], largest[0]);
  });
  BlockReduce<Max, A, 1>{}(largest);
  if (threadIdx.x == 0) max[blockIdx.x] = a.cap > 0 ? a.cap * tanh(largest[0] * a.inverse_cap) : largest[0];
}

template <class S, int N>
__global__ void __launch_bounds__(kRowThreads) row_sum(Rows<S> a, Acc<S>* stats) {
  using A = Acc<S>;
  const Int t = blockIdx.x;
  const A max = a.max[t];
  A sum[1] = {0};
  for_row<N>(a, [&](Int, const Lanes<A, N>& logits) {
#pragma unroll
    for (int i = 0; i < N; ++i) sum[0] += exp(capped(a, logits.at[i]) - max);
  });
  BlockReduce<Sum, A, 1>{}(sum);
  if (threadIdx.x != 0) return;
  const Int label = a.labels[t] - a.first_token;
  stats[2 * t] = sum[0];
  stats[2 * t + 1] =
      label >= 0 && label < a.columns ? capped(a, load<1>(a.logits + t * a.columns + label).at[0]) : A{0};
}

// dlogits may be logits: a thread has read what it writes.
template <class S, int N>
__global__ void __launch_bounds__(kRowThreads) row_grad(Rows<S> a, S* dlogits) {
  using A = Acc<S>;
  const Int t = blockIdx.x, label = a.labels[t] - a.first_token;
  const A max = a.max[t], weight = A{1} / a.stats[2 * t];
  for_row<N>(a, [&](Int column, const Lanes<A, N>& logits) {
    Lanes<A, N> grad;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const A l = capped(a, logits.at[i]);
      grad.at[i] = (exp(l - max) * weight - (column + i == label ? A{1} : A{0})) * a.scale;
      if (a.cap > 0) grad.at[i] *= A{1} - l * a.inverse_cap * (l * a.inverse_cap);
    }
    store<S, N>(dlogits + t * a.columns + column, grad);
  });
}

// One block: rows are few, and their order is the threads'.
template <class A>
__global__ void __launch_bounds__(1024) add_losses(const A* max, const A* stats, Int rows, A scale, A* loss) {
  A sum[1] = {0};
  for (Int t = threadIdx.x; t < rows; t += blockDim.x) sum[0] += log(stats[2 * t]) + max[t] - stats[2 * t + 1];
  BlockReduce<Sum, A, 1>{}(sum);
  if (threadIdx.x == 0) *loss += scale * sum[0];
}

// Calls f(rows, Number<N>) for these logits. scale: of the gradient.
template <class F>
void with_rows(const Xent& xent, const Tensor& logits, const Tensor& max, const Tensor& stats, const Tensor& labels,
               const void* written, F f) {
  with_storage(logits.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    using A = Acc<S>;
    const Rows<S> a{elements<S>(logits),
                    elements<A>(max),
                    elements<A>(stats),
                    index_elements(labels),
                    logits.dims[1],
                    xent.first_token,
                    static_cast<A>(xent.alpha),
                    static_cast<A>(xent.softcap),
                    static_cast<A>(xent.softcap > 0 ? 1 / xent.softcap : 0),
                    static_cast<A>(xent.scale * xent.alpha)};
    with_lanes<S>(a.columns, {a.logits, written}, [&](auto n) { f(a, n); });
  });
}

unsigned row_threads(Int packs) { return threads_for(packs, kRowThreads); }

}  // namespace

void CudaKernels::xent_max(const Xent& xent, const Tensor& logits, const Tensor& max) {
  const auto rows = static_cast<unsigned>(logits.dims[0]);
  if (rows == 0) return;
  with_rows(xent, logits, {}, {}, {}, nullptr, [&]<class S>(const Rows<S>& a, auto n) {
    constexpr int N = decltype(n)::value;
    row_max<S, N><<<rows, row_threads(a.columns / N), 0, stream_>>>(a, elements<Acc<S>>(max));
  });
  check_launch("row_max");
}

void CudaKernels::xent_sum(const Xent& xent, const Tensor& logits, const Tensor& max, const Tensor& labels,
                           const Tensor& stats) {
  const auto rows = static_cast<unsigned>(logits.dims[0]);
  if (rows == 0) return;
  with_rows(xent, logits, max, {}, labels, nullptr, [&]<class S>(const Rows<S>& a, auto n) {
    constexpr int N = decltype(n)::value;
    row_sum<S, N><<<rows, row_threads(a.columns / N), 0, stream_>>>(a, elements<Acc<S>>(stats));
  });
  check_launch("row_sum");
}

void CudaKernels::xent_loss(const Xent& xent, const Tensor& max, const Tensor& stats, const Tensor& loss) {
  with_storage(loss.dtype, [&](auto type) {
    using A = Acc<typename decltype(type)::type>;
    add_losses<A><<<1, 1024, 0, stream_>>>(elements<A>(max), elements<A>(stats), max.size(), static_cast<A>(xent.scale),
                                           elements<A>(loss));
  });
  check_launch("add_losses");
}

void CudaKernels::xent_grad(const Xent& xent, const Tensor& logits, const Tensor& max, const Tensor& stats,
                            const Tensor& labels, const Tensor& dlogits) {
  const auto rows = static_cast<unsigned>(logits.dims[0]);
  if (rows == 0) return;
  with_rows(xent, logits, max, stats, labels, dlogits.data, [&]<class S>(const Rows<S>& a, auto n) {
    constexpr int N = decltype(n)::value;
    row_grad<S, N><<<rows, row_threads(a.columns / N), 0, stream_>>>(a, elements<S>(dlogits));
  });
  check_launch("row_grad");
}

}  // namespace trainyard::kernels::cuda
