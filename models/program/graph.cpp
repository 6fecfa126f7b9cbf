#include "models/program/graph.h"

#include <functional>
#include <map>
#include <set>

#include <fmt/format.h>

#include "models/base/check.h"
#include "models/program/block_builder.h"
#include "models/program/gradient_sync.h"
#include "models/program/param_gather.h"
#include "models/program/parameters.h"
#include "models/program/step_blocks.h"

namespace trainyard {

namespace {

std::size_t index(std::int32_t id) { return static_cast<std::size_t>(id); }

// A tp entry moves nothing forward: its output is its input.
ValueId resolve(const Graph& graph, ValueId id) {
  while (true) {
    const std::int32_t producer = graph.value(id).producer;
    if (producer < 0 || !graph.nodes[index(producer)].tp_entry) return id;
    id = graph.nodes[index(producer)].in[0];
  }
}

bool is_pointwise(OpKind kind) {
  switch (kind) {
    case OpKind::Norm:
    case OpKind::Activation:
    case OpKind::Add:
    case OpKind::BiasAdd:
    case OpKind::Dropout:
    case OpKind::SplitQkv: return true;
    default: return false;
  }
}

bool of_mlp(LayerProduct product) {
  return product == LayerProduct::MlpUp || product == LayerProduct::MlpGateUp || product == LayerProduct::MlpDown;
}

// In a layer's order the products are q, k, v, out, gate, up, down, or qkv, out, up, down: k is small, and down's
// output no backward pass asks for.
bool second_product(const Node& node) {
  return node.product == LayerProduct::AttentionOut || (node.product == LayerProduct::MlpGateUp && node.layer % 2 == 1);
}

bool selected(const RecomputeModules& modules, const Node& node) {
  if (modules.core_attn && (node.op.kind == OpKind::Attention || node.op.kind == OpKind::AttentionMerge)) return true;
  if (modules.norm && node.op.kind == OpKind::Norm) return true;
  const bool dense = !node.op.attr.has_counts;
  if ((modules.activation || (modules.mlp && dense)) && node.op.kind == OpKind::Activation) return true;
  if (modules.pointwise && is_pointwise(node.op.kind)) return true;
  if (modules.mlp && of_mlp(node.product)) return true;
  return modules.every_second_matmul && second_product(node);
}

// Whether the forward pass keeps a computed value that the backward pass needs.
bool kept(const Graph& graph, const ParallelPlan& plan, ValueId id) {
  const Value& value = graph.value(id);
  const Node& node = graph.nodes[index(value.producer)];
  // Gathered copies are gathered again, as Megatron does: keeping them would undo the sharding.
  if (node.op.kind == OpKind::AllGather && value.differentiable) return false;
  if (node.op.kind == OpKind::RingShift) return false;  // so do blocks of a ring go around again
  if (node.layer < 0 || value.layer_boundary) return true;
  if (plan.recompute_layers > 0 && node.layer >= plan.recompute_layers) return true;
  switch (plan.recompute) {
    case RecomputeMode::None: return true;
    case RecomputeMode::Full: return false;
    case RecomputeMode::Selective: return !selected(plan.recompute_modules, node);
  }
  TY_CHECK(false, "unknown recompute mode");
}

// Offsets in the Saved frame, by value.
using SavedLayout = std::map<ValueId, std::int64_t>;

// Puts forward nodes into a block. Where each value lies is the caller's to say.
class Emitter {
 public:
  Emitter(const Graph& graph, const ParallelPlan& plan, const Chunk& chunk, BlockKind kind, const std::string& name)
      : graph_(graph),
        plan_(plan),
        chunk_(chunk),
        builder_(kind, name),
        gather_(builder_, plan, chunk),
        tensors_(graph.values.size(), -1) {}

 protected:
  const Value& value(ValueId id) const { return graph_.value(id); }

  TensorId placed_value(ValueId id, Role role, std::int64_t offset_bytes) {
    const Value& v = value(id);
    return builder_.placed(v.name, v.dtype, v.shape, role, offset_bytes);
  }

