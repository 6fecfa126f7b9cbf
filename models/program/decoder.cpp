// Builds the forward graph of a chunk: embedding, decoder layers, head and loss.

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "models/base/check.h"
#include "models/program/block_builder.h"
#include "models/program/graph.h"
#include "models/program/parameters.h"

namespace trainyard {

namespace {

class Decoder {
 public:
  Decoder(const ModelSpec& model, const ParallelPlan& plan, const Chunk& chunk)
      : model_(model),
        plan_(plan),
        chunk_(chunk),
        rows_(plan.micro_batch * plan.sequence_length / plan.cp),
        shard_rows_(plan.sequence_parallel ? rows_ / plan.tp : rows_),
        dtype_(param_dtype(plan)),
        wide_(plan.precision == Precision::F64 ? Dtype::F64 : Dtype::F32) {}

  Graph build() {
    make_batch();
    ValueId x = chunk_.has_embedding ? embedding() : input();
    for (std::int64_t i = 0; i < chunk_.layers; ++i) x = layer(x, i);
    layer_ = -1;
    if (chunk_.has_head) {
      loss(x);
    } else {
      graph_.output = x;
    }
    return std::move(graph_);
  }

 private:
  struct Out {
    const char* name;
    Dtype dtype;
    Shape shape;
    bool differentiable = true;
  };

  // --- graph plumbing

  std::string label(const char* what) const { return layer_ < 0 ? what : fmt::format("layer{}.{}", layer_, what); }

  std::vector<ValueId> node(OpKind kind, const char* what, std::vector<ValueId> in, const std::vector<Out>& outs,
                            OpAttributes attr = {}, Stream stream = Stream::Compute, Group group = Group::Tp) {
    Node node;
    node.op.kind = kind;
    node.op.stream = stream;
    node.op.group = group;
    node.op.label = label(what);
    node.op.attr = attr;
    node.in = std::move(in);
    node.layer = layer_;
    for (const Out& out : outs) {
      Value value;
      value.name = outs.size() == 1 ? node.op.label : fmt::format("{}.{}", node.op.label, out.name);
      value.dtype = out.dtype;
      value.shape = out.shape;
      value.producer = static_cast<std::int32_t>(graph_.nodes.size());
      value.differentiable = out.differentiable;
      node.out.push_back(static_cast<ValueId>(graph_.values.size()));
      graph_.values.push_back(std::move(value));
    }
    graph_.nodes.push_back(std::move(node));
    return graph_.nodes.back().out;
  }

  ValueId one(OpKind kind, const char* what, std::vector<ValueId> in, Out out, OpAttributes attr = {},
              Stream stream = Stream::Compute, Group group = Group::Tp) {
    return node(kind, what, std::move(in), {out}, attr, stream, group)[0];
  }

  const Shape& shape(ValueId id) const { return graph_.value(id).shape; }
  std::int64_t rows(ValueId id) const { return shape(id).dims[0]; }

  // Parameters are looked up by name in the sharding table, so the two cannot drift apart.
  ValueId param(const std::string& name) {
    for (std::size_t b = 0; b < chunk_.buckets.size(); ++b) {
      const Bucket& bucket = chunk_.buckets[b];
      for (std::size_t p = 0; p < bucket.params.size(); ++p) {
        if (bucket.params[p].name != name) continue;
        Value value;
        value.name = name;
        value.dtype = dtype_;
        value.shape = bucket.params[p].local_shape;
        value.source = ValueSource::Param;
        value.bucket = static_cast<std::int32_t>(b);
        value.param = static_cast<std::int32_t>(p);
        graph_.values.push_back(std::move(value));
        return static_cast<ValueId>(graph_.values.size() - 1);
      }
    }
    TY_CHECK(false, "a parameter of the graph is missing from the sharding table");
  }
  ValueId param_of_layer(const char* what) { return param(layer_param(layer_, what)); }

