// Attention in tiles of queries and keys that lie in shared memory, with a running softmax (Milakov and Gimelshein,
// arXiv 1805.02867; Dao, arXiv 2307.08691): the scores of all pairs are never in memory.
//
// A block has 16 x 16 threads. Thread (x, y) has rows y * kRows + i of a tile of scores, and columns x + 16 * j: so
// that the sums over a row are those of the 16 threads of one y, half a warp, and nobody else reads what they wrote of
// it.

#include "kernels/cuda/attention_plain.h"

#include <algorithm>
#include <climits>
#include <cmath>

#include "kernels/cuda/element.h"
#include "kernels/cuda/error.h"
#include "models/base/check.h"

namespace trainyard::kernels::cuda {

namespace {

constexpr unsigned kAllLanes = 0xffffffffU;
constexpr int kSide = 16, kThreads = kSide * kSide;
constexpr int kMostSlopes = 256;

template <class Acc>
constexpr int kPack = 16 / static_cast<int>(sizeof(Acc));

// How heads of up to D elements are cut. Rows of packs in shared memory are padded, or neighbours would meet in a bank.
template <class Acc, int D>
struct Tiling {
  static constexpr int kTile = std::min(64, 32768 / (D * static_cast<int>(sizeof(Acc))));  // queries, or keys
  static constexpr int kRows = kTile / kSide;                                              // of a thread
  static constexpr int kColumns = D / kSide;                                               // of a thread
  static constexpr int kStride = D + kPack<Acc>, kScoreStride = kTile + kPack<Acc>;
  static constexpr int kTileElements = kTile * kStride, kScoreElements = kTile * kScoreStride;
  /// Of shared memory for so many tiles of rows and one of scores.
  static constexpr int bytes(int tiles) {
    return (tiles * kTileElements + kScoreElements) * static_cast<int>(sizeof(Acc));
  }
};

template <class Acc>
struct Problem {
  std::int64_t rows = 0;  // of q, and of each block of keys
  int local = 0;          // rows of a sequence
  int batch = 0, cp = 1, cp_index = 0;
  int first_block = 0, blocks = 1;  // of keys that are here
  int query_heads = 0, key_heads = 0, dim = 0;
  int window = 0;
  bool vectors = false, alibi = false;  // vectors: rows can be read 16 bytes at a time
  Acc scale{1}, softcap{0};
  Acc slopes[kMostSlopes];

