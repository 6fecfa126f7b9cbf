// ModelSpec: a decoder transformer, as people really train them. Field names follow Hugging
// Face's config.json where it has one. One struct, no behaviour beyond counting.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "models/base/status.h"

namespace trainyard {

/// Which Hugging Face parameter names a model's weights have, and nothing else.
enum class ModelFamily { Llama, Mixtral, Grok1, Gpt3 };

enum class NormKind { RmsNorm, LayerNorm };

/// Pre: norm before attention and MLP. Sandwich: also after each, before the residual add (Grok-1).
enum class NormPlacement { Pre, Sandwich };

enum class PositionKind { Rope, Learned, None, Alibi };

/// GeluTanh is the tanh approximation; Gelu is exact (erf).
enum class ActivationKind { Silu, Gelu, GeluTanh, SquaredRelu };

struct MoeSpec {
  std::int64_t num_local_experts = 8;
  std::int64_t num_experts_per_tok = 2;
  /// Top-k weights divided by their sum (Mixtral) or used as they are (Grok-1).
  bool renormalize = true;
};

/// Maximal update parametrization (Yang et al., Tensor Programs V, arXiv 2203.03466, table 8, for Adam): the sizes of
/// the model whose hyperparameters this one is to share. Sizes left at 0 grew in proportion to hidden_size; head_dim
/// stayed. At the base's sizes the parametrization is the standard one, but for a readout that starts at zero.
struct MupSpec {
  std::int64_t base_hidden_size = 0;
  std::int64_t base_intermediate_size = 0, base_num_attention_heads = 0, base_head_dim = 0;
  /// As the paper advises (D.2): logits are then alike at all widths from the first step on, not from the second.
  bool zero_readout = true;
};

struct ModelSpec {
  std::string name;
  ModelFamily family = ModelFamily::Llama;
  std::int64_t num_hidden_layers = 0;
  std::int64_t hidden_size = 0;
  std::int64_t num_attention_heads = 0;
  std::int64_t num_key_value_heads = 0;
  std::int64_t head_dim = 0;
  /// MLP width; of each expert where there are experts.
  std::int64_t intermediate_size = 0;
  std::int64_t vocab_size = 0;
  std::int64_t max_position_embeddings = 0;

  NormKind norm = NormKind::RmsNorm;
  double norm_eps = 1e-5;
  NormPlacement norm_placement = NormPlacement::Pre;
  PositionKind position = PositionKind::Rope;
  double rope_theta = 10000;
  ActivationKind hidden_act = ActivationKind::Silu;
  bool gated_mlp = true;
  /// Biases on the q, k, v and output projections, and on the MLP's matrices.
  bool attention_bias = false;
  bool mlp_bias = false;
  bool tie_word_embeddings = false;

  double embedding_multiplier = 1;
  double output_multiplier = 1;
  /// Scale of q.k before the softmax; unset: 1/sqrt(head_dim).
  std::optional<double> attention_multiplier;
  /// cap * tanh(x / cap) on attention scores; 0: none.
  double attention_softcap = 0;
  /// The same on output logits.
  double output_softcap = 0;
  /// Keys further back than this are masked; 0: none.
  std::int64_t sliding_window = 0;
  /// Dropout after embedding, attention and MLP, with counter-based random numbers.
  double hidden_dropout = 0;

  /// Standard deviation of initial weights; of those that end a residual branch it is this / sqrt(2 * layers) (GPT-2).
  double initializer_range = 0.02;

  std::optional<MoeSpec> moe;
  /// Unset: the standard parametrization.
  std::optional<MupSpec> mup;

  /// Scale of q.k: under muP it falls with head_dim, not with its root.
  [[nodiscard]] double attention_scale() const;
  /// Of the logits: output_multiplier, over the width multiplier under muP.
  [[nodiscard]] double logit_scale() const;
  /// How many times as wide as the base's are the inputs of matrices that read the residual stream, attention's heads,
  /// and the MLP's activations. 1 without muP.
  [[nodiscard]] double hidden_multiplier() const;
  [[nodiscard]] double heads_multiplier() const;
  [[nodiscard]] double intermediate_multiplier() const;
  [[nodiscard]] std::int64_t q_size() const { return num_attention_heads * head_dim; }
  [[nodiscard]] std::int64_t kv_size() const { return num_key_value_heads * head_dim; }
};

/// Exact number of parameters, tied embeddings counted once.
std::int64_t parameter_count(const ModelSpec& model);
/// Parameters that one token touches: top-k experts of each layer only.
std::int64_t active_parameter_count(const ModelSpec& model);

/// Model FLOPs of one token, forward and backward, without recompute. Attention is counted
/// half for a causal mask when `causal_half`, else full (both conventions are published).
double model_flops_per_token(const ModelSpec& model, std::int64_t sequence_length, bool causal_half);

/// All rules that a ModelSpec breaks, with JSON paths under `path`.
Problems validate(const ModelSpec& model, const std::string& path = "$");

}  // namespace trainyard
