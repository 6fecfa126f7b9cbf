#include "models/program/parameters.h"

#include <cmath>

#include <fmt/format.h>

#include "models/base/check.h"
#include "models/program/block_builder.h"

namespace trainyard {

namespace {

constexpr std::int64_t kAlignElements = 64;  // 128 bytes of bf16: vector loads never straddle parameters

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// What a family calls its tensors. "{}" is the layer, then the expert.
struct Names {
  const char *embedding, *positions, *head, *final_norm;
  const char *attn_norm, *post_attn_norm, *mlp_norm, *post_mlp_norm;
  const char *q, *k, *v, *o;     // GPT-2 style families have q, k and v in one tensor: all three alike
  const char *gate, *up, *down;  // dense MLP; plain MLPs use up and down
  const char *router, *expert_gate, *expert_up, *expert_down;
  bool fused_transposed = false;  // Conv1D: [in, out], with q, k, v fused
};

Names names_of(ModelFamily family) {
  Names llama{};
  llama.embedding = "model.embed_tokens.weight";
  llama.positions = "model.embed_positions.weight";
  llama.head = "lm_head.weight";
  llama.final_norm = "model.norm";
  llama.attn_norm = "model.layers.{}.input_layernorm";
  llama.post_attn_norm = "model.layers.{}.post_self_attn_layernorm";
  llama.mlp_norm = "model.layers.{}.post_attention_layernorm";
  llama.post_mlp_norm = "model.layers.{}.post_mlp_layernorm";
  llama.q = "model.layers.{}.self_attn.q_proj";
  llama.k = "model.layers.{}.self_attn.k_proj";
  llama.v = "model.layers.{}.self_attn.v_proj";
  llama.o = "model.layers.{}.self_attn.o_proj";
  llama.gate = "model.layers.{}.mlp.gate_proj";
  llama.up = "model.layers.{}.mlp.up_proj";
  llama.down = "model.layers.{}.mlp.down_proj";
  llama.router = "model.layers.{}.block_sparse_moe.gate";
  llama.expert_gate = "model.layers.{}.block_sparse_moe.experts.{}.w1";
  llama.expert_up = "model.layers.{}.block_sparse_moe.experts.{}.w3";
  llama.expert_down = "model.layers.{}.block_sparse_moe.experts.{}.w2";
  switch (family) {
    case ModelFamily::Llama:
    case ModelFamily::Mixtral: return llama;
    case ModelFamily::Grok1: {
      Names grok = llama;
      grok.attn_norm = "model.layers.{}.pre_attn_norm";
      grok.post_attn_norm = "model.layers.{}.post_attn_norm";
      grok.mlp_norm = "model.layers.{}.pre_moe_norm";
      grok.post_mlp_norm = "model.layers.{}.post_moe_norm";
      return grok;
    }
    case ModelFamily::Gpt3: {
      Names gpt = llama;
      gpt.embedding = "transformer.wte.weight";
      gpt.positions = "transformer.wpe.weight";
      gpt.final_norm = "transformer.ln_f";
      gpt.attn_norm = "transformer.h.{}.ln_1";
      gpt.mlp_norm = "transformer.h.{}.ln_2";
      gpt.q = gpt.k = gpt.v = "transformer.h.{}.attn.c_attn";
      gpt.o = "transformer.h.{}.attn.c_proj";
      gpt.up = "transformer.h.{}.mlp.c_fc";
      gpt.down = "transformer.h.{}.mlp.c_proj";
      gpt.fused_transposed = true;
      return gpt;
    }
  }
  TY_CHECK(false, "unknown model family");
}

// Collects the parameters of one chunk, layer by layer.
class Table {
 public:
  Table(const ModelSpec& model, const ParallelPlan& plan, std::int64_t first_layer)
      : model_(model), plan_(plan), first_layer_(first_layer), names_(names_of(model.family)) {}

  std::vector<Param> embedding() const {
    std::vector<Param> out{vocabulary("embedding", names_.embedding)};
    if (model_.position == PositionKind::Learned) {
      Param positions =
          matrix("positions", model_.max_position_embeddings, model_.hidden_size, Split::None, Split::None);
      positions.parts = {whole(names_.positions, model_.max_position_embeddings, model_.hidden_size)};
      positions.tp_partial = partial();
      out.push_back(positions);
    }
    return out;
  }