  ValueId batch(const char* name) {
    Value value;
    value.name = name;
    value.dtype = Dtype::I32;
    value.shape = Shape(rows_);
    value.source = ValueSource::Batch;
    value.batch_offset_bytes = graph_.batch_bytes;
    value.differentiable = false;
    graph_.batch_bytes += align(rows_ * size_of(Dtype::I32));
    graph_.values.push_back(std::move(value));
    return static_cast<ValueId>(graph_.values.size() - 1);
  }

  void make_batch() {
    tokens_ = batch("tokens");
    labels_ = batch("labels");
    positions_ = batch("positions");
    samples_ = batch("samples");
  }

  ValueId input() {
    Value value;
    value.name = "input";
    value.dtype = dtype_;
    value.shape = Shape(shard_rows_, model_.hidden_size);
    value.source = ValueSource::Input;
    value.layer_boundary = true;
    graph_.values.push_back(std::move(value));
    graph_.input = static_cast<ValueId>(graph_.values.size() - 1);
    return graph_.input;
  }

  // --- tensor-parallel regions

  bool tensor_parallel() const { return plan_.tp > 1; }

  // Entry: every tp rank gets all rows. Under sequence parallelism that is an all-gather; else the
  // rows are there already and only the gradient needs summing.
  ValueId enter_tp(ValueId x, const char* what, OpAttributes attr = {}) {
    if (!tensor_parallel()) return x;
    const Out out{"", graph_.value(x).dtype,
                  Shape(plan_.sequence_parallel ? rows(x) * plan_.tp : rows(x), shape(x).dims[1])};
    if (plan_.sequence_parallel) return one(OpKind::AllGather, what, {x}, out, attr, Stream::Tp, Group::Tp);
    const ValueId entered = one(OpKind::AllReduce, what, {x}, out, attr, Stream::Tp, Group::Tp);
    graph_.nodes.back().tp_entry = true;
    return entered;
  }

  // Exit: partial sums of the tp ranks are added, and scattered by rows under sequence parallelism.
  ValueId leave_tp(ValueId x, const char* what, OpAttributes attr = {}) {
    if (!tensor_parallel()) return x;
    if (!plan_.sequence_parallel) {
      return one(OpKind::AllReduce, what, {x}, {"", graph_.value(x).dtype, shape(x)}, attr, Stream::Tp, Group::Tp);
    }
    return one(OpKind::ReduceScatter, what, {x},
               {"", graph_.value(x).dtype, Shape(rows(x) / plan_.tp, shape(x).dims[1])}, attr, Stream::Tp, Group::Tp);
  }

  // --- pieces

  // y[rows, out] = x W^T (+ bias).
  ValueId linear(const char* what, ValueId x, ValueId weight, ValueId bias = -1, Dtype out_dtype = Dtype::Bf16,
                 double alpha = 1) {
    OpAttributes attr;
    attr.m = rows(x);
    attr.k = shape(x).dims[1];
    attr.n = shape(weight).dims[0];
    attr.trans_b = true;
    attr.alpha = alpha;
    attr.has_bias = bias >= 0;
    TY_CHECK(shape(weight).dims[1] == attr.k, "a weight's inner dimension is that of its input");
    std::vector<ValueId> in{x, weight};
    if (bias >= 0) in.push_back(bias);
    return one(OpKind::Matmul, what, std::move(in), {"", out_dtype, Shape(attr.m, attr.n)}, attr);
  }

  ValueId norm(const char* what, ValueId x, const std::string& name) {
    OpAttributes attr;
    attr.norm = model_.norm;
    attr.eps = model_.norm_eps;
    std::vector<ValueId> in{x, param(name + ".weight")};
    std::vector<Out> outs{{"y", dtype_, shape(x)}, {"rstd", wide_, Shape(rows(x)), false}};
    if (model_.norm == NormKind::LayerNorm) {
      in.push_back(param(name + ".bias"));
      outs.push_back({"mean", wide_, Shape(rows(x)), false});
    }
    return node(OpKind::Norm, what, std::move(in), outs, attr)[0];
  }

