// AdamW, gradient norms, and housekeeping over whole buffers: all of it bounded by memory, so that what matters is long
// accesses, several of them in flight.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/element.h"
#include "kernels/cuda/error.h"
#include "kernels/hash.h"
#include "models/base/check.h"

namespace trainyard::kernels::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kBlocksPerMultiprocessor = 8;

int blocks_for(std::int64_t tiles, int multiprocessors) {
  return static_cast<int>(std::min<std::int64_t>(tiles, multiprocessors * kBlocksPerMultiprocessor));
}

// The sum over a block, for its thread 0, in an order that is always the same.
template <class Number>
__device__ Number block_sum(Number value) {
  __shared__ Number of_warp[kWarps];
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffU, value, step);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  Number sum{0};
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < kWarps; ++warp) sum += of_warp[warp];
  }
  return sum;
}

// --- copy and accumulate

// `Width` elements at a time, or one where operands are not aligned for that.
template <class From, class To, int Width, bool Add>
__global__ void __launch_bounds__(kThreads)
    convert_all(const From* __restrict__ from, To* __restrict__ to, std::int64_t count) {
  using Acc = AccOf<To>;
  constexpr int kUnroll = 4, kTile = kThreads * Width * kUnroll;
  for (std::int64_t tile = blockIdx.x; tile * kTile < count; tile += gridDim.x) {
    const std::int64_t begin = tile * kTile, end = min(begin + kTile, count);
    if (end - begin < kTile) {
      for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
        to[i] = Add ? convert<To>(convert<Acc>(to[i]) + convert<Acc>(from[i])) : convert<To>(from[i]);
      }
      continue;
    }
    const std::int64_t first = begin + threadIdx.x * Width;
    Vec<From, Width> x[kUnroll];
    Vec<To, Width> y[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      x[u] = load<From, Width>(from + first + u * kThreads * Width);
      if constexpr (Add) y[u] = load<To, Width>(to + first + u * kThreads * Width);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        if constexpr (Add) {
          y[u].x[i] = convert<To>(convert<Acc>(y[u].x[i]) + convert<Acc>(x[u].x[i]));
        } else {
          y[u].x[i] = convert<To>(x[u].x[i]);
        }
      }
      store(to + first + u * kThreads * Width, y[u]);
    }
  }
}

// y = x, or y += x.
template <bool Add>
void convert_tensor(const Tensor& x, const Tensor& y, std::int64_t count, int multiprocessors, cudaStream_t stream) {
  if (count == 0) return;
  with_type(x.dtype, [&](auto from_tag) {
    with_type(y.dtype, [&](auto to_tag) {
      using From = TypeOf<decltype(from_tag)>;
      using To = TypeOf<decltype(to_tag)>;
      if constexpr (Add || !std::is_same_v<From, To>) {
        constexpr int kWidth = 16 / static_cast<int>(std::max(sizeof(From), sizeof(To)));
        const auto launch = [&](auto* kernel, int width) {
          const std::int64_t tile = std::int64_t{4} * kThreads * width;
          const int blocks = blocks_for((count + tile - 1) / tile, multiprocessors);
          kernel<<<blocks, kThreads, 0, stream>>>(data_of<From>(x), data_of<To>(y), count);
        };
        const bool vectors = aligned({x.data}, kWidth * sizeof(From)) && aligned({y.data}, kWidth * sizeof(To));
        if (vectors) {
          launch(convert_all<From, To, kWidth, Add>, kWidth);
        } else {
          launch(convert_all<From, To, 1, Add>, 1);
        }
        check_launch(Add ? "accumulate" : "copy");
      }
    });
  });
}

// --- ranges: some of them for each launch, in its parameters, so that a captured launch needs no memory of the host's

constexpr int kRanges = 64;

// Ranges cut in tiles. Tiles begin where all operands are aligned, which may be before the range does.
template <class Acc>
struct RangeBatch {
  int count = 0;
  int tile_end[kRanges];                                         // tiles of this range and of all before it
  std::int64_t first[kRanges], end[kRanges], tiles_at[kRanges];  // elements
  Acc rate[kRanges], decay[kRanges];
};