  /// As models/base/context_position.h, in 32 bits.
  [[nodiscard]] __host__ __device__ int position(int block, int t) const {
    const int slice = local / 2;
    if (cp == 1) return t;
    return t < slice ? block * slice + t : (2 * cp - 1 - block) * slice + (t - slice);
  }
  [[nodiscard]] __host__ __device__ bool visible(int distance) const {
    return distance >= 0 && (window == 0 || distance < window);
  }
  [[nodiscard]] __host__ __device__ int group() const { return query_heads / key_heads; }
};

// Some queries, or keys, of one block: rows [begin, begin + count) of each sequence.
struct Rows {
  int block, begin, count;
};

// Whether any query of a tile sees any key of another. Positions rise with rows, so that the ends of tiles tell.
template <class Acc>
__device__ bool meet(const Problem<Acc>& p, const Rows& queries, const Rows& keys) {
  const int nearest = p.position(p.cp_index, queries.begin) - p.position(keys.block, keys.begin + keys.count - 1);
  const int farthest = p.position(p.cp_index, queries.begin + queries.count - 1) - p.position(keys.block, keys.begin);
  return farthest >= 0 && (p.window == 0 || nearest < p.window);
}

// No query and no key that there is: nothing sees or is seen from here.
constexpr int kNoQuery = -1, kNoKey = INT_MAX;

// --- tiles in shared memory

template <class Acc>
using PackOf = Vec<Acc, kPack<Acc>>;

// Rows of a head from memory, zeros past the last row and past the head's size. `stride` elements between rows.
template <int D, class T, class Acc>
__device__ void load_tile(Acc* to, const T* __restrict__ from, std::int64_t stride, int count, int dim, bool vectors) {
  using Tiles = Tiling<Acc, D>;
  constexpr int kWidth = 16 / static_cast<int>(sizeof(T)), kAcross = D / kWidth;
  if (!vectors) {
    for (int i = threadIdx.x; i < Tiles::kTile * D; i += kThreads) {
      const int row = i / D, column = i % D;
      const bool inside = row < count && column < dim;
      to[row * Tiles::kStride + column] = inside ? convert<Acc>(from[row * stride + column]) : Acc{0};
    }
    return;
  }
#pragma unroll 4
  for (int i = threadIdx.x; i < Tiles::kTile * kAcross; i += kThreads) {
    const int row = i / kAcross, column = i % kAcross * kWidth;
    Acc x[kWidth] = {};
    if (row < count && column < dim) {
      const auto vec = load<T, kWidth>(from + row * stride + column);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) x[e] = convert<Acc>(vec.x[e]);
    }
#pragma unroll
    for (int e = 0; e < kWidth; e += kPack<Acc>) {
      PackOf<Acc> pack;
#pragma unroll
      for (int f = 0; f < kPack<Acc>; ++f) pack.x[f] = x[e + f];
      store(to + row * Tiles::kStride + column + e, pack);
    }
  }
}

// This thread's part of a tile of scores.
template <class Acc, int D>
using Scores = Acc[Tiling<Acc, D>::kRows][Tiling<Acc, D>::kRows];

// This thread's part of rows of a head: columns (x + 16 * j) * kPack and the kPack - 1 after them.
template <class Acc, int D>
using HeadRows = Acc[Tiling<Acc, D>::kRows][Tiling<Acc, D>::kColumns];

__device__ inline int thread_x() { return static_cast<int>(threadIdx.x) % kSide; }
__device__ inline int thread_y() { return static_cast<int>(threadIdx.x) / kSide; }

// out = a b^T of two tiles of rows.
template <int D, class Acc>
__device__ void multiply(const Acc* a, const Acc* b, int dim, Scores<Acc, D>& out) {
  using Tiles = Tiling<Acc, D>;
#pragma unroll
  for (int i = 0; i < Tiles::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < Tiles::kRows; ++j) out[i][j] = Acc{0};
  }
  const Acc *rows = a + thread_y() * Tiles::kRows * Tiles::kStride, *columns = b + thread_x() * Tiles::kStride;
#pragma unroll 2
  for (int d = 0; d < dim; d += kPack<Acc>) {
    PackOf<Acc> x[Tiles::kRows], y[Tiles::kRows];
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) x[i] = load<Acc, kPack<Acc>>(rows + i * Tiles::kStride + d);
#pragma unroll
    for (int j = 0; j < Tiles::kRows; ++j) y[j] = load<Acc, kPack<Acc>>(columns + j * kSide * Tiles::kStride + d);
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) {
#pragma unroll
      for (int j = 0; j < Tiles::kRows; ++j) {
#pragma unroll
        for (int e = 0; e < kPack<Acc>; ++e) out[i][j] += x[i].x[e] * y[j].x[e];
      }
    }
  }
}

// Writes this thread's scores to the tile from which accumulate() reads rows.
template <int D, class Acc>
__device__ void put_scores(const Scores<Acc, D>& scores, Acc* tile) {
  using Tiles = Tiling<Acc, D>;
  __syncwarp();  // the last readers of these rows are this half warp
#pragma unroll
  for (int i = 0; i < Tiles::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < Tiles::kRows; ++j)
      tile[(thread_y() * Tiles::kRows + i) * Tiles::kScoreStride + thread_x() + kSide * j] = scores[i][j];
  }
  __syncwarp();
}

// sum += scores b of a tile of scores and one of rows.
template <int D, class Acc>
__device__ void accumulate(const Acc* scores, const Acc* b, HeadRows<Acc, D>& sum) {
  using Tiles = Tiling<Acc, D>;
  const Acc* weights = scores + thread_y() * Tiles::kRows * Tiles::kScoreStride;
  for (int s = 0; s < Tiles::kTile; s += kPack<Acc>) {
    PackOf<Acc> weight[Tiles::kRows];
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) weight[i] = load<Acc, kPack<Acc>>(weights + i * Tiles::kScoreStride + s);
#pragma unroll
    for (int e = 0; e < kPack<Acc>; ++e) {
#pragma unroll
      for (int c = 0; c < Tiles::kColumns; c += kPack<Acc>) {
        const auto value = load<Acc, kPack<Acc>>(b + (s + e) * Tiles::kStride + c * kSide + thread_x() * kPack<Acc>);
#pragma unroll
        for (int i = 0; i < Tiles::kRows; ++i) {
#pragma unroll
          for (int f = 0; f < kPack<Acc>; ++f) sum[i][c + f] += weight[i].x[e] * value.x[f];
        }
      }
    }
  }
}

