#include <cuda_bf16.h>

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/error.h"
#include "kernels/cuda/grouped_plain.h"

namespace trainyard::kernels::cuda {

namespace {

using Bf16 = __nv_bfloat16;

// --- where rows are

__global__ void first_rows_kernel(const std::int32_t* __restrict__ counts, std::int64_t groups, std::int64_t experts,
                                  std::int64_t rows, std::int32_t* __restrict__ first_row) {
  for (std::int64_t e = threadIdx.x; e < experts; e += blockDim.x) {
    std::int32_t sum = 0;
    for (std::int64_t g = 0; g < groups; ++g) sum += counts[g * experts + e];
    first_row[e + 1] = sum;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  std::int64_t next = 0;
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::int32_t count = first_row[e + 1];
    first_row[e] = static_cast<std::int32_t>(next);
    next += count;
    if (count < 0 || next > rows) __trap();
  }
  first_row[experts] = static_cast<std::int32_t>(next);
}

// The rows of one expert that a block has to do with.
struct Rows {
  std::int64_t expert = -1, first = 0, count = 0;
};

// The tile'th piece of so many rows, where each expert's rows begin a new piece. Past the last: expert -1.
__device__ Rows piece_of_rows(const std::int32_t* __restrict__ first_row, std::int64_t experts, std::int64_t tile,
                              int rows_per_tile) {
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::int64_t first = first_row[e], count = first_row[e + 1] - first;
    const std::int64_t tiles = (count + rows_per_tile - 1) / rows_per_tile;
    if (tile < tiles) {
      const std::int64_t begin = tile * rows_per_tile;
      return {e, first + begin, count - begin < rows_per_tile ? count - begin : rows_per_tile};
    }
    tile -= tiles;
  }
  return {};
}

std::int64_t most_pieces(std::int64_t rows, std::int64_t experts, int rows_per_tile) {
  return rows / rows_per_tile + std::min(experts, rows);
}

// What is multiplied: the operands of all experts.
struct Product {
  const void* a = nullptr;
  const void* b = nullptr;
  void* c = nullptr;
  const std::int32_t* first_row = nullptr;
  std::int64_t experts = 0, n = 0, k = 0;
};

// --- any type and size

constexpr int kPlainTile = 32, kPlainDepth = 16, kPlainThreads = 16;  // 2 x 2 results for each of 16 x 16 threads

template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
__device__ Wide<T> widen(T x) {
  if constexpr (std::is_same_v<T, Bf16>) {
    return __bfloat162float(x);
  } else {
    return x;
  }
}

template <class T>
__device__ T narrow(Wide<T> x) {
  if constexpr (std::is_same_v<T, Bf16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// Element (i, j) lies at i * row + j * column.
template <class T>
struct Strided {
  const T* data;
  std::int64_t row, column;
};

// c(i, j) = sum over depth of a(i, l) b(l, j) for one tile of m x n, which may be a tile's remainder.
template <class T>
__device__ void plain_tile(Strided<T> a, Strided<T> b, std::int64_t m, std::int64_t n, std::int64_t depth,
                           Wide<T> (&c)[2][2]) {
  __shared__ Wide<T> left[kPlainDepth][kPlainTile + 1], right[kPlainDepth][kPlainTile + 1];
  const int tx = threadIdx.x, ty = threadIdx.y, thread = ty * kPlainThreads + tx;
  for (std::int64_t l = 0; l < depth; l += kPlainDepth) {
    for (int i = thread; i < kPlainDepth * kPlainTile; i += kPlainThreads * kPlainThreads) {
      const int deep = i / kPlainTile, at = i % kPlainTile;
      const bool inside = l + deep < depth;
      left[deep][at] = inside && at < m ? widen(a.data[at * a.row + (l + deep) * a.column]) : Wide<T>{0};
      right[deep][at] = inside && at < n ? widen(b.data[(l + deep) * b.row + at * b.column]) : Wide<T>{0};
    }
    __syncthreads();
    for (int deep = 0; deep < kPlainDepth; ++deep)
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j) c[i][j] += left[deep][ty + i * kPlainThreads] * right[deep][tx + j * kPlainThreads];
    __syncthreads();
  }
}

template <class T>
__global__ void plain_rows_kernel(Product p, bool transposed) {
  const Rows rows = piece_of_rows(p.first_row, p.experts, blockIdx.x, kPlainTile);
  if (rows.expert < 0) return;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.y) * kPlainTile;
  const Strided<T> a{static_cast<const T*>(p.a) + rows.first * p.k, p.k, 1};
  const T* weights = static_cast<const T*>(p.b) + rows.expert * p.n * p.k;
  const Strided<T> b = transposed ? Strided<T>{weights + column * p.k, 1, p.k} : Strided<T>{weights + column, p.n, 1};
  Wide<T> sums[2][2]{};
  plain_tile<T>(a, b, rows.count, p.n - column, p.k, sums);
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) {
      const std::int64_t row = threadIdx.y + i * kPlainThreads, at = column + threadIdx.x + j * kPlainThreads;
      if (row < rows.count && at < p.n) static_cast<T*>(p.c)[(rows.first + row) * p.n + at] = narrow<T>(sums[i][j]);
    }
}

