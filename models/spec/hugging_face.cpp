#include "models/spec/hugging_face.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "models/spec/json_reader.h"

namespace trainyard {

namespace {

using nlohmann::ordered_json;

const char* act_name(ActivationKind act) {
  switch (act) {
    case ActivationKind::Silu: return "silu";
    case ActivationKind::Gelu: return "gelu";
    case ActivationKind::GeluTanh: return "gelu_new";
    case ActivationKind::SquaredRelu: return "relu2";
  }
  return "";
}

bool act_from(const std::string& name, ActivationKind& out) {
  if (name == "silu" || name == "swish") return out = ActivationKind::Silu, true;
  if (name == "gelu") return out = ActivationKind::Gelu, true;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh") return out = ActivationKind::GeluTanh, true;
  if (name == "relu2") return out = ActivationKind::SquaredRelu, true;
  return false;
}

// --- to config.json

// Collects what a class of Hugging Face's cannot say.
class Unsayable {
 public:
  explicit Unsayable(const char* class_name) : class_(class_name) {}
  void unless(bool same, const char* key, const std::string& value) {
    if (!same)
      problems_.push_back({"", std::string("$.model.") + key, value,
                           fmt::format("cannot be said to Hugging Face's {}", class_),
                           "it has no such setting: the exported model would be another one"});
  }
  [[nodiscard]] const Problems& problems() const { return problems_; }

