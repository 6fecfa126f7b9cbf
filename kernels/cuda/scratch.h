// Device memory that kernels of one stream use while they run: taken in turn, given back all at once. What was taken
// stays good for work that is already queued, because the stream's next user comes after it.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/error.h"

namespace trainyard::kernels::cuda {

class Scratch {
 public:
  explicit Scratch(cudaStream_t stream) : stream_(stream) {}
  ~Scratch() { cudaFree(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  /// `bytes` of device memory, aligned to 256, for kernels queued before the next call. Growing waits for the stream,
  /// so the sizes of a step are to be met once before it is captured.
  std::byte* take(std::int64_t bytes) {
    if (bytes > size_) grow(bytes);
    return memory_;
  }

 private:
  void grow(std::int64_t bytes) {
    check(cudaStreamSynchronize(stream_), "waiting for a stream before its scratch memory grows");
    check(cudaFree(memory_), "freeing scratch memory");
    memory_ = nullptr;
    size_ = 0;
    void* memory = nullptr;
    check(cudaMalloc(&memory, static_cast<std::size_t>(bytes)), "allocating scratch memory");
    memory_ = static_cast<std::byte*>(memory);
    size_ = bytes;
  }

  cudaStream_t stream_;
  std::byte* memory_ = nullptr;
  std::int64_t size_ = 0;
};

}  // namespace trainyard::kernels::cuda