// dW[e] is n x k.
template <class T, class Out>
__global__ void plain_wgrad_kernel(Product p) {
  const std::int64_t expert = blockIdx.z, first = p.first_row[expert], count = p.first_row[expert + 1] - first;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kPlainTile,
                     column = static_cast<std::int64_t>(blockIdx.y) * kPlainTile;
  const Strided<T> a{static_cast<const T*>(p.a) + first * p.n + row, 1, p.n};
  const Strided<T> b{static_cast<const T*>(p.b) + first * p.k + column, p.k, 1};
  Wide<T> sums[2][2]{};
  plain_tile<T>(a, b, p.n - row, p.k - column, count, sums);
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) {
      const std::int64_t at_row = row + threadIdx.y + i * kPlainThreads, at = column + threadIdx.x + j * kPlainThreads;
      if (at_row >= p.n || at >= p.k) continue;
      Out& out = static_cast<Out*>(p.c)[(expert * p.n + at_row) * p.k + at];
      out = narrow<Out>(widen(out) + sums[i][j]);
    }
}

// --- bf16 on tensor cores
//
// A block computes a tile of 128 x 128 with 8 warps, each 64 x 32 of it, from pieces 32 deep of both operands, which
// come into shared memory four pieces ahead. Shared memory is cut in chunks of 16 bytes, which are exchanged within a
// row so that the 8 chunks that ldmatrix reads at once lie in different banks.

constexpr int kTile = 128, kDepth = 32, kStages = 4, kThreads = 256;
constexpr int kOperandElements = kTile * kDepth;
constexpr int kSharedBytes = kStages * 2 * kOperandElements * 2;
constexpr int kRowTilesTogether = 16;  // blocks of so many neighbours share what they read through L2

// How an operand of a tile lies in memory: along the depth, or along the tile's side.
enum class Along { Depth, Side };

struct Operand {
  const Bf16* data = nullptr;
  std::int64_t pitch = 0;  // elements between rows
  std::int64_t side = 0;   // valid elements from data on, of the tile's side
};

__device__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ void copy_chunk(Bf16* to, const Bf16* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}

// Element offset of a chunk in shared memory.
template <Along kAlong>
__device__ int chunk_at(int row, int chunk) {
  if constexpr (kAlong == Along::Depth) {
    return row * kDepth + ((chunk ^ ((row >> 1) & 3)) << 3);
  } else {
    return row * kTile + ((chunk ^ (row & 7)) << 3);
  }
}