 private:
  const char* class_;
  Problems problems_;
};

void expect_no_multipliers(const ModelSpec& model, Unsayable& rule) {
  rule.unless(!model.mup, "mup", "muP's multipliers");
  rule.unless(model.embedding_multiplier == 1, "embedding_multiplier", fmt::format("{}", model.embedding_multiplier));
  rule.unless(model.output_multiplier == 1, "output_multiplier", fmt::format("{}", model.output_multiplier));
  rule.unless(!model.attention_multiplier, "attention_multiplier",
              fmt::format("{}", model.attention_multiplier.value_or(0)));
  rule.unless(model.attention_softcap == 0, "attention_softcap", fmt::format("{}", model.attention_softcap));
  rule.unless(model.output_softcap == 0, "output_softcap", fmt::format("{}", model.output_softcap));
}

void expect_llama_shape(const ModelSpec& model, Unsayable& rule) {
  expect_no_multipliers(model, rule);
  rule.unless(model.norm == NormKind::RmsNorm, "norm", "layer_norm");
  rule.unless(model.norm_placement == NormPlacement::Pre, "norm_placement", "sandwich");
  rule.unless(model.position == PositionKind::Rope, "position", "not rope");
  rule.unless(model.gated_mlp, "gated_mlp", "false");
}

ordered_json base(const ModelSpec& model, const char* type, const char* class_name, const std::string& dtype) {
  return {{"architectures", {class_name}},
          {"model_type", type},
          {"torch_dtype", dtype},
          {"vocab_size", model.vocab_size},
          {"tie_word_embeddings", model.tie_word_embeddings},
          {"initializer_range", model.initializer_range},
          {"bos_token_id", nullptr},
          {"eos_token_id", nullptr}};
}

void add_llama_keys(const ModelSpec& model, ordered_json& out) {
  out.update({{"num_hidden_layers", model.num_hidden_layers},
              {"hidden_size", model.hidden_size},
              {"num_attention_heads", model.num_attention_heads},
              {"num_key_value_heads", model.num_key_value_heads},
              {"head_dim", model.head_dim},
              {"intermediate_size", model.intermediate_size},
              {"max_position_embeddings", model.max_position_embeddings},
              {"rms_norm_eps", model.norm_eps},
              {"rope_theta", model.rope_theta},
              {"hidden_act", act_name(model.hidden_act)}});
}

Result<std::string> finished(const ordered_json& out, const Unsayable& rule) {
  if (!rule.problems().empty()) return rule.problems();
  return out.dump(2) + "\n";
}

Result<std::string> llama_config(const ModelSpec& model, const std::string& dtype) {
  Unsayable rule("LlamaForCausalLM");
  expect_llama_shape(model, rule);
  rule.unless(!model.moe, "moe", "present");
  rule.unless(model.sliding_window == 0, "sliding_window", fmt::format("{}", model.sliding_window));
  ordered_json out = base(model, "llama", "LlamaForCausalLM", dtype);
  add_llama_keys(model, out);
  out["attention_bias"] = model.attention_bias;
  out["mlp_bias"] = model.mlp_bias;
  return finished(out, rule);
}

Result<std::string> mixtral_config(const ModelSpec& model, const std::string& dtype) {
  Unsayable rule("MixtralForCausalLM");
  expect_llama_shape(model, rule);
  rule.unless(model.moe.has_value(), "moe", "absent");
  rule.unless(!model.moe || model.moe->renormalize, "moe.renormalize", "false");
  rule.unless(!model.attention_bias, "attention_bias", "true");
  ordered_json out = base(model, "mixtral", "MixtralForCausalLM", dtype);
  add_llama_keys(model, out);
  if (model.moe) {
    out["num_local_experts"] = model.moe->num_local_experts;
    out["num_experts_per_tok"] = model.moe->num_experts_per_tok;
  }
  out["sliding_window"] = model.sliding_window > 0 ? ordered_json(model.sliding_window) : ordered_json(nullptr);
  return finished(out, rule);
}

Result<std::string> gpt2_config(const ModelSpec& model, const std::string& dtype) {
  Unsayable rule("GPT2LMHeadModel");
  expect_no_multipliers(model, rule);
  rule.unless(model.norm == NormKind::LayerNorm, "norm", "rms_norm");
  rule.unless(model.position == PositionKind::Learned, "position", "not learned");
  rule.unless(model.attention_bias && model.mlp_bias, "attention_bias", "false");
  rule.unless(model.num_key_value_heads == model.num_attention_heads, "num_key_value_heads",
              fmt::format("{}", model.num_key_value_heads));
  rule.unless(model.head_dim * model.num_attention_heads == model.hidden_size, "head_dim",
              fmt::format("{}", model.head_dim));
  rule.unless(model.sliding_window == 0, "sliding_window", fmt::format("{}", model.sliding_window));
  ordered_json out = base(model, "gpt2", "GPT2LMHeadModel", dtype);
  out.update({{"n_layer", model.num_hidden_layers},
              {"n_embd", model.hidden_size},
              {"n_head", model.num_attention_heads},
              {"n_inner", model.intermediate_size},
              {"n_positions", model.max_position_embeddings},
              {"layer_norm_epsilon", model.norm_eps},
              {"activation_function", act_name(model.hidden_act)},
              {"embd_pdrop", model.hidden_dropout},
              {"resid_pdrop", model.hidden_dropout},
              {"attn_pdrop", 0.0}});
  return finished(out, rule);
}

// The keys of the configuration that came with Grok-1's conversions.
Result<std::string> grok1_config(const ModelSpec& model, const std::string& dtype) {
  Unsayable rule("Grok1ModelForCausalLM");
  rule.unless(model.norm_placement == NormPlacement::Sandwich, "norm_placement", "pre");
  rule.unless(model.moe && !model.moe->renormalize, "moe", "absent, or renormalized");
  ordered_json out = base(model, "grok-1", "Grok1ModelForCausalLM", dtype);
  add_llama_keys(model, out);
  out.update({{"embedding_multiplier_scale", model.embedding_multiplier},
              {"output_multiplier_scale", model.output_multiplier},
              {"attn_output_multiplier", model.attention_scale()},
              {"max_attn_value", model.attention_softcap}});
  if (model.moe) {
    out["num_experts"] = model.moe->num_local_experts;
    out["num_experts_per_tok"] = model.moe->num_experts_per_tok;
  }
  return finished(out, rule);
}

// --- from config.json

class ConfigReader {
 public:
  ConfigReader(const nlohmann::json& value, std::string file) : value_(value), file_(std::move(file)) {}

  Result<ModelSpec> read() {
    if (!value_.is_object()) return Problem{file_, "$", shown(value_), "must be an object", "name a config.json"};
    const std::string type = text("model_type");
    if (type == "llama" || type == "mixtral") {
      read_llama(type == "mixtral");
    } else if (type == "gpt2") {
      read_gpt2();
    } else if (type == "grok-1") {
      read_grok1();
    } else {
      return Problem{file_, "$.model_type", type, "is a kind of model that is not known here",
                     "use llama, mixtral, gpt2 or grok-1"};
    }
    if (has("quantization_config"))
      wrong("quantization_config", "says that weights are quantized, which is not supported");
    model_.vocab_size = integer("vocab_size");
    boolean("tie_word_embeddings", model_.tie_word_embeddings, type == "gpt2");
    number("initializer_range", model_.initializer_range);
    model_.name = type;
    if (problems_.empty()) problems_ = validate(model_);
    for (Problem& problem : problems_) problem.file = file_;
    if (!problems_.empty()) return problems_;
    return model_;
  }

