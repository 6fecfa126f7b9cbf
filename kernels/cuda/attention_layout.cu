// What lies around attention: queries, keys and values taken apart and rotated, and results over parts of the keys
// merged.

#include <array>
#include <cmath>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/vector.cuh"

namespace trainyard::kernels::cuda {

namespace {

// --- queries, keys and values beside each other

constexpr int kLargestHalf = 256, kLayoutThreads = 256, kLayoutRows = 4;

// Of rope, as a processor computes them; a kernel takes them by value.
struct Frequencies {
  std::array<double, kLargestHalf> at{};
};

template <class S>
struct Layout {
  S *packed, *q, *k, *v;  // [T, (hq + 2 hk) dim]; [T, hq dim], [T, hk dim] twice
  const std::int32_t* positions;
  Int rows;
  int query, key, dim;
  bool rotated;
};

// Head `head` of row t on its own: a query, a key or a value.
template <class S>
__device__ __forceinline__ S* lone_head(const Layout<S>& a, Int t, int head) {
  if (head < a.query) return a.q + (t * a.query + head) * a.dim;
  head -= a.query;
  return head < a.key ? a.k + (t * a.key + head) * a.dim : a.v + (t * a.key + head - a.key) * a.dim;
}

// Cosines, then sines, [kLayoutRows, half] each: the angle in f64, because positions are large.
template <class S>
__device__ void fill_angles(const Layout<S>& a, const Frequencies& frequencies, Acc<S>* angles) {
  const int half = a.dim / 2;
  for (int i = static_cast<int>(threadIdx.x); i < kLayoutRows * half; i += static_cast<int>(blockDim.x)) {
    const Int t = Int{blockIdx.x} * kLayoutRows + i / half;
    if (t >= a.rows) break;
    double sine, cosine;
    sincos(static_cast<double>(a.positions[t]) * frequencies.at[i % half], &sine, &cosine);
    angles[i] = static_cast<Acc<S>>(cosine);
    angles[kLayoutRows * half + i] = static_cast<Acc<S>>(sine);
  }
}

// Split: from packed rows to q, k, v; else back, turned the other way. A thread moves N elements of a head and the N
// that they turn with, half a head on. The last element of a head of odd size turns with none.
template <class S, int N, bool Split>
__global__ void __launch_bounds__(kLayoutThreads)
    lay_out(const Layout<S> a, const __grid_constant__ Frequencies frequencies) {
  using A = Acc<S>;
  extern __shared__ double shared[];
  auto* angles = reinterpret_cast<A*>(shared);
  const int half = a.dim / 2, heads = a.query + 2 * a.key, units = (a.dim + 1) / 2 / N, per_row = heads * units;
  if (a.rotated) fill_angles(a, frequencies, angles);
  __syncthreads();
  for (int unit = static_cast<int>(threadIdx.x); unit < kLayoutRows * per_row; unit += kLayoutThreads) {
    const int row = unit / per_row, head = unit % per_row / units, j = unit % per_row % units * N;
    const Int t = Int{blockIdx.x} * kLayoutRows + row;
    if (t >= a.rows) return;
    S *packed = a.packed + (t * heads + head) * a.dim, *lone = lone_head(a, t, head);
    const S* from = Split ? packed : lone;
    S* to = Split ? lone : packed;
    if (j == half) {  // the odd one
      to[2 * half] = from[2 * half];
      continue;
    }
    auto x = load<N>(from + j), y = load<N>(from + half + j);
    if (a.rotated && head < a.query + a.key) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const A c = angles[row * half + j + i], sine = angles[(kLayoutRows + row) * half + j + i];
        const A s = Split ? sine : -sine, before = x.at[i];
        x.at[i] = before * c - y.at[i] * s;
        y.at[i] = y.at[i] * c + before * s;
      }
    }
    store<S, N>(to + j, x);
    store<S, N>(to + half + j, y);
  }
}

template <bool Split>
void launch_layout(const Heads& heads, double theta, const Tensor& packed, const Tensor& positions, const Tensor& q,
                   const Tensor& k, const Tensor& v, cudaStream_t stream) {
  const Int rows = packed.dims[0], half = heads.dim / 2;
  if (rows == 0) return;
  TY_CHECK(theta <= 0 || half <= kLargestHalf, "heads that are rotated have at most 512 elements");
  Frequencies frequencies;
  for (Int j = 0; theta > 0 && j < half; ++j) {
    frequencies.at[static_cast<std::size_t>(j)] =
        std::pow(theta, -2.0 * static_cast<double>(j) / static_cast<double>(heads.dim));
  }
  with_storage(packed.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    const Layout<S> a{elements<S>(packed),
                      elements<S>(q),
                      elements<S>(k),
                      elements<S>(v),
                      index_elements(positions),
                      rows,
                      static_cast<int>(heads.query),
                      static_cast<int>(heads.key),
                      static_cast<int>(heads.dim),
                      theta > 0};
    // Half a head must be whole packs; a head of odd size is moved element by element.
    const Int length = heads.dim % 2 == 0 ? half : 1;
    const auto shared = static_cast<std::size_t>(theta > 0 ? 2 * kLayoutRows * half * Int{sizeof(Acc<S>)} : 0);
    with_lanes<S>(length, {a.packed, a.q, a.k, a.v}, [&](auto n) {
      lay_out<S, decltype(n)::value, Split>
          <<<blocks_for(rows, kLayoutRows), kLayoutThreads, shared, stream>>>(a, frequencies);
    });
    check_launch("lay_out");
  });
}

