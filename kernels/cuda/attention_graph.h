// Causal attention and its gradient as cuDNN graphs, in the one form that the library's fused engines know.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>

#include "kernels/cuda/cudnn_graph.h"

namespace trainyard::kernels::cuda {

/// What one run of a graph covers: some of the sequences and some of the heads of tensors that hold more heads a row.
/// q[sequences * length, row_query_heads * dim], k and v alike, in bf16; stats f32[sequences, query_heads, length],
/// the log of the sum of exponentials.
struct AttentionGraphShape {
  std::int64_t sequences = 1, length = 1, dim = 1;
  std::int64_t query_heads = 1, key_heads = 1;          // of this run
  std::int64_t row_query_heads = 1, row_key_heads = 1;  // of the tensors
  std::int64_t window = 0;                              // 0: none
  double scale = 1, softcap = 0;                        // 0: no cap
  auto operator<=>(const AttentionGraphShape&) const = default;
};

/// Operands by number. delta is f32 like stats, for the library's use.
enum AttentionOperand : std::int64_t {
  kAttentionQ = 1,
  kAttentionK,
  kAttentionV,
  kAttentionO,
  kAttentionStats,
  kAttentionDO,
  kAttentionDQ,
  kAttentionDK,
  kAttentionDV,
  kAttentionDelta
};

std::unique_ptr<CudnnGraph> attention_graph(const AttentionGraphShape& shape);
/// In the form in which dq is summed in one order: it needs 2 bytes of workspace for each pair of positions and query
/// head. See attention_grad_workspace.
std::unique_ptr<CudnnGraph> attention_grad_graph(const AttentionGraphShape& shape);
/// About what the latter's workspace will be, in bytes.
std::int64_t attention_grad_workspace(const AttentionGraphShape& shape);

}  // namespace trainyard::kernels::cuda
