#include "exec/compute_op.h"

#include <algorithm>

#include "models/base/alibi.h"
#include "models/base/check.h"

namespace trainyard::exec {

namespace {

using kernels::Kernels;
using kernels::Range;
using Operand = kernels::Tensor;

kernels::Act act_of(ActivationKind kind) {
  switch (kind) {
    case ActivationKind::Silu: return kernels::Act::Silu;
    case ActivationKind::Gelu: return kernels::Act::Gelu;
    case ActivationKind::GeluTanh: return kernels::Act::GeluTanh;
    case ActivationKind::SquaredRelu: return kernels::Act::SquaredRelu;
  }
  TY_CHECK(false, "unknown activation");
}

// One op of one rank.
class Call {
 public:
  Call(const Op& op, const OpPlace& place, const std::vector<Operand>& in, const std::vector<Operand>& out,
       Kernels& kernels)
      : op_(op),
        a_(op.attr),
        place_(place),
        in_(in),
        out_(out),
        kernels_(kernels),
        mesh_(place.program->plan),
        at_(mesh_.coordinates(place.rank)) {}

  void run() {
    switch (op_.kind) {
      case OpKind::Embedding: return kernels_.embedding(in_[0], in_[1], a_.scale, first_row(in_[1]), out_[0]);
      case OpKind::EmbeddingGrad: return kernels_.embedding_grad(in_[0], in_[1], a_.scale, first_row(out_[0]), out_[0]);
      case OpKind::PositionAdd: return kernels_.position_add(in_[0], block_of(in_[1], in_[0]), in_[2], out_[0]);
      case OpKind::PositionGrad: return kernels_.position_grad(block_of(in_[0], in_[1]), in_[1], out_[0]);
      case OpKind::Norm:
        return kernels_.norm(norm(), in_[0], in_[1], optional(in_, 2), out_[0], out_[1], optional(out_, 2));
      case OpKind::NormGrad:
        return kernels_.norm_grad(norm(), in_[0], in_[1], in_[2], in_[3], optional(in_, 4), out_[0], out_[1],
                                  optional(out_, 2));
      case OpKind::Matmul: return kernels_.matmul(gemm(), in_[0], in_[1], optional(in_, 2), out_[0]);
      case OpKind::BiasAdd: return kernels_.bias_add(in_[0], in_[1], out_[0]);
      case OpKind::BiasGrad: return kernels_.bias_grad(in_[0], out_[0]);
      case OpKind::Activation:
        return kernels_.activation(act_of(a_.activation), a_.gated, in_[0], optional(in_, 1), out_[0]);
      case OpKind::ActivationGrad:
        return kernels_.activation_grad(act_of(a_.activation), a_.gated, in_[0], in_[1], optional(in_, 2), out_[0]);
      case OpKind::Add: return kernels_.add(in_[0], in_[1], out_[0]);
      case OpKind::Dropout:
        return kernels_.dropout(dropout(), in_[0], block_of(in_[1], in_[0]), block_of(in_[2], in_[0]), out_[0]);
      case OpKind::SplitQkv:
        return kernels_.split_qkv(heads(), rope_theta(), in_[0], optional(in_, 1), out_[0], out_[1], out_[2]);
      case OpKind::MergeQkvGrad:
        return kernels_.merge_qkv_grad(heads(), rope_theta(), in_[0], in_[1], in_[2], optional(in_, 3), out_[0]);
      case OpKind::Attention: return kernels_.attention(attention(), in_[0], in_[1], in_[2], out_[0], out_[1]);
      case OpKind::AttentionMerge: return kernels_.attention_merge(heads(), in_, out_[0], out_[1]);
      case OpKind::AttentionGrad:
        return kernels_.attention_grad(attention(), in_[0], in_[1], in_[2], in_[3], in_[4], in_[5], out_[0], out_[1],
                                       out_[2]);
      case OpKind::Router: return kernels_.router(a_.renormalize, in_[0], out_[0], out_[1], out_[2]);
      case OpKind::RouterGrad: return kernels_.router_grad(a_.renormalize, in_[0], in_[1], in_[2], out_[0]);
      case OpKind::Permute: return kernels_.permute(in_[0], in_[1], out_[0], out_[1], out_[2]);
      case OpKind::PermuteGrad: return kernels_.permute_grad(in_[0], in_[1], out_[0]);
      case OpKind::Unpermute: return kernels_.unpermute(in_[0], in_[1], in_[2], out_[0]);
      case OpKind::UnpermuteGrad: return kernels_.unpermute_grad(in_[0], in_[1], in_[2], in_[3], out_[0], out_[1]);
      case OpKind::SortByExpert: return kernels_.sort_by_expert({a_.rows_bound, a_.reverse}, in_[0], in_[1], out_[0]);
      case OpKind::GroupedMatmul: return kernels_.grouped_matmul(gemm(), in_[0], in_[1], in_[2], out_[0]);
      case OpKind::GroupedMatmulWgrad: return kernels_.grouped_matmul_wgrad(gemm(), in_[0], in_[1], in_[2], out_[0]);
      case OpKind::XentMax: return kernels_.xent_max(xent(), in_[0], out_[0]);
      case OpKind::XentSum: return kernels_.xent_sum(xent(), in_[0], in_[1], in_[2], out_[0]);
      case OpKind::XentLoss: return kernels_.xent_loss(xent(), in_[0], in_[1], out_[0]);
      case OpKind::XentGrad: return kernels_.xent_grad(xent(), in_[0], in_[1], in_[2], in_[3], out_[0]);
      case OpKind::AllReduce:
      case OpKind::AllGather:
      case OpKind::ReduceScatter:
      case OpKind::AllToAllCounts:
      case OpKind::AllToAllV:
      case OpKind::RingShift:
      case OpKind::SendRecv: TY_CHECK(false, "communication is the communicator's");
      case OpKind::Zero: return kernels_.zero(out_[0]);
      case OpKind::Copy: return kernels_.copy(in_[0], out_[0]);
      case OpKind::Accumulate: return kernels_.accumulate(in_[0], out_[0]);
      case OpKind::SquaredNorm: return kernels_.squared_norm(in_[0], norm_ranges(), out_[0]);
      case OpKind::AdamW: return adamw();
      case OpKind::HostSync:
      case OpKind::Join: return;
    }
    TY_CHECK(false, "unknown op");
  }

