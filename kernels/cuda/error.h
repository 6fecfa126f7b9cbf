// CUDA's, cuBLAS's and cuDNN's results as exceptions that say what was tried.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <cudnn.h>

#include <stdexcept>
#include <string>

namespace trainyard::kernels::cuda {

inline void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorName(result) + " (" +
                           cudaGetErrorString(result) + ")");
}

inline void check(cublasStatus_t result, const char* what) {
  if (result == CUBLAS_STATUS_SUCCESS) return;
  throw std::runtime_error(std::string("cuBLASLt: ") + what + ": " + cublasLtGetStatusName(result));
}

inline void check(cudnnStatus_t result, const char* what) {
  if (result == CUDNN_STATUS_SUCCESS) return;
  char last[512] = "";
  cudnnGetLastErrorString(last, sizeof last);
  throw std::runtime_error(std::string("cuDNN: ") + what + ": " + cudnnGetErrorString(result) + ": " + last);
}

/// After a kernel was launched.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

}  // namespace trainyard::kernels::cuda
