// Mixture of experts: routing, and moving rows to experts and back. Indices and counts stay on the device.

#include <algorithm>
#include <cmath>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/element.h"
#include "kernels/cuda/error.h"
#include "models/base/check.h"

namespace trainyard::kernels::cuda {

namespace {

constexpr unsigned kAllLanes = 0xffffffffU;
constexpr int kThreads = 256, kWarps = kThreads / 32;

unsigned blocks_for(std::int64_t items, std::int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

std::int32_t* indices(const Tensor& x) {
  TY_CHECK(x.dtype == Dtype::I32, "indices are 32-bit integers");
  return static_cast<std::int32_t*>(x.data);
}

template <class Number>
__device__ Number warp_sum(Number value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// --- routing: a warp for each token

constexpr std::int64_t kRouterBytes = 48 << 10;  // shared memory: a row of probabilities for each warp

// The best expert that comes after `last` in the order of falling probability, then of rising number; -1: there is
// none, which takes a NaN. Lanes agree on it.
template <class Acc>
__device__ int next_expert(const Acc* p, int experts, int last) {
  Acc best{-1};
  int chosen = -1;
  for (int e = static_cast<int>(threadIdx.x) % 32; e < experts; e += 32) {
    const bool left = last < 0 || p[e] < p[last] || (p[e] == p[last] && e > last);
    if (left && p[e] > best) {
      best = p[e];
      chosen = e;
    }
  }
  for (int step = 16; step > 0; step /= 2) {
    const Acc other = __shfl_xor_sync(kAllLanes, best, step);
    const int at = __shfl_xor_sync(kAllLanes, chosen, step);
    if (at >= 0 && (chosen < 0 || other > best || (other == best && at < chosen))) {
      best = other;
      chosen = at;
    }
  }
  return chosen;
}

template <class T, class Acc>
__global__ void route(const T* logits, std::int64_t tokens, int experts, int k, bool renormalize, Acc* probs,
                      std::int32_t* chosen, Acc* softmax) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + warp;
  if (t >= tokens) return;
  Acc* p = reinterpret_cast<Acc*>(shared) + warp * experts;

  Acc highest = -INFINITY;
  for (int e = lane; e < experts; e += 32) {
    p[e] = convert<Acc>(logits[t * experts + e]);
    highest = max(highest, p[e]);
  }
  for (int step = 16; step > 0; step /= 2) highest = max(highest, __shfl_xor_sync(kAllLanes, highest, step));
  Acc sum{0};
  for (int e = lane; e < experts; e += 32) {
    p[e] = std::exp(p[e] - highest);
    sum += p[e];
  }
  sum = warp_sum(sum);
  for (int e = lane; e < experts; e += 32) {
    p[e] /= sum;
    softmax[t * experts + e] = p[e];
  }
  __syncwarp();

  Acc total{0};
  for (int j = 0, last = -1; j < k; ++j) {
    const int next = next_expert(p, experts, last);
    last = next < 0 ? j : next;  // NaN: any expert, but one
    total += p[last];
    if (lane == 0) chosen[t * k + j] = last;
  }
  if (lane != 0) return;
  for (int j = 0; j < k; ++j) probs[t * k + j] = p[chosen[t * k + j]] / (renormalize ? total : Acc{1});
}

template <class T, class Acc>
__global__ void __launch_bounds__(kThreads)
    route_grad(const Acc* dprobs, const std::int32_t* chosen, const Acc* softmax, std::int64_t tokens, int experts,
               int k, bool renormalize, T* dlogits) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (t >= tokens) return;
  const Acc* p = softmax + t * experts;
  Acc total{0}, weighted{0};
  for (int j = 0; j < k; ++j) {
    const Acc share = p[index_below(chosen[t * k + j], experts)];
    total += share;
    weighted += dprobs[t * k + j] * share;
  }
  // The gradient of the softmax first, which is zero where an expert was not chosen; then through it.
  const auto grad = [&](int j) {
    const Acc g = dprobs[t * k + j];
    return renormalize ? g / total - weighted / (total * total) : g;
  };
  Acc mean{0};
  for (int j = 0; j < k; ++j) mean += grad(j) * p[chosen[t * k + j]];
  for (int e = lane; e < experts; e += 32) {
    Acc g{0};
    for (int j = 0; j < k; ++j) g = chosen[t * k + j] == e ? grad(j) : g;
    dlogits[t * experts + e] = convert<T>(p[e] * (g - mean));
  }
}

// --- where permuted rows go: a stable counting sort. Slot s is (token s / k, choice s % k).

constexpr int kMostExperts = 1024;  // a count for each expert and warp lies in shared memory

// histogram[E, chunks]: how many of each chunk of kThreads slots go to an expert.
__global__ void __launch_bounds__(kThreads)
    count_slots(const std::int32_t* chosen, std::int64_t slots, int experts, std::int32_t* histogram) {
  __shared__ std::int32_t count[kMostExperts];
  for (int e = threadIdx.x; e < experts; e += kThreads) count[e] = 0;
  __syncthreads();
  const std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (slot < slots) atomicAdd(&count[index_below(chosen[slot], experts)], 1);
  __syncthreads();
  for (int e = threadIdx.x; e < experts; e += kThreads)
    histogram[static_cast<std::int64_t>(e) * gridDim.x + blockIdx.x] = count[e];
}

// The sum over lower lanes; `sum` gets that over all.
__device__ std::int32_t lanes_before(std::int32_t value, std::int32_t& sum) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  std::int32_t inclusive = value;
  for (int step = 1; step < 32; step *= 2) {
    const std::int32_t lower = __shfl_up_sync(kAllLanes, inclusive, step);
    if (lane >= step) inclusive += lower;
  }
  sum = __shfl_sync(kAllLanes, inclusive, 31);
  return inclusive - value;
}

// Makes of the histogram the sums over lower chunks, a warp for each expert; counts[E] gets those over all.
__global__ void __launch_bounds__(kThreads)
    scan_chunks(std::int32_t* histogram, int chunks, int experts, std::int32_t* counts) {
  const int expert = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (expert >= experts) return;
  std::int32_t* row = histogram + static_cast<std::int64_t>(expert) * chunks;
  std::int32_t before = 0, sum = 0;
  for (int first = 0; first < chunks; first += 32) {
    const bool inside = first + lane < chunks;
    const std::int32_t lower = lanes_before(inside ? row[first + lane] : 0, sum);
    if (inside) row[first + lane] = before + lower;
    before += sum;
  }
  if (lane == 0) counts[expert] = before;
}

__global__ void __launch_bounds__(kThreads)
    place_slots(const std::int32_t* chosen, std::int64_t slots, int experts, const std::int32_t* histogram,
                const std::int32_t* counts, std::int32_t* row_map) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto* next = reinterpret_cast<std::int32_t*>(shared);  // [E]: the row of the chunk's first slot of an expert
  std::int32_t* of_warp = next + experts;                // [warps, E]: how many slots of a warp go to an expert
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = threadIdx.x; i < kWarps * experts; i += kThreads) of_warp[i] = 0;
  if (warp == 0) {
    std::int32_t before = 0, sum = 0;
    for (int first = 0; first < experts; first += 32) {
      const int e = first + lane;
      const std::int32_t lower = lanes_before(e < experts ? counts[e] : 0, sum);
      if (e < experts) next[e] = before + lower + histogram[static_cast<std::int64_t>(e) * gridDim.x + blockIdx.x];
      before += sum;
    }
  }
  __syncthreads();
  const std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int expert = slot < slots ? chosen[slot] : -1;
  const unsigned alike = __match_any_sync(kAllLanes, expert), lower = alike & ((1U << lane) - 1);
  if (expert >= 0 && lower == 0) of_warp[warp * experts + expert] = __popc(alike);
  __syncthreads();
  if (expert < 0) return;
  std::int32_t row = next[expert] + __popc(lower);
  for (int w = 0; w < warp; ++w) row += of_warp[w * experts + expert];
  row_map[slot] = row;
}

