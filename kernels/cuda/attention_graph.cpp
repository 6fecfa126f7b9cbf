#include "kernels/cuda/attention_graph.h"

#include <limits>

namespace trainyard::kernels::cuda {

namespace {

using Value = CudnnGraph::Value;
using Sizes = CudnnGraph::Sizes;

constexpr cudnnDataType_t kBf16 = CUDNN_DATA_BFLOAT16;

// Operands and steps that both directions share. Scores are [sequences, query heads, queries, keys].
class AttentionGraph {
 public:
  explicit AttentionGraph(const AttentionGraphShape& shape)
      : shape_(shape),
        scores_{shape.sequences, shape.query_heads, shape.length, shape.keys()},
        rows_{shape.sequences, shape.query_heads, shape.length, 1} {}

  [[nodiscard]] CudnnGraph& graph() { return *graph_; }
  std::unique_ptr<CudnnGraph> take() { return std::move(graph_); }
  [[nodiscard]] const Sizes& scores() const { return scores_; }
  [[nodiscard]] const Sizes& rows() const { return rows_; }

  Value query_like(std::int64_t operand) {
    const std::int64_t row = shape_.row_query_heads * shape_.dim;
    return graph_->operand(operand, kBf16, {shape_.sequences, shape_.query_heads, shape_.length, shape_.dim},
                           {shape_.query_stride() * row, shape_.dim, row, 1});
  }
  Value key_like(std::int64_t operand) { return graph_->operand(operand, kBf16, key_dims(), key_strides()); }
  Value key_like_transposed(std::int64_t operand) {
    const std::int64_t row = shape_.row_key_heads * shape_.dim;
    return graph_->operand(operand, kBf16, {shape_.sequences, shape_.key_heads, shape_.dim, shape_.keys()},
                           {shape_.key_stride() * row, shape_.dim, 1, row});
  }
  /// The same memory, the other way round.
  Value keys_of(const Value& transposed) {
    return graph_->reshape(transposed, graph_->inner(key_dims(), key_strides(), kBf16));
  }
  Value stats_like(std::int64_t operand) {
    return graph_->operand(operand, CUDNN_DATA_FLOAT, rows_, {shape_.query_heads * shape_.length, shape_.length, 1, 1});
  }

  /// cap * tanh(x / cap), and x / cap for the way back.
  Value cap(const Value& x) {
    limit_ = graph_->constant(static_cast<float>(shape_.softcap));
    before_tanh_ = graph_->pointwise(CUDNN_POINTWISE_DIV, x, limit_, graph_->inner(scores_));
    const Value tanh = graph_->pointwise(CUDNN_POINTWISE_TANH_FWD, before_tanh_, graph_->inner(scores_));
    return graph_->pointwise(CUDNN_POINTWISE_MUL, tanh, limit_, graph_->inner(scores_));
  }
  Value cap_grad(const Value& dy) {
    const Value scaled = graph_->pointwise(CUDNN_POINTWISE_MUL, dy, limit_, graph_->inner(scores_));
    const Value dx = graph_->pointwise_grad(CUDNN_POINTWISE_TANH_BWD, scaled, before_tanh_, graph_->inner(scores_));
    return graph_->pointwise(CUDNN_POINTWISE_DIV, dx, limit_, graph_->inner(scores_));
  }

  /// Minus infinity where a query may not see the key.
  Value mask(Value x) {
    if (!shape_.causal) return x;
    const Value query = index(x, 2), key = index(x, 3);
    x = hide_unless(CUDNN_POINTWISE_CMP_GE, query, key, x);
    if (shape_.window == 0) return x;
    const Value window = graph_->constant(static_cast<float>(shape_.window));
    const Value last =
        graph_->pointwise(CUDNN_POINTWISE_ADD, index(x, 3), window, graph_->inner(scores_), CUDNN_DATA_FLOAT, 3);
    return hide_unless(CUDNN_POINTWISE_CMP_GT, last, index(x, 2), x);
  }

 private:
  [[nodiscard]] Sizes key_dims() const { return {shape_.sequences, shape_.key_heads, shape_.keys(), shape_.dim}; }
  [[nodiscard]] Sizes key_strides() const {
    const std::int64_t row = shape_.row_key_heads * shape_.dim;
    return {shape_.key_stride() * row, shape_.dim, row, 1};
  }
  Value index(const Value& x, std::int64_t axis) {
    return graph_->pointwise(CUDNN_POINTWISE_GEN_INDEX, x, graph_->inner(scores_, CUDNN_DATA_INT32), CUDNN_DATA_INT32,
                             axis);
  }
  Value hide_unless(cudnnPointwiseMode_t comparison, const Value& a, const Value& b, const Value& x) {
    const Value seen =
        graph_->pointwise(comparison, a, b, graph_->inner(scores_, CUDNN_DATA_BOOLEAN), CUDNN_DATA_BOOLEAN);
    const Value hidden = graph_->constant(-std::numeric_limits<float>::infinity());
    return graph_->select(seen, x, hidden, graph_->inner(scores_));
  }

