#include "models/published/published_model.h"

#include <algorithm>
#include <array>
#include <cctype>

namespace trainyard {

namespace {

struct FamilyFacts {
  const char* name;  // part of the model's
  NormKind norm;
  PositionKind position;
  ActivationKind act;
  bool biases, tied;
  const char* note;  // where it differs from what can be said
};

// From the models' papers and public configurations. The first that fits holds; none: the last.
constexpr std::array kFamilies{
    FamilyFacts{"mpt", NormKind::LayerNorm, PositionKind::Learned, ActivationKind::Gelu, false, true, ""},
    FamilyFacts{"nemotron", NormKind::LayerNorm, PositionKind::Rope, ActivationKind::SquaredRelu, false, false,
                "LayerNorm1p as LayerNorm, rope on all of a head"},
    FamilyFacts{"neox", NormKind::LayerNorm, PositionKind::Rope, ActivationKind::Gelu, true, false,
                "parallel attention and MLP as one after the other, rope on all of a head"},
    FamilyFacts{"falcon", NormKind::LayerNorm, PositionKind::Rope, ActivationKind::Gelu, false, true,
                "parallel attention and MLP as one after the other"},
    FamilyFacts{"bloom", NormKind::LayerNorm, PositionKind::Alibi, ActivationKind::GeluTanh, true, true,
                "without the norm after the embedding"},
    FamilyFacts{"tr11", NormKind::LayerNorm, PositionKind::Alibi, ActivationKind::GeluTanh, true, true,
                "without the norm after the embedding"},
    FamilyFacts{"opt", NormKind::LayerNorm, PositionKind::Learned, ActivationKind::GeluTanh, true, true,
                "ReLU as GELU"},
    FamilyFacts{"megatron", NormKind::LayerNorm, PositionKind::Learned, ActivationKind::GeluTanh, true, true, ""},
    FamilyFacts{"gpt", NormKind::LayerNorm, PositionKind::Learned, ActivationKind::GeluTanh, true, true, ""},
};

void name_family(ModelSpec& model, bool gated, std::vector<std::string>& assumed) {
  const std::string name = lower_case(model.name);
  model.gated_mlp = gated;
  if (gated) {
    model.family = ModelFamily::Llama;
    model.tie_word_embeddings = name.find("gemma") != std::string::npos;
    model.attention_bias = name.find("qwen2") != std::string::npos;
    if (name.find("llama") == std::string::npos) assumed.emplace_back("norm, positions and biases as Llama has them");
    return;
  }
  model.family = ModelFamily::Gpt3;
  const FamilyFacts* its = nullptr;
  for (const FamilyFacts& family : kFamilies)
    if (its == nullptr && name.find(family.name) != std::string::npos) its = &family;
  if (its == nullptr) {
    its = &kFamilies.back();
    assumed.emplace_back("norm, positions and biases as GPT-3 has them");
  }
  model.norm = its->norm;
  model.position = its->position;
  model.hidden_act = its->act;
  model.attention_bias = model.mlp_bias = its->biases;
  model.tie_word_embeddings = its->tied;
  if (*its->note != '\0') assumed.emplace_back(its->note);
}

}  // namespace

std::string lower_case(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::optional<ModelSpec> published_model(const RowReader& row, std::vector<std::string>& assumed) {
  const auto layers = row.integer("layers"), hidden = row.integer("hidden"), heads = row.integer("heads");
  const auto vocabulary = row.integer("vocab"), length = row.integer("seq_len");
  const auto gated = row.boolean("gated_mlp");
  if (!layers || !hidden || !heads || !vocabulary || !length || !gated || *heads == 0) return std::nullopt;
  ModelSpec model;
  model.name = row.text("model_name");
  if (model.name.empty()) model.name = "unnamed";
  model.num_hidden_layers = *layers;
  model.hidden_size = *hidden;
  model.num_attention_heads = *heads;
  model.num_key_value_heads = row.integer("kv_heads").value_or(*heads);
  model.head_dim = row.integer("head_dim").value_or(*hidden / *heads);
  model.intermediate_size = row.integer("ffn_hidden").value_or(4 * *hidden);
  if (!row.integer("ffn_hidden")) assumed.emplace_back("an MLP of four times the hidden size");
  model.vocab_size = *vocabulary;
  model.max_position_embeddings = *length;
  name_family(model, *gated, assumed);
  const std::string note = lower_case(row.text("attention_note"));
  if (note.find("alibi") != std::string::npos) model.position = PositionKind::Alibi;
  return model;
}

}  // namespace trainyard