  ValueId add(const char* what, ValueId a, ValueId b) { return one(OpKind::Add, what, {a, b}, {"", dtype_, shape(a)}); }

  ValueId bias_add(const char* what, ValueId x, const char* name) {
    return one(OpKind::BiasAdd, what, {x, param_of_layer(name)}, {"", dtype_, shape(x)});
  }

  ValueId dropout(const char* what, ValueId x, std::uint32_t site) {
    if (model_.hidden_dropout <= 0) return x;
    OpAttributes attr;
    attr.probability = model_.hidden_dropout;
    attr.salt = site;
    attr.layer = layer_;
    return one(OpKind::Dropout, what, {x, samples_, positions_}, {"", dtype_, shape(x)}, attr);
  }

  ValueId embedding() {
    OpAttributes attr;
    attr.scale = model_.embedding_multiplier;
    ValueId x = one(OpKind::Embedding, "embedding", {tokens_, param("embedding")},
                    {"", dtype_, Shape(rows_, model_.hidden_size)}, attr);
    x = leave_tp(x, "embedding.reduce");
    if (model_.position == PositionKind::Learned) {
      x = one(OpKind::PositionAdd, "positions", {x, positions_, param("positions")}, {"", dtype_, shape(x)});
    }
    x = dropout("embedding.dropout", x, 0);
    graph_.values[static_cast<std::size_t>(x)].layer_boundary = true;
    return x;
  }

  // `index` counts from the chunk's first layer: chunks of equal shape share their blocks.
  ValueId layer(ValueId x, std::int64_t index) {
    layer_ = index;
    ValueId y = attention(norm("attn_norm", x, layer_param(index, "attn_norm")));
    if (model_.norm_placement == NormPlacement::Sandwich)
      y = norm("post_attn_norm", y, layer_param(index, "post_attn_norm"));
    x = add("attn.residual", x, dropout("attn.dropout", y, 1));

    const ValueId h = norm("mlp_norm", x, layer_param(index, "mlp_norm"));
    y = model_.moe ? experts(h) : mlp(h);
    if (model_.norm_placement == NormPlacement::Sandwich)
      y = norm("post_mlp_norm", y, layer_param(index, "post_mlp_norm"));
    x = add("mlp.residual", x, dropout("mlp.dropout", y, 2));
    graph_.values[static_cast<std::size_t>(x)].layer_boundary = true;
    return x;
  }

  ValueId gather_context(const char* what, ValueId x) {
    if (plan_.cp == 1) return x;
    return one(OpKind::AllGather, what, {x}, {"", dtype_, Shape(rows(x) * plan_.cp, shape(x).dims[1])}, {}, Stream::Cp,
               Group::Cp);
  }

  // What attention makes of q[T,hq*dh].
  std::vector<Out> attention_outs(const OpAttributes& attr) const {
    return {{"o", dtype_, Shape(rows_, attr.heads * attr.head_dim)}, {"lse", wide_, Shape(rows_, attr.heads), false}};
  }

  ValueId attention_core(const std::vector<ValueId>& qkv, const OpAttributes& attr) {
    const ValueId k = gather_context("attn.gather_k", qkv[1]), v = gather_context("attn.gather_v", qkv[2]);
    return node(OpKind::Attention, "attn.core", {qkv[0], k, v}, attention_outs(attr), attr)[0];
  }