 private:
  static Operand optional(const std::vector<Operand>& operands, std::size_t i) {
    return i < operands.size() ? operands[i] : Operand{};
  }

  // The first row of the vocabulary that a shard of the table holds.
  std::int64_t first_row(const Operand& table) const { return at_.tp * table.dims[0]; }

  // Indices of the rows of x: all of them, or this tp rank's block under sequence parallelism.
  Operand block_of(const Operand& all, const Operand& x) const {
    const std::int64_t rows = x.dims[0];
    if (all.size() == rows) return all;
    Operand block = all;
    block.data = static_cast<std::int32_t*>(all.data) + at_.tp * rows;
    block.dims = {rows, 1, 1};
    return block;
  }

  kernels::NormShape norm() const { return {a_.norm == NormKind::LayerNorm, a_.eps}; }
  kernels::Gemm gemm() const { return {a_.m, a_.n, a_.k, a_.trans_a, a_.trans_b, a_.accumulate, a_.alpha}; }
  kernels::Heads heads() const { return {a_.heads, a_.kv_heads, a_.head_dim}; }
  double rope_theta() const { return a_.rope ? a_.rope_theta : 0; }
  kernels::AttentionShape attention() const {
    const std::int64_t here = a_.cp > 1 ? at_.cp : 0, before = (here - a_.hop + a_.cp) % a_.cp;
    return {heads(), a_.batch, a_.cp, here, a_.hop < 0 ? -1 : before, a_.window, a_.scale, a_.softcap, alibi()};
  }
  // The slopes of this tp rank's heads.
  std::vector<double> alibi() const {
    std::vector<double> slopes;
    for (std::int64_t h = 0; h < (a_.alibi_heads > 0 ? a_.heads : 0); ++h)
      slopes.push_back(alibi_slope(at_.tp * a_.heads + h, a_.alibi_heads));
    return slopes;
  }
  kernels::DropoutSeed dropout() const {
    const std::int64_t layer = a_.layer < 0 ? -1 : place_.chunk->first_layer + a_.layer;
    return {place_.seed, place_.step, layer, a_.salt, a_.probability};
  }
  kernels::Xent xent() const {
    const bool sharded = op_.kind != OpKind::XentLoss;
    return {a_.alpha, a_.softcap, a_.scale, sharded ? first_token() : 0};
  }
  std::int64_t first_token() const { return at_.tp * in_[0].dims[1]; }

