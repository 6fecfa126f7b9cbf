// Products of rows with their experts' weights as a cuDNN graph.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>

#include "kernels/cuda/cudnn_graph.h"

namespace trainyard::kernels::cuda {

/// rows[R,k] sorted by expert; weights [E,n,k] (transposed) or [E,k,n]; y[R,n]; first_row i32[E].
struct GroupedGraphShape {
  std::int64_t rows = 0, n = 0, k = 0, experts = 0;
  bool transposed = true;
  auto operator<=>(const GroupedGraphShape&) const = default;
};

enum GroupedOperand : std::int64_t { kGroupedRows = 1, kGroupedWeights, kGroupedFirstRow, kGroupedY };

std::unique_ptr<CudnnGraph> grouped_graph(const GroupedGraphShape& shape);

}  // namespace trainyard::kernels::cuda
