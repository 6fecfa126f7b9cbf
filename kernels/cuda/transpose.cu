#include "kernels/cuda/error.h"
#include "kernels/cuda/transpose.h"

namespace trainyard::kernels::cuda {

namespace {

constexpr int kThreads = 256;

// A thread for each element of stats, so that one side of the copy is read or written in order.
template <bool kToRows>
__global__ void transpose(HeadStats shape, const float* __restrict__ from, float* __restrict__ to) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= shape.sequences * shape.heads * shape.length) return;
  const std::int64_t t = i % shape.length, head = i / shape.length % shape.heads,
                     sequence = i / (shape.length * shape.heads);
  const std::int64_t row = (sequence * shape.length + t) * shape.row_heads + head;
  if constexpr (kToRows) {
    to[row] = from[i];
  } else {
    to[i] = from[row];
  }
}

template <bool kToRows>
void launch(cudaStream_t stream, const HeadStats& shape, const float* from, float* to) {
  const std::int64_t count = shape.sequences * shape.heads * shape.length;
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