// Writes rows of a head.
template <int D, class T, class Acc>
__device__ void write_rows(const HeadRows<Acc, D>& rows, T* to, std::int64_t stride, int count, int dim) {
  using Tiles = Tiling<Acc, D>;
#pragma unroll
  for (int i = 0; i < Tiles::kRows; ++i) {
    const int row = thread_y() * Tiles::kRows + i;
#pragma unroll
    for (int c = 0; c < Tiles::kColumns; ++c) {
      const int column = (c / kPack<Acc> * kSide + thread_x()) * kPack<Acc> + c % kPack<Acc>;
      if (row < count && column < dim) to[row * stride + column] = convert<T>(rows[i][c]);
    }
  }
}

// Over the 16 threads that share rows.
template <class Acc>
__device__ Acc row_max(Acc value) {
  for (int step = kSide / 2; step > 0; step /= 2) value = max(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}
template <class Acc>
__device__ Acc row_sum(Acc value) {
  for (int step = kSide / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// A score of a query and a key that sees it, before softmax; *slope gets d score / d (q k).
template <class Acc>
__device__ Acc score_of(const Problem<Acc>& p, int head, Acc product, int distance, Acc* slope) {
  Acc score = p.scale * product;
  *slope = p.scale;
  if (p.softcap > 0) {
    const Acc capped = std::tanh(score / p.softcap);
    score = p.softcap * capped;
    *slope *= 1 - capped * capped;
  }
  return p.alibi ? score - p.slopes[head] * static_cast<Acc>(distance) : score;
}

// Where things lie: elements between rows, and the first element of a head in row `row` of a sequence.
template <class Acc>
__device__ std::int64_t query_at(const Problem<Acc>& p, int sequence, int row, int head) {
  return ((static_cast<std::int64_t>(sequence) * p.local + row) * p.query_heads + head) * p.dim;
}
// `block`: which of those that are here.
template <class Acc>
__device__ std::int64_t key_at(const Problem<Acc>& p, int block, int sequence, int row, int head) {
  return ((block * p.rows + static_cast<std::int64_t>(sequence) * p.local + row) * p.key_heads + head) * p.dim;
}

// Positions of the kRows queries or keys begin + first + i * step; `none` past the last.
template <int Count, class Acc>
__device__ void positions_of(const Problem<Acc>& p, const Rows& rows, int first, int step, int none, int (&at)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const int row = first + i * step;
    at[i] = row < rows.count ? p.position(rows.block, rows.begin + row) : none;
  }
}

// Tile number `tile` of a sequence.
template <class Acc, int D>
__device__ Rows tile_of(const Problem<Acc>& p, int block, int tile) {
  const int begin = tile * Tiling<Acc, D>::kTile;
  return {block, begin, min(Tiling<Acc, D>::kTile, p.local - begin)};
}

// Calls f(keys, which of the blocks here) for each tile of keys that queries see, in order.
template <int D, class Acc, class F>
__device__ void for_each_key_tile(const Problem<Acc>& p, const Rows& queries, F f) {
  const int tiles = (p.local + Tiling<Acc, D>::kTile - 1) / Tiling<Acc, D>::kTile;
  for (int here = 0; here < p.blocks; ++here) {
    for (int tile = 0; tile < tiles; ++tile) {
      const Rows keys = tile_of<Acc, D>(p, p.first_block + here, tile);
      if (meet(p, queries, keys)) f(keys, here);
    }
  }
}

// --- forward: a block for each tile of queries of a head of a sequence

template <class T, int D>
__global__ void __launch_bounds__(kThreads, 1)
    attend(const __grid_constant__ Problem<AccOf<T>> p, const T* q, const T* k, const T* v, T* o, AccOf<T>* lse) {
  using Acc = AccOf<T>;
  using Tiles = Tiling<Acc, D>;
  constexpr int kRows = Tiles::kRows;
  extern __shared__ __align__(16) unsigned char shared[];
  Acc *query_tile = reinterpret_cast<Acc*>(shared), *key_tile = query_tile + Tiles::kTileElements,
      *score_tile = key_tile + Tiles::kTileElements;  // values come where keys were
  const int head = blockIdx.y, key_head = head / p.group(), sequence = blockIdx.z;
  const std::int64_t query_stride = static_cast<std::int64_t>(p.query_heads) * p.dim,
                     key_stride = static_cast<std::int64_t>(p.key_heads) * p.dim;
  // The last queries see most keys: they begin first.
  const Rows queries = tile_of<Acc, D>(p, p.cp_index, static_cast<int>(gridDim.x - 1 - blockIdx.x));
  const std::int64_t at = query_at(p, sequence, queries.begin, head);
  load_tile<D>(query_tile, q + at, query_stride, queries.count, p.dim, p.vectors);
  int query_position[kRows];
  positions_of(p, queries, thread_y() * kRows, 1, kNoQuery, query_position);

  HeadRows<Acc, D> out = {};
  Acc highest[kRows], sum[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    highest[i] = -INFINITY;
    sum[i] = 0;
  }
  for_each_key_tile<D>(p, queries, [&](const Rows& keys, int here) {
    const std::int64_t from = key_at(p, here, sequence, keys.begin, key_head);
    __syncthreads();
    load_tile<D>(key_tile, k + from, key_stride, keys.count, p.dim, p.vectors);
    __syncthreads();
    Scores<Acc, D> scores;
    multiply<D>(query_tile, key_tile, p.dim, scores);
    int key_position[kRows];
    positions_of(p, keys, thread_x(), kSide, kNoKey, key_position);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      Acc top = highest[i], slope;
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const int distance = query_position[i] - key_position[j];
        scores[i][j] = p.visible(distance) ? score_of(p, head, scores[i][j], distance, &slope) : -INFINITY;
        top = max(top, scores[i][j]);
      }
      top = row_max(top);
      const Acc base = top == -INFINITY ? Acc{0} : top;  // no key yet: all weights are exp(-inf)
      const Acc shrink = std::exp(highest[i] - base);
      Acc added{0};
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        scores[i][j] = std::exp(scores[i][j] - base);
        added += scores[i][j];
      }
      highest[i] = top;
      sum[i] = sum[i] * shrink + row_sum(added);
#pragma unroll
      for (int c = 0; c < Tiles::kColumns; ++c) out[i][c] *= shrink;
    }
    put_scores<D>(scores, score_tile);
    __syncthreads();
    load_tile<D>(key_tile, v + from, key_stride, keys.count, p.dim, p.vectors);
    __syncthreads();
    accumulate<D>(score_tile, key_tile, out);
  });
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = thread_y() * kRows + i;
    const Acc share = sum[i] == 0 ? Acc{0} : 1 / sum[i];
