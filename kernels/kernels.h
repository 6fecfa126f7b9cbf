// What a device computes for one rank: a function for each op of the op set that is not communication. cpu/ implements
// them with Eigen; a GPU implementation answers to the same interface.
//
// Conventions. Tensors are row-major and contiguous. T is a number of token rows, d the hidden size; rows of a
// micro-batch run sequence by sequence. Storage is bf16, f32 or f64; sums and everything transcendental are computed in
// f32 for the first two and in f64 for the last. All operands of a call are of one storage, but for indices, which are
// i32, and for what a function computes and keeps in the type it computes in (f32 beside bf16): rstd, mean, lse, probs,
// softmax, max, stats, loss, sums, master weights and moments. Outputs marked += are accumulated into. Operands may not
// overlap unless a function says so. Whoever calls has checked shapes; contents (indices, counts) are checked here and
// end the process when they are wrong, because they can only be wrong through a bug. Tokens and labels outside a shard
// of the vocabulary are another shard's.
//
// Workspace. Processors compute in place of f32 and f64 operands and need none but what a function states. Operands in
// bf16 are converted whole: twice the bytes of all of them together, for as long as the call takes (copy, accumulate,
// squared_norm and adamw convert stretch by stretch). CostModel::workspace_bytes counts on that.
//
// Determinism. Every function gives the same bits for the same operands, instruction set and number of threads, if they
// lie alike in their cache lines; adamw wherever they lie, so that replicas stay alike.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "models/base/dtype.h"

namespace trainyard::kernels {

struct Tensor {
  void* data = nullptr;
  Dtype dtype = Dtype::F32;
  std::array<std::int64_t, 3> dims{1, 1, 1};
  [[nodiscard]] std::int64_t size() const { return dims[0] * dims[1] * dims[2]; }
  [[nodiscard]] bool empty() const { return data == nullptr; }
};

enum class Act : std::uint8_t { Silu, Gelu, GeluTanh, SquaredRelu };

/// LayerNorm (centred) or RMSNorm.
struct NormShape {
  bool centred = false;
  double eps = 1e-5;
};

/// C[m,n] = alpha * op(A)[m,k] op(B)[k,n] + bias, or C += when it accumulates. Transposed: A is stored [k,m], B [n,k].
struct Gemm {
  std::int64_t m = 0, n = 0, k = 0;
  bool trans_a = false, trans_b = false, accumulate = false;
  double alpha = 1;
};

struct Heads {
  std::int64_t query = 1, key = 1, dim = 1;  // grouped queries: key divides query
};

/// Causal attention over `batch` sequences. Key rows are `cp` blocks in group order, each laid out like the queries;
/// rank `cp_index` of them holds these queries. score = softcap(scale * q k) (0: no cap); window > 0: the last so many
/// positions. alibi: slopes per query head, score -= slope * (query position - key position); empty: none.
struct AttentionShape {
  Heads heads;
  std::int64_t batch = 1, cp = 1, cp_index = 0;
  std::int64_t key_block = -1;  // k and v are the block of this context rank; -1: of all of them
  std::int64_t window = 0;
  double scale = 1, softcap = 0;
  std::vector<double> alibi;
};

/// What makes a dropout mask: keep is a pure function of these, of the row's sample and position, and of the column.
struct DropoutSeed {
  std::uint64_t seed = 0;  // the job's
  std::int64_t step = 0, layer = 0, salt = 0;
  double probability = 0;
};

/// Rows of experts: counts [segments, sources, local experts]; a segment holds at most rows_bound rows.
struct ExpertRows {
  std::int64_t rows_bound = 0;
  bool reverse = false;
};

/// Cross-entropy over a shard of the vocabulary that starts at first_token: l = softcap(alpha * logits).
struct Xent {
  double alpha = 1, softcap = 0, scale = 1;
  std::int64_t first_token = 0;
};

/// A range of elements of a gradient or optimizer buffer.
struct Range {
  std::int64_t first = 0, count = 0;
  bool decay = true;
  double rate_scale = 1;  // of the learning rate, not of decay
};

/// AdamW with global clipping (Loshchilov and Hutter, 2019). `step` counts from 1.
struct Adam {
  double learning_rate = 0, beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0, clip_grad = 0;
  std::int64_t step = 1;
};

class Kernels {
 public:
  Kernels() = default;
  Kernels(const Kernels&) = delete;
  Kernels& operator=(const Kernels&) = delete;
  virtual ~Kernels() = default;

  // --- embedding and positions: tokens, positions i32[T]; table[V,d] holds rows from first_row on

