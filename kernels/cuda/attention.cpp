// Attention through cuDNN where it can, else by attention_plain.cu.

#include <algorithm>

#include "kernels/cuda/attention_cache.h"
#include "kernels/cuda/attention_plain.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/transpose.h"

namespace trainyard::kernels::cuda {

namespace {

// Of the gradient in one run. It grows with the square of the length, so that long sequences take several.
constexpr std::int64_t kMostWorkspaceBytes = std::int64_t{1} << 30;

std::int64_t padded(std::int64_t bytes) { return (bytes + 255) / 256 * 256; }

bool aligned(const Tensor& x) { return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0; }

// What the graphs can say. Whether an engine takes it, cuDNN answers.
bool cudnn_may(const AttentionShape& shape, std::initializer_list<Tensor> tensors) {
  if (shape.cp != 1 || !shape.alibi.empty() || shape.heads.dim % 8 != 0) return false;
  return std::all_of(tensors.begin(), tensors.end(),
                     [](const Tensor& x) { return x.dtype == Dtype::Bf16 && x.size() > 0 && aligned(x); });
}

AttentionGraphShape graph_shape(const AttentionShape& shape, const Tensor& q) {
  const std::int64_t length = q.dims[0] / shape.batch;
  return {.sequences = shape.batch,
          .length = length,
          .dim = shape.heads.dim,
          .query_heads = shape.heads.query,
          .key_heads = shape.heads.key,
          .row_query_heads = shape.heads.query,
          .row_key_heads = shape.heads.key,
          .window = shape.window < length ? shape.window : 0,
          .scale = shape.scale,
          .softcap = shape.softcap};
}

std::int64_t smallest_divisor(std::int64_t x) {
  for (std::int64_t d = 2; d * d <= x; ++d)
    if (x % d == 0) return d;
  return x;
}

// As many sequences, and else as many heads, as the workspace allows.
AttentionGraphShape one_run(AttentionGraphShape shape) {
  while (attention_grad_workspace(shape) > kMostWorkspaceBytes && shape.sequences * shape.key_heads > 1) {
    if (shape.sequences > 1) {
      shape.sequences /= smallest_divisor(shape.sequences);
    } else {
      const std::int64_t divisor = smallest_divisor(shape.key_heads);
      shape.key_heads /= divisor;
      shape.query_heads /= divisor;
    }
  }
  return shape;
}

// Where a run begins in tensors of all sequences and heads.
struct Part {
  std::int64_t row = 0, query_head = 0, key_head = 0;
  AttentionGraphShape shape;

  [[nodiscard]] void* query(const Tensor& x) const { return at(x, row * shape.row_query_heads + query_head); }
  [[nodiscard]] void* key(const Tensor& x) const { return at(x, row * shape.row_key_heads + key_head); }
  [[nodiscard]] const float* stats(const Tensor& lse) const {
    return static_cast<const float*>(lse.data) + row * shape.row_query_heads + query_head;
  }

