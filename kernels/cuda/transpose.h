// Statistics of attention between our layout, f32[rows, heads], and cuDNN's, f32[sequences, heads, length].
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace trainyard::kernels::cuda {

/// The first `heads` of `row_heads` in a row, and of the `sequence_rows` of a sequence `length` from `first_row` on.
struct HeadStats {
  std::int64_t sequences = 1, heads = 1, length = 1, row_heads = 1, sequence_rows = 1, first_row = 0;
};

/// The other rows of these heads see no key: they get the log of nothing.
void stats_to_rows(cudaStream_t stream, const HeadStats& shape, const float* stats, float* rows);
void rows_to_stats(cudaStream_t stream, const HeadStats& shape, const float* rows, float* stats);

}  // namespace trainyard::kernels::cuda