// --- moving rows. A block has some rows; its threads of one y share a row.

dim3 row_block(std::int64_t units) {
  unsigned x = 1;
  while (x < units && x < kThreads) x *= 2;
  return {x, kThreads / x};
}

__device__ std::int64_t row_of_thread() { return static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; }

// Units of a row that a thread has in flight.
constexpr int kFlight = 4;

// Calls to(unit number, unit) for this thread's units of a row, of which it reads kFlight before it gives any away.
template <class Unit, class To>
__device__ void copy_row(const Unit* __restrict__ from, std::int64_t units, To to) {
  const std::int64_t step = blockDim.x;
  for (std::int64_t first = threadIdx.x; first < units; first += kFlight * step) {
    Unit unit[kFlight];
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      if (first + i * step < units) unit[i] = from[first + i * step];
    }
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      if (first + i * step < units) to(first + i * step, unit[i]);
    }
  }
}

template <class Unit>
__global__ void __launch_bounds__(kThreads)
    spread_rows(const Unit* __restrict__ x, const std::int32_t* __restrict__ row_map, std::int64_t tokens, int k,
                std::int64_t units, Unit* __restrict__ rows) {
  const std::int64_t t = row_of_thread();
  if (t >= tokens) return;
  copy_row(x + t * units, units, [&](std::int64_t at, const Unit& unit) {
    for (int j = 0; j < k; ++j) rows[row_map[t * k + j] * units + at] = unit;
  });
}