  /// y[T,d] = scale * table[token - first_row], 0 outside.
  virtual void embedding(const Tensor& tokens, const Tensor& table, double scale, std::int64_t first_row,
                         const Tensor& y) = 0;
  /// dtable[V,d] += scale * dy[T,d], scattered.
  virtual void embedding_grad(const Tensor& tokens, const Tensor& dy, double scale, std::int64_t first_row,
                              const Tensor& dtable) = 0;
  /// y[T,d] = x[T,d] + table[positions]. y may be x.
  virtual void position_add(const Tensor& x, const Tensor& positions, const Tensor& table, const Tensor& y) = 0;
  /// dtable[V,d] += dy[T,d], scattered.
  virtual void position_grad(const Tensor& positions, const Tensor& dy, const Tensor& dtable) = 0;

  // --- dense math

  /// y[T,d] = (x - mean) * rstd * weight + bias; rstd[T], and mean[T] when centred. bias may be empty.
  virtual void norm(const NormShape& shape, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y,
                    const Tensor& rstd, const Tensor& mean) = 0;
  /// dx[T,d] of dy, x[T,d]; dweight[d] +=; dbias[d] +=, unless empty. Workspace: 2 d for each thread.
  virtual void norm_grad(const NormShape& shape, const Tensor& dy, const Tensor& x, const Tensor& weight,
                         const Tensor& rstd, const Tensor& mean, const Tensor& dx, const Tensor& dweight,
                         const Tensor& dbias) = 0;
  /// bias[n] may be empty.
  virtual void matmul(const Gemm& gemm, const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& c) = 0;
  /// y[T,n] = x + bias[n].
  virtual void bias_add(const Tensor& x, const Tensor& bias, const Tensor& y) = 0;
  /// dbias[n] += sum over rows of dy[T,n].
  virtual void bias_grad(const Tensor& dy, const Tensor& dbias) = 0;
  /// a[T,f] = act(gate) * up for h[T,2f] = (gate | up) when gated, else act(h[T,f]). With counts only the rows that
  /// they add up to.
  virtual void activation(Act act, bool gated, const Tensor& h, const Tensor& counts, const Tensor& a) = 0;
  /// dh, shaped like h, of da[T,f].
  virtual void activation_grad(Act act, bool gated, const Tensor& da, const Tensor& h, const Tensor& counts,
                               const Tensor& dh) = 0;
  /// c = a + b, of one shape. c may be either.
  virtual void add(const Tensor& a, const Tensor& b, const Tensor& c) = 0;
  /// y = x * keep / (1 - p): its own gradient. samples, positions i32[T]. y may be x.
  virtual void dropout(const DropoutSeed& seed, const Tensor& x, const Tensor& samples, const Tensor& positions,
                       const Tensor& y) = 0;

  // --- attention: q[T,hq*dh], k, v[c*T,hk*dh]

  /// qkv[T,(hq+2hk)*dh] = (q | k | v), rotated by rotate-half rope unless theta is 0 (positions may then be empty).
  /// Workspace, kept: dh f64 for each position up to the largest.
  virtual void split_qkv(const Heads& heads, double rope_theta, const Tensor& qkv, const Tensor& positions,
                         const Tensor& q, const Tensor& k, const Tensor& v) = 0;
  /// Its transpose.
  virtual void merge_qkv_grad(const Heads& heads, double rope_theta, const Tensor& dq, const Tensor& dk,
                              const Tensor& dv, const Tensor& positions, const Tensor& dqkv) = 0;
  /// o[T,hq*dh], lse[T,hq], the log of the sum of exponentials: 0 and -inf where no key is seen. Workspace: for each
  /// thread the scores of 64 queries of one head with all keys that they see.
  virtual void attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                         const Tensor& o, const Tensor& lse) = 0;
  /// o[T,hq*dh], lse[T,hq] over all keys, from those over disjoint sets of them: parts are o_0, lse_0, o_1, lse_1, ...
  virtual void attention_merge(const Heads& heads, const std::vector<Tensor>& parts, const Tensor& o,
                               const Tensor& lse) = 0;
  /// dq, dk, dv, shaped like q, k, v, of dout[T,hq*dh]. Workspace: twice that of attention, three times with a soft
  /// cap.
  virtual void attention_grad(const AttentionShape& shape, const Tensor& dout, const Tensor& q, const Tensor& k,
                              const Tensor& v, const Tensor& o, const Tensor& lse, const Tensor& dq, const Tensor& dk,
                              const Tensor& dv) = 0;

  // --- mixture of experts

