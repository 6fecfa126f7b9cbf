// Products by expert. How many rows each has is known on the device only, so the host waits for the counts, and one
// product after another goes to cuBLASLt: the wait costs microseconds, and no kernel that reads sizes on the device is
// near it.
//
// In a graph nothing can be waited for: there cuDNN multiplies by weights that lie along the depth; for others, and for
// the gradients of weights, where the sum has as many terms as an expert has rows, version 9.19 has no engine.

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/grouped_cache.h"
#include "kernels/cuda/grouped_plain.h"
#include "kernels/cuda/matmul_cache.h"

namespace trainyard::kernels::cuda {

namespace {

std::int64_t offsets_bytes(std::int64_t experts) { return ((experts + 1) * 4 + 255) / 256 * 256; }

bool waits_allowed(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "asking whether a graph is captured");
  return status == cudaStreamCaptureStatusNone;
}

// Rows [first, first + count) of a matrix, or one matrix of several: what lies behind the first `before` elements.
Tensor slice(const Tensor& x, std::int64_t before, std::int64_t rows, std::int64_t columns) {
  return {static_cast<std::byte*>(x.data) + before * size_of(x.dtype), x.dtype, {rows, columns, 1}};
}

bool aligned(const Tensor& x) { return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0; }

bool cudnn_may(const Gemm& gemm, const Tensor& a, const Tensor& w, const Tensor& c) {
  return a.dtype == Dtype::Bf16 && gemm.trans_b && gemm.n % 8 == 0 && gemm.k % 8 == 0 && aligned(a) && aligned(w) &&
         aligned(c);
}

// A graph that cuDNN refuses as a whole is as good as one without an engine.
std::unique_ptr<CudnnGraph> compiled(const GroupedGraphShape& shape, cudnnHandle_t handle) try {
  std::unique_ptr<CudnnGraph> graph = grouped_graph(shape);
  return graph->compile(CudnnTarget(handle)) ? std::move(graph) : nullptr;
} catch (const std::runtime_error&) {
  return nullptr;
}

}  // namespace

GroupedCache::GroupedCache(cudaStream_t stream) {
  check(cudnnCreate(&handle_), "starting");
  check(cudnnSetStream(handle_, stream), "setting the stream");
}

GroupedCache::~GroupedCache() {
  graphs_.clear();
  cudnnDestroy(handle_);
  cudaFreeHost(host_counts_);
}

const std::vector<std::int64_t>& GroupedCache::rows_by_expert(cudaStream_t stream, const Tensor& counts) {
  if (counts.size() > host_counts_size_) {
    check(cudaFreeHost(host_counts_), "freeing host memory");
    host_counts_ = nullptr;
    void* memory = nullptr;
    check(cudaMallocHost(&memory, static_cast<std::size_t>(counts.size()) * 4), "allocating host memory for counts");
    host_counts_ = static_cast<std::int32_t*>(memory);
    host_counts_size_ = counts.size();
  }
  check(cudaMemcpyAsync(host_counts_, counts.data, static_cast<std::size_t>(counts.size()) * 4, cudaMemcpyDeviceToHost,
                        stream),
        "copying counts to the host");
  check(cudaStreamSynchronize(stream), "waiting for counts");
  const std::int64_t experts = counts.dims[2];
  rows_.assign(static_cast<std::size_t>(experts), 0);
  for (std::int64_t i = 0; i < counts.size(); ++i) rows_[static_cast<std::size_t>(i % experts)] += host_counts_[i];
  return rows_;
}

const CudnnGraph* GroupedCache::graph(const GroupedGraphShape& shape) {
  const auto [graph, is_new] = graphs_.try_emplace(shape);
  if (is_new) graph->second = compiled(shape, handle_);
  return graph->second.get();
}

void CudaKernels::grouped_matmul(const Gemm& gemm, const Tensor& a, const Tensor& w, const Tensor& counts,
                                 const Tensor& c) {
  const std::int64_t rows = a.dims[0], experts = counts.dims[2];
  if (rows == 0) return;
  if (a.dtype == Dtype::Bf16 && waits_allowed(stream_)) {
    std::int64_t first = 0;
    const std::vector<std::int64_t>& by_expert = grouped_->rows_by_expert(stream_, counts);
    for (std::size_t e = 0; e < by_expert.size(); first += by_expert[e++]) {
      const std::int64_t its = by_expert[e];
      if (its == 0) continue;
      Gemm product = gemm;
      product.m = its;
      matmul_->run_once(stream_, product, slice(a, first * gemm.k, its, gemm.k),
                        slice(w, static_cast<std::int64_t>(e) * gemm.n * gemm.k, gemm.n, gemm.k),
                        slice(c, first * gemm.n, its, gemm.n));
    }
    return;
  }
  const CudnnGraph* graph =
      cudnn_may(gemm, a, w, c) ? grouped_->graph({rows, gemm.n, gemm.k, experts, gemm.trans_b}) : nullptr;
  const std::int64_t workspace_bytes = graph != nullptr ? graph->workspace_bytes() : 0;
  std::byte* memory = scratch_.take(offsets_bytes(experts) + workspace_bytes);
  auto* first_row = reinterpret_cast<std::int32_t*>(memory);
  first_rows(stream_, counts, rows, first_row);
  if (graph == nullptr) {
    plain_grouped_matmul(stream_, gemm, a, w, first_row, experts, c);
    return;
  }
  // Rows past the counts are multiplied by the last expert's weights: nobody reads them.
  graph->run(grouped_->handle(),
             {{kGroupedRows, a.data}, {kGroupedWeights, w.data}, {kGroupedFirstRow, first_row}, {kGroupedY, c.data}},
             memory + offsets_bytes(experts));
}

void CudaKernels::grouped_matmul_wgrad(const Gemm& gemm, const Tensor& dy, const Tensor& x, const Tensor& counts,
                                       const Tensor& dw) {
  const std::int64_t rows = dy.dims[0], experts = counts.dims[2];
  if (rows == 0) return;
  if (dy.dtype == Dtype::Bf16 && waits_allowed(stream_)) {
    std::int64_t first = 0;
    const std::vector<std::int64_t>& by_expert = grouped_->rows_by_expert(stream_, counts);
    for (std::size_t e = 0; e < by_expert.size(); first += by_expert[e++]) {
      const std::int64_t its = by_expert[e];
      if (its == 0) continue;
      matmul_->run_once(stream_, {gemm.n, gemm.k, its, true, false, true, gemm.alpha},
                        slice(dy, first * gemm.n, its, gemm.n), slice(x, first * gemm.k, its, gemm.k),
                        slice(dw, static_cast<std::int64_t>(e) * gemm.n * gemm.k, gemm.n, gemm.k));
    }
    return;
  }
  auto* first_row = reinterpret_cast<std::int32_t*>(scratch_.take(offsets_bytes(experts)));
  first_rows(stream_, counts, rows, first_row);
  plain_grouped_wgrad(stream_, gemm, dy, x, first_row, experts, dw);
}

}  // namespace trainyard::kernels::cuda