// y[t] = sum over k of its rows, weighted or not.
template <class T, int Width, bool Weighted>
__global__ void __launch_bounds__(kThreads, 5)
    combine_rows(const T* __restrict__ rows, const std::int32_t* __restrict__ row_map,
                 const AccOf<T>* __restrict__ probs, std::int64_t tokens, std::int64_t row_count, int k,
                 std::int64_t units, T* __restrict__ y) {
  using Acc = AccOf<T>;
  constexpr int kTogether = 2;  // rows whose loads are in flight together
  const std::int64_t t = row_of_thread();
  if (t >= tokens) return;
  const auto row_at = [&](int j) { return rows + index_below(row_map[t * k + j], row_count) * units * Width; };
  for (std::int64_t at = threadIdx.x; at < units; at += blockDim.x) {
    Acc sum[Width] = {};
    for (int j = 0; j < k; j += kTogether) {
      Vec<T, Width> x[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (j + i < k) x[i] = load<T, Width>(row_at(j + i) + at * Width);
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (j + i >= k) continue;
        const Acc weight = Weighted ? probs[t * k + j + i] : Acc{1};
#pragma unroll
        for (int c = 0; c < Width; ++c) sum[c] += weight * convert<Acc>(x[i].x[c]);
      }
    }
    Vec<T, Width> out;
#pragma unroll
    for (int c = 0; c < Width; ++c) out.x[c] = convert<T>(sum[c]);
    store(y + (t * units + at) * Width, out);
  }
}

// The sum over the threads that share a row, for the first of them. All threads of the block call it.
template <class Acc>
__device__ Acc row_sum(Acc value) {
  __shared__ Acc of_warp[kWarps];
  const unsigned width = min(blockDim.x, 32U);
  for (unsigned step = width / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  if (blockDim.x <= 32) return value;
  const unsigned warps = blockDim.x / 32, warp = threadIdx.y * warps + threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) of_warp[warp] = value;
  __syncthreads();
  Acc sum{0};
  for (unsigned w = 0; w < warps; ++w) sum += of_warp[threadIdx.y * warps + w];
  return sum;
}

template <class T, int Width>
__global__ void __launch_bounds__(kThreads)
    combine_rows_grad(const T* __restrict__ dy, const T* __restrict__ rows, const std::int32_t* __restrict__ row_map,
                      const AccOf<T>* __restrict__ probs, std::int64_t slots, std::int64_t row_count, int k,
                      std::int64_t units, T* __restrict__ drows, AccOf<T>* __restrict__ dprobs) {
  using Acc = AccOf<T>;
  const std::int64_t slot = row_of_thread();
  Acc sum{0};
  if (slot < slots) {
    const std::int64_t row = index_below(row_map[slot], row_count) * units, token = slot / k * units;
    const Acc weight = probs[slot];
#pragma unroll 2
    for (std::int64_t at = threadIdx.x; at < units; at += blockDim.x) {
      const Vec<T, Width> grad = load<T, Width>(dy + (token + at) * Width),
                          x = load<T, Width>(rows + (row + at) * Width);
      Vec<T, Width> out;
#pragma unroll
      for (int c = 0; c < Width; ++c) {
        sum += convert<Acc>(grad.x[c]) * convert<Acc>(x.x[c]);
        out.x[c] = convert<T>(weight * convert<Acc>(grad.x[c]));
      }
      store(drows + (row + at) * Width, out);
    }
  }
  sum = row_sum(sum);
  if (slot < slots && threadIdx.x == 0) dprobs[slot] = sum;
}

// --- sorting received rows by expert

