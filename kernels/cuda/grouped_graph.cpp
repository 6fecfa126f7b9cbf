#include "kernels/cuda/grouped_graph.h"

namespace trainyard::kernels::cuda {

std::unique_ptr<CudnnGraph> grouped_graph(const GroupedGraphShape& shape) {
  auto graph = std::make_unique<CudnnGraph>();
  const std::int64_t r = shape.rows, n = shape.n, k = shape.k, e = shape.experts;
  const CudnnGraph::Sizes strides = shape.transposed ? CudnnGraph::Sizes{k * n, 1, k} : CudnnGraph::Sizes{k * n, n, 1};
  const auto rows = graph->operand(kGroupedRows, CUDNN_DATA_BFLOAT16, {1, r, k}, {r * k, k, 1});
  const auto weights = graph->operand(kGroupedWeights, CUDNN_DATA_BFLOAT16, {e, k, n}, strides);
  const auto first_row = graph->operand(kGroupedFirstRow, CUDNN_DATA_INT32, {e, 1, 1}, {1, 1, 1});
  const auto y = graph->operand(kGroupedY, CUDNN_DATA_BFLOAT16, {1, r, n}, {r * n, n, 1});
  graph->grouped_matmul(rows, weights, first_row, y);
  return graph;
}

}  // namespace trainyard::kernels::cuda