// Starts to copy a piece; what lies outside becomes zero.
template <Along kAlong>
__device__ void load_piece(const Operand& operand, std::int64_t depth_from, std::int64_t depth, Bf16* to) {
  constexpr int kChunks = kAlong == Along::Depth ? kDepth / 8 : kTile / 8;
#pragma unroll
  for (int i = 0; i < kOperandElements / 8 / kThreads; ++i) {
    const int index = i * kThreads + static_cast<int>(threadIdx.x), row = index / kChunks, chunk = index % kChunks;
    std::int64_t side = row, deep = depth_from + chunk * 8;
    if constexpr (kAlong == Along::Side) {
      side = chunk * 8;
      deep = depth_from + row;
    }
    const bool valid = side < operand.side && deep < depth;
    const std::int64_t offset = kAlong == Along::Depth ? side * operand.pitch + deep : deep * operand.pitch + side;
    copy_chunk(to + chunk_at<kAlong>(row, chunk), operand.data + (valid ? offset : 0), valid);
  }
}

template <bool kTranspose>
__device__ void load_matrices(const Bf16* from, std::uint32_t (&to)[4]) {
  if constexpr (kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(from))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(from))
                 : "memory");
  }
}

// 16 of A's side by 16 deep: registers 0..3 are its quarters (side, depth) = (0,0), (8,0), (0,8), (8,8).
template <Along kAlong>
__device__ void load_a(const Bf16* piece, int side, int depth, std::uint32_t (&to)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (kAlong == Along::Depth) {
    load_matrices<false>(piece + chunk_at<kAlong>(side + lane % 16, depth / 8 + lane / 16), to);
  } else {
    load_matrices<true>(piece + chunk_at<kAlong>(depth + lane % 8 + lane / 16 * 8, side / 8 + lane / 8 % 2), to);
  }
}

// 16 of B's side by 16 deep: (side, depth) = (0,0), (0,8), (8,0), (8,8), so that each pair serves 8 columns.
template <Along kAlong>
__device__ void load_b(const Bf16* piece, int side, int depth, std::uint32_t (&to)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (kAlong == Along::Depth) {
    load_matrices<false>(piece + chunk_at<kAlong>(side + lane % 8 + lane / 16 * 8, depth / 8 + lane / 8 % 2), to);
  } else {
    load_matrices<true>(piece + chunk_at<kAlong>(depth + lane % 16, side / 8 + lane / 16), to);
  }
}

__device__ void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A warp's 64 x 32 of the tile: [16 rows][8 columns][registers].
using Sums = float[4][4][4];

template <Along kA, Along kB>
__device__ void multiply_piece(const Bf16* a_piece, const Bf16* b_piece, Sums& sums) {
  const int warp = static_cast<int>(threadIdx.x) / 32, row = warp / 4 * 64, column = warp % 4 * 32;
#pragma unroll
  for (int depth = 0; depth < kDepth; depth += 16) {
    std::uint32_t a[4][4], b[2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) load_a<kA>(a_piece, row + i * 16, depth, a[i]);
#pragma unroll
    for (int j = 0; j < 2; ++j) load_b<kB>(b_piece, column + j * 16, depth, b[j]);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) multiply_add(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
  }
}

// Sums of the tile over the whole depth.
template <Along kA, Along kB>
__device__ void multiply_tile(const Operand& a, const Operand& b, std::int64_t depth, Sums& sums) {
  extern __shared__ __align__(128) Bf16 shared[];
  const std::int64_t pieces = (depth + kDepth - 1) / kDepth;
  const auto stage = [&](std::int64_t piece) { return shared + piece % kStages * (2 * kOperandElements); };
  const auto load = [&](std::int64_t piece) {
    if (piece < pieces) {
      load_piece<kA>(a, piece * kDepth, depth, stage(piece));
      load_piece<kB>(b, piece * kDepth, depth, stage(piece) + kOperandElements);
    }
    asm volatile("cp.async.commit_group;\n" ::: "memory");  // an empty one at the end, so that counting stays right
  };
  for (int piece = 0; piece < kStages - 1; ++piece) load(piece);
  for (std::int64_t piece = 0; piece < pieces; ++piece) {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(kStages - 2) : "memory");
    __syncthreads();  // this piece is there for all, and the one before has been used by all
    load(piece + kStages - 1);
    multiply_piece<kA, kB>(stage(piece), stage(piece) + kOperandElements, sums);
  }
  asm volatile("cp.async.wait_group 0;\n" ::: "memory");
}