// counts [segments, sources, experts] of a buffer.
struct CountShape {
  int segments, sources, experts;
  std::int64_t rows;  // of the buffer, in all segments
  std::int64_t rows_bound;
  [[nodiscard]] __host__ __device__ int runs() const { return segments * sources * experts; }
  /// Run number `i` in sorted order, (expert, segment, source), as it lies in counts.
  [[nodiscard]] __host__ __device__ int packed(int i) const {
    return i % (segments * sources) * experts + i / (segments * sources);
  }
};

constexpr int kScanThreads = 1024;

// sums[i] = sum of value(j) over j < i, for i <= count; by one block of kScanThreads.
template <class Value>
__device__ void scan(int count, Value value, std::int32_t* sums) {
  __shared__ std::int32_t of_warp[kScanThreads / 32];
  const int each = (count + kScanThreads - 1) / kScanThreads, warp = static_cast<int>(threadIdx.x) / 32;
  const int begin = min(static_cast<int>(threadIdx.x) * each, count), end = min(begin + each, count);
  std::int32_t mine = 0, warp_sum = 0;
  for (int i = begin; i < end; ++i) mine += value(i);
  std::int32_t before = lanes_before(mine, warp_sum);
  if (threadIdx.x % 32 == 0) of_warp[warp] = warp_sum;
  __syncthreads();
  for (int w = 0; w < warp; ++w) before += of_warp[w];
  for (int i = begin; i < end; ++i) {
    sums[i] = before;
    before += value(i);
  }
  if (threadIdx.x == kScanThreads - 1) sums[count] = before;
  __syncthreads();
}

// packed_at[runs + 1] by place in counts, sorted_at[runs + 1] by place in sorted order.
__global__ void __launch_bounds__(kScanThreads)
    scan_runs(CountShape shape, const std::int32_t* counts, std::int32_t* packed_at, std::int32_t* sorted_at) {
  for (int i = threadIdx.x; i < shape.runs(); i += kScanThreads) index_below(counts[i], shape.rows + 1);
  scan(
      shape.runs(), [&](int i) { return counts[i]; }, packed_at);
  scan(
      shape.runs(), [&](int i) { return counts[shape.packed(i)]; }, sorted_at);
  if (threadIdx.x == 0) index_below(sorted_at[shape.runs()], shape.rows + 1);
}

// from[rows]: where a sorted row lies in its segment; -1 past the last.
__global__ void __launch_bounds__(kThreads)
    find_rows(CountShape shape, const std::int32_t* packed_at, const std::int32_t* sorted_at, std::int32_t* from) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= shape.rows) return;
  if (row >= sorted_at[shape.runs()]) {
    from[row] = -1;
    return;
  }
  int low = 0, high = shape.runs();  // the last run that begins at or before the row: it is not empty
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (sorted_at[middle] <= row ? low : high) = middle;
  }
  const int run = shape.packed(low), in_segment = shape.sources * shape.experts, segment = run / in_segment;
  const std::int64_t packed =
      segment * shape.rows_bound + packed_at[run] - packed_at[segment * in_segment] + row - sorted_at[low];
  from[row] = static_cast<std::int32_t>(index_below(packed, shape.rows));
}

template <class Unit>
__global__ void __launch_bounds__(kThreads)
    sort_rows(const Unit* __restrict__ rows, const std::int32_t* __restrict__ from, std::int64_t row_count,
              bool reverse, std::int64_t units, Unit* __restrict__ sorted) {
  const std::int64_t row = row_of_thread();
  if (row >= row_count || from[row] < 0) return;
  const std::int64_t packed = from[row], read = reverse ? row : packed, written = reverse ? packed : row;
  copy_row(rows + read * units, units, [&](std::int64_t at, const Unit& unit) { sorted[written * units + at] = unit; });
}

// Calls f with a unit in which rows of so many bytes can be moved: 16 bytes, or 2.
template <class F>
void with_unit(std::int64_t row_bytes, std::initializer_list<const void*> pointers, F f) {
  if (row_bytes % 16 == 0 && aligned(pointers, 16)) {
    f(Type<uint4>{});
  } else {
    f(Type<std::uint16_t>{});
  }
}

// Calls f with the type and the number of elements of it in which rows of `d` can be read.
template <class F>
void with_vectors(Dtype dtype, std::int64_t d, std::initializer_list<const void*> pointers, F f) {
  with_type(dtype, [&](auto tag) {
    constexpr int kWidth = 16 / static_cast<int>(sizeof(TypeOf<decltype(tag)>));
    if (d % kWidth == 0 && aligned(pointers, 16)) {
      f(tag, std::integral_constant<int, kWidth>{});
    } else {
      f(tag, std::integral_constant<int, 1>{});
    }
  });
}