  // --- optimizer state: a bucket, or this rank's share of it

  const Bucket& bucket() const { return place_.chunk->buckets[static_cast<std::size_t>(a_.bucket)]; }
  std::int64_t share_begin() const {
    return mesh_.group_index(bucket().sharding.shards, place_.rank) * bucket().shard_elements;
  }

  // The parts of this rank's share that belong to parameters which `wanted` takes, counted from the share's first
  // element.
  template <class Wanted>
  std::vector<Range> ranges(Wanted wanted) const {
    const std::int64_t begin = share_begin(), end = begin + bucket().shard_elements;
    std::vector<Range> out;
    for (const Param& param : bucket().params) {
      const std::int64_t first = std::max(begin, param.offset_elements),
                         last = std::min(end, param.offset_elements + param.elements());
      if (first < last && wanted(param)) out.push_back({first - begin, last - first, param.decay, param.rate_scale});
    }
    return out;
  }

  // Shifted to where the share lies in an operand that may be the whole bucket.
  Operand share_of(const Operand& x) const {
    if (x.size() == bucket().shard_elements) return x;
    Operand share = x;
    share.data = static_cast<std::byte*>(x.data) + share_begin() * size_of(x.dtype);
    share.dims = {bucket().shard_elements, 1, 1};
    return share;
  }

  // Every gradient counts once over all ranks: of a shard's copies on the first rank, tensor-replicated parameters on
  // the first tensor-parallel one, tied copies never.
  std::vector<Range> norm_ranges() const {
    if (mesh_.group_index(bucket().sharding.copies, place_.rank) != 0) return {};
    std::vector<Range> counted =
        ranges([&](const Param& param) { return !param.tied_copy && (!param.tp_replicated() || at_.tp == 0); });
    const std::int64_t shift = in_[0].size() == bucket().shard_elements ? 0 : share_begin();
    for (Range& range : counted) range.first += shift;
    return counted;
  }

  void adamw() const {
    const OptimizerSpec& spec = place_.program->plan.optimizer;
    const double rate = learning_rate(spec, place_.step);
    const kernels::Adam adam{rate,           spec.beta1,     spec.beta2, spec.eps, spec.weight_decay,
                             spec.clip_grad, place_.step + 1};
    kernels_.adamw(adam, share_of(in_[0]), in_[1], ranges([](const Param&) { return true; }), share_of(out_[0]),
                   out_[1], out_[2], out_[3]);
  }

  const Op& op_;
  const OpAttributes& a_;
  const OpPlace& place_;
  const std::vector<Operand>&in_, &out_;
  Kernels& kernels_;
  Mesh mesh_;
  Coordinates at_;
};

}  // namespace

kernels::Tensor bind(const Tensor& tensor, std::byte* bytes) { return {bytes, tensor.dtype, tensor.shape.dims}; }

void compute_op(const Op& op, const OpPlace& place, const std::vector<kernels::Tensor>& in,
                const std::vector<kernels::Tensor>& out, kernels::Kernels& kernels) {
  Call(op, place, in, out, kernels).run();
}

}  // namespace trainyard::exec
