#include "models/spec/model_spec.h"

#include <cmath>

#include <fmt/format.h>

#include "models/spec/json_reader.h"

namespace trainyard {

namespace {

std::int64_t norm_parameters(const ModelSpec& model) {
  return (model.norm == NormKind::LayerNorm ? 2 : 1) * model.hidden_size;
}

std::int64_t attention_parameters(const ModelSpec& model) {
  const std::int64_t d = model.hidden_size, qkv = model.q_size() + 2 * model.kv_size();
  return d * qkv + model.q_size() * d + (model.attention_bias ? qkv + d : 0);
}

// One MLP, or one expert.
std::int64_t mlp_parameters(const ModelSpec& model) {
  const std::int64_t up = (model.gated_mlp ? 2 : 1) * model.intermediate_size;
  return (up + model.intermediate_size) * model.hidden_size + (model.mlp_bias ? up + model.hidden_size : 0);
}

std::int64_t router_parameters(const ModelSpec& model) {
  return model.moe ? model.moe->num_local_experts * model.hidden_size : 0;
}

std::int64_t layer_parameters(const ModelSpec& model, std::int64_t experts) {
  const std::int64_t norms = model.norm_placement == NormPlacement::Sandwich ? 4 : 2;
  return norms * norm_parameters(model) + attention_parameters(model) + router_parameters(model) +
         experts * mlp_parameters(model);
}

std::int64_t parameters(const ModelSpec& model, std::int64_t experts) {
  const std::int64_t table = model.vocab_size * model.hidden_size;
  const std::int64_t positions =
      model.position == PositionKind::Learned ? model.max_position_embeddings * model.hidden_size : 0;
  return table * (model.tie_word_embeddings ? 1 : 2) + positions + norm_parameters(model) +
         model.num_hidden_layers * layer_parameters(model, experts);
}

// Counts of larger models would not be exact, nor fit in 64 bits.
constexpr double kMaxParameters = 1e15;
// Each is a named parameter of the program.
constexpr std::int64_t kMaxExperts = 1'000'000;

// At least the number of parameters, in floating point so that absurd sizes cannot overflow.
double parameter_bound(const ModelSpec& model) {
  const auto d = static_cast<double>(model.hidden_size), heads = static_cast<double>(model.num_attention_heads),
             kv_heads = static_cast<double>(model.num_key_value_heads), head_dim = static_cast<double>(model.head_dim);
  const double experts = model.moe ? static_cast<double>(model.moe->num_local_experts) : 1;
  const double attention = (d + 1) * head_dim * 2 * (heads + kv_heads) + d;
  const double mlp = (3 * static_cast<double>(model.intermediate_size) + 1) * (d + 1);
  const double layer = 8 * d + attention + experts * (mlp + d);
  return (2 * static_cast<double>(model.vocab_size) + static_cast<double>(model.max_position_embeddings) + 2) * d +
         static_cast<double>(model.num_hidden_layers) * layer;
}

}  // namespace

double ModelSpec::attention_scale() const {
  const auto base = static_cast<double>(mup && mup->base_head_dim > 0 ? mup->base_head_dim : head_dim);
  return attention_multiplier.value_or(1.0 / std::sqrt(base)) * (base / static_cast<double>(head_dim));
}

double ModelSpec::logit_scale() const { return output_multiplier / hidden_multiplier(); }

double ModelSpec::hidden_multiplier() const {
  return mup ? static_cast<double>(hidden_size) / static_cast<double>(mup->base_hidden_size) : 1.0;
}

double ModelSpec::heads_multiplier() const {
  if (!mup || mup->base_num_attention_heads == 0) return hidden_multiplier();
  const std::int64_t base_head_dim = mup->base_head_dim > 0 ? mup->base_head_dim : head_dim;
  return static_cast<double>(q_size()) / static_cast<double>(mup->base_num_attention_heads * base_head_dim);
}

double ModelSpec::intermediate_multiplier() const {
  if (!mup || mup->base_intermediate_size == 0) return hidden_multiplier();
  return static_cast<double>(intermediate_size) / static_cast<double>(mup->base_intermediate_size);
}

std::int64_t parameter_count(const ModelSpec& model) {
  return parameters(model, model.moe ? model.moe->num_local_experts : 1);
}

std::int64_t active_parameter_count(const ModelSpec& model) {
  return parameters(model, model.moe ? model.moe->num_experts_per_tok : 1);
}

double model_flops_per_token(const ModelSpec& model, std::int64_t sequence_length, bool causal_half) {
  // Matrices only: two FLOPs per weight forward, four backward. The head is a matrix, the lookup is not.
  const std::int64_t d = model.hidden_size;
  const std::int64_t mlp = (model.gated_mlp ? 3 : 2) * model.intermediate_size * d;
  const std::int64_t layer = d * (model.q_size() + 2 * model.kv_size()) + model.q_size() * d +
                             router_parameters(model) + (model.moe ? model.moe->num_experts_per_tok : 1) * mlp;
  const double matrices = static_cast<double>(model.num_hidden_layers * layer + model.vocab_size * d);
  const double window =
      model.sliding_window > 0 ? static_cast<double>(model.sliding_window) : static_cast<double>(sequence_length);
  const double keys = std::min(window, static_cast<double>(sequence_length));
  const double attention = 12.0 * static_cast<double>(model.num_hidden_layers * model.q_size()) * keys;
  return 6.0 * matrices + attention * (causal_half ? 0.5 : 1.0);
}

Problems validate(const ModelSpec& model, const std::string& path) {
  RuleChecker rule(path);
  const auto number = [](std::int64_t x) { return std::to_string(x); };
  rule.expect_positive({{"num_hidden_layers", model.num_hidden_layers},
                        {"hidden_size", model.hidden_size},
                        {"num_attention_heads", model.num_attention_heads},
                        {"num_key_value_heads", model.num_key_value_heads},
                        {"head_dim", model.head_dim},
                        {"intermediate_size", model.intermediate_size},
                        {"vocab_size", model.vocab_size},
                        {"max_position_embeddings", model.max_position_embeddings}});
  if (model.moe)
    rule.expect_positive({{"moe.num_local_experts", model.moe->num_local_experts},
                          {"moe.num_experts_per_tok", model.moe->num_experts_per_tok}});
  if (!rule.ok()) return rule.take();
  const double size = parameter_bound(model);
  rule.expect(size <= kMaxParameters, "", fmt::format("about {:.2g} parameters", size),
              fmt::format("must have at most {:g} parameters", kMaxParameters), "look for a size with digits too many");
  rule.expect(model.num_attention_heads % model.num_key_value_heads == 0, "num_key_value_heads",
              number(model.num_key_value_heads),
              "must divide num_attention_heads = " + number(model.num_attention_heads),
              "give each key-value head as many query heads");
  rule.expect(model.position != PositionKind::Rope || model.head_dim % 2 == 0, "head_dim", number(model.head_dim),
              "must be even for rotary positions", "use an even head size, or \"position\": \"learned\"");
  if (model.moe) {
    rule.expect(model.moe->num_experts_per_tok <= model.moe->num_local_experts, "moe.num_experts_per_tok",
                number(model.moe->num_experts_per_tok),
                "must be at most num_local_experts = " + number(model.moe->num_local_experts),
                "route to fewer experts");
    const std::int64_t experts = model.num_hidden_layers * model.moe->num_local_experts;
    rule.expect(experts <= kMaxExperts, "moe.num_local_experts", number(model.moe->num_local_experts),
                fmt::format("makes {} experts over all layers; the limit is {}", experts, kMaxExperts),
                "use fewer experts");
    rule.expect(!model.mlp_bias, "mlp_bias", "true", "biases inside experts are not supported", "set it to false");
  }
  rule.expect(model.family != ModelFamily::Gpt3 ||
                  (!model.gated_mlp && !model.moe && model.norm_placement == NormPlacement::Pre),
              "family", "gpt3", "has names for plain MLPs with norms before them only",
              "use \"llama\" or \"mixtral\" names");
  return rule.take();
}

}  // namespace trainyard
