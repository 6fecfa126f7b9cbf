// cuBLASLt with the plans of shapes that it has met. One for a stream: its workspace serves one product at a time.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <memory>

#include "kernels/kernels.h"

namespace trainyard::kernels::cuda {

class MatmulCache {
 public:
  MatmulCache();
  ~MatmulCache();
  MatmulCache(const MatmulCache&) = delete;
  MatmulCache& operator=(const MatmulCache&) = delete;

  /// a and b of one type, c of it too, or f32 of bf16. False: the bias has still to be added.
  bool run(cudaStream_t stream, const Gemm& gemm, const Tensor& a, const Tensor& b, const Tensor& bias,
           const Tensor& c);
  /// The same without bias, for sizes of which each may be met once: m or k are what an expert has in rows. Keeps
  /// algorithms by size, coarsely, and no plans.
  void run_once(cudaStream_t stream, const Gemm& gemm, const Tensor& a, const Tensor& b, const Tensor& c);

 private:
  class Plan;
  struct Plans;

  cublasLtHandle_t handle_ = nullptr;
  std::byte* workspace_ = nullptr;
  std::unique_ptr<Plans> plans_;
};

}  // namespace trainyard::kernels::cuda