  // Values that exist before the block runs: parameters, batch data and the chunk's input.
  TensorId given(ValueId id) {
    const Value& v = value(id);
    switch (v.source) {
      case ValueSource::Param: return param(id);
      case ValueSource::Batch: return placed_value(id, Role::Batch, v.batch_offset_bytes);
      case ValueSource::Input: return placed_value(id, Role::Input, 0);
      case ValueSource::Computed: break;
    }
    TY_CHECK(false, "a computed value is not given");
  }

  TensorId param(ValueId id) {
    const Value& v = value(id);
    const Bucket& bucket = chunk_.buckets[index(v.bucket)];
    const std::int64_t offset = bucket.params[index(v.param)].offset_elements * size_of(v.dtype);
    if (!params_sharded(bucket, plan_)) return placed_value(id, Role::Params, bucket.param_offset_bytes + offset);
    TensorId& have = tensors_[index(id)];
    if (have < 0) have = builder_.view(gather_.whole(v.bucket), v.name, v.shape, offset);
    return have;
  }

  TensorId loss_tensor() {
    return builder_.placed("loss", plan_.precision == Precision::F64 ? Dtype::F64 : Dtype::F32, Shape(1), Role::Step,
                           kLossOffset);
  }

  void emit_forward(const Node& node, const std::function<TensorId(ValueId)>& operand, bool again = false) {
    if (node.tp_entry) return;
    Op op = node.op;
    op.recomputed = again;
    for (const ValueId in : node.in) op.in.push_back(operand(resolve(graph_, in)));
    for (const ValueId out : node.out) op.out.push_back(tensors_[index(out)]);
    if (op.kind == OpKind::XentLoss) {
      op.in.resize(2);  // (max, stats): the graph's other inputs serve the backward rule
      op.out = {loss_tensor()};
    }
    builder_.add(std::move(op));
  }

  const Graph& graph_;
  const ParallelPlan& plan_;
  const Chunk& chunk_;
  BlockBuilder builder_;
  ParamGather gather_;
  std::vector<TensorId> tensors_;  // by value: where this block has it, or -1
};

class ForwardEmitter : Emitter {
 public:
  ForwardEmitter(const Graph& graph, const ParallelPlan& plan, const Chunk& chunk, const std::string& name)
      : Emitter(graph, plan, chunk, BlockKind::Forward, name) {}

  Block emit(const SavedLayout& saved, std::vector<std::int32_t> gather_order) {
    gather_.expect(std::move(gather_order));
    run(saved);
    return builder_.finish();
  }

  // In which order the pass uses buckets that it has to gather.
  std::vector<std::int32_t> gather_order(const SavedLayout& saved) {
    run(saved);
    return gather_.order();
  }

 private:
  void run(const SavedLayout& saved) {
    for (const Node& node : graph_.nodes) {
      for (const ValueId out : node.out) {
        if (!node.tp_entry) tensors_[index(out)] = place(out, saved);
      }
      emit_forward(node, [this](ValueId id) {
        return value(id).source == ValueSource::Computed ? tensors_[index(id)] : given(id);
      });
    }
  }

  TensorId place(ValueId id, const SavedLayout& saved) {
    if (id == graph_.output) return placed_value(id, Role::Output, 0);
    if (const auto entry = saved.find(id); entry != saved.end()) return placed_value(id, Role::Saved, entry->second);
    return builder_.transient(value(id).name, value(id).dtype, value(id).shape);
  }
};

class BackwardEmitter : Emitter {
 public:
  BackwardEmitter(const Graph& graph, const ParallelPlan& plan, const Chunk& chunk, bool sync_gradients,
                  const std::string& name)
      : Emitter(graph, plan, chunk, BlockKind::Backward, name),
        sync_(builder_, plan, chunk, sync_gradients),
        grads_(graph.values.size(), -1) {
    std::vector<int> uses(chunk.buckets.size(), 0);
    for (const Value& v : graph.values) {
      if (v.source == ValueSource::Param) ++uses[index(v.bucket)];
    }
    sync_.expect(std::move(uses));
  }