  // Keys and values go around while attention to those that are here is computed; its parts are merged at the end.
  ValueId ring_attention(const std::vector<ValueId>& qkv, OpAttributes attr) {
    std::vector<ValueId> block{qkv[1], qkv[2]}, parts;
    for (attr.hop = 0; attr.hop < plan_.cp; ++attr.hop) {
      const std::vector<ValueId> here = block;
      if (attr.hop + 1 < plan_.cp)
        block = node(OpKind::RingShift, fmt::format("attn.ring{}", attr.hop + 1).c_str(), here,
                     {{"k", dtype_, shape(here[0])}, {"v", dtype_, shape(here[1])}}, {}, Stream::Cp, Group::Cp);
      const std::vector<ValueId> part = node(OpKind::Attention, fmt::format("attn.core{}", attr.hop).c_str(),
                                             {qkv[0], here[0], here[1]}, attention_outs(attr), attr);
      parts.insert(parts.end(), part.begin(), part.end());
    }
    attr.hop = -1;
    return node(OpKind::AttentionMerge, "attn.core", std::move(parts), attention_outs(attr), attr)[0];
  }

  ValueId attention(ValueId h) {
    OpAttributes attr;
    attr.heads = model_.num_attention_heads / plan_.tp;
    attr.kv_heads = model_.num_key_value_heads / plan_.tp;
    attr.head_dim = model_.head_dim;
    attr.rope = model_.position == PositionKind::Rope;
    attr.rope_theta = model_.rope_theta;
    attr.batch = plan_.micro_batch;
    const Shape q_shape(rows_, attr.heads * attr.head_dim), kv_shape(rows_, attr.kv_heads * attr.head_dim);

    h = enter_tp(h, "attn.gather");
    const ValueId bias = model_.attention_bias ? param_of_layer("attn.qkv.bias") : -1;
    const ValueId qkv = linear("attn.qkv", h, param_of_layer("attn.qkv"), bias, dtype_);
    std::vector<ValueId> in{qkv};
    if (attr.rope) in.push_back(positions_);
    const auto split = node(OpKind::SplitQkv, "attn.split", std::move(in),
                            {{"q", dtype_, q_shape}, {"k", dtype_, kv_shape}, {"v", dtype_, kv_shape}}, attr);
    attr.m = rows_;
    attr.cp = plan_.cp;
    attr.scale = model_.attention_scale();
    attr.softcap = model_.attention_softcap;
    attr.window = model_.sliding_window;
    if (model_.position == PositionKind::Alibi) attr.alibi_heads = model_.num_attention_heads;
    const ValueId o = plan_.ring_attention() ? ring_attention(split, attr) : attention_core(split, attr);
    const ValueId y =
        leave_tp(named(LayerProduct::AttentionOut, linear("attn.out", o, param_of_layer("attn.out"), -1, dtype_)),
                 "attn.reduce");
    return model_.attention_bias ? bias_add("attn.out.bias", y, "attn.out.bias") : y;
  }

  OpAttributes activation_attributes() const {
    OpAttributes attr;
    attr.activation = model_.hidden_act;
    attr.gated = model_.gated_mlp;
    return attr;
  }

  ValueId named(LayerProduct product, ValueId y) {
    graph_.nodes[static_cast<std::size_t>(graph_.value(y).producer)].product = product;
    return y;
  }

  ValueId mlp(ValueId h) {
    h = enter_tp(h, "mlp.gather");
    const ValueId bias = model_.mlp_bias ? param_of_layer("mlp.up.bias") : -1;
    const ValueId up = named(model_.gated_mlp ? LayerProduct::MlpGateUp : LayerProduct::MlpUp,
                             linear("mlp.up", h, param_of_layer("mlp.up"), bias, dtype_));
    const ValueId a = one(OpKind::Activation, "mlp.act", {up},
                          {"", dtype_, Shape(rows(up), model_.intermediate_size / plan_.tp)}, activation_attributes());
    const ValueId y = leave_tp(
        named(LayerProduct::MlpDown, linear("mlp.down", a, param_of_layer("mlp.down"), -1, dtype_)), "mlp.reduce");
    return model_.mlp_bias ? bias_add("mlp.down.bias", y, "mlp.down.bias") : y;
  }