 private:
  [[nodiscard]] void* at(const Tensor& x, std::int64_t head) const {
    return static_cast<std::byte*>(x.data) + head * shape.dim * 2;
  }
};

template <class F>
void for_each_part(const AttentionGraphShape& whole, const AttentionGraphShape& run, F f) {
  const std::int64_t group = whole.query_heads / whole.key_heads;
  for (std::int64_t sequence = 0; sequence < whole.sequences; sequence += run.sequences)
    for (std::int64_t head = 0; head < whole.key_heads; head += run.key_heads)
      f(Part{sequence * whole.length, head * group, head, run});
}

HeadStats head_stats(const AttentionGraphShape& shape) {
  return {shape.sequences, shape.query_heads, shape.length, shape.row_query_heads};
}

std::int64_t stats_bytes(const AttentionGraphShape& shape) {
  return padded(shape.sequences * shape.query_heads * shape.length * 4);
}

// A graph that cuDNN refuses as a whole is as good as one without an engine.
std::unique_ptr<CudnnGraph> compiled(std::unique_ptr<CudnnGraph> (*build)(const AttentionGraphShape&),
                                     const AttentionGraphShape& shape, cudnnHandle_t handle) try {
  std::unique_ptr<CudnnGraph> graph = build(shape);
  return graph->compile(CudnnTarget(handle)) ? std::move(graph) : nullptr;
} catch (const std::runtime_error&) {
  return nullptr;
}

}  // namespace

AttentionCache::AttentionCache(cudaStream_t stream) {
  check(cudnnCreate(&handle_), "starting");
  check(cudnnSetStream(handle_, stream), "setting the stream");
}

AttentionCache::~AttentionCache() {
  forward_.clear();
  backward_.clear();
  cudnnDestroy(handle_);
}

const CudnnGraph* AttentionCache::forward(const AttentionGraphShape& shape) {
  const auto [graph, is_new] = forward_.try_emplace(shape);
  if (is_new) graph->second = compiled(attention_graph, shape, handle_);
  return graph->second.get();
}

const CudnnGraph* AttentionCache::backward(const AttentionGraphShape& shape) {
  const auto [graph, is_new] = backward_.try_emplace(shape);
  if (is_new) graph->second = compiled(attention_grad_graph, shape, handle_);
  return graph->second.get();
}

void CudaKernels::attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                            const Tensor& o, const Tensor& lse) {
  const AttentionGraphShape whole = graph_shape(shape, q);
  const CudnnGraph* graph = cudnn_may(shape, {q, k, v, o}) ? attention_->forward(whole) : nullptr;
  if (graph == nullptr) {
    plain_attention(stream_, scratch_, shape, q, k, v, o, lse);
    return;
  }
  // Engines accept any strides of stats and do not say whether they heed them: packed, as everyone has it.
  std::byte* stats = scratch_.take(stats_bytes(whole) + graph->workspace_bytes());
  graph->run(attention_->handle(),
             {{kAttentionQ, q.data},
              {kAttentionK, k.data},
              {kAttentionV, v.data},
              {kAttentionO, o.data},
              {kAttentionStats, stats}},
             stats + stats_bytes(whole));
  stats_to_rows(stream_, head_stats(whole), reinterpret_cast<const float*>(stats), static_cast<float*>(lse.data));
}

void CudaKernels::attention_grad(const AttentionShape& shape, const Tensor& dout, const Tensor& q, const Tensor& k,
                                 const Tensor& v, const Tensor& o, const Tensor& lse, const Tensor& dq,
                                 const Tensor& dk, const Tensor& dv) {
  const AttentionGraphShape whole = graph_shape(shape, q), run = one_run(whole);
  const CudnnGraph* graph = cudnn_may(shape, {dout, q, k, v, o, dq, dk, dv}) ? attention_->backward(run) : nullptr;
  if (graph == nullptr) {
    plain_attention_grad(stream_, scratch_, shape, dout, q, k, v, o, lse, dq, dk, dv);
    return;
  }
  std::byte* stats = scratch_.take(2 * stats_bytes(run) + graph->workspace_bytes());
  std::byte* delta = stats + stats_bytes(run);
  for_each_part(whole, run, [&](const Part& part) {
    rows_to_stats(stream_, head_stats(run), part.stats(lse), reinterpret_cast<float*>(stats));
    graph->run(attention_->handle(),
               {{kAttentionQ, part.query(q)},
                {kAttentionK, part.key(k)},
                {kAttentionV, part.key(v)},
                {kAttentionO, part.query(o)},
                {kAttentionDO, part.query(dout)},
                {kAttentionDQ, part.query(dq)},
                {kAttentionDK, part.key(dk)},
                {kAttentionDV, part.key(dv)},
                {kAttentionStats, stats},
                {kAttentionDelta, delta}},
               delta + stats_bytes(run));
  });
}

}  // namespace trainyard::kernels::cuda