 private:
  [[nodiscard]] bool has(const char* key) const { return value_.contains(key) && !value_[key].is_null(); }
  void wrong(const char* key, const char* rule) {
    problems_.push_back({file_, std::string("$.") + key, has(key) ? shown(value_[key]) : "", rule, "correct the file"});
  }
  std::string text(const char* key) {
    if (has(key) && value_[key].is_string()) return value_[key].get<std::string>();
    wrong(key, "must be a text");
    return "";
  }
  std::int64_t integer(const char* key) {
    if (has(key) && value_[key].is_number_unsigned() && value_[key].get<std::uint64_t>() < (std::uint64_t{1} << 50))
      return value_[key].get<std::int64_t>();
    wrong(key, has(key) ? "must be a whole number from 0 to 2^50" : "is missing");
    return 1;
  }
  std::int64_t integer(const char* key, std::int64_t absent) { return has(key) ? integer(key) : absent; }
  void number(const char* key, double& out) {
    if (!has(key)) return;
    if (!value_[key].is_number()) return wrong(key, "must be a number");
    out = value_[key].get<double>();
  }
  void boolean(const char* key, bool& out, bool absent = false) {
    out = absent;
    if (!has(key)) return;
    if (!value_[key].is_boolean()) return wrong(key, "must be true or false");
    out = value_[key].get<bool>();
  }
  void activation(const char* key) {
    if (!has(key)) return wrong(key, "is missing");
    if (!act_from(text(key), model_.hidden_act)) wrong(key, "is an activation that is not known here");
  }

  void read_llama_keys() {
    model_.num_hidden_layers = integer("num_hidden_layers");
    model_.hidden_size = integer("hidden_size");
    model_.num_attention_heads = integer("num_attention_heads");
    model_.num_key_value_heads = integer("num_key_value_heads", model_.num_attention_heads);
    model_.head_dim = integer("head_dim", model_.hidden_size / std::max<std::int64_t>(model_.num_attention_heads, 1));
    model_.intermediate_size = integer("intermediate_size");
    model_.max_position_embeddings = integer("max_position_embeddings");
    number("rms_norm_eps", model_.norm_eps);
    number("rope_theta", model_.rope_theta);
    activation("hidden_act");
    // Newer files have the base inside rope_parameters; any other type of scaling changes positions.
    for (const char* key : {"rope_scaling", "rope_parameters"}) {
      if (!has(key) || !value_[key].is_object()) continue;
      const nlohmann::json& rope = value_[key];
      const std::string type = rope.value("rope_type", rope.value("type", "default"));
      if (type != "default") wrong(key, "scales positions, which is not supported");
      if (rope.contains("rope_theta") && rope["rope_theta"].is_number()) model_.rope_theta = rope["rope_theta"];
    }
  }

  void read_moe(const char* experts, bool renormalize) {
    model_.moe = MoeSpec{integer(experts), integer("num_experts_per_tok"), renormalize};
  }

  void read_llama(bool mixtral) {
    model_.family = mixtral ? ModelFamily::Mixtral : ModelFamily::Llama;
    read_llama_keys();
    if (mixtral) {
      read_moe("num_local_experts", true);
      model_.sliding_window = integer("sliding_window", 0);
    } else {
      boolean("attention_bias", model_.attention_bias);
      boolean("mlp_bias", model_.mlp_bias);
    }
  }

  void read_gpt2() {
    model_.family = ModelFamily::Gpt3;
    model_.num_hidden_layers = integer("n_layer");
    model_.hidden_size = integer("n_embd");
    model_.num_attention_heads = model_.num_key_value_heads = integer("n_head");
    model_.head_dim = model_.hidden_size / std::max<std::int64_t>(model_.num_attention_heads, 1);
    model_.intermediate_size = integer("n_inner", 4 * model_.hidden_size);
    model_.max_position_embeddings = integer("n_positions");
    model_.norm = NormKind::LayerNorm;
    model_.position = PositionKind::Learned;
    model_.gated_mlp = false;
    model_.attention_bias = model_.mlp_bias = true;
    number("layer_norm_epsilon", model_.norm_eps);
    number("resid_pdrop", model_.hidden_dropout);
    activation("activation_function");
  }

