// Attention and its gradient as cuDNN graphs, in the one form that the library's fused engines know.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>

#include "kernels/cuda/cudnn_graph.h"

namespace trainyard::kernels::cuda {

/// What one run of a graph covers: some of the sequences, some of the heads and some of the rows of tensors that hold
/// more. q[sequences * query_stride(), row_query_heads * dim], of which the first `length` rows of each sequence, k and
/// v alike, in bf16; stats f32[sequences, query_heads, length], the log of the sum of exponentials.
struct AttentionGraphShape {
  std::int64_t sequences = 1, length = 1, dim = 1;
  std::int64_t query_heads = 1, key_heads = 1;          // of this run
  std::int64_t row_query_heads = 1, row_key_heads = 1;  // of the tensors
  std::int64_t window = 0;                              // 0: none
  double scale = 1, softcap = 0;                        // 0: no cap
  std::int64_t key_length = 0;                          // 0: that of the queries
  bool causal = true;                                   // else every query sees every key, and there is no window
  std::int64_t sequence_rows = 0;                       // of the tensors; 0: no more than are covered
  auto operator<=>(const AttentionGraphShape&) const = default;

  [[nodiscard]] std::int64_t keys() const { return key_length > 0 ? key_length : length; }
  /// From a sequence to the next, in rows.
  [[nodiscard]] std::int64_t query_stride() const { return sequence_rows > 0 ? sequence_rows : length; }
  [[nodiscard]] std::int64_t key_stride() const { return sequence_rows > 0 ? sequence_rows : keys(); }
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
/// In the form in which dq is summed in one order: it needs 2 bytes of workspace for each query, key and query head.
/// See attention_grad_workspace.
std::unique_ptr<CudnnGraph> attention_grad_graph(const AttentionGraphShape& shape);
/// About what the latter's workspace will be, in bytes.
std::int64_t attention_grad_workspace(const AttentionGraphShape& shape);

}  // namespace trainyard::kernels::cuda
