// What products by expert keep: cuDNN with the graphs of shapes that it has met, and room for counts on the host.
#pragma once

#include <cudnn.h>

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "kernels/cuda/grouped_graph.h"

namespace trainyard::kernels::cuda {

class GroupedCache {
 public:
  explicit GroupedCache(cudaStream_t stream);
  ~GroupedCache();
  GroupedCache(const GroupedCache&) = delete;
  GroupedCache& operator=(const GroupedCache&) = delete;

  [[nodiscard]] cudnnHandle_t handle() const { return handle_; }
  /// Rows by expert, of counts [segments, sources, experts] on the device. Waits for the stream.
  const std::vector<std::int64_t>& rows_by_expert(cudaStream_t stream, const Tensor& counts);
  /// Compiled when a shape is first met; null where cuDNN has no engine for it.
  const CudnnGraph* graph(const GroupedGraphShape& shape);

 private:
  cudnnHandle_t handle_ = nullptr;
  std::int32_t* host_counts_ = nullptr;  // pinned
  std::int64_t host_counts_size_ = 0;
  std::vector<std::int64_t> rows_;
  std::map<GroupedGraphShape, std::unique_ptr<CudnnGraph>> graphs_;
};

}  // namespace trainyard::kernels::cuda
