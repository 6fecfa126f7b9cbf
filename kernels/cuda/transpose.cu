#include <cmath>

#include "kernels/cuda/error.h"
#include "kernels/cuda/transpose.h"

namespace trainyard::kernels::cuda {

namespace {

constexpr int kThreads = 256;

// A thread for each element of stats, so that one side of the copy is read or written in order; to rows, one for those
// that have no stats as well.
template <bool kToRows>
__global__ void transpose(HeadStats shape, const float* __restrict__ from, float* __restrict__ to) {
  const std::int64_t first = kToRows ? 0 : shape.first_row, count = kToRows ? shape.sequence_rows : shape.length;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= shape.sequences * shape.heads * count) return;
  const std::int64_t head = i / count % shape.heads, sequence = i / (count * shape.heads), t = first + i % count;
  const std::int64_t row = (sequence * shape.sequence_rows + t) * shape.row_heads + head;
  const std::int64_t stat = (sequence * shape.heads + head) * shape.length + t - shape.first_row;
  if constexpr (kToRows) {
    const bool sees = t >= shape.first_row && t < shape.first_row + shape.length;
    to[row] = sees ? from[stat] : -INFINITY;
  } else {
    to[stat] = from[row];
  }
}

template <bool kToRows>
void launch(cudaStream_t stream, const HeadStats& shape, const float* from, float* to) {
  const std::int64_t count = shape.sequences * shape.heads * (kToRows ? shape.sequence_rows : shape.length);
  if (count == 0) return;
  transpose<kToRows>
      <<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0, stream>>>(shape, from, to);
  check_launch("transpose of attention's statistics");
}

}  // namespace

void stats_to_rows(cudaStream_t stream, const HeadStats& shape, const float* stats, float* rows) {
  launch<true>(stream, shape, stats, rows);
}

void rows_to_stats(cudaStream_t stream, const HeadStats& shape, const float* rows, float* stats) {
  launch<false>(stream, shape, rows, stats);
}

}  // namespace trainyard::kernels::cuda