  Block emit(const SavedLayout& saved, std::vector<std::int32_t> gather_order) {
    saved_ = &saved;
    gather_.expect(std::move(gather_order));
    run();
    return builder_.finish();
  }

  // What the backward pass will want, found by a run whose block is thrown away.
  struct Wants {
    std::set<ValueId> reads;                 // values that the forward pass keeps
    std::vector<std::int32_t> gather_order;  // buckets that it has to gather
  };
  Wants wants() {
    run();
    return {reads_, gather_.order()};
  }

 private:
  void run() {
    if (graph_.output >= 0) {
      const Value& out = value(graph_.output);
      grads_[index(graph_.output)] = builder_.placed("output.grad", out.dtype, out.shape, Role::OutputGrad, 0);
    }
    for (std::size_t i = graph_.nodes.size(); i-- > 0;) {
      const Node& node = graph_.nodes[i];
      // Weight gradients wait until the collective that carries the input gradient is launched, so that they overlap.
      const bool communicates = node.op.stream != Stream::Compute;
      if (runs_again_whole(node) && (i + 1 == graph_.nodes.size() || graph_.nodes[i + 1].layer != node.layer))
        run_again(node.layer);
      if (!communicates || follows_compute(node.op.stream)) flush_deferred();
      differentiate(node);
      if (communicates) flush_deferred();
    }
    flush_deferred();
    sync_.finish();
    if (graph_.input >= 0 && !input_grad_written_) {  // a chunk of the head alone: one contribution, nothing to add
      Op copy;
      copy.kind = OpKind::Copy;
      copy.label = "input.grad";
      copy.in = {grad(graph_.input)};
      copy.out = {
          builder_.placed("input.grad", value(graph_.input).dtype, value(graph_.input).shape, Role::InputGrad, 0)};
      builder_.add(std::move(copy));
    }
  }

  bool runs_again_whole(const Node& node) const {
    const bool recomputed = plan_.recompute_layers == 0 || node.layer < plan_.recompute_layers;
    return plan_.recompute == RecomputeMode::Full && !plan_.recompute_early_stop && node.layer >= 0 && recomputed;
  }

  // All of a layer, with what no backward rule asks for: its end is kept, and made once more only to be thrown away.
  void run_again(std::int64_t layer) {
    for (const Node& node : graph_.nodes) {
      if (node.layer != layer || node.tp_entry || node.out.empty()) continue;
      const ValueId out = node.out[0];
      if (!value(out).layer_boundary && out != graph_.output) {
        need(out);
        continue;
      }
      for (const ValueId in : node.in) need(in);
      const TensorId kept_one = std::exchange(
          tensors_[index(out)], builder_.transient("again." + value(out).name, value(out).dtype, value(out).shape));
      emit_forward(
          node, [this](ValueId in) { return need(in); }, true);
      tensors_[index(out)] = kept_one;
    }
  }

  bool follows_compute(Stream stream) const { return stream == Stream::Tp && !plan_.overlap.tensor_parallel; }

  void flush_deferred() {
    for (const auto& emit_now : deferred_) emit_now();
    deferred_.clear();
  }

  // --- operands

  // The forward value, from wherever it is: kept, given, or computed again here and now.
  TensorId need(ValueId id) {
    id = resolve(graph_, id);
    const Value& v = value(id);
    if (v.source != ValueSource::Computed) return given(id);
    TensorId& have = tensors_[index(id)];
    if (have >= 0) return have;
    if (kept(graph_, plan_, id)) {
      reads_.insert(id);
      have = placed_value(id, Role::Saved, saved_ != nullptr ? saved_->at(id) : kAlignBytes * id);
      return have;
    }
    const Node& node = graph_.nodes[index(v.producer)];
    std::vector<TensorId> operands;
    for (const ValueId in : node.in) need(in);  // in graph order, before this node's outputs take memory
    for (const ValueId out : node.out) {
      if (tensors_[index(out)] < 0)
        tensors_[index(out)] = builder_.transient("again." + value(out).name, value(out).dtype, value(out).shape);
    }
    emit_forward(
        node, [this](ValueId in) { return need(in); }, true);
    return tensors_[index(id)];
  }