#pragma unroll
    for (int c = 0; c < Tiles::kColumns; ++c) out[i][c] *= share;
    if (thread_x() == 0 && row < queries.count) {
      lse[(static_cast<std::int64_t>(sequence) * p.local + queries.begin + row) * p.query_heads + head] =
          highest[i] + std::log(sum[i]);
    }
  }
  write_rows<D>(out, o + at, query_stride, queries.count, p.dim);
}

// --- backward

// delta[T,hq] = dout o: a warp for each.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    add_products(const T* dout, const T* o, std::int64_t count, int dim, AccOf<T>* delta) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (at >= count) return;
  AccOf<T> sum{0};
  for (int d = static_cast<int>(threadIdx.x) % 32; d < dim; d += 32)
    sum += convert<AccOf<T>>(dout[at * dim + d]) * convert<AccOf<T>>(o[at * dim + d]);
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (threadIdx.x % 32 == 0) delta[at] = sum;
}

// What both kernels read.
template <class T>
struct GradOperands {
  const T *dout, *q, *k, *v;
  const AccOf<T>*lse, *delta;  // [T,hq]
};

// The weight of a pair, and the gradient of its product, from the product q k and dout v.
template <class Acc>
__device__ Acc weight_of(const Problem<Acc>& p, int head, int distance, Acc lse, Acc delta, Acc product, Acc& grad) {
  if (!p.visible(distance)) return grad = 0;
  Acc slope;
  const Acc weight = std::exp(score_of(p, head, product, distance, &slope) - lse);
  grad = weight * (grad - delta) * slope;
  return weight;
}