  // --- mixture of experts

  // Rows that one rank may receive from its ep group: a factor over the mean, at most all of them.
  std::int64_t rows_bound(std::int64_t sent_rows) const {
    const std::int64_t worst = plan_.ep * (sent_rows / model_.moe->num_experts_per_tok) *
                               std::min(model_.moe->num_experts_per_tok, model_.moe->num_local_experts / plan_.ep);
    if (!plan_.moe.buffer_factor) return worst;
    const auto bound = static_cast<std::int64_t>(std::ceil(*plan_.moe.buffer_factor * static_cast<double>(sent_rows)));
    return std::min(bound, worst);
  }

  // Grouped y[R, out] = x W[e]^T over expert rows.
  ValueId grouped(const char* what, ValueId x, ValueId weight, ValueId counts, OpAttributes attr) {
    attr.n = shape(weight).dims[1];
    attr.k = shape(x).dims[1];
    attr.trans_b = true;
    attr.has_counts = true;
    TY_CHECK(shape(weight).dims[2] == attr.k, "an expert's inner dimension is that of its input");
    return one(OpKind::GroupedMatmul, what, {x, weight, counts}, {"", dtype_, Shape(rows(x), attr.n)}, attr);
  }

  ValueId experts(ValueId h) {
    const MoeSpec& moe = *model_.moe;
    const std::int64_t d = model_.hidden_size, local = moe.num_local_experts / plan_.ep, k = moe.num_experts_per_tok;
    OpAttributes attr;
    attr.top_k = k;
    attr.experts = moe.num_local_experts;
    attr.local_experts = local;
    attr.renormalize = moe.renormalize;

    const ValueId logits = linear("router.logits", h, param_of_layer("router"), -1, wide_);
    const auto routed = node(OpKind::Router, "router", {logits},
                             {{"probs", wide_, Shape(rows(h), k)},
                              {"experts", Dtype::I32, Shape(rows(h), k), false},
                              {"softmax", wide_, Shape(rows(h), moe.num_local_experts), false}},
                             attr);
    const std::int64_t sent = rows(h) * k;
    const auto permuted = node(OpKind::Permute, "permute", {h, routed[1]},
                               {{"rows", dtype_, Shape(sent, d)},
                                {"row_map", Dtype::I32, Shape(rows(h), k), false},
                                {"counts", Dtype::I32, Shape(moe.num_local_experts), false}},
                               attr);

    // To the ranks that hold the experts.
    const std::int64_t bound = plan_.ep > 1 ? rows_bound(sent) : sent;
    const double fill = static_cast<double>(sent) / static_cast<double>(bound);
    attr.rows_bound = bound;
    const Out received_out{"", Dtype::I32, Shape(1, plan_.ep, local), false};
    ValueId received, x = permuted[0];
    if (plan_.ep > 1) {
      received =
          one(OpKind::AllToAllCounts, "dispatch.counts", {permuted[2]}, received_out, attr, Stream::Ep, Group::Ep);
      node(OpKind::HostSync, "dispatch.sync", {received}, {}, attr);
      x = one(OpKind::AllToAllV, "dispatch", {x, permuted[2], received}, {"", dtype_, Shape(bound, d)}, attr,
              Stream::Ep, Group::Ep);
    } else {
      received = one(OpKind::Copy, "dispatch.counts", {permuted[2]}, received_out);
    }

    // Under sequence parallelism each tp rank brought its own rows: gather them, because each holds
    // a slice of every local expert.
    const bool gather = tensor_parallel() && plan_.sequence_parallel;
    attr.segments = gather ? plan_.tp : 1;
    attr.fill = fill;
    ValueId counts = received;
    if (gather) {
      counts = one(OpKind::AllGather, "dispatch.gather_counts", {received},
                   {"", Dtype::I32, Shape(plan_.tp, plan_.ep, local), false}, {}, Stream::Tp, Group::Tp);
      x = one(OpKind::AllGather, "dispatch.gather", {x}, {"", dtype_, Shape(bound * plan_.tp, d)}, attr, Stream::Tp,
              Group::Tp);
    } else if (tensor_parallel()) {
      x = enter_tp(x, "dispatch.enter", attr);
    }
    attr.m = sent * attr.segments;  // expected rows
    const ValueId sorted = one(OpKind::SortByExpert, "sort", {x, counts}, {"", dtype_, shape(x)}, attr);
    const ValueId up = grouped("experts.up", sorted, param_of_layer("experts.up"), counts, attr);
    OpAttributes act = activation_attributes();
    act.has_counts = true;
    act.fill = fill;
    act.segments = attr.segments;
    act.local_experts = local;
    act.rows_bound = bound;
    const ValueId a = one(OpKind::Activation, "experts.act", {up, counts},
                          {"", dtype_, Shape(rows(up), model_.intermediate_size / plan_.tp)}, act);
    const ValueId down = grouped("experts.down", a, param_of_layer("experts.down"), counts, attr);
    OpAttributes back = attr;
    back.reverse = true;
    ValueId y = one(OpKind::SortByExpert, "unsort", {down, counts}, {"", dtype_, shape(down)}, back);
    y = leave_tp(y, "combine.reduce", attr);
    if (plan_.ep > 1) {
      y = one(OpKind::AllToAllV, "combine", {y, permuted[2], received}, {"", dtype_, Shape(sent, d)}, back, Stream::Ep,
              Group::Ep);
    }
    return one(OpKind::Unpermute, "unpermute", {y, permuted[1], routed[0]}, {"", dtype_, shape(h)});
  }