  /// probs[T,k], experts i32[T,k], softmax[T,E] of logits[T,E]; ties go to the lower expert.
  virtual void router(bool renormalize, const Tensor& logits, const Tensor& probs, const Tensor& experts,
                      const Tensor& softmax) = 0;
  /// dlogits[T,E] of dprobs[T,k].
  virtual void router_grad(bool renormalize, const Tensor& dprobs, const Tensor& experts, const Tensor& softmax,
                           const Tensor& dlogits) = 0;
  /// rows[T*k,d] of x[T,d] by expert, then token, then k; row_map i32[T,k] says where (t,k) went; counts i32[E].
  virtual void permute(const Tensor& x, const Tensor& experts, const Tensor& rows, const Tensor& row_map,
                       const Tensor& counts) = 0;
  /// dx[T,d] = sum over k of drows[T*k,d].
  virtual void permute_grad(const Tensor& drows, const Tensor& row_map, const Tensor& dx) = 0;
  /// y[T,d] = sum over k of probs * rows[T*k,d].
  virtual void unpermute(const Tensor& rows, const Tensor& row_map, const Tensor& probs, const Tensor& y) = 0;
  /// drows[T*k,d], dprobs[T,k] of dy[T,d].
  virtual void unpermute_grad(const Tensor& dy, const Tensor& rows, const Tensor& row_map, const Tensor& probs,
                              const Tensor& drows, const Tensor& dprobs) = 0;
  /// Each segment's rows lie by (source, expert); sorted holds all by (expert, segment, source). reverse: back.
  virtual void sort_by_expert(const ExpertRows& shape, const Tensor& rows, const Tensor& counts,
                              const Tensor& sorted) = 0;
  /// C[R,n] = A[R,k] W[e]^T (trans_b: W[E,n,k]) or A W[e] (W[E,k,n]) by row's expert.
  virtual void grouped_matmul(const Gemm& gemm, const Tensor& a, const Tensor& w, const Tensor& counts,
                              const Tensor& c) = 0;
  /// dW[E,n,k] += dy[R,n]^T x[R,k] by expert.
  virtual void grouped_matmul_wgrad(const Gemm& gemm, const Tensor& dy, const Tensor& x, const Tensor& counts,
                                    const Tensor& dw) = 0;

  // --- loss: logits[T,V], labels i32[T]

  virtual void xent_max(const Xent& xent, const Tensor& logits, const Tensor& max) = 0;
  /// stats[T,2] = (sum exp(l - max), l[label] where it is in this shard, else 0).
  virtual void xent_sum(const Xent& xent, const Tensor& logits, const Tensor& max, const Tensor& labels,
                        const Tensor& stats) = 0;
  /// loss[1] += scale * sum over rows of (log(sum) + max - target).
  virtual void xent_loss(const Xent& xent, const Tensor& max, const Tensor& stats, const Tensor& loss) = 0;
  /// dlogits = scale * dloss/dlogits. It may be logits.
  virtual void xent_grad(const Xent& xent, const Tensor& logits, const Tensor& max, const Tensor& stats,
                         const Tensor& labels, const Tensor& dlogits) = 0;

  // --- optimizer and housekeeping

  virtual void zero(const Tensor& x) = 0;
  /// y = x, converted to y's type.
  virtual void copy(const Tensor& x, const Tensor& y) = 0;
  /// y += x.
  virtual void accumulate(const Tensor& x, const Tensor& y) = 0;
  /// sum[1] += squares of the elements of grads in the ranges.
  virtual void squared_norm(const Tensor& grads, const std::vector<Range>& ranges, const Tensor& sum) = 0;
  /// Updates master, m and v, and writes params, over the ranges: all five tensors are indexed alike. squared_norm[1]
  /// is the global sum of squares.
  virtual void adamw(const Adam& adam, const Tensor& grads, const Tensor& squared_norm,
                     const std::vector<Range>& ranges, const Tensor& params, const Tensor& master, const Tensor& m,
                     const Tensor& v) = 0;
  /// A 64-bit hash of the bytes of x, the same on every device.
  virtual std::uint64_t hash(const Tensor& x) = 0;
};

/// With Eigen, on the calling thread and `threads` - 1 more, compiled for the newest instruction set of this processor
/// that it knows. $TRAINYARD_CPU may name an older one: "v4" (AVX-512), "v3" (AVX2), "baseline".
std::unique_ptr<Kernels> cpu_kernels(int threads = 1);
/// Which it is.
std::string cpu_instruction_set();
/// FLOP/s in f32 of one thread that does nothing but multiply and add, measured now: the ceiling of any kernel.
double cpu_peak_flops();

}  // namespace trainyard::kernels