// dq: a block for each tile of queries of a head of a sequence.
template <class T, int D>
__global__ void __launch_bounds__(kThreads, 1)
    attend_grad_queries(const __grid_constant__ Problem<AccOf<T>> p, const GradOperands<T> x, T* dq) {
  using Acc = AccOf<T>;
  using Tiles = Tiling<Acc, D>;
  constexpr int kRows = Tiles::kRows;
  extern __shared__ __align__(16) unsigned char shared[];
  Acc *query_tile = reinterpret_cast<Acc*>(shared), *dout_tile = query_tile + Tiles::kTileElements,
      *key_tile = dout_tile + Tiles::kTileElements, *value_tile = key_tile + Tiles::kTileElements,
      *score_tile = value_tile + Tiles::kTileElements;
  const int head = blockIdx.y, key_head = head / p.group(), sequence = blockIdx.z;
  const std::int64_t query_stride = static_cast<std::int64_t>(p.query_heads) * p.dim,
                     key_stride = static_cast<std::int64_t>(p.key_heads) * p.dim;
  const Rows queries = tile_of<Acc, D>(p, p.cp_index, static_cast<int>(gridDim.x - 1 - blockIdx.x));
  const std::int64_t at = query_at(p, sequence, queries.begin, head);
  load_tile<D>(query_tile, x.q + at, query_stride, queries.count, p.dim, p.vectors);
  load_tile<D>(dout_tile, x.dout + at, query_stride, queries.count, p.dim, p.vectors);
  int query_position[kRows];
  positions_of(p, queries, thread_y() * kRows, 1, kNoQuery, query_position);
  Acc lse[kRows] = {}, delta[kRows] = {};
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (query_position[i] == kNoQuery) continue;
    const std::int64_t row = at / p.dim + static_cast<std::int64_t>(thread_y() * kRows + i) * p.query_heads;
    lse[i] = x.lse[row];
    delta[i] = x.delta[row];
  }

  HeadRows<Acc, D> grad = {};
  for_each_key_tile<D>(p, queries, [&](const Rows& keys, int here) {
    const std::int64_t from = key_at(p, here, sequence, keys.begin, key_head);
    __syncthreads();
    load_tile<D>(key_tile, x.k + from, key_stride, keys.count, p.dim, p.vectors);
    load_tile<D>(value_tile, x.v + from, key_stride, keys.count, p.dim, p.vectors);
    __syncthreads();
    Scores<Acc, D> products, grads;
    multiply<D>(query_tile, key_tile, p.dim, products);
    multiply<D>(dout_tile, value_tile, p.dim, grads);
    int key_position[kRows];
    positions_of(p, keys, thread_x(), kSide, kNoKey, key_position);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kRows; ++j)
        weight_of(p, head, query_position[i] - key_position[j], lse[i], delta[i], products[i][j], grads[i][j]);
    }
    put_scores<D>(grads, score_tile);
    accumulate<D>(score_tile, key_tile, grad);
  });
  write_rows<D>(grad, dq + at, query_stride, queries.count, p.dim);
}