// How far, in elements, an address that is aligned for `width` of them is before `x`; -1: there is none.
std::int64_t shift_of(const Tensor& x, int width) {
  const auto address = reinterpret_cast<std::uintptr_t>(x.data);
  const auto size = static_cast<std::uintptr_t>(size_of(x.dtype));
  return address % size != 0 ? -1 : static_cast<std::int64_t>(address / size % static_cast<std::uintptr_t>(width));
}

// The shift that all operands have; -1: they have none in common.
std::int64_t common_shift(const std::vector<const Tensor*>& operands, int width) {
  const std::int64_t shift = shift_of(*operands.front(), width);
  for (const Tensor* x : operands) {
    if (shift_of(*x, width) != shift) return -1;
  }
  return shift;
}

// Calls launch(batch, tiles) for batches that cover the ranges.
template <class Acc, class Launch>
void in_batches(const std::vector<Range>& ranges, std::int64_t size, double learning_rate, double weight_decay,
                int width, std::int64_t shift, std::int64_t tile, Launch launch) {
  RangeBatch<Acc> batch;
  int tiles = 0;
  const auto flush = [&] {
    if (batch.count > 0) launch(batch, tiles);
    batch.count = tiles = 0;
  };
  for (const Range& range : ranges) {
    TY_CHECK(range.first >= 0 && range.count >= 0 && range.first + range.count <= size, "a range lies in its buffer");
    if (range.count == 0) continue;
    const int i = batch.count++;
    batch.first[i] = range.first;
    batch.end[i] = range.first + range.count;
    batch.tiles_at[i] = (range.first + shift) / width * width - shift;
    batch.rate[i] = static_cast<Acc>(learning_rate * range.rate_scale);
    batch.decay[i] = static_cast<Acc>(range.decay ? 1 - learning_rate * weight_decay : 1.0);
    tiles += static_cast<int>((batch.end[i] - batch.tiles_at[i] + tile - 1) / tile);
    batch.tile_end[i] = tiles;
    if (batch.count == kRanges) flush();
  }
  flush();
}

// Calls whole(range, first element of this thread) for tiles that lie in their range, and one(range, element) for each
// of this thread's elements of others.
template <int Tile, int Width, class Acc, class Whole, class One>
__device__ void for_each_tile(const RangeBatch<Acc>& batch, Whole whole, One one) {
  int range = 0;
  for (int tile = blockIdx.x; tile < batch.tile_end[batch.count - 1]; tile += gridDim.x) {
    while (tile >= batch.tile_end[range]) ++range;
    const int before = range == 0 ? 0 : batch.tile_end[range - 1];
    const std::int64_t begin = batch.tiles_at[range] + static_cast<std::int64_t>(tile - before) * Tile;
    if (begin >= batch.first[range] && begin + Tile <= batch.end[range]) {
      whole(range, begin + threadIdx.x * Width);
    } else {
      const std::int64_t end = min(begin + Tile, batch.end[range]);
      for (std::int64_t i = max(begin, batch.first[range]) + threadIdx.x; i < end; i += kThreads) one(range, i);
    }
  }
}

// --- norm of gradients

constexpr int kNormUnroll = 4;

template <class T, class Acc, int Width>
__global__ void __launch_bounds__(kThreads)
    square_ranges(const T* __restrict__ grads, const __grid_constant__ RangeBatch<Acc> batch, Acc* of_block) {
  Acc sum[kNormUnroll] = {};
  for_each_tile<kThreads * Width * kNormUnroll, Width>(
      batch,
      [&](int, std::int64_t first) {
        Vec<T, Width> x[kNormUnroll];
#pragma unroll
        for (int u = 0; u < kNormUnroll; ++u) x[u] = load<T, Width>(grads + first + u * kThreads * Width);
#pragma unroll
        for (int u = 0; u < kNormUnroll; ++u) {
#pragma unroll
          for (int i = 0; i < Width; ++i) sum[u] += convert<Acc>(x[u].x[i]) * convert<Acc>(x[u].x[i]);
        }
      },
      [&](int, std::int64_t i) { sum[0] += convert<Acc>(grads[i]) * convert<Acc>(grads[i]); });
  const Acc total = block_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
  if (threadIdx.x == 0) of_block[blockIdx.x] = total;
}