  // --- head

  void loss(ValueId x) {
    const bool shared = model_.tie_word_embeddings && chunk_.has_embedding;
    x = enter_tp(norm("final_norm", x, "final_norm"), "head.gather");
    const ValueId logits = linear("head", x, param(shared ? "embedding" : "head"), -1, dtype_);
    OpAttributes attr;
    attr.alpha = model_.logit_scale();
    attr.softcap = model_.output_softcap;
    attr.scale = 1.0 / static_cast<double>(plan_.global_batch * plan_.sequence_length);
    ValueId max = one(OpKind::XentMax, "loss.max", {logits}, {"", wide_, Shape(rows_), false}, attr);
    if (tensor_parallel()) {
      OpAttributes reduce;
      reduce.reduce = Reduce::Max;
      max = one(OpKind::AllReduce, "loss.max.reduce", {max}, {"", wide_, Shape(rows_), false}, reduce, Stream::Tp,
                Group::Tp);
    }
    ValueId stats = one(OpKind::XentSum, "loss.sum", {logits, max, labels_}, {"", wide_, Shape(rows_, 2), false}, attr);
    if (tensor_parallel()) {
      stats = one(OpKind::AllReduce, "loss.sum.reduce", {stats}, {"", wide_, Shape(rows_, 2), false}, {}, Stream::Tp,
                  Group::Tp);
    }
    // Inputs beyond op.h's (max, stats) give the backward rule what it needs.
    node(OpKind::XentLoss, "loss", {max, stats, logits, labels_}, {}, attr);
  }

  const ModelSpec& model_;
  const ParallelPlan& plan_;
  const Chunk& chunk_;
  const std::int64_t rows_, shard_rows_;  // of a micro-batch on this rank, and under sequence parallelism
  const Dtype dtype_, wide_;
  Graph graph_;
  std::int64_t layer_ = -1;
  ValueId tokens_ = -1, labels_ = -1, positions_ = -1, samples_ = -1;
};

}  // namespace

Graph build_decoder(const ModelSpec& model, const ParallelPlan& plan, const Chunk& chunk) {
  return Decoder(model, plan, chunk).build();
}

}  // namespace trainyard