  TensorId like(ValueId id, const char* suffix = ".grad") {
    return builder_.transient(value(id).name + suffix, value(id).dtype, value(id).shape);
  }

  bool wants_grad(ValueId id) const { return value(id).differentiable && value(id).source != ValueSource::Batch; }

  TensorId grad(ValueId id) const {
    TY_CHECK(grads_[index(id)] >= 0, "a gradient is asked for before it is known");
    return grads_[index(id)];
  }

  // The chunk input's gradient is the block's product, so its last contribution lands in its own frame.
  void give(ValueId id, TensorId gradient) {
    TensorId& have = grads_[index(id)];
    if (have < 0) {
      have = gradient;
      return;
    }
    Op add;
    add.kind = OpKind::Add;
    add.label = value(id).name + ".grad.add";
    add.in = {have, gradient};
    if (id == graph_.input) {
      have = builder_.placed("input.grad", value(id).dtype, value(id).shape, Role::InputGrad, 0);
      input_grad_written_ = true;
    } else {
      have = like(id, ".grad.sum");
    }
    add.out = {have};
    builder_.add(std::move(add));
  }

  Op backward_op(const Node& node, OpKind kind) {
    Op op;
    op.kind = kind;
    op.stream = node.op.stream;
    op.group = node.op.group;
    op.attr = node.op.attr;
    op.label = node.op.label + ".grad";
    return op;
  }

  // --- rules

  void differentiate(const Node& node) {
    switch (node.op.kind) {
      case OpKind::Embedding: return embedding_rule(node, OpKind::EmbeddingGrad, 1, 0);
      case OpKind::PositionAdd:
        give(node.in[0], grad(node.out[0]));
        return embedding_rule(node, OpKind::PositionGrad, 2, 1);
      case OpKind::Norm: return norm_rule(node);
      case OpKind::Matmul: return matmul_rule(node);
      case OpKind::BiasAdd: return bias_add_rule(node);
      case OpKind::Activation: return activation_rule(node);
      case OpKind::Add:
        give(node.in[0], grad(node.out[0]));
        give(node.in[1], grad(node.out[0]));
        return;
      case OpKind::Dropout: return unary_rule(node, OpKind::Dropout, {need(node.in[1]), need(node.in[2])});
      case OpKind::SplitQkv: return split_rule(node);
      case OpKind::Attention:
        if (node.op.attr.hop < 0) attention_rule(node);
        return;  // of a ring AttentionMerge has the rule
      case OpKind::AttentionMerge: return ring_rule(node);
      case OpKind::Router: return router_rule(node);
      case OpKind::Permute: return unary_rule(node, OpKind::PermuteGrad, {need(node.out[1])});
      case OpKind::Unpermute: return unpermute_rule(node);
      case OpKind::SortByExpert: return reversed_rule(node, {need(node.in[1])});
      case OpKind::AllToAllV: return reversed_rule(node, {need(node.in[1]), need(node.in[2])});
      case OpKind::GroupedMatmul: return grouped_rule(node);
      case OpKind::XentLoss: return loss_rule(node);
      case OpKind::AllGather:
        if (value(node.out[0]).differentiable) unary_rule(node, OpKind::ReduceScatter, {});
        return;
      case OpKind::ReduceScatter: return unary_rule(node, OpKind::AllGather, {});
      case OpKind::AllReduce:
        if (!value(node.out[0]).differentiable) return;
        if (node.tp_entry) return unary_rule(node, OpKind::AllReduce, {});
        return give(node.in[0], grad(node.out[0]));  // every rank's partial sum gets the whole gradient
      // No gradient flows through counts, statistics and host waits.
      case OpKind::XentMax:
      case OpKind::XentSum:
      case OpKind::AllToAllCounts:
      case OpKind::RingShift:
      case OpKind::Copy:
      case OpKind::HostSync: return;
      default: TY_CHECK(false, "a forward op without a backward rule");
    }
  }

