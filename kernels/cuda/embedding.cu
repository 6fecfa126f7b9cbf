// Tables that are read by row, and their gradients.
//
// A gradient adds up rows that share an index, in the order of the rows whatever the scheduling. Rows are put in order
// of (index, row) and cut into tiles of kTileRows. What a tile holds whole of an index it adds to the table; sums of an
// index that reaches over the end of a tile are kept, and added up by the tile in which the index begins.

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/vector.cuh"

namespace trainyard::kernels::cuda {

namespace {

constexpr int kGatherThreads = 128, kGatherAhead = 4;

// y[t] = scale * table[index - first_row] (+ x[t]); 0 for an index outside the table, which must not be if there is x.
// Blocks have kGatherAhead packs a thread of one row.
template <class S, int N, bool Plus>
__global__ void __launch_bounds__(kGatherThreads)
    gather(const std::int32_t* __restrict__ indices, const S* __restrict__ table, Int first_row, Int table_rows,
           const S* x, S* y, Int d, Acc<S> scale) {
  const Int t = blockIdx.x, row = indices[t] - first_row;
  const bool inside = row >= 0 && row < table_rows;
  if (Plus && !inside) __trap();
  Pack<S, N> entry[kGatherAhead], other[kGatherAhead];
  const auto column = [](int i) { return ((Int{blockIdx.y} * kGatherAhead + i) * blockDim.x + threadIdx.x) * N; };
#pragma unroll
  for (int i = 0; i < kGatherAhead; ++i) {
    if (column(i) >= d) continue;
    if (inside) entry[i] = fetch<N>(table + row * d + column(i));
    if constexpr (Plus) other[i] = fetch<N>(x + t * d + column(i));
  }
#pragma unroll
  for (int i = 0; i < kGatherAhead; ++i) {
    if (column(i) >= d) continue;
    Lanes<Acc<S>, N> out{};
    if (inside) {
      out = unpack(entry[i]);
#pragma unroll
      for (int j = 0; j < N; ++j) out.at[j] *= scale;
    }
    if constexpr (Plus) {
      const auto add = unpack(other[i]);
#pragma unroll
      for (int j = 0; j < N; ++j) out.at[j] += add.at[j];
    }
    store<S, N>(y + t * d + column(i), out);
  }
}

template <bool Plus>
void launch_gather(const Tensor& indices, const Tensor& table, Int first_row, const Tensor& x, const Tensor& y,
                   double scale, cudaStream_t stream) {
  const Int rows = y.dims[0], d = y.dims[1];
  if (rows == 0) return;
  with_storage(y.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    with_lanes<S>(d, {table.data, x.data, y.data}, [&](auto n) {
      constexpr int N = decltype(n)::value;
      const unsigned threads = threads_for(divide_up(d / N, kGatherAhead), kGatherThreads);
      const dim3 grid(static_cast<unsigned>(rows), blocks_for(d / N, threads * kGatherAhead));
      gather<S, N, Plus><<<grid, threads, 0, stream>>>(index_elements(indices), elements<S>(table), first_row,
                                                       table.dims[0], elements<S>(x), elements<S>(y), d,
                                                       static_cast<Acc<S>>(scale));
    });
    check_launch("gather");
  });
}

// --- rows in order of their index

constexpr int kRankThreads = 256, kRankSpan = 1024;

// Rows and where they go. An index outside the table becomes table_rows: behind all others.
struct Order {
  const std::int32_t* indices;
  Int rows, first_row, table_rows;
  std::int32_t *rank, *row, *key;  // rank of a row; row and key of a rank
  bool strict;                     // indices outside the table must not be
};

__device__ __forceinline__ std::int32_t key_of(const Order& order, Int t) {
  const Int key = order.indices[t] - order.first_row;
  if (key >= 0 && key < order.table_rows) return static_cast<std::int32_t>(key);
  if (order.strict) __trap();
  return static_cast<std::int32_t>(order.table_rows);
}

// rank[t] += how many of the rows [span * kRankSpan, (span + 1) * kRankSpan) come before row t: those with a lower key,
// or its key and a lower row. Every row is compared with every other, which for the rows of a micro-batch is less work
// than the passes of a sort; whole numbers may be added in any order.
__global__ void __launch_bounds__(kRankThreads) rank_rows(Order order) {
  __shared__ std::int32_t keys[kRankThreads];
  const Int block = blockIdx.x, t = block * kRankThreads + threadIdx.x;
  const std::int32_t key = t < order.rows ? key_of(order, t) : 0;
  std::int32_t before = 0;
  for (Int tile = Int{blockIdx.y} * (kRankSpan / kRankThreads);
       tile < (Int{blockIdx.y} + 1) * (kRankSpan / kRankThreads); ++tile) {
    const Int u = tile * kRankThreads + threadIdx.x;
    if (tile * kRankThreads >= order.rows) break;
    __syncthreads();
    keys[threadIdx.x] = u < order.rows ? key_of(order, u) : std::numeric_limits<std::int32_t>::max();
    __syncthreads();
    if (tile != block) {
      // All rows of this tile are before t, so that equal keys count, or all are behind it.
      const std::int32_t limit = tile < block ? key + 1 : key;
#pragma unroll 16
      for (int i = 0; i < kRankThreads; ++i) before += keys[i] < limit ? 1 : 0;
    } else {
      for (int i = 0; i < kRankThreads; ++i) {
        before += keys[i] < key || (keys[i] == key && i < static_cast<int>(threadIdx.x)) ? 1 : 0;
      }
    }
  }
  if (t < order.rows && before != 0) atomicAdd(order.rank + t, before);
}

__global__ void __launch_bounds__(kRankThreads) place_rows(Order order) {
  const Int t = Int{blockIdx.x} * kRankThreads + threadIdx.x;
  if (t >= order.rows) return;
  const std::int32_t rank = order.rank[t];
  order.row[rank] = static_cast<std::int32_t>(t);
  order.key[rank] = key_of(order, t);
}

// --- sums of rows in that order

constexpr int kTileRows = 32, kTileThreads = 128, kTileAhead = 4;

template <class S, class O>
struct Scatter {
  const std::int32_t *row, *key;  // by rank
  Int rows, table_rows, d;
  const S* dy;
  O* table;
  Acc<S>* partial;  // [tiles, 2, d]: of the index that the tile began within, of the index that it ends within
  Acc<S> scale;
};

// What becomes of a sum after a row.
enum class After : std::uint8_t { GoOn, Table, Begun, Unended };

// Of row i of a tile of `count` rows that begins at rank `begin`.
__host__ __device__ inline After after_row(const std::int32_t* key, Int rows, Int begin, int count, int i) {
  const std::int32_t own = key[begin + i];
  const bool last = i == count - 1;
  if (!last && key[begin + i + 1] == own) return After::GoOn;
  if (begin > 0 && key[begin - 1] == own) return After::Begun;
  if (last && begin + count < rows && key[begin + count] == own) return After::Unended;
  return After::Table;
}

template <class S, class O, int N>
__global__ void __launch_bounds__(kTileThreads) sum_tiles(Scatter<S, O> a) {
  using A = Acc<S>;
  __shared__ Int rows[kTileRows], keys[kTileRows];
  __shared__ After after[kTileRows];
  const Int begin = Int{blockIdx.x} * kTileRows;
  const int count = static_cast<int>(a.rows - begin < kTileRows ? a.rows - begin : Int{kTileRows});
  if (threadIdx.x < count) {
    const auto i = static_cast<int>(threadIdx.x);
    rows[i] = a.row[begin + i];
    keys[i] = a.key[begin + i];
    after[i] = after_row(a.key, a.rows, begin, count, i);
  }
  __syncthreads();
  const Int column = (Int{blockIdx.y} * blockDim.x + threadIdx.x) * N;
  if (column >= a.d) return;
  Lanes<A, N> sum{};
  for (int first = 0; first < count; first += kTileAhead) {
    Pack<S, N> dy[kTileAhead];
    Pack<O, N> entry[kTileAhead];
#pragma unroll
    for (int i = 0; i < kTileAhead; ++i) {
      const int at = first + i;
      if (at >= count || keys[at] >= a.table_rows) continue;
      dy[i] = fetch<N>(a.dy + rows[at] * a.d + column);
      if (after[at] == After::Table) entry[i] = fetch<N>(a.table + keys[at] * a.d + column);
    }
#pragma unroll
    for (int i = 0; i < kTileAhead; ++i) {
      const int at = first + i;
      if (at >= count || keys[at] >= a.table_rows) continue;
      const auto grad = unpack(dy[i]);
#pragma unroll
      for (int j = 0; j < N; ++j) sum.at[j] += a.scale * grad.at[j];
      if (after[at] == After::GoOn) continue;
      if (after[at] == After::Table) {
        auto total = unpack(entry[i]);
#pragma unroll
        for (int j = 0; j < N; ++j) total.at[j] += sum.at[j];
        store<O, N>(a.table + keys[at] * a.d + column, total);
      } else {
        store<A, N>(a.partial + (Int{blockIdx.x} * 2 + (after[at] == After::Begun ? 0 : 1)) * a.d + column, sum);
      }
      sum = {};
    }
  }
}

// The tile in which an index begins that goes on in the next adds up what tiles have kept of it.
template <class S, class O, int N>
__global__ void __launch_bounds__(kTileThreads) join_tiles(Scatter<S, O> a) {
  const Int tile = blockIdx.x, begin = tile * kTileRows, end = begin + kTileRows, tiles = gridDim.x;
  if (end >= a.rows) return;
  const std::int32_t key = a.key[end - 1];
  if (key >= a.table_rows || after_row(a.key, a.rows, begin, kTileRows, kTileRows - 1) != After::Unended) return;
  // Keys rise, so the tiles that begin within this index follow each other.
  int others = 0;
  for (Int first = tile + 1; first < tiles; first += blockDim.x) {
    const Int other = first + threadIdx.x;
    const int here = __syncthreads_count(other < tiles && a.key[other * kTileRows] == key);
    others += here;
    if (here < static_cast<int>(blockDim.x)) break;
  }
  const Int column = (Int{blockIdx.y} * blockDim.x + threadIdx.x) * N;
  if (column >= a.d) return;
  const auto entry = fetch<N>(a.table + key * a.d + column);
  auto sum = load<N>(a.partial + (tile * 2 + 1) * a.d + column);
#pragma unroll 4
  for (int i = 1; i <= others; ++i) {
    const auto part = load<N>(a.partial + (tile + i) * 2 * a.d + column);
#pragma unroll
    for (int j = 0; j < N; ++j) sum.at[j] += part.at[j];
  }
  auto total = unpack(entry);
#pragma unroll
  for (int j = 0; j < N; ++j) total.at[j] += sum.at[j];
  store<O, N>(a.table + key * a.d + column, total);
}

Int rounded(Int bytes) { return divide_up(bytes, 256) * 256; }

// Bytes of scratch memory for scatter_add: rank, row and key, then the sums of tiles.
Int scatter_bytes(const Tensor& dy) {
  const Int wide = dy.dtype == Dtype::F64 ? 8 : 4;
  return 3 * rounded(dy.dims[0] * 4) + divide_up(dy.dims[0], kTileRows) * 2 * dy.dims[1] * wide;
}

void launch_order(const Order& order, cudaStream_t stream) {
  check(cudaMemsetAsync(order.rank, 0, static_cast<std::size_t>(order.rows) * sizeof(std::int32_t), stream),
        "clearing ranks");
  const dim3 grid(blocks_for(order.rows, kRankThreads), blocks_for(order.rows, kRankSpan));
  rank_rows<<<grid, kRankThreads, 0, stream>>>(order);
  check_launch("rank_rows");
  place_rows<<<grid.x, kRankThreads, 0, stream>>>(order);
  check_launch("place_rows");
}

template <class S, class O>
void launch_scatter(const Scatter<S, O>& a, cudaStream_t stream) {
  with_lanes<S>(a.d, {a.dy, a.table}, [&](auto n) {
    constexpr int N = decltype(n)::value;
    const unsigned threads = threads_for(a.d / N, kTileThreads);
    const dim3 grid(blocks_for(a.rows, kTileRows), blocks_for(a.d / N, threads));
    sum_tiles<S, O, N><<<grid, threads, 0, stream>>>(a);
    check_launch("sum_tiles");
    join_tiles<S, O, N><<<grid, threads, 0, stream>>>(a);
    check_launch("join_tiles");
  });
}

void scatter_add(const Tensor& indices, const Tensor& dy, double scale, Int first_row, bool strict,
                 const Tensor& dtable, std::byte* scratch, cudaStream_t stream) {
  const Int rows = dy.dims[0], each = rounded(rows * 4);
  const auto ranks = [&](int i) { return reinterpret_cast<std::int32_t*>(scratch + i * each); };
  const Order order{index_elements(indices), rows, first_row, dtable.dims[0], ranks(0), ranks(1), ranks(2), strict};
  launch_order(order, stream);
  with_storage(dy.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    with_gradient<S>(dtable.dtype, [&](auto gradient) {
      using O = typename decltype(gradient)::type;
      launch_scatter<S, O>(
          {order.row, order.key, rows, dtable.dims[0], dy.dims[1], elements<S>(dy), elements<O>(dtable),
           reinterpret_cast<Acc<S>*>(scratch + 3 * each), static_cast<Acc<S>>(scale)},
          stream);
    });
  });
}

}  // namespace

void CudaKernels::embedding(const Tensor& tokens, const Tensor& table, double scale, std::int64_t first_row,
                            const Tensor& y) {
  launch_gather<false>(tokens, table, first_row, {}, y, scale, stream_);
}

void CudaKernels::embedding_grad(const Tensor& tokens, const Tensor& dy, double scale, std::int64_t first_row,
                                 const Tensor& dtable) {
  if (dy.size() == 0) return;
  scatter_add(tokens, dy, scale, first_row, false, dtable, scratch_.take(scatter_bytes(dy)), stream_);
}

void CudaKernels::position_add(const Tensor& x, const Tensor& positions, const Tensor& table, const Tensor& y) {
  launch_gather<true>(positions, table, 0, x, y, 1, stream_);
}

void CudaKernels::position_grad(const Tensor& positions, const Tensor& dy, const Tensor& dtable) {
  if (dy.size() == 0) return;
  scatter_add(positions, dy, 1, 0, true, dtable, scratch_.take(scatter_bytes(dy)), stream_);
}

}  // namespace trainyard::kernels::cuda