template <class Acc>
__global__ void __launch_bounds__(kThreads) add_sums(const Acc* of_block, int count, Acc* sum) {
  Acc mine{0};
  for (int i = threadIdx.x; i < count; i += kThreads) mine += of_block[i];
  const Acc total = block_sum(mine);
  if (threadIdx.x == 0) *sum += total;
}

// --- AdamW

// Rounded one by one, as on a processor: fused multiplications would give master weights other bits there.
__device__ inline float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float add(float a, float b) { return __fadd_rn(a, b); }
__device__ inline float div(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline float root(float a) { return __fsqrt_rn(a); }
__device__ inline double mul(double a, double b) { return __dmul_rn(a, b); }
__device__ inline double add(double a, double b) { return __dadd_rn(a, b); }
__device__ inline double div(double a, double b) { return __ddiv_rn(a, b); }
__device__ inline double root(double a) { return __dsqrt_rn(a); }

// AdamW's numbers for one step, in Acc; the factor that clips is known on the device only.
template <class Acc>
struct AdamStep {
  explicit AdamStep(const Adam& adam)
      : clip_grad(adam.clip_grad),
        correction1(static_cast<Acc>(1 - std::pow(adam.beta1, static_cast<double>(adam.step)))),
        correction2(static_cast<Acc>(1 - std::pow(adam.beta2, static_cast<double>(adam.step)))),
        beta1(static_cast<Acc>(adam.beta1)),
        beta2(static_cast<Acc>(adam.beta2)),
        rest1(1 - beta1),
        rest2(1 - beta2),
        eps(static_cast<Acc>(adam.eps)) {}

  __device__ Acc clip(Acc squared_norm) const {
    const double norm = root(static_cast<double>(squared_norm));
    return static_cast<Acc>(clip_grad > 0 && norm > clip_grad ? div(clip_grad, norm) : 1.0);
  }
  __device__ void update(Acc clip, Acc rate, Acc decay, Acc g, Acc& w, Acc& m, Acc& v) const {
    const Acc x = mul(clip, g);
    m = add(mul(beta1, m), mul(rest1, x));
    v = add(mul(beta2, v), mul(mul(rest2, x), x));
    w = add(mul(w, decay), -div(mul(rate, div(m, correction1)), add(root(div(v, correction2)), eps)));
  }

  double clip_grad;
  Acc correction1, correction2, beta1, beta2, rest1, rest2, eps;
};

// As many as fit in registers beside long divisions.
template <class Acc, int Width>
constexpr int kAdamUnroll = sizeof(Acc) == 4 && Width > 1 ? 2 : 1;

template <class G, class P, class Acc, int Width>
__global__ void __launch_bounds__(kThreads, sizeof(Acc) == 4 ? 4 : 3)
    adamw_ranges(const __grid_constant__ AdamStep<Acc> step, const __grid_constant__ RangeBatch<Acc> batch,
                 const Acc* squared_norm, const G* __restrict__ grads, P* __restrict__ params, Acc* __restrict__ master,
                 Acc* __restrict__ m, Acc* __restrict__ v) {
  constexpr int kUnroll = kAdamUnroll<Acc, Width>;
  const Acc clip = step.clip(*squared_norm);
  for_each_tile<kThreads * Width * kUnroll, Width>(
      batch,
      [&](int range, std::int64_t first) {
        Vec<G, Width> grad[kUnroll];
        Vec<Acc, Width> weight[kUnroll], moment1[kUnroll], moment2[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const std::int64_t at = first + u * kThreads * Width;
          grad[u] = load<G, Width>(grads + at);
          weight[u] = load<Acc, Width>(master + at);
          moment1[u] = load<Acc, Width>(m + at);
          moment2[u] = load<Acc, Width>(v + at);
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const std::int64_t at = first + u * kThreads * Width;
          Vec<P, Width> param;
#pragma unroll
          for (int i = 0; i < Width; ++i) {
            step.update(clip, batch.rate[range], batch.decay[range], convert<Acc>(grad[u].x[i]), weight[u].x[i],
                        moment1[u].x[i], moment2[u].x[i]);
            param.x[i] = convert<P>(weight[u].x[i]);
          }
          store(master + at, weight[u]);
          store(m + at, moment1[u]);
          store(v + at, moment2[u]);
          store(params + at, param);
        }
      },
      [&](int range, std::int64_t i) {
        step.update(clip, batch.rate[range], batch.decay[range], convert<Acc>(grads[i]), master[i], m[i], v[i]);
        params[i] = convert<P>(master[i]);
      });
}

// --- hash

// Words from `bytes` on, where they are whole and aligned in pairs, else put together byte by byte.
__global__ void __launch_bounds__(kThreads)
    hash_words(const unsigned char* __restrict__ bytes, std::int64_t size, bool pairs, unsigned long long* sum) {
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x,
                     threads = static_cast<std::int64_t>(gridDim.x) * kThreads;
  const std::int64_t words = (size + 7) / 8, paired = pairs ? size / 16 * 2 : 0;
  unsigned long long mine = 0;
#pragma unroll 4
  for (std::int64_t pair = thread; pair < paired / 2; pair += threads) {
    const ulonglong2 two = reinterpret_cast<const ulonglong2*>(bytes)[pair];
    const auto index = static_cast<std::uint64_t>(2 * pair);
    mine += hash_word(two.x, index) + hash_word(two.y, index + 1);
  }
  for (std::int64_t i = paired + thread; i < words; i += threads) {
    std::uint64_t word = 0;
    for (std::int64_t b = 0; b < min(std::int64_t{8}, size - 8 * i); ++b)
      word |= static_cast<std::uint64_t>(bytes[8 * i + b]) << (8 * b);
    mine += hash_word(word, static_cast<std::uint64_t>(i));
  }
  // Of integers any order gives the same sum.
  const unsigned long long total = block_sum(mine);
  if (threadIdx.x == 0) atomicAdd(sum, total);
}

}  // namespace