  // dx from dy and further operands, for ops with one differentiable input, the first.
  void unary_rule(const Node& node, OpKind kind, std::vector<TensorId> more) {
    Op op = backward_op(node, kind);
    op.in = {grad(node.out[0])};
    op.in.insert(op.in.end(), more.begin(), more.end());
    op.out = {like(node.in[0])};
    const TensorId dx = op.out[0];
    if (follows_compute(op.stream) && builder_.last_compute_op() >= 0) op.deps.push_back(builder_.last_compute_op());
    builder_.add(std::move(op));
    give(node.in[0], dx);
  }

  void reversed_rule(const Node& node, std::vector<TensorId> more) {
    Op op = backward_op(node, node.op.kind);
    op.attr.reverse = !op.attr.reverse;
    op.in = {grad(node.out[0])};
    op.in.insert(op.in.end(), more.begin(), more.end());
    op.out = {like(node.in[0])};
    const TensorId dx = op.out[0];
    builder_.add(std::move(op));
    give(node.in[0], dx);
  }

  // Accumulates into the parameter's gradient, and tells the bucket that it is complete.
  void add_param_op(Op op, ValueId param) {
    const Value& p = value(param);
    op.out = {sync_.grad_of(p.bucket, p.param)};
    builder_.add(std::move(op));
    sync_.done(p.bucket);
  }

  void embedding_rule(const Node& node, OpKind kind, std::size_t table, std::size_t index_operand) {
    Op op = backward_op(node, kind);
    op.in = {need(node.in[index_operand]), grad(node.out[0])};
    add_param_op(std::move(op), node.in[table]);
  }

  void norm_rule(const Node& node) {
    const bool layer_norm = node.op.attr.norm == NormKind::LayerNorm;
    Op op = backward_op(node, OpKind::NormGrad);
    op.in = {grad(node.out[0]), need(node.in[0]), need(node.in[1]), need(node.out[1])};
    if (layer_norm) op.in.push_back(need(node.out[2]));
    const Value& weight = value(node.in[1]);
    op.out = {like(node.in[0]), sync_.grad_of(weight.bucket, weight.param)};
    if (layer_norm) op.out.push_back(sync_.grad_of(value(node.in[2]).bucket, value(node.in[2]).param));
    const TensorId dx = op.out[0];
    builder_.add(std::move(op));
    sync_.done(weight.bucket);
    if (layer_norm) sync_.done(value(node.in[2]).bucket);
    give(node.in[0], dx);
  }

  // y = alpha x W^T + b: dx = alpha dy W at once; dW += alpha dy^T x later, beside the collective that carries dx.
  void matmul_rule(const Node& node) {
    const OpAttributes& forward = node.op.attr;
    const TensorId dy = grad(node.out[0]), x = need(node.in[0]);
    Op dgrad = backward_op(node, OpKind::Matmul);
    dgrad.label = node.op.label + ".dgrad";
    dgrad.attr.n = forward.k;
    dgrad.attr.k = forward.n;
    dgrad.attr.trans_b = dgrad.attr.has_bias = false;
    dgrad.in = {dy, need(node.in[1])};
    dgrad.out = {like(resolve(graph_, node.in[0]))};
    const TensorId dx = dgrad.out[0];
    builder_.add(std::move(dgrad));
    give(node.in[0], dx);

    deferred_.emplace_back([this, &node, dy, x] {
      Op wgrad = backward_op(node, OpKind::Matmul);
      wgrad.label = node.op.label + ".wgrad";
      wgrad.attr.m = node.op.attr.n;
      wgrad.attr.n = node.op.attr.k;
      wgrad.attr.k = node.op.attr.m;
      wgrad.attr.trans_a = wgrad.attr.accumulate = true;
      wgrad.attr.trans_b = wgrad.attr.has_bias = false;
      wgrad.in = {dy, x};
      add_param_op(std::move(wgrad), node.in[1]);
      if (!node.op.attr.has_bias) return;
      Op bias = backward_op(node, OpKind::BiasGrad);
      bias.label = node.op.label + ".bias.grad";
      bias.in = {dy};
      add_param_op(std::move(bias), node.in[2]);
    });
  }