// dk, dv: a block for each tile of keys of a key head of a sequence. Scores lie transposed: rows are keys.
template <class T, int D>
__global__ void __launch_bounds__(kThreads, 1)
    attend_grad_keys(const __grid_constant__ Problem<AccOf<T>> p, const GradOperands<T> x, T* dk, T* dv) {
  using Acc = AccOf<T>;
  using Tiles = Tiling<Acc, D>;
  constexpr int kRows = Tiles::kRows;
  extern __shared__ __align__(16) unsigned char shared[];
  Acc *key_tile = reinterpret_cast<Acc*>(shared), *value_tile = key_tile + Tiles::kTileElements,
      *query_tile = value_tile + Tiles::kTileElements, *dout_tile = query_tile + Tiles::kTileElements,
      *score_tile = dout_tile + Tiles::kTileElements;
  const int tiles = (p.local + Tiles::kTile - 1) / Tiles::kTile;
  const int here = static_cast<int>(blockIdx.x) / tiles, key_head = blockIdx.y, sequence = blockIdx.z;
  const std::int64_t query_stride = static_cast<std::int64_t>(p.query_heads) * p.dim,
                     key_stride = static_cast<std::int64_t>(p.key_heads) * p.dim;
  const Rows keys = tile_of<Acc, D>(p, p.first_block + here, static_cast<int>(blockIdx.x) % tiles);
  const std::int64_t at = key_at(p, here, sequence, keys.begin, key_head);
  load_tile<D>(key_tile, x.k + at, key_stride, keys.count, p.dim, p.vectors);
  load_tile<D>(value_tile, x.v + at, key_stride, keys.count, p.dim, p.vectors);
  int key_position[kRows];
  positions_of(p, keys, thread_y() * kRows, 1, kNoKey, key_position);

  HeadRows<Acc, D> key_grad = {}, value_grad = {};
  for (int head = key_head * p.group(); head < (key_head + 1) * p.group(); ++head) {
    for (int tile = 0; tile < tiles; ++tile) {
      const Rows queries = tile_of<Acc, D>(p, p.cp_index, tile);
      if (!meet(p, queries, keys)) continue;
      const std::int64_t from = query_at(p, sequence, queries.begin, head);
      __syncthreads();
      load_tile<D>(query_tile, x.q + from, query_stride, queries.count, p.dim, p.vectors);
      load_tile<D>(dout_tile, x.dout + from, query_stride, queries.count, p.dim, p.vectors);
      __syncthreads();
      Scores<Acc, D> products, grads;
      multiply<D>(key_tile, query_tile, p.dim, products);
      multiply<D>(value_tile, dout_tile, p.dim, grads);
      int query_position[kRows];
      positions_of(p, queries, thread_x(), kSide, kNoQuery, query_position);
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const std::int64_t row = from / p.dim + static_cast<std::int64_t>(thread_x() + kSide * j) * p.query_heads;
        const bool inside = query_position[j] != kNoQuery;
        const Acc lse = inside ? x.lse[row] : Acc{0}, delta = inside ? x.delta[row] : Acc{0};
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          products[i][j] =
              weight_of(p, head, query_position[j] - key_position[i], lse, delta, products[i][j], grads[i][j]);
        }
      }
      put_scores<D>(products, score_tile);
      accumulate<D>(score_tile, dout_tile, value_grad);
      put_scores<D>(grads, score_tile);
      accumulate<D>(score_tile, query_tile, key_grad);
    }
  }
  write_rows<D>(key_grad, dk + at, key_stride, keys.count, p.dim);
  write_rows<D>(value_grad, dv + at, key_stride, keys.count, p.dim);
}

// --- launches

template <class T>
Problem<AccOf<T>> problem_of(const AttentionShape& shape, std::int64_t rows, std::initializer_list<const void*> read) {
  using Acc = AccOf<T>;
  TY_CHECK(shape.heads.dim <= 256, "plain attention has room for heads of 256");
  TY_CHECK(shape.alibi.size() <= kMostSlopes, "plain attention has room for the slopes of 256 heads");
  const std::int64_t local = rows / shape.batch;
  TY_CHECK(local * shape.cp < INT_MAX, "positions fit in 32 bits");
  Problem<Acc> p;
  p.rows = rows;
  p.local = static_cast<int>(local);
  p.batch = static_cast<int>(shape.batch);
  p.cp = static_cast<int>(shape.cp);
  p.cp_index = static_cast<int>(shape.cp_index);
  p.first_block = static_cast<int>(std::max<std::int64_t>(shape.key_block, 0));
  p.blocks = shape.key_block < 0 ? p.cp : 1;
  p.query_heads = static_cast<int>(shape.heads.query);
  p.key_heads = static_cast<int>(shape.heads.key);
  p.dim = static_cast<int>(shape.heads.dim);
  p.window = static_cast<int>(std::clamp<std::int64_t>(shape.window, 0, INT_MAX));
  p.vectors = p.dim % (16 / static_cast<int>(sizeof(T))) == 0 && aligned(read, 16);
  p.alibi = !shape.alibi.empty();
  p.scale = static_cast<Acc>(shape.scale);
  p.softcap = static_cast<Acc>(shape.softcap);
  std::transform(shape.alibi.begin(), shape.alibi.end(), p.slopes, [](double x) { return static_cast<Acc>(x); });
  return p;
}