// --- results over parts of the keys

constexpr int kMostParts = 64, kMergeThreads = 256;

template <class S>
struct Merge {
  std::array<const S*, kMostParts> o;
  std::array<const Acc<S>*, kMostParts> lse;
  int parts;
  S* out;
  Acc<S>* log;
  Int heads;  // of all rows
  int dim;
};

// A head of a row for every threadIdx.y.
template <class S, int N>
__global__ void __launch_bounds__(kMergeThreads) merge(const __grid_constant__ Merge<S> a) {
  using A = Acc<S>;
  const Int at = Int{blockIdx.x} * blockDim.y + threadIdx.y;
  if (at >= a.heads) return;
  A max = -std::numeric_limits<A>::infinity(), sum = 0;
#pragma unroll 4
  for (int p = 0; p < a.parts; ++p) {
    const A lse = a.lse[p][at];
    max = max < lse ? lse : max;
  }
#pragma unroll 4
  for (int p = 0; p < a.parts; ++p) sum += exp(a.lse[p][at] - max);
  for (int column = static_cast<int>(threadIdx.x) * N; column < a.dim; column += static_cast<int>(blockDim.x) * N) {
    Lanes<A, N> merged{};
#pragma unroll(sizeof(A) == 8 ? 1 : 4)
    for (int p = 0; p < a.parts; ++p) {
      const A weight = exp(a.lse[p][at] - max);
      const auto o = load<N>(a.o[p] + at * a.dim + column);
#pragma unroll
      for (int i = 0; i < N; ++i) merged.at[i] += weight * o.at[i];
    }
#pragma unroll
    for (int i = 0; i < N; ++i) merged.at[i] /= sum;
    store<S, N>(a.out + at * a.dim + column, merged);
  }
  if (threadIdx.x == 0) a.log[at] = max + log(sum);
}

template <class S>
void launch_merge(const Merge<S>& a, cudaStream_t stream) {
  bool aligned = true;
  for (int p = 0; p < a.parts; ++p) {
    aligned = aligned && reinterpret_cast<std::uintptr_t>(a.o[static_cast<std::size_t>(p)]) % 16 == 0;
  }
  with_lanes<S>(aligned ? a.dim : 1, {a.out}, [&](auto n) {
    constexpr int N = decltype(n)::value;
    const auto across = static_cast<unsigned>(std::clamp<Int>(a.dim / N, 1, kMergeThreads));
    const dim3 threads(across, kMergeThreads / across);
    merge<S, N><<<blocks_for(a.heads, threads.y), threads, 0, stream>>>(a);
    check_launch("merge");
  });
}

}  // namespace

void CudaKernels::split_qkv(const Heads& heads, double rope_theta, const Tensor& qkv, const Tensor& positions,
                            const Tensor& q, const Tensor& k, const Tensor& v) {
  launch_layout<true>(heads, rope_theta, qkv, positions, q, k, v, stream_);
}

void CudaKernels::merge_qkv_grad(const Heads& heads, double rope_theta, const Tensor& dq, const Tensor& dk,
                                 const Tensor& dv, const Tensor& positions, const Tensor& dqkv) {
  launch_layout<false>(heads, rope_theta, dqkv, positions, dq, dk, dv, stream_);
}

void CudaKernels::attention_merge(const Heads& heads, const std::vector<Tensor>& parts, const Tensor& o,
                                  const Tensor& lse) {
  const Int rows = o.dims[0];
  const std::size_t count = parts.size() / 2;
  if (rows == 0) return;
  TY_CHECK(count <= kMostParts, "a ring of attention has at most 64 ranks");
  with_storage(o.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    using A = Acc<S>;
    Merge<S> a{{},
               {},
               static_cast<int>(count),
               elements<S>(o),
               elements<A>(lse),
               rows * heads.query,
               static_cast<int>(heads.dim)};
    for (std::size_t p = 0; p < count; ++p) {
      a.o[p] = elements<S>(parts[2 * p]);
      a.lse[p] = elements<A>(parts[2 * p + 1]);
    }
    launch_merge<S>(a, stream_);
  });
}

}  // namespace trainyard::kernels::cuda