// Weighted by probs, unless they are empty.
void combine(const Tensor& rows, const Tensor& row_map, const Tensor& probs, const Tensor& y, cudaStream_t stream) {
  const std::int64_t tokens = y.dims[0], d = y.dims[1];
  if (tokens == 0 || d == 0) return;
  const int k = static_cast<int>(row_map.size() / tokens);
  with_vectors(y.dtype, d, {rows.data, y.data}, [&](auto tag, auto width) {
    using T = TypeOf<decltype(tag)>;
    const std::int64_t units = d / width();
    const dim3 block = row_block(units);
    auto* kernel = probs.empty() ? combine_rows<T, width(), false> : combine_rows<T, width(), true>;
    kernel<<<blocks_for(tokens, block.y), block, 0, stream>>>(
        data_of<T>(rows), indices(row_map), data_of<AccOf<T>>(probs), tokens, rows.dims[0], k, units, data_of<T>(y));
    check_launch("combining rows of experts");
  });
}

}  // namespace

void CudaKernels::router(bool renormalize, const Tensor& logits, const Tensor& probs, const Tensor& experts,
                         const Tensor& softmax) {
  const std::int64_t tokens = logits.dims[0], e = logits.dims[1], k = probs.dims[1];
  if (tokens == 0) return;
  TY_CHECK(probs.dtype == softmax.dtype && probs.dtype != Dtype::Bf16,
           "probabilities are of the type that is computed in");
  with_type(probs.dtype, [&](auto probs_tag) {
    using Acc = AccOf<TypeOf<decltype(probs_tag)>>;
    with_type_beside<Acc>(logits.dtype, [&](auto tag) {
      using T = TypeOf<decltype(tag)>;
      const std::int64_t row_bytes = e * static_cast<std::int64_t>(sizeof(Acc));
      TY_CHECK(row_bytes <= kRouterBytes, "more experts than a router has room for");
      const auto warps = static_cast<unsigned>(std::clamp<std::int64_t>(kRouterBytes / row_bytes, 1, kWarps));
      route<T, Acc><<<blocks_for(tokens, warps), 32 * warps, static_cast<std::size_t>(warps * row_bytes), stream_>>>(
          data_of<T>(logits), tokens, static_cast<int>(e), static_cast<int>(k), renormalize, data_of<Acc>(probs),
          indices(experts), data_of<Acc>(softmax));
      check_launch("router");
    });
  });
}

void CudaKernels::router_grad(bool renormalize, const Tensor& dprobs, const Tensor& experts, const Tensor& softmax,
                              const Tensor& dlogits) {
  const std::int64_t tokens = dprobs.dims[0], e = dlogits.dims[1], k = dprobs.dims[1];
  if (tokens == 0) return;
  TY_CHECK(dprobs.dtype == softmax.dtype && softmax.dtype != Dtype::Bf16,
           "probabilities are of the type that is computed in");
  with_type(softmax.dtype, [&](auto softmax_tag) {
    using Acc = AccOf<TypeOf<decltype(softmax_tag)>>;
    with_type_beside<Acc>(dlogits.dtype, [&](auto tag) {
      using T = TypeOf<decltype(tag)>;
      route_grad<T, Acc><<<blocks_for(tokens, kWarps), kThreads, 0, stream_>>>(
          data_of<Acc>(dprobs), indices(experts), data_of<Acc>(softmax), tokens, static_cast<int>(e),
          static_cast<int>(k), renormalize, data_of<T>(dlogits));
      check_launch("router_grad");
    });
  });
}