  std::vector<Param> final_norm() const { return norm("final_norm", names_.final_norm); }

  Param head() const {
    Param head = vocabulary("head", model_.tie_word_embeddings ? names_.embedding : names_.head);
    head.tied_copy = model_.tie_word_embeddings;
    if (model_.mup && model_.mup->zero_readout && !head.tied_copy) head.init = Init::Zeros;
    return head;
  }

  std::vector<Param> dense_of_layer(std::int64_t layer) const {
    std::vector<Param> out = norm(local_name(layer, "attn_norm"), at(names_.attn_norm, layer));
    append(out, attention(layer));
    if (model_.norm_placement == NormPlacement::Sandwich) {
      append(out, norm(local_name(layer, "post_attn_norm"), at(names_.post_attn_norm, layer)));
    }
    append(out, norm(local_name(layer, "mlp_norm"), at(names_.mlp_norm, layer)));
    if (model_.moe) {
      out.push_back(router(layer));
    } else {
      append(out, mlp(layer));
    }
    if (model_.norm_placement == NormPlacement::Sandwich) {
      append(out, norm(local_name(layer, "post_mlp_norm"), at(names_.post_mlp_norm, layer)));
    }
    return out;
  }

  std::vector<Param> experts_of_layer(std::int64_t layer) const {
    if (!model_.moe) return {};
    const std::int64_t local = model_.moe->num_local_experts / plan_.ep;
    const std::int64_t width = model_.intermediate_size, d = model_.hidden_size;
    Param up;
    up.name = local_name(layer, "experts.up");
    up.local_shape = Shape(local, (model_.gated_mlp ? 2 : 1) * width / plan_.tp, d);
    up.split0 = Split::Tp;
    Param down;
    down.name = local_name(layer, "experts.down");
    down.local_shape = Shape(local, d, width / plan_.tp);
    down.split1 = Split::Tp;
    down.init = Init::Residual;
    for (std::int64_t e = 0; e < model_.moe->num_local_experts; ++e) {
      if (model_.gated_mlp) up.parts.push_back(expert_part(names_.expert_gate, layer, e, width, d));
      up.parts.push_back(expert_part(names_.expert_up, layer, e, width, d));
      down.parts.push_back(expert_part(names_.expert_down, layer, e, d, width));
    }
    scale_by_fan_in(up, model_.hidden_multiplier());
    scale_by_fan_in(down, model_.intermediate_multiplier());
    up.expert_parallel = down.expert_parallel = true;
    return {up, down};
  }

 private:
  static void append(std::vector<Param>& to, std::vector<Param> from) {
    for (Param& param : from) to.push_back(std::move(param));
  }
  std::string local_name(std::int64_t layer, const char* what) const { return layer_param(layer - first_layer_, what); }
  static std::string at(const char* pattern, std::int64_t layer) { return fmt::format(fmt::runtime(pattern), layer); }
  // Under sequence parallelism each tp rank sees only its rows, so replicated parameters get partial gradients.
  bool partial() const { return plan_.sequence_parallel && plan_.tp > 1; }

  static ParamPart whole(const std::string& name, std::int64_t rows, std::int64_t columns) {
    ParamPart part;
    part.name = name;
    part.global_shape = columns > 0 ? std::vector<std::int64_t>{rows, columns} : std::vector<std::int64_t>{rows};
    part.rows = rows;
    return part;
  }

  static ParamPart expert_part(const char* pattern, std::int64_t layer, std::int64_t expert, std::int64_t rows,
                               std::int64_t columns) {
    ParamPart part = whole(fmt::format(fmt::runtime(pattern), layer, expert) + ".weight", rows, columns);
    part.expert = expert;
    return part;
  }

  // [rows, columns] split as said; parts are filled by the caller.
  Param matrix(const std::string& name, std::int64_t rows, std::int64_t columns, Split split0, Split split1) const {
    Param param;
    param.name = name;
    param.split0 = split0;
    param.split1 = split1;
    param.local_shape =
        Shape(split0 == Split::Tp ? rows / plan_.tp : rows, split1 == Split::Tp ? columns / plan_.tp : columns);
    return param;
  }