  void read_grok1() {
    model_.family = ModelFamily::Grok1;
    read_llama_keys();
    read_moe("num_experts", false);
    model_.norm_placement = NormPlacement::Sandwich;
    number("embedding_multiplier_scale", model_.embedding_multiplier);
    number("output_multiplier_scale", model_.output_multiplier);
    number("max_attn_value", model_.attention_softcap);
    double scale = model_.attention_scale();
    number("attn_output_multiplier", scale);
    if (scale != model_.attention_scale()) model_.attention_multiplier = scale;
  }

  const nlohmann::json& value_;
  std::string file_;
  ModelSpec model_;
  Problems problems_;
};

}  // namespace

Result<ModelSpec> load_hugging_face_config(const std::string& file) {
  const Result<nlohmann::json> read = read_json_file(file);
  if (!read) return read.problems();
  return ConfigReader(read.value(), file).read();
}

Result<std::string> hugging_face_config(const ModelSpec& model, const std::string& dtype) {
  switch (model.family) {
    case ModelFamily::Llama: return llama_config(model, dtype);
    case ModelFamily::Mixtral: return mixtral_config(model, dtype);
    case ModelFamily::Gpt3: return gpt2_config(model, dtype);
    case ModelFamily::Grok1: return grok1_config(model, dtype);
  }
  TY_CHECK(false, "unknown family");
}

std::string model_file_text(const ModelSpec& model) {
  static constexpr const char* kFamilies[] = {"llama", "mixtral", "grok1", "gpt3"};
  static constexpr const char* kPositions[] = {"rope", "learned", "none", "alibi"};
  static constexpr const char* kActs[] = {"silu", "gelu", "gelu_tanh", "squared_relu"};
  ordered_json out{{"schema", 1},
                   {"name", model.name},
                   {"family", kFamilies[static_cast<int>(model.family)]},
                   {"num_hidden_layers", model.num_hidden_layers},
                   {"hidden_size", model.hidden_size},
                   {"num_attention_heads", model.num_attention_heads},
                   {"num_key_value_heads", model.num_key_value_heads},
                   {"head_dim", model.head_dim},
                   {"intermediate_size", model.intermediate_size},
                   {"vocab_size", model.vocab_size},
                   {"max_position_embeddings", model.max_position_embeddings},
                   {"norm", model.norm == NormKind::RmsNorm ? "rms_norm" : "layer_norm"},
                   {"norm_eps", model.norm_eps},
                   {"norm_placement", model.norm_placement == NormPlacement::Pre ? "pre" : "sandwich"},
                   {"position", kPositions[static_cast<int>(model.position)]},
                   {"rope_theta", model.rope_theta},
                   {"hidden_act", kActs[static_cast<int>(model.hidden_act)]},
                   {"gated_mlp", model.gated_mlp},
                   {"attention_bias", model.attention_bias},
                   {"mlp_bias", model.mlp_bias},
                   {"tie_word_embeddings", model.tie_word_embeddings},
                   {"embedding_multiplier", model.embedding_multiplier},
                   {"output_multiplier", model.output_multiplier},
                   {"attention_softcap", model.attention_softcap},
                   {"output_softcap", model.output_softcap},
                   {"sliding_window", model.sliding_window},
                   {"hidden_dropout", model.hidden_dropout},
                   {"initializer_range", model.initializer_range}};
  if (model.attention_multiplier) out["attention_multiplier"] = *model.attention_multiplier;
  if (model.mup)
    out["mup"] = {{"base_hidden_size", model.mup->base_hidden_size},
                  {"base_intermediate_size", model.mup->base_intermediate_size},
                  {"base_num_attention_heads", model.mup->base_num_attention_heads},
                  {"base_head_dim", model.mup->base_head_dim},
                  {"zero_readout", model.mup->zero_readout}};
  if (model.moe)
    out["moe"] = {{"num_local_experts", model.moe->num_local_experts},
                  {"num_experts_per_tok", model.moe->num_experts_per_tok},
                  {"renormalize", model.moe->renormalize}};
  return out.dump(2) + "\n";
}

}  // namespace trainyard