void CudaKernels::permute(const Tensor& x, const Tensor& experts, const Tensor& rows, const Tensor& row_map,
                          const Tensor& counts) {
  const std::int64_t slots = experts.size(), tokens = x.dims[0], d = x.dims[1];
  const int e = static_cast<int>(counts.size());
  TY_CHECK(e <= kMostExperts, "more experts than permute has room for");
  if (slots == 0) return zero(counts);
  const unsigned chunks = blocks_for(slots, kThreads);
  auto* histogram = reinterpret_cast<std::int32_t*>(
      scratch_.take(static_cast<std::int64_t>(sizeof(std::int32_t)) * e * static_cast<std::int64_t>(chunks)));
  count_slots<<<chunks, kThreads, 0, stream_>>>(indices(experts), slots, e, histogram);
  check_launch("permute: counting");
  scan_chunks<<<blocks_for(e, kWarps), kThreads, 0, stream_>>>(histogram, static_cast<int>(chunks), e, indices(counts));
  check_launch("permute: adding counts");
  const std::size_t shared_bytes = sizeof(std::int32_t) * (kWarps + 1) * static_cast<std::size_t>(e);
  place_slots<<<chunks, kThreads, shared_bytes, stream_>>>(indices(experts), slots, e, histogram, indices(counts),
                                                           indices(row_map));
  check_launch("permute: placing");
  if (d == 0) return;
  const std::int64_t row_bytes = d * size_of(x.dtype);
  with_unit(row_bytes, {x.data, rows.data}, [&](auto tag) {
    using Unit = TypeOf<decltype(tag)>;
    const auto units = row_bytes / static_cast<std::int64_t>(sizeof(Unit));
    const dim3 block = row_block(units);
    spread_rows<Unit><<<blocks_for(tokens, block.y), block, 0, stream_>>>(
        data_of<Unit>(x), indices(row_map), tokens, static_cast<int>(slots / tokens), units, data_of<Unit>(rows));
    check_launch("permute: moving rows");
  });
}

void CudaKernels::permute_grad(const Tensor& drows, const Tensor& row_map, const Tensor& dx) {
  combine(drows, row_map, {}, dx, stream_);
}

void CudaKernels::unpermute(const Tensor& rows, const Tensor& row_map, const Tensor& probs, const Tensor& y) {
  combine(rows, row_map, probs, y, stream_);
}

void CudaKernels::unpermute_grad(const Tensor& dy, const Tensor& rows, const Tensor& row_map, const Tensor& probs,
                                 const Tensor& drows, const Tensor& dprobs) {
  const std::int64_t tokens = dy.dims[0], d = dy.dims[1], slots = row_map.size();
  if (slots == 0) return;
  with_vectors(dy.dtype, d, {dy.data, rows.data, drows.data}, [&](auto tag, auto width) {
    using T = TypeOf<decltype(tag)>;
    const std::int64_t units = d / width();
    const dim3 block = row_block(units);
    combine_rows_grad<T, width()><<<blocks_for(slots, block.y), block, 0, stream_>>>(
        data_of<T>(dy), data_of<T>(rows), indices(row_map), data_of<AccOf<T>>(probs), slots, rows.dims[0],
        static_cast<int>(slots / tokens), units, data_of<T>(drows), data_of<AccOf<T>>(dprobs));
    check_launch("unpermute_grad");
  });
}

void CudaKernels::sort_by_expert(const ExpertRows& shape, const Tensor& rows, const Tensor& counts,
                                 const Tensor& sorted) {
  const CountShape runs{static_cast<int>(counts.dims[0]), static_cast<int>(counts.dims[1]),
                        static_cast<int>(counts.dims[2]), rows.dims[0], shape.rows_bound};
  const std::int64_t row_bytes = rows.dims[1] * size_of(rows.dtype), ends = runs.runs() + 1;
  if (runs.rows == 0 || row_bytes == 0 || runs.runs() == 0) return;
  auto* packed_at = reinterpret_cast<std::int32_t*>(
      scratch_.take(static_cast<std::int64_t>(sizeof(std::int32_t)) * (2 * ends + runs.rows)));
  std::int32_t *sorted_at = packed_at + ends, *from = sorted_at + ends;
  scan_runs<<<1, kScanThreads, 0, stream_>>>(runs, indices(counts), packed_at, sorted_at);
  check_launch("sort_by_expert: adding counts");
  find_rows<<<blocks_for(runs.rows, kThreads), kThreads, 0, stream_>>>(runs, packed_at, sorted_at, from);
  check_launch("sort_by_expert: finding rows");
  with_unit(row_bytes, {rows.data, sorted.data}, [&](auto tag) {
    using Unit = TypeOf<decltype(tag)>;
    const auto units = row_bytes / static_cast<std::int64_t>(sizeof(Unit));
    const dim3 block = row_block(units);
    sort_rows<Unit><<<blocks_for(runs.rows, block.y), block, 0, stream_>>>(data_of<Unit>(rows), from, runs.rows,
                                                                           shape.reverse, units, data_of<Unit>(sorted));
    check_launch("sort_by_expert: moving rows");
  });
}

}  // namespace trainyard::kernels::cuda