  Param vector_of(const std::string& name, std::int64_t size, Split split, Init init) const {
    Param param;
    param.name = name;
    param.split0 = split;
    param.local_shape = Shape(split == Split::Tp ? size / plan_.tp : size);
    param.decay = false;
    param.init = init;
    param.tp_partial = split == Split::None && partial();
    return param;
  }

  // A matrix between widths that both grow: variance 1 / fan in, rate 1 / fan in (muP, table 8).
  static void scale_by_fan_in(Param& param, double multiplier) {
    param.init_scale = 1 / std::sqrt(multiplier);
    param.rate_scale = 1 / multiplier;
  }

  Param vocabulary(const std::string& name, const char* tensor) const {
    Param param = matrix(name, model_.vocab_size, model_.hidden_size, Split::Tp, Split::None);
    param.parts = {whole(tensor, model_.vocab_size, model_.hidden_size)};
    return param;
  }

  std::vector<Param> norm(const std::string& name, const std::string& tensor) const {
    Param weight = vector_of(name + ".weight", model_.hidden_size, Split::None, Init::Ones);
    weight.parts = {whole(tensor + ".weight", model_.hidden_size, 0)};
    if (model_.norm == NormKind::RmsNorm) return {weight};
    Param bias = vector_of(name + ".bias", model_.hidden_size, Split::None, Init::Zeros);
    bias.parts = {whole(tensor + ".bias", model_.hidden_size, 0)};
    return {weight, bias};
  }

  // Part `first_row..first_row+rows` of the matrix (or bias, columns = 0) behind `tensor`.
  ParamPart projection(const std::string& tensor, std::int64_t total_rows, std::int64_t first_row, std::int64_t rows,
                       std::int64_t columns) const {
    const bool matrix_part = columns > 0;
    ParamPart part = whole(tensor + (matrix_part ? ".weight" : ".bias"), total_rows, columns);
    part.transposed = names_.fused_transposed && matrix_part;
    if (part.transposed) part.global_shape = {columns, total_rows};
    part.first_row = first_row;
    part.rows = rows;
    return part;
  }

  std::vector<Param> attention(std::int64_t layer) const {
    const std::int64_t q = model_.q_size(), kv = model_.kv_size(), d = model_.hidden_size, all = q + 2 * kv;
    const bool fused = names_.fused_transposed;
    const auto parts = [&](std::int64_t columns) {
      return std::vector<ParamPart>{projection(at(names_.q, layer), fused ? all : q, 0, q, columns),
                                    projection(at(names_.k, layer), fused ? all : kv, fused ? q : 0, kv, columns),
                                    projection(at(names_.v, layer), fused ? all : kv, fused ? q + kv : 0, kv, columns)};
    };
    Param qkv = matrix(local_name(layer, "attn.qkv"), all, d, Split::Tp, Split::None);
    qkv.parts = parts(d);
    Param out = matrix(local_name(layer, "attn.out"), d, q, Split::None, Split::Tp);
    out.parts = {projection(at(names_.o, layer), d, 0, d, q)};
    out.init = Init::Residual;
    scale_by_fan_in(qkv, model_.hidden_multiplier());
    scale_by_fan_in(out, model_.heads_multiplier());
    if (!model_.attention_bias) return {qkv, out};
    Param qkv_bias = vector_of(local_name(layer, "attn.qkv.bias"), all, Split::Tp, Init::Zeros);
    qkv_bias.parts = parts(0);
    Param out_bias = vector_of(local_name(layer, "attn.out.bias"), d, Split::None, Init::Zeros);
    out_bias.parts = {projection(at(names_.o, layer), d, 0, d, 0)};
    return {qkv, qkv_bias, out, out_bias};
  }

