// cuDNN with the attention graphs of shapes that it has met.
#pragma once

#include <cudnn.h>

#include <map>
#include <memory>

#include "kernels/cuda/attention_graph.h"

namespace trainyard::kernels::cuda {

class AttentionCache {
 public:
  explicit AttentionCache(cudaStream_t stream);
  ~AttentionCache();
  AttentionCache(const AttentionCache&) = delete;
  AttentionCache& operator=(const AttentionCache&) = delete;

  [[nodiscard]] cudnnHandle_t handle() const { return handle_; }
  /// Compiled when a shape is first met; null where cuDNN has no engine for it.
  const CudnnGraph* forward(const AttentionGraphShape& shape);
  const CudnnGraph* backward(const AttentionGraphShape& shape);

 private:
  using Graphs = std::map<AttentionGraphShape, std::unique_ptr<CudnnGraph>>;

  cudnnHandle_t handle_ = nullptr;
  Graphs forward_, backward_;
};

}  // namespace trainyard::kernels::cuda