// Calls f(row, column, x, y) for each two neighbours of the tile's results.
template <class F>
__device__ void for_each_pair(const Sums& sums, F f) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        f(warp / 4 * 64 + i * 16 + lane / 4 + half * 8, warp % 4 * 32 + j * 8 + lane % 4 * 2, sums[i][j][half * 2],
          sums[i][j][half * 2 + 1]);
}

// Blocks in an order in which neighbours share operands.
struct TileAt {
  std::int64_t row, column;
};
__device__ TileAt tile_at(std::int64_t block, std::int64_t row_tiles, std::int64_t column_tiles) {
  const std::int64_t together = kRowTilesTogether * column_tiles, first = block / together * kRowTilesTogether;
  const std::int64_t rows = min(static_cast<long long>(kRowTilesTogether), static_cast<long long>(row_tiles - first));
  return {first + block % together % rows, block % together / rows};
}

template <bool kTransposed>
__global__ void __launch_bounds__(kThreads, 2) tensor_rows_kernel(Product p, std::int64_t row_tiles) {
  const TileAt tile = tile_at(blockIdx.x, row_tiles, (p.n + kTile - 1) / kTile);
  const Rows rows = piece_of_rows(p.first_row, p.experts, tile.row, kTile);
  if (rows.expert < 0) return;
  const std::int64_t column = tile.column * kTile;
  const Operand a{static_cast<const Bf16*>(p.a) + rows.first * p.k, p.k, rows.count};
  const Bf16* weights = static_cast<const Bf16*>(p.b) + rows.expert * p.n * p.k;
  const Operand b =
      kTransposed ? Operand{weights + column * p.k, p.k, p.n - column} : Operand{weights + column, p.n, p.n - column};
  Sums sums{};
  multiply_tile<Along::Depth, kTransposed ? Along::Depth : Along::Side>(a, b, p.k, sums);
  Bf16* c = static_cast<Bf16*>(p.c) + rows.first * p.n + column;
  for_each_pair(sums, [&](int i, int j, float x, float y) {
    if (i < rows.count && column + j < p.n)
      *reinterpret_cast<__nv_bfloat162*>(c + i * p.n + j) = __floats2bfloat162_rn(x, y);
  });
}

__device__ void add_pair(float* to, float x, float y) {
  float2 sum = *reinterpret_cast<float2*>(to);
  sum.x += x;
  sum.y += y;
  *reinterpret_cast<float2*>(to) = sum;
}
__device__ void add_pair(Bf16* to, float x, float y) {
  auto& pair = *reinterpret_cast<__nv_bfloat162*>(to);
  const float2 sum = __bfloat1622float2(pair);
  pair = __floats2bfloat162_rn(sum.x + x, sum.y + y);
}

template <class Out>
__global__ void __launch_bounds__(kThreads, 2) tensor_wgrad_kernel(Product p) {
  const std::int64_t expert = blockIdx.y, first = p.first_row[expert], count = p.first_row[expert + 1] - first;
  if (count == 0) return;
  const TileAt tile = tile_at(blockIdx.x, (p.n + kTile - 1) / kTile, (p.k + kTile - 1) / kTile);
  const std::int64_t row = tile.row * kTile, column = tile.column * kTile;
  const Operand a{static_cast<const Bf16*>(p.a) + first * p.n + row, p.n, p.n - row};
  const Operand b{static_cast<const Bf16*>(p.b) + first * p.k + column, p.k, p.k - column};
  Sums sums{};
  multiply_tile<Along::Side, Along::Side>(a, b, count, sums);
  Out* c = static_cast<Out*>(p.c) + (expert * p.n + row) * p.k + column;
  for_each_pair(sums, [&](int i, int j, float x, float y) {
    if (row + i < p.n && column + j < p.k) add_pair(c + i * p.k + j, x, y);
  });
}

// --- launching