void CudaKernels::zero(const Tensor& x) {
  const std::int64_t bytes = x.size() * size_of(x.dtype);
  if (bytes > 0) check(cudaMemsetAsync(x.data, 0, static_cast<std::size_t>(bytes), stream_), "zero");
}

void CudaKernels::copy(const Tensor& x, const Tensor& y) {
  if (x.dtype != y.dtype) return convert_tensor<false>(x, y, x.size(), multiprocessors_, stream_);
  const auto bytes = static_cast<std::size_t>(x.size() * size_of(x.dtype));
  if (bytes > 0) check(cudaMemcpyAsync(y.data, x.data, bytes, cudaMemcpyDeviceToDevice, stream_), "copy");
}

void CudaKernels::accumulate(const Tensor& x, const Tensor& y) {
  convert_tensor<true>(x, y, y.size(), multiprocessors_, stream_);
}

void CudaKernels::squared_norm(const Tensor& grads, const std::vector<Range>& ranges, const Tensor& sum) {
  with_type(sum.dtype, [&](auto sum_tag) {
    using Acc = AccOf<TypeOf<decltype(sum_tag)>>;
    TY_CHECK(sum.dtype != Dtype::Bf16, "sums are of the type that is computed in");
    with_type_beside<Acc>(grads.dtype, [&](auto tag) {
      using T = TypeOf<decltype(tag)>;
      constexpr int kWidth = 16 / static_cast<int>(sizeof(T));
      const std::int64_t shift = common_shift({&grads}, kWidth);
      const int width = shift < 0 ? 1 : kWidth;
      const std::int64_t tile = std::int64_t{kThreads} * width * kNormUnroll;
      const auto batches = static_cast<std::int64_t>(ranges.size() / kRanges + 1);
      auto* of_block = reinterpret_cast<Acc*>(scratch_.take(static_cast<std::int64_t>(sizeof(Acc)) * batches *
                                                            multiprocessors_ * kBlocksPerMultiprocessor));
      int sums = 0;
      in_batches<Acc>(ranges, grads.size(), 0, 0, width, std::max<std::int64_t>(shift, 0), tile,
                      [&](const RangeBatch<Acc>& batch, int tiles) {
                        const int blocks = blocks_for(tiles, multiprocessors_);
                        auto* kernel = width == 1 ? square_ranges<T, Acc, 1> : square_ranges<T, Acc, kWidth>;
                        kernel<<<blocks, kThreads, 0, stream_>>>(data_of<T>(grads), batch, of_block + sums);
                        check_launch("squared_norm");
                        sums += blocks;
                      });
      if (sums == 0) return;
      add_sums<Acc><<<1, kThreads, 0, stream_>>>(of_block, sums, data_of<Acc>(sum));
      check_launch("squared_norm");
    });
  });
}