  std::vector<Param> mlp(std::int64_t layer) const {
    const std::int64_t width = model_.intermediate_size, d = model_.hidden_size;
    const std::int64_t rows = (model_.gated_mlp ? 2 : 1) * width;
    const auto parts = [&](std::int64_t columns) {
      std::vector<ParamPart> out;
      if (model_.gated_mlp) out.push_back(projection(at(names_.gate, layer), width, 0, width, columns));
      out.push_back(projection(at(names_.up, layer), width, 0, width, columns));
      return out;
    };
    Param up = matrix(local_name(layer, "mlp.up"), rows, d, Split::Tp, Split::None);
    up.parts = parts(d);
    Param down = matrix(local_name(layer, "mlp.down"), d, width, Split::None, Split::Tp);
    down.parts = {projection(at(names_.down, layer), d, 0, d, width)};
    down.init = Init::Residual;
    scale_by_fan_in(up, model_.hidden_multiplier());
    scale_by_fan_in(down, model_.intermediate_multiplier());
    if (!model_.mlp_bias) return {up, down};
    Param up_bias = vector_of(local_name(layer, "mlp.up.bias"), rows, Split::Tp, Init::Zeros);
    up_bias.parts = parts(0);
    Param down_bias = vector_of(local_name(layer, "mlp.down.bias"), d, Split::None, Init::Zeros);
    down_bias.parts = {projection(at(names_.down, layer), d, 0, d, 0)};
    return {up, up_bias, down, down_bias};
  }

  Param router(std::int64_t layer) const {
    const std::int64_t experts = model_.moe->num_local_experts;
    Param param = matrix(local_name(layer, "router"), experts, model_.hidden_size, Split::None, Split::None);
    param.parts = {whole(at(names_.router, layer) + ".weight", experts, model_.hidden_size)};
    // Its outputs do not grow with the width: a readout, whose multiplier Adam lets us put into weights and rate.
    param.init_scale = param.rate_scale = 1 / model_.hidden_multiplier();
    param.tp_partial = partial();
    return param;
  }

  const ModelSpec& model_;
  const ParallelPlan& plan_;
  std::int64_t first_layer_;
  Names names_;
};

// Places parameters one after another, those with partial gradients first so that one
// all-reduce over tp covers them, and pads the bucket so that its group divides it, and any part of the group.
Bucket lay_out(Group group, std::vector<Param> params, const ParallelPlan& plan) {
  Bucket bucket;
  bucket.group = group;
  bucket.sharding = sharding(plan, group);
  std::int64_t offset = 0;
  for (const bool partial : {true, false}) {
    for (Param& param : params) {
      if (param.tp_partial != partial) continue;
      param.offset_elements = offset;
      offset += round_up(param.elements(), kAlignElements);
      bucket.params.push_back(std::move(param));
    }
  }
  bucket.elements = round_up(offset, group_size(plan, group) * kAlignElements);
  bucket.shard_elements = bucket.elements / group_size(plan, bucket.sharding.shards);
  return bucket;
}

// Gathers parameters until the target size is reached; a bucket never mixes two groups.
class BucketFiller {
 public:
  BucketFiller(Group group, const ParallelPlan& plan, std::vector<Bucket>& out)
      : group_(group), plan_(plan), out_(out) {}

  void add(std::vector<Param> params) {
    for (Param& param : params) {
      bytes_ += param.elements() * size_of(grad_dtype(plan_));
      pending_.push_back(std::move(param));
    }
    if (bytes_ >= plan_.bucket_bytes) close();
  }

  void close() {
    if (pending_.empty()) return;
    out_.push_back(lay_out(group_, std::move(pending_), plan_));
    pending_.clear();
    bytes_ = 0;
  }