  void bias_add_rule(const Node& node) {
    give(node.in[0], grad(node.out[0]));
    Op op = backward_op(node, OpKind::BiasGrad);
    op.in = {grad(node.out[0])};
    add_param_op(std::move(op), node.in[1]);
  }

  void activation_rule(const Node& node) {
    std::vector<TensorId> more{need(node.in[0])};
    if (node.op.attr.has_counts) more.push_back(need(node.in[1]));
    unary_rule(node, OpKind::ActivationGrad, std::move(more));
  }

  void split_rule(const Node& node) {
    Op op = backward_op(node, OpKind::MergeQkvGrad);
    op.in = {grad(node.out[0]), grad(node.out[1]), grad(node.out[2])};
    if (node.op.attr.rope) op.in.push_back(need(node.in[1]));
    op.out = {like(node.in[0])};
    const TensorId dqkv = op.out[0];
    builder_.add(std::move(op));
    give(node.in[0], dqkv);
  }

  void attention_rule(const Node& node) {
    Op op = backward_op(node, OpKind::AttentionGrad);
    op.in = {grad(node.out[0]), need(node.in[0]),  need(node.in[1]),
             need(node.in[2]),  need(node.out[0]), need(node.out[1])};
    op.out = {like(node.in[0]), like(node.in[1]), like(node.in[2])};
    const std::vector<TensorId> grads = op.out;
    builder_.add(std::move(op));
    for (std::size_t i = 0; i < 3; ++i) give(node.in[i], grads[i]);
  }

  // The blocks go around once more, and each has its gradient follow it, which every rank adds its share to. One shift
  // after the last it is home.
  void ring_rule(const Node& node) {
    const std::int64_t hops = node.op.attr.cp;
    const Node& own = graph_.nodes[index(value(node.in[0]).producer)];  // attention to this rank's own block
    const ValueId q = own.in[0], k = own.in[1], v = own.in[2];
    const TensorId dout = grad(node.out[0]), o = need(node.out[0]), lse = need(node.out[1]);
    std::vector<TensorId> block{need(k), need(v)}, sums;
    TensorId dq = -1;
    for (std::int64_t hop = 0; hop < hops; ++hop) {
      const std::vector<TensorId> here = block;
      if (hop + 1 < hops) block = shift(fmt::format("{}.ring{}", node.op.label, hop + 1), here, {k, v}, "");
      Op op = backward_op(node, OpKind::AttentionGrad);
      op.attr.hop = hop;
      op.label = fmt::format("{}{}.grad", node.op.label, hop);
      op.in = {dout, need(q), here[0], here[1], o, lse};
      op.out = {like(q), like(k), like(v)};
      const std::vector<TensorId> shares = op.out;
      builder_.add(std::move(op));
      if (hop == 0) {
        dq = shares[0];
        sums = {shares[1], shares[2]};
      } else {
        accumulate(value(q).name, shares[0], dq);
        accumulate(value(k).name, shares[1], sums[0]);
        accumulate(value(v).name, shares[2], sums[1]);
      }
      sums = shift(fmt::format("{}.ring{}.grad", node.op.label, hop + 1), sums, {k, v}, ".grad");
    }
    give(q, dq);
    give(k, sums[0]);
    give(v, sums[1]);
  }

  std::vector<TensorId> shift(std::string label, std::vector<TensorId> blocks, const std::vector<ValueId>& of,
                              const char* suffix) {
    Op op;
    op.kind = OpKind::RingShift;
    op.stream = Stream::Cp;
    op.group = Group::Cp;
    op.label = std::move(label);
    op.in = std::move(blocks);
    for (const ValueId id : of) op.out.push_back(like(id, suffix));
    std::vector<TensorId> received = op.out;
    builder_.add(std::move(op));
    return received;
  }