void CudaKernels::adamw(const Adam& adam, const Tensor& grads, const Tensor& squared_norm,
                        const std::vector<Range>& ranges, const Tensor& params, const Tensor& master, const Tensor& m,
                        const Tensor& v) {
  TY_CHECK(master.dtype != Dtype::Bf16 && m.dtype == master.dtype && v.dtype == master.dtype &&
               squared_norm.dtype == master.dtype,
           "master weights, moments and sums are of the type that is computed in");
  with_type(master.dtype, [&](auto master_tag) {
    using Acc = AccOf<TypeOf<decltype(master_tag)>>;
    with_type_beside<Acc>(grads.dtype, [&](auto grad_tag) {
      with_type_beside<Acc>(params.dtype, [&](auto param_tag) {
        using G = TypeOf<decltype(grad_tag)>;
        using P = TypeOf<decltype(param_tag)>;
        constexpr int kWidth = 16 / static_cast<int>(sizeof(Acc));
        const std::int64_t shift = common_shift({&grads, &params, &master, &m, &v}, kWidth);
        const int width = shift < 0 ? 1 : kWidth;
        const int unroll = width == 1 ? kAdamUnroll<Acc, 1> : kAdamUnroll<Acc, kWidth>;
        const AdamStep<Acc> step(adam);
        in_batches<Acc>(ranges, master.size(), adam.learning_rate, adam.weight_decay, width,
                        std::max<std::int64_t>(shift, 0), std::int64_t{kThreads} * width * unroll,
                        [&](const RangeBatch<Acc>& batch, int tiles) {
                          auto* kernel = width == 1 ? adamw_ranges<G, P, Acc, 1> : adamw_ranges<G, P, Acc, kWidth>;
                          kernel<<<blocks_for(tiles, multiprocessors_), kThreads, 0, stream_>>>(
                              step, batch, data_of<Acc>(squared_norm), data_of<G>(grads), data_of<P>(params),
                              data_of<Acc>(master), data_of<Acc>(m), data_of<Acc>(v));
                          check_launch("adamw");
                        });
      });
    });
  });
}

std::uint64_t CudaKernels::hash(const Tensor& x) {
  const std::int64_t bytes = x.size() * size_of(x.dtype);
  auto* sum = reinterpret_cast<unsigned long long*>(scratch_.take(sizeof(unsigned long long)));
  check(cudaMemsetAsync(sum, 0, sizeof *sum, stream_), "hash");
  if (bytes > 0) {
    const std::int64_t tile = std::int64_t{kThreads} * 64;
    hash_words<<<blocks_for((bytes + tile - 1) / tile, multiprocessors_), kThreads, 0, stream_>>>(
        data_of<unsigned char>(x), bytes, aligned({x.data}, 16), sum);
    check_launch("hash");
  }
  unsigned long long total = 0;
  check(cudaMemcpyAsync(&total, sum, sizeof total, cudaMemcpyDeviceToHost, stream_), "hash");
  check(cudaStreamSynchronize(stream_), "waiting for a hash");
  return hash_finish(total, static_cast<std::uint64_t>(bytes));
}

}  // namespace trainyard::kernels::cuda
