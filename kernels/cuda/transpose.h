// Statistics of attention between our layout, f32[rows, heads], and cuDNN's, f32[sequences, heads, length].
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace trainyard::kernels::cuda {

/// The first `heads` of `row_heads` in a row.
struct HeadStats {
  std::int64_t sequences = 1, heads = 1, length = 1, row_heads = 1;
};

void stats_to_rows(cudaStream_t stream, const HeadStats& shape, const float* stats, float* rows);
void rows_to_stats(cudaStream_t stream, const HeadStats& shape, const float* rows, float* stats);

}  // namespace trainyard::kernels::cuda
