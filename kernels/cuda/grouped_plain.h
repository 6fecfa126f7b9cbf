// Products of rows with their experts' weights, by kernels of our own: on tensor cores in bf16 where sizes are
// multiples of 8, else one multiplication at a time. All sizes that depend on the routing are read on the device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/kernels.h"

namespace trainyard::kernels::cuda {

/// first_row i32[E + 1] of counts i32[S,C,E]: where each expert's rows begin, and where the last one's end. More rows
/// than there are: the kernel traps.
void first_rows(cudaStream_t stream, const Tensor& counts, std::int64_t rows, std::int32_t* first_row);

/// As Kernels::grouped_matmul; rows past the counts stay as they are.
void plain_grouped_matmul(cudaStream_t stream, const Gemm& gemm, const Tensor& a, const Tensor& w,
                          const std::int32_t* first_row, std::int64_t experts, const Tensor& c);
/// As Kernels::grouped_matmul_wgrad. Sums run over the rows in order.
void plain_grouped_wgrad(cudaStream_t stream, const Gemm& gemm, const Tensor& dy, const Tensor& x,
                         const std::int32_t* first_row, std::int64_t experts, const Tensor& dw);

}  // namespace trainyard::kernels::cuda