 private:
  Group group_;
  const ParallelPlan& plan_;
  std::vector<Bucket>& out_;
  std::vector<Param> pending_;
  std::int64_t bytes_ = 0;
};

void place_buckets(Chunk& chunk, const ParallelPlan& plan) {
  std::int64_t params = 0, grads = 0, state = 0;
  for (Bucket& bucket : chunk.buckets) {
    bucket.param_offset_bytes = params;
    bucket.grad_offset_bytes = grads;
    bucket.optimizer_offset_bytes = state;
    params += round_up(param_elements(bucket, plan) * size_of(param_dtype(plan)), 256);
    grads += round_up(grad_elements(bucket, plan) * size_of(grad_dtype(plan)), 256);
    state += 3 * round_up(bucket.shard_elements * size_of(state_dtype(plan)), 256);
  }
}

}  // namespace

Dtype param_dtype(const ParallelPlan& plan) {
  switch (plan.precision) {
    case Precision::Bf16: return Dtype::Bf16;
    case Precision::F32: return Dtype::F32;
    case Precision::F64: return Dtype::F64;
  }
  TY_CHECK(false, "unknown precision");
}

Dtype grad_dtype(const ParallelPlan& plan) {
  return plan.precision == Precision::Bf16 && plan.fp32_gradients ? Dtype::F32 : param_dtype(plan);
}

Dtype state_dtype(const ParallelPlan& plan) { return plan.precision == Precision::F64 ? Dtype::F64 : Dtype::F32; }

std::int64_t group_size(const ParallelPlan& plan, Group group) { return Mesh(plan).group_size(group); }

std::string layer_param(std::int64_t layer, const char* what) { return fmt::format("layer{}.{}", layer, what); }

bool reduces_every_micro_batch(const Bucket& bucket, const ParallelPlan& plan) {
  return plan.zero_stage >= 2 && plan.effective_grad_sync() == GradSync::EveryMicroBatch &&
         group_size(plan, bucket.sharding.shards) > 1;
}

bool params_sharded(const Bucket& bucket, const ParallelPlan& plan) {
  return plan.zero_stage >= 3 && group_size(plan, bucket.sharding.shards) > 1;
}

std::int64_t param_elements(const Bucket& bucket, const ParallelPlan& plan) {
  return params_sharded(bucket, plan) ? bucket.shard_elements : bucket.elements;
}

std::int64_t grad_elements(const Bucket& bucket, const ParallelPlan& plan) {
  return reduces_every_micro_batch(bucket, plan) ? bucket.shard_elements : bucket.elements;
}

Chunk make_chunk(const ModelSpec& model, const ParallelPlan& plan, std::int64_t model_chunk, std::int64_t first_layer,
                 std::int64_t layers) {
  Chunk chunk;
  chunk.model_chunk = model_chunk;
  chunk.first_layer = first_layer;
  chunk.layers = layers;
  chunk.has_embedding = model_chunk == 0;
  chunk.has_head = model_chunk == plan.chunks() - 1;

  const Table table(model, plan, first_layer);
  BucketFiller dense(Group::DpCp, plan, chunk.buckets);
  BucketFiller experts(Group::Edp, plan, chunk.buckets);
  if (chunk.has_head) {
    // A tied head that shares its stage with the embedding is the embedding. On another stage it is
    // a copy in a bucket of its own, because its gradient is summed with the embedding's first.
    const bool own_copy = model.tie_word_embeddings && !chunk.has_embedding;
    if (!model.tie_word_embeddings || own_copy) dense.add({table.head()});
    if (own_copy) dense.close();
    dense.add(table.final_norm());
  }
  for (std::int64_t layer = first_layer + layers - 1; layer >= first_layer; --layer) {
    experts.add(table.experts_of_layer(layer));
    dense.add(table.dense_of_layer(layer));
  }
  experts.close();
  const bool tied_across_stages = model.tie_word_embeddings && chunk.has_embedding != chunk.has_head;
  if (chunk.has_embedding) {
    dense.close();
    for (Param& param : table.embedding()) {
      dense.add({std::move(param)});
      if (tied_across_stages) dense.close();  // the table alone, so that both stages shard it alike
    }
  }
  dense.close();
  for (Bucket& bucket : chunk.buckets) {
    bucket.tied_across_stages =
        tied_across_stages && (bucket.params[0].tied_copy || bucket.params[0].name == "embedding");
  }
  place_buckets(chunk, plan);
  return chunk;
}

std::int64_t params_bytes(const Chunk& chunk, const ParallelPlan& plan) {
  std::int64_t bytes = 0;
  for (const Bucket& bucket : chunk.buckets)
    bytes += round_up(param_elements(bucket, plan) * size_of(param_dtype(plan)), 256);
  return bytes;
}

std::int64_t grads_bytes(const Chunk& chunk, const ParallelPlan& plan) {
  std::int64_t bytes = 0;
  for (const Bucket& bucket : chunk.buckets)
    bytes += round_up(grad_elements(bucket, plan) * size_of(grad_dtype(plan)), 256);
  return bytes;
}

std::int64_t optimizer_bytes(const Chunk& chunk, const ParallelPlan& plan) {
  std::int64_t bytes = 0;
  for (const Bucket& bucket : chunk.buckets)
    bytes += 3 * round_up(bucket.shard_elements * size_of(state_dtype(plan)), 256);
  return bytes;
}

std::int64_t optimizer_stride_bytes(const Bucket& bucket, const ParallelPlan& plan) {
  return align(bucket.shard_elements * size_of(state_dtype(plan)));
}

}  // namespace trainyard
