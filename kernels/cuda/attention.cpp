// Attention through cuDNN where it can, else by attention_plain.cu.
//
// Under context parallelism cuDNN attends to one block of keys after another. A rank has two slices of each sequence
// (models/base/context_position.h), an early and a late one, so that its queries meet a block of keys in one of three
// ways, none of which needs a mask that cuDNN does not know:
//
//     their own rank's block    causal: positions rise with rows
//     an earlier rank's         all of them see its early slice, none its late one
//     a later rank's            the late ones see all of it, the early ones nothing

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
constexpr std::int64_t kMostBlocks = 64;  // that attention_merge takes
// Of keys that engines load at once. Whether they hide what lies behind the last one, where there is no causal mask,
// has not been seen, so halves of blocks are to be whole tiles.
constexpr std::int64_t kTile = 64;

std::int64_t padded(std::int64_t bytes) { return (bytes + 255) / 256 * 256; }

bool aligned(const Tensor& x) { return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0; }

// What the graphs can say. Whether an engine takes it, cuDNN answers.
bool cudnn_may(const AttentionShape& shape, std::int64_t length, std::initializer_list<Tensor> tensors) {
  if (!shape.alibi.empty() || shape.heads.dim % 8 != 0) return false;
  const bool windowed = shape.window > 0 && shape.window < length * shape.cp;
  if (shape.cp > 1 && (windowed || length % (2 * kTile) != 0 || shape.cp > kMostBlocks)) return false;
  return std::all_of(tensors.begin(), tensors.end(),
                     [](const Tensor& x) { return x.dtype == Dtype::Bf16 && x.size() > 0 && aligned(x); });
}