  void accumulate(const std::string& name, TensorId share, TensorId sum) {
    Op op;
    op.kind = OpKind::Accumulate;
    op.label = name + ".grad.add";
    op.in = {share};
    op.out = {sum};
    builder_.add(std::move(op));
  }

  void router_rule(const Node& node) { unary_rule(node, OpKind::RouterGrad, {need(node.out[1]), need(node.out[2])}); }

  void unpermute_rule(const Node& node) {
    Op op = backward_op(node, OpKind::UnpermuteGrad);
    op.in = {grad(node.out[0]), need(node.in[0]), need(node.in[1]), need(node.in[2])};
    op.out = {like(node.in[0]), like(node.in[2])};
    const TensorId drows = op.out[0], dprobs = op.out[1];
    builder_.add(std::move(op));
    give(node.in[0], drows);
    give(node.in[2], dprobs);
  }

  void grouped_rule(const Node& node) {
    const TensorId dy = grad(node.out[0]), x = need(node.in[0]), counts = need(node.in[2]);
    Op dgrad = backward_op(node, OpKind::GroupedMatmul);
    dgrad.label = node.op.label + ".dgrad";
    dgrad.attr.n = node.op.attr.k;
    dgrad.attr.k = node.op.attr.n;
    dgrad.attr.trans_b = false;
    dgrad.in = {dy, need(node.in[1]), counts};
    dgrad.out = {like(node.in[0])};
    const TensorId dx = dgrad.out[0];
    builder_.add(std::move(dgrad));
    give(node.in[0], dx);
    deferred_.emplace_back([this, &node, dy, x, counts] {
      Op wgrad = backward_op(node, OpKind::GroupedMatmulWgrad);
      wgrad.label = node.op.label + ".wgrad";
      wgrad.attr.trans_b = false;
      wgrad.in = {dy, x, counts};
      add_param_op(std::move(wgrad), node.in[1]);
    });
  }

  void loss_rule(const Node& node) {
    Op op = backward_op(node, OpKind::XentGrad);
    const ValueId max = node.in[0], stats = node.in[1], logits = node.in[2], labels = node.in[3];
    op.in = {need(logits), need(max), need(stats), need(labels)};
    op.out = {like(logits)};
    const TensorId dlogits = op.out[0];
    builder_.add(std::move(op));
    give(logits, dlogits);
  }

  const SavedLayout* saved_ = nullptr;  // absent in the run that finds out what is read
  GradientSync sync_;
  std::vector<TensorId> grads_;  // by value
  std::vector<std::function<void()>> deferred_;
  std::set<ValueId> reads_;
  bool input_grad_written_ = false;
};

SavedLayout saved_layout(const Graph& graph, const ParallelPlan& plan, const Chunk& chunk) {
  SavedLayout layout;
  std::int64_t offset = 0;
  for (const ValueId id : BackwardEmitter(graph, plan, chunk, false, "").wants().reads) {
    layout[id] = offset;
    offset += align(graph.value(id).shape.elements() * size_of(graph.value(id).dtype));
  }
  return layout;
}

}  // namespace

Block forward_block(const Graph& graph, const ParallelPlan& plan, const Chunk& chunk, const std::string& name) {
  const SavedLayout saved = saved_layout(graph, plan, chunk);
  return ForwardEmitter(graph, plan, chunk, name)
      .emit(saved, ForwardEmitter(graph, plan, chunk, name).gather_order(saved));
}

Block backward_block(const Graph& graph, const ParallelPlan& plan, const Chunk& chunk, bool sync_gradients,
                     const std::string& name) {
  return BackwardEmitter(graph, plan, chunk, sync_gradients, name)
      .emit(saved_layout(graph, plan, chunk), BackwardEmitter(graph, plan, chunk, false, "").wants().gather_order);
}

}  // namespace trainyard
