#include "kernels/cuda/cuda_kernels.h"

#include "kernels/cuda/attention_cache.h"
#include "kernels/cuda/grouped_cache.h"
#include "kernels/cuda/matmul_cache.h"

namespace trainyard::kernels::cuda {

namespace {

int multiprocessors() {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "asking for the GPU in use");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "counting multiprocessors");
  return count;
}

}  // namespace

CudaKernels::CudaKernels(cudaStream_t stream)
    : stream_(stream),
      scratch_(stream),
      multiprocessors_(multiprocessors()),
      matmul_(std::make_unique<MatmulCache>()),
      attention_(std::make_unique<AttentionCache>(stream)),
      grouped_(std::make_unique<GroupedCache>(stream)) {}

// Here, where the caches are known.
CudaKernels::~CudaKernels() = default;

}  // namespace trainyard::kernels::cuda