AttentionGraphShape graph_shape(const AttentionShape& shape, std::int64_t length) {
  return {.sequences = shape.batch,
          .length = length,
          .dim = shape.heads.dim,
          .query_heads = shape.heads.query,
          .key_heads = shape.heads.key,
          .row_query_heads = shape.heads.query,
          .row_key_heads = shape.heads.key,
          .window = shape.cp == 1 && shape.window < length ? shape.window : 0,
          .scale = shape.scale,
          .softcap = shape.softcap,
          .sequence_rows = length};
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

// Where a run begins in tensors of all sequences, rows and heads.
struct Part {
  std::int64_t sequence = 0, first_query = 0, query_head = 0, key_head = 0;
  AttentionGraphShape shape;

  [[nodiscard]] void* query(const Tensor& x) const {
    return at(x, (row() + first_query) * shape.row_query_heads + query_head);
  }
  [[nodiscard]] void* key(const Tensor& x) const { return at(x, row() * shape.row_key_heads + key_head); }
  [[nodiscard]] float* stats(const Tensor& lse) const {
    return static_cast<float*>(lse.data) + row() * shape.row_query_heads + query_head;
  }
  [[nodiscard]] HeadStats head_stats() const {
    return {shape.sequences, shape.query_heads, shape.length, shape.row_query_heads, shape.sequence_rows, first_query};
  }
  [[nodiscard]] std::int64_t stats_bytes() const {
    return padded(shape.sequences * shape.query_heads * shape.length * 4);
  }

 private:
  [[nodiscard]] std::int64_t row() const { return sequence * shape.sequence_rows; }
  [[nodiscard]] void* at(const Tensor& x, std::int64_t head) const {
    return static_cast<std::byte*>(x.data) + head * shape.dim * 2;
  }
};

// The queries and a block of keys: the part of them that sees and is seen, and what computes it, in one run or several.
struct Meeting {
  std::int64_t block = 0;  // of those that k and v hold
  Part whole, run;
  const CudnnGraph* graph = nullptr;
};

Meeting meeting(const AttentionShape& shape, std::int64_t length, std::int64_t block) {
  Meeting m;
  m.block = shape.key_block < 0 ? block : 0;
  AttentionGraphShape& whole = m.whole.shape;
  whole = graph_shape(shape, length);
  whole.causal = block == shape.cp_index;
  if (block < shape.cp_index) whole.key_length = length / 2;
  if (block > shape.cp_index) {
    m.whole.first_query = whole.length = length / 2;
    whole.key_length = length;
  }
  m.run = m.whole;
  return m;
}

// Each block that is here, the queries' own first: that one all of them meet.
std::vector<Meeting> meetings(const AttentionShape& shape, std::int64_t length) {
  if (shape.key_block >= 0) return {meeting(shape, length, shape.key_block)};
  std::vector<Meeting> all;
  for (std::int64_t i = 0; i < shape.cp; ++i) all.push_back(meeting(shape, length, (shape.cp_index + i) % shape.cp));
  return all;
}

// Calls f(Part) for each run of a meeting.
template <class F>
void for_each_part(const Meeting& m, F f) {
  const AttentionGraphShape &whole = m.whole.shape, &run = m.run.shape;
  const std::int64_t group = whole.query_heads / whole.key_heads;
  for (std::int64_t sequence = 0; sequence < whole.sequences; sequence += run.sequences)
    for (std::int64_t head = 0; head < whole.key_heads; head += run.key_heads)
      f(Part{sequence, m.whole.first_query, head * group, head, run});
}

Tensor rows_of(const Tensor& x, std::int64_t first, std::int64_t count) {
  Tensor rows = x;
  rows.data = static_cast<std::byte*>(x.data) + first * (x.size() / x.dims[0]) * size_of(x.dtype);
  rows.dims[0] = count;
  return rows;
}

// Calls f(first row, rows) for rows [from, to) of each sequence; once where they lie together.
template <class F>
void for_each_run_of_rows(const AttentionGraphShape& shape, std::int64_t from, std::int64_t to, F f) {
  if (from == to) return;
  if (to - from == shape.sequence_rows) return f(0, shape.sequences * shape.sequence_rows);
  for (std::int64_t i = 0; i < shape.sequences; ++i) f(i * shape.sequence_rows + from, to - from);
}

void zero_rows(Kernels& kernels, const AttentionGraphShape& shape, std::int64_t from, std::int64_t to,
               const Tensor& x) {
  for_each_run_of_rows(shape, from, to,
                       [&](std::int64_t first, std::int64_t count) { kernels.zero(rows_of(x, first, count)); });
}

bool have_graphs(const std::vector<Meeting>& all) {
  return std::all_of(all.begin(), all.end(), [](const Meeting& m) { return m.graph != nullptr; });
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
  const std::int64_t rows = q.dims[0], length = rows / shape.batch;
  std::vector<Meeting> all;
  if (cudnn_may(shape, length, {q, k, v, o})) all = meetings(shape, length);
  for (Meeting& m : all) m.graph = attention_->forward(m.run.shape);
  if (all.empty() || !have_graphs(all)) {
    plain_attention(stream_, scratch_, shape, q, k, v, o, lse);
    return;
  }

  // Scratch: outputs over each block, where there are several, and what a run needs.
  const std::int64_t o_bytes = padded(o.size() * 2), part_bytes = o_bytes + padded(lse.size() * 4);
  const std::int64_t parts_bytes = all.size() > 1 ? part_bytes * static_cast<std::int64_t>(all.size()) : 0;
  std::int64_t run_bytes = 0;
  for (const Meeting& m : all) run_bytes = std::max(run_bytes, m.run.stats_bytes() + m.graph->workspace_bytes());
  std::byte *part = scratch_.take(parts_bytes + run_bytes), *stats = part + parts_bytes;

  std::vector<Tensor> parts;
  for (const Meeting& m : all) {
    Tensor part_o = o, part_lse = lse;
    if (all.size() > 1) {
      part_o.data = part;
      part_lse.data = part + o_bytes;
      part += part_bytes;
      parts.insert(parts.end(), {part_o, part_lse});
    }
    // Engines accept any strides of stats and do not say whether they heed them: packed, as everyone has it.
    m.graph->run(attention_->handle(),
                 {{kAttentionQ, m.run.query(q)},
                  {kAttentionK, m.run.key(rows_of(k, m.block * rows, rows))},
                  {kAttentionV, m.run.key(rows_of(v, m.block * rows, rows))},
                  {kAttentionO, m.run.query(part_o)},
                  {kAttentionStats, stats}},
                 stats + m.run.stats_bytes());
    stats_to_rows(stream_, m.run.head_stats(), reinterpret_cast<const float*>(stats), m.run.stats(part_lse));
    zero_rows(*this, m.whole.shape, 0, m.whole.first_query, part_o);  // of queries that see nothing
  }
  if (all.size() > 1) attention_merge(shape.heads, parts, o, lse);
}

void CudaKernels::attention_grad(const AttentionShape& shape, const Tensor& dout, const Tensor& q, const Tensor& k,
                                 const Tensor& v, const Tensor& o, const Tensor& lse, const Tensor& dq,
                                 const Tensor& dk, const Tensor& dv) {
  const std::int64_t rows = q.dims[0], length = rows / shape.batch;
  std::vector<Meeting> all;
  if (cudnn_may(shape, length, {dout, q, k, v, o, dq, dk, dv})) all = meetings(shape, length);
  for (Meeting& m : all) {
    m.run.shape = one_run(m.whole.shape);
    m.graph = attention_->backward(m.run.shape);
  }
  if (all.empty() || !have_graphs(all)) {
    plain_attention_grad(stream_, scratch_, shape, dout, q, k, v, o, lse, dq, dk, dv);
    return;
  }

  // Scratch: dq over a block and its sum over all, where there are several, and what a run needs.
  const bool several = all.size() > 1;
  const std::int64_t dq_bytes = several ? padded(dq.size() * 2) : 0, sum_bytes = 2 * dq_bytes;
  std::int64_t run_bytes = 0;
  for (const Meeting& m : all) run_bytes = std::max(run_bytes, 2 * m.run.stats_bytes() + m.graph->workspace_bytes());
  std::byte* memory = scratch_.take(dq_bytes + sum_bytes + run_bytes);
  Tensor block_dq = dq, sum = dq;
  if (several) {
    block_dq.data = memory;
    sum.data = memory + dq_bytes;
    sum.dtype = Dtype::F32;
  }
  std::byte* stats = memory + dq_bytes + sum_bytes;

  for (const Meeting& m : all) {
    const auto of_block = [&](const Tensor& x) { return rows_of(x, m.block * rows, rows); };
    const Tensor block_k = of_block(k), block_v = of_block(v), block_dk = of_block(dk), block_dv = of_block(dv);
    std::byte* delta = stats + m.run.stats_bytes();
    for_each_part(m, [&](const Part& part) {
      rows_to_stats(stream_, part.head_stats(), part.stats(lse), reinterpret_cast<float*>(stats));
      m.graph->run(attention_->handle(),
                   {{kAttentionQ, part.query(q)},
                    {kAttentionK, part.key(block_k)},
                    {kAttentionV, part.key(block_v)},
                    {kAttentionO, part.query(o)},
                    {kAttentionDO, part.query(dout)},
                    {kAttentionDQ, part.query(block_dq)},
                    {kAttentionDK, part.key(block_dk)},
                    {kAttentionDV, part.key(block_dv)},
                    {kAttentionStats, stats},
                    {kAttentionDelta, delta}},
                   delta + m.run.stats_bytes());
    });
    for (const Tensor& grad : {block_dk, block_dv})  // of keys that nobody sees
      zero_rows(*this, m.whole.shape, m.whole.shape.keys(), length, grad);
    if (!several) {
      zero_rows(*this, m.whole.shape, 0, m.whole.first_query, dq);
    } else if (&m == &all.front()) {
      copy(block_dq, sum);
    } else {
      for_each_run_of_rows(m.whole.shape, m.whole.first_query, length, [&](std::int64_t first, std::int64_t count) {
        accumulate(rows_of(block_dq, first, count), rows_of(sum, first, count));
      });
    }
  }
  if (several) copy(sum, dq);
}

}  // namespace trainyard::kernels::cuda