bool fits_tensor_cores(const Gemm& gemm, const Tensor& a, const Tensor& b, const Tensor& c) {
  const auto aligned = [](const Tensor& x) { return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0; };
  return a.dtype == Dtype::Bf16 && gemm.n % 8 == 0 && gemm.k % 8 == 0 && aligned(a) && aligned(b) && aligned(c);
}

std::int64_t tiles(std::int64_t size, int tile) { return (size + tile - 1) / tile; }

template <class Kernel, class... Arguments>
void launch_tensor(Kernel kernel, dim3 grid, cudaStream_t stream, Arguments... arguments) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
        "asking for shared memory");
  kernel<<<grid, kThreads, kSharedBytes, stream>>>(arguments...);
}

template <class F>
void with_type(Dtype dtype, F f) {
  if (dtype == Dtype::Bf16) return f(Bf16{});
  if (dtype == Dtype::F32) return f(float{});
  f(double{});
}

}  // namespace

void first_rows(cudaStream_t stream, const Tensor& counts, std::int64_t rows, std::int32_t* first_row) {
  first_rows_kernel<<<1, 256, 0, stream>>>(static_cast<const std::int32_t*>(counts.data),
                                           counts.dims[0] * counts.dims[1], counts.dims[2], rows, first_row);
  check_launch("first rows of experts");
}

void plain_grouped_matmul(cudaStream_t stream, const Gemm& gemm, const Tensor& a, const Tensor& w,
                          const std::int32_t* first_row, std::int64_t experts, const Tensor& c) {
  const Product product{a.data, w.data, c.data, first_row, experts, gemm.n, gemm.k};
  if (fits_tensor_cores(gemm, a, w, c)) {
    const std::int64_t row_tiles = most_pieces(a.dims[0], experts, kTile);
    const dim3 grid(static_cast<unsigned>(row_tiles * tiles(gemm.n, kTile)));
    launch_tensor(gemm.trans_b ? tensor_rows_kernel<true> : tensor_rows_kernel<false>, grid, stream, product,
                  row_tiles);
  } else {
    const dim3 grid(static_cast<unsigned>(most_pieces(a.dims[0], experts, kPlainTile)),
                    static_cast<unsigned>(tiles(gemm.n, kPlainTile)));
    with_type(a.dtype, [&](auto zero) {
      plain_rows_kernel<decltype(zero)><<<grid, dim3(kPlainThreads, kPlainThreads), 0, stream>>>(product, gemm.trans_b);
    });
  }
  check_launch("grouped matmul");
}

void plain_grouped_wgrad(cudaStream_t stream, const Gemm& gemm, const Tensor& dy, const Tensor& x,
                         const std::int32_t* first_row, std::int64_t experts, const Tensor& dw) {
  const Product product{dy.data, x.data, dw.data, first_row, experts, gemm.n, gemm.k};
  const auto groups = static_cast<unsigned>(experts);
  if (fits_tensor_cores(gemm, dy, x, dw)) {
    const dim3 grid(static_cast<unsigned>(tiles(gemm.n, kTile) * tiles(gemm.k, kTile)), groups);
    launch_tensor(dw.dtype == Dtype::F32 ? tensor_wgrad_kernel<float> : tensor_wgrad_kernel<Bf16>, grid, stream,
                  product);
  } else {
    const dim3 grid(static_cast<unsigned>(tiles(gemm.n, kPlainTile)), static_cast<unsigned>(tiles(gemm.k, kPlainTile)),
                    groups),
        block(kPlainThreads, kPlainThreads);
    with_type(dy.dtype, [&](auto zero) {
      using T = decltype(zero);
      if (std::is_same_v<T, Bf16> && dw.dtype == Dtype::F32) {
        if constexpr (std::is_same_v<T, Bf16>) plain_wgrad_kernel<T, float><<<grid, block, 0, stream>>>(product);
      } else {
        plain_wgrad_kernel<T, T><<<grid, block, 0, stream>>>(product);
      }
    });
  }
  check_launch("grouped weight gradient");
}

}  // namespace trainyard::kernels::cuda
