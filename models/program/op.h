// The op set: everything a rank does in a training step. Each kind's operands and meaning are
// stated here once; lowering emits them, the simulator times them, interpreters compute them.
//
// Conventions. Tensors are row-major. T is the number of token rows that an op sees, d the
// hidden size. Rows of a micro-batch run sequence by sequence: row = i * s + t for sequence i
// and local position t. "+=" marks outputs that are accumulated into. An operand in [brackets]
// is present only when the attribute named beside it says so. Under sequence parallelism an
// operand of T rows may be paired with positions or samples of tp*T rows: it is then this tp
// rank's block of them.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "models/base/dtype.h"
#include "models/plan/mesh.h"
#include "models/spec/model_spec.h"

namespace trainyard {

// clang-format off
enum class OpKind : std::uint8_t {
  // --- embedding and positions
  Embedding,      // in tokens i32[T], table[Vl,d]           out y[T,d] = scale * table[token - row_begin], 0 outside this tp shard
  EmbeddingGrad,  // in tokens, dy[T,d]                      out dtable[Vl,d] += scale * dy scattered
  PositionAdd,    // in x[T,d], positions i32[T], table[P,d] out y[T,d] = x + table[positions]
  PositionGrad,   // in positions, dy[T,d]                   out dtable[P,d] += dy scattered
  // --- dense math
  Norm,           // in x[T,d], weight[d], [bias[d]: LayerNorm] out y[T,d], rstd f32[T], [mean f32[T]: LayerNorm]
  NormGrad,       // in dy, x, weight, rstd, [mean]          out dx[T,d], dweight[d] +=, [dbias[d] +=]
  Matmul,         // in A, B, [bias[n]: has_bias]            out C[m,n] (+= if accumulate) = alpha * op(A)[m,k] op(B)[k,n] + bias;
                  //   trans_a: A is stored [k,m]; trans_b: B is stored [n,k]
  BiasAdd,        // in x[T,n], bias[n]                      out y = x + bias
  BiasGrad,       // in dy[T,n]                              out dbias[n] += sum over rows
  Activation,     // in h[T,2f] (gate | up) when gated, else h[T,f]; [counts i32[S,C,El]: has_counts] out a[T,f] = act(gate) * up, or act(h)
  ActivationGrad, // in da[T,f], h, [counts]                 out dh like h
  Add,            // in a, b                                 out c = a + b
  Dropout,        // in x[T,d], samples i32[T], positions i32[T] out y[T,d] = x * keep / (1-p); keep is a pure function of
                  //   (seed, step, model layer, salt, sample, position, column), so the same op is its own gradient
  // --- attention
  SplitQkv,       // in qkv[T,(hq+2hk)*dh] (q | k | v), [positions: rope] out q[T,hq*dh], k[T,hk*dh], v[T,hk*dh]; rotate-half rope on q, k
  MergeQkvGrad,   // in dq, dk, dv, [positions: rope]        out dqkv, the transpose of SplitQkv
  Attention,      // in q[T,hq*dh], k[c*T,hk*dh], v          out o[T,hq*dh], lse f32[T,hq]; `batch` sequences; key rows are c = cp blocks in
                  //   group order, each laid out like q; causality by global position (layout.h). In a ring k and v are one block, of
                  //   the rank `hop` places before this one; a row that sees none of its keys has o = 0, lse = -inf
  AttentionMerge, // in o and lse of c disjoint sets of keys, o_0, lse_0, o_1, ..., each as of Attention; out o, lse over all of them
  AttentionGrad,  // in do, q, k, v, o, lse                  out dq, dk like k, dv like v. In a ring o and lse are those of all keys, and
                  //   dq is the share of this block
  // --- mixture of experts (E experts, El = E/ep of them here)
  Router,         // in logits f32[T,E]                      out probs f32[T,k], experts i32[T,k], softmax f32[T,E]; ties go to the lower expert;
                  //   renormalize: probs divided by their sum
  RouterGrad,     // in dprobs f32[T,k], experts, softmax    out dlogits f32[T,E]
  Permute,        // in x[T,d], experts i32[T,k]             out rows[T*k,d], row_map i32[T,k], counts i32[E]; rows sorted by expert, then by
                  //   token, then by k (stable); row_map: where (t,k) went
  PermuteGrad,    // in drows[T*k,d], row_map                out dx[T,d] = sum over k
  Unpermute,      // in rows[T*k,d], row_map, probs          out y[T,d] = sum over k of probs * row
  UnpermuteGrad,  // in dy[T,d], rows, row_map, probs        out drows[T*k,d], dprobs f32[T,k]
  SortByExpert,   // in rows[S*R,d], counts i32[S,C,El]      out sorted[S*R,d]. Segment s holds its rows packed by (source c, expert e); sorted
                  //   holds them by (e, s, c). reverse: the inverse map. Rows past the counts are undefined and never read
  GroupedMatmul,  // in A[R,k], W[El,n,k], counts i32[S,C,El] out C[R,n] = A W[e]^T by row's expert; trans_b=false: W is [El,k,n]
  GroupedMatmulWgrad, // in dy[R,n], x[R,k], counts          out dW[El,n,k] += dy^T x by expert
  // --- loss (vocabulary-parallel; l = softcap(alpha * logits))
  XentMax,        // in logits[T,Vl]                         out max f32[T]
  XentSum,        // in logits, max, labels i32[T]           out stats f32[T,2] = (sum exp(l - max), l[label] if it is in this shard else 0)
  XentLoss,       // in max, stats                           out loss f32[1] += scale * sum over rows of (log(sum) + max - target)
  XentGrad,       // in logits, max, stats, labels           out dlogits[T,Vl] = scale * dloss/dlogits
  // --- communication (group and stream name the communicator)
  AllReduce,      // in x                                    out y (may be x); reduce: Sum or Max. in_place: x is y is a bucket, of which only this
                  //   rank's shard, of m elements, takes part
  AllGather,      // in x[n]                                 out y[g*n], blocks in group order. in_place: x is y; this rank's block of it is the input
  ReduceScatter,  // in x[g*n]                               out y[n], this rank's block of the sum. in_place: y is x; only this rank's block is valid after
  AllToAllCounts, // in counts i32[E]                        out recv i32[C=ep,El]: how many rows each source sends for each local expert
  AllToAllV,      // in rows, counts i32[E], recv i32[C,El]  out: rows by (source, expert), at most `rows_bound`. reverse: from that layout
                  //   back to the sender's permuted order. A count over the bound is a typed failure or a drop (plan)
  RingShift,      // in x, ...                               out y, ..., each what the rank before in the group has as x; the first's is the last's
  SendRecv,       // only in a P2pBatch: see program.h
  // --- optimizer and housekeeping
  Zero,           // out x = 0
  Copy,           // in x                                    out y = x, converted to y's type
  Accumulate,     // in x                                    out y += x
  SquaredNorm,    // in grads                                out sum f32[1] += sum of squares. grads is a bucket, of which this rank's block counts when
                  //   the state is sharded, or the shard itself (by its size); of a shard's copies the first rank's counts, tp-replicated
                  //   parameters count on tp rank 0 only, tied copies never
  AdamW,          // in grads (as above), norm f32[1]        out params (the bucket, this rank's block), master f32[shard] +=, m f32 +=, v f32 +=; norm is
                  //   the global sum of squares; step size and clipping: OptimizerSpec; decay only where the bucket's table says so
  HostSync,       // the host waits for the stream (device-side counts are read back)
  Join,           // no work: later compute waits for this op's dependencies
};
// clang-format on
inline constexpr int kOpKindCount = static_cast<int>(OpKind::Join) + 1;
const char* to_string(OpKind kind);

enum class Stream : std::uint8_t {
  Compute,
  Tp,
  Cp,
  Ep,
  Pp,
  PpForwardSend,
  PpForwardRecv,
  PpBackwardSend,
  PpBackwardRecv,
  Dp,
  DpCopies,  // hybrid sharding: sums over copies, which gathers and reductions inside a copy need not wait for
};
inline constexpr int kStreamCount = static_cast<int>(Stream::DpCopies) + 1;
const char* to_string(Stream stream);

/// Up to three dimensions; unused ones are 1.
struct Shape {
  std::array<std::int64_t, 3> dims{1, 1, 1};
  int rank = 1;
  Shape() = default;
  explicit Shape(std::int64_t a) : dims{a, 1, 1}, rank(1) {}
  Shape(std::int64_t a, std::int64_t b) : dims{a, b, 1}, rank(2) {}
  Shape(std::int64_t a, std::int64_t b, std::int64_t c) : dims{a, b, c}, rank(3) {}
  [[nodiscard]] std::int64_t elements() const { return dims[0] * dims[1] * dims[2]; }
  bool operator==(const Shape&) const = default;
};

/// Index into Block::tensors.
using TensorId = std::int32_t;
/// Index into Block::ops.
using OpId = std::int32_t;

enum class Reduce : std::uint8_t { Sum, Max };

/// Attributes, each read by the kinds that name it in OpKind's table and ignored by others.
struct OpAttributes {
  std::int64_t m = 0, n = 0, k = 0;  // Matmul; GroupedMatmul*: m = expected rows; Attention*: m = rows of q
  bool trans_a = false, trans_b = false, accumulate = false, has_bias = false;
  double alpha = 1;    // Matmul, Xent*
  double scale = 1;    // Embedding, Attention, XentLoss, XentGrad
  double softcap = 0;  // Attention, Xent*
  NormKind norm = NormKind::RmsNorm;
  double eps = 0;
  ActivationKind activation = ActivationKind::Silu;
  bool gated = false, has_counts = false;
  bool rope = false;
  double rope_theta = 0;
  std::int64_t heads = 0, kv_heads = 0, head_dim = 0, window = 0, batch = 1;
  std::int64_t alibi_heads = 0;  // Attention*: heads of the layer on all tp ranks, which give the slopes; 0: no ALiBi
  std::int64_t cp = 1;           // Attention*: key blocks
  std::int64_t hop =
      -1;  // Attention*: in a ring, how many places before this rank the block's owner is; -1: all blocks
  double probability = 0;   // Dropout
  std::uint32_t salt = 0;   // Dropout: site in the layer
  std::int64_t layer = -1;  // Dropout: decoder layer counted from the chunk's first; -1: embedding
  std::int64_t top_k = 0, experts = 0, local_experts = 0;
  bool renormalize = false;
  bool reverse = false;                       // SortByExpert, AllToAllV
  std::int64_t segments = 1, rows_bound = 0;  // S; rows per segment R
  Reduce reduce = Reduce::Sum;
  bool in_place = false;     // AllReduce, AllGather, ReduceScatter
  double fill = 1;           // expected share of the rows of a bounded buffer that hold data (cost only)
  std::int32_t bucket = -1;  // SquaredNorm, AdamW, gradient collectives: index into the chunk's buckets
};

struct Op {
  OpKind kind = OpKind::Join;
  Stream stream = Stream::Compute;
  Group group = Group::Tp;  // communication kinds only
  std::string label;        // "layer3.attn.qkv", stable across runs
  std::vector<TensorId> in, out;
  /// Ops of this block on other streams that must have completed; stream order is implied.
  std::vector<OpId> deps;
  OpAttributes attr;
  /// Done a second time, in the backward pass, because its output was not kept.
  bool recomputed = false;

  // What the op costs, from shapes alone (expert rows at their expected counts).
  double flops = 0;
  double bytes_read = 0;
  double bytes_written = 0;
  /// Communication: bytes of this rank's larger side (AllGather: output; ReduceScatter: input;
  /// AllReduce: the buffer, or the shard of it; AllToAll*: rows sent).
  double payload_bytes = 0;
};

/// Communication kinds need a group; all others touch this rank only.
bool is_communication(OpKind kind);

}  // namespace trainyard