// Calls f(type, size of head that kernels are compiled for).
template <class F>
void with_head(Dtype dtype, std::int64_t dim, F f) {
  with_type(dtype, [&](auto tag) {
    if (dim <= 64) {
      f(tag, std::integral_constant<int, 64>{});
    } else if (dim <= 128) {
      f(tag, std::integral_constant<int, 128>{});
    } else {
      f(tag, std::integral_constant<int, 256>{});
    }
  });
}

unsigned tiles_of(int rows, int tile) { return static_cast<unsigned>((rows + tile - 1) / tile); }

template <class... Parameters, class... Operands>
void launch(void (*kernel)(Parameters...), dim3 grid, int shared_bytes, cudaStream_t stream,
            const Operands&... operands) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "asking for shared memory for plain attention");
  kernel<<<grid, kThreads, static_cast<std::size_t>(shared_bytes), stream>>>(operands...);
  check_launch("plain attention");
}

}  // namespace

void plain_attention(cudaStream_t stream, Scratch& /*scratch*/, const AttentionShape& shape, const Tensor& q,
                     const Tensor& k, const Tensor& v, const Tensor& o, const Tensor& lse) {
  if (q.size() == 0) return;
  with_head(o.dtype, shape.heads.dim, [&](auto tag, auto head) {
    using T = TypeOf<decltype(tag)>;
    using Tiles = Tiling<AccOf<T>, head()>;
    const auto p = problem_of<T>(shape, q.dims[0], {q.data, k.data, v.data});
    const dim3 grid(tiles_of(p.local, Tiles::kTile), static_cast<unsigned>(p.query_heads),
                    static_cast<unsigned>(p.batch));
    launch(attend<T, head()>, grid, Tiles::bytes(2), stream, p, data_of<T>(q), data_of<T>(k), data_of<T>(v),
           data_of<T>(o), data_of<AccOf<T>>(lse));
  });
}

void plain_attention_grad(cudaStream_t stream, Scratch& scratch, const AttentionShape& shape, const Tensor& dout,
                          const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o, const Tensor& lse,
                          const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  if (q.size() == 0) return;
  with_head(dq.dtype, shape.heads.dim, [&](auto tag, auto head) {
    using T = TypeOf<decltype(tag)>;
    using Acc = AccOf<T>;
    using Tiles = Tiling<Acc, head()>;
    const auto p = problem_of<T>(shape, q.dims[0], {dout.data, q.data, k.data, v.data});
    const std::int64_t pairs = q.dims[0] * p.query_heads;
    Acc* delta = reinterpret_cast<Acc*>(scratch.take(pairs * static_cast<std::int64_t>(sizeof(Acc))));
    constexpr int kWarps = kThreads / 32;
    add_products<T><<<static_cast<unsigned>((pairs + kWarps - 1) / kWarps), kThreads, 0, stream>>>(
        data_of<T>(dout), data_of<T>(o), pairs, p.dim, delta);
    check_launch("plain attention");
    const GradOperands<T> operands{data_of<T>(dout), data_of<T>(q),     data_of<T>(k),
                                   data_of<T>(v),    data_of<Acc>(lse), delta};
    const unsigned tiles = tiles_of(p.local, Tiles::kTile), batch = static_cast<unsigned>(p.batch);
    launch(attend_grad_queries<T, head()>, dim3(tiles, static_cast<unsigned>(p.query_heads), batch), Tiles::bytes(4),
           stream, p, operands, data_of<T>(dq));
    launch(attend_grad_keys<T, head()>,
           dim3(tiles * static_cast<unsigned>(p.blocks), static_cast<unsigned>(p.key_heads), batch), Tiles::bytes(4),
           stream, p, operands, data_of<T>(dk), data_of<T>(dv));
  });
}

}  // namespace trainyard::kernels::cuda