  const AttentionGraphShape shape_;
  const Sizes scores_, rows_;
  std::unique_ptr<CudnnGraph> graph_ = std::make_unique<CudnnGraph>();
  Value limit_, before_tanh_;
};

// [b,h,s,t] to [b,h,t,s], as a view.
Value transposed(CudnnGraph& graph, const Sizes& scores, const Value& x) {
  const std::int64_t heads = scores[1], s = scores[2], t = scores[3];
  return graph.reshape(x, graph.inner({scores[0], heads, t, s}, {heads * s * t, s * t, 1, t}, kBf16));
}

// y = a b for each query head; where several share a key head, summed over them.
void matmul_by_key_head(CudnnGraph& graph, const AttentionGraphShape& shape, const Value& a, const Value& b,
                        const Value& y) {
  if (shape.query_heads == shape.key_heads) {
    graph.matmul(a, b, y);
    return;
  }
  const Sizes dims{shape.sequences, shape.query_heads, shape.keys(), shape.dim};
  graph.reduce(CUDNN_REDUCE_TENSOR_ADD, graph.matmul(a, b, graph.inner(dims, kBf16)), y);
}

}  // namespace

std::unique_ptr<CudnnGraph> attention_graph(const AttentionGraphShape& shape) {
  AttentionGraph attention(shape);
  CudnnGraph& graph = attention.graph();
  const Sizes &scores = attention.scores(), &rows = attention.rows();
  const Value q = attention.query_like(kAttentionQ), k = attention.key_like_transposed(kAttentionK),
              v = attention.key_like(kAttentionV), o = attention.query_like(kAttentionO),
              stats = attention.stats_like(kAttentionStats), scale = graph.constant(static_cast<float>(shape.scale));

  Value s = graph.matmul(q, k, graph.inner(scores));
  s = graph.pointwise(CUDNN_POINTWISE_MUL, s, scale, graph.inner(scores));
  if (shape.softcap > 0) s = attention.cap(s);
  s = attention.mask(s);

  const Value max = graph.reduce(CUDNN_REDUCE_TENSOR_MAX, s, graph.inner(rows));
  const Value lower = graph.pointwise(CUDNN_POINTWISE_SUB, s, max, graph.inner(scores));
  const Value exp = graph.pointwise(CUDNN_POINTWISE_EXP, lower, graph.inner(scores));
  const Value sum = graph.reduce(CUDNN_REDUCE_TENSOR_ADD, exp, graph.inner(rows));
  const Value log = graph.pointwise(CUDNN_POINTWISE_LOG, sum, graph.inner(rows));
  graph.pointwise(CUDNN_POINTWISE_ADD, max, log, stats);
  const Value p = graph.pointwise(CUDNN_POINTWISE_DIV, exp, sum, graph.inner(scores, kBf16));
  graph.matmul(p, v, o);
  return attention.take();
}

std::unique_ptr<CudnnGraph> attention_grad_graph(const AttentionGraphShape& shape) {
  AttentionGraph attention(shape);
  CudnnGraph& graph = attention.graph();
  const Sizes &scores = attention.scores(), &rows = attention.rows();
  const Value q = attention.query_like(kAttentionQ), kt = attention.key_like_transposed(kAttentionK),
              vt = attention.key_like_transposed(kAttentionV), o = attention.query_like(kAttentionO),
              stats = attention.stats_like(kAttentionStats), dout = attention.query_like(kAttentionDO),
              dq = attention.query_like(kAttentionDQ), dk = attention.key_like(kAttentionDK),
              dv = attention.key_like(kAttentionDV), scale = graph.constant(static_cast<float>(shape.scale));

  // delta = sum of dO * O over a head. The engines want its product with one: where a dropout's scale would be.
  const std::int64_t heads = shape.query_heads, length = shape.length, dim = shape.dim;
  const Value products = graph.inner({shape.sequences, heads, length, dim},
                                     {heads * length * dim, length * dim, heads * dim, 1}, CUDNN_DATA_FLOAT);
  graph.pointwise(CUDNN_POINTWISE_MUL, dout, o, products);
  const Value sum = graph.reduce(CUDNN_REDUCE_TENSOR_ADD, products, graph.inner(rows));
  const Value delta =
      graph.pointwise(CUDNN_POINTWISE_MUL, sum, graph.constant(1), attention.stats_like(kAttentionDelta));

  // Weights once more; the engines know the mask before the subtraction where there is a cap, and after it elsewhere.
  Value s = graph.matmul(q, kt, graph.inner(scores));
  s = graph.pointwise(CUDNN_POINTWISE_MUL, s, scale, graph.inner(scores));
  const bool capped = shape.softcap > 0;
  if (capped) s = attention.mask(attention.cap(s));
  s = graph.pointwise(CUDNN_POINTWISE_SUB, s, stats, graph.inner(scores));
  if (!capped) s = attention.mask(s);
  const Value p = graph.pointwise(CUDNN_POINTWISE_EXP, s, graph.inner(scores));
  matmul_by_key_head(graph, shape, transposed(graph, scores, p), dout, dv);

  Value ds = graph.matmul(dout, vt, graph.inner(scores));
  ds = graph.pointwise(CUDNN_POINTWISE_SUB, ds, delta, graph.inner(scores));
  ds = graph.pointwise(CUDNN_POINTWISE_MUL, ds, p, graph.inner(scores));
  if (capped) ds = attention.cap_grad(ds);
  ds = graph.pointwise(CUDNN_POINTWISE_MUL, ds, scale, graph.inner(scores, kBf16));
  matmul_by_key_head(graph, shape, transposed(graph, scores, ds), q, dk);

  graph.matmul(ds, attention.keys_of(kt), dq);
  return attention.take();
}

std::int64_t attention_grad_workspace(const AttentionGraphShape& shape) {
  const auto padded = [](std::int64_t length) { return (length + 127) / 128 * 128; };
  const std::int64_t whole_heads =
      shape.query_heads == shape.key_heads ? 0 : 2;  // of dk and dv, before they are summed
  return shape.sequences * shape.query_heads * padded(shape.keys()) * (padded(shape.length) + whole_heads * shape.dim) *
         2;
}

}  // namespace trainyard::kernels::cuda
