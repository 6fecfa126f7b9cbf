// The tiny models of the goldens (tests/golden/gen_golden.py), one of each family.
#pragma once

#include "models/plan/parallel_plan.h"
#include "models/spec/model_spec.h"

namespace trainyard {

inline ModelSpec tiny_model(ModelFamily family) {
  ModelSpec model;
  model.family = family;
  model.num_hidden_layers = 2;
  model.hidden_size = 32;
  model.num_attention_heads = 4;
  model.num_key_value_heads = 2;
  model.head_dim = 8;
  model.intermediate_size = 64;
  model.vocab_size = 64;
  model.max_position_embeddings = 16;
  switch (family) {
    case ModelFamily::Llama: model.name = "tiny-llama"; break;
    case ModelFamily::Mixtral:
      model.name = "tiny-mixtral";
      model.intermediate_size = 32;
      model.moe = MoeSpec{8, 2, true};
      break;
    case ModelFamily::Grok1:
      model.name = "tiny-grok1";
      model.intermediate_size = 32;
      model.moe = MoeSpec{8, 2, false};
      model.norm_placement = NormPlacement::Sandwich;
      model.hidden_act = ActivationKind::GeluTanh;
      model.tie_word_embeddings = true;
      model.embedding_multiplier = 5.656854249492381;
      model.output_multiplier = 0.5773502691896257;
      model.attention_softcap = 30;
      break;
    case ModelFamily::Gpt3:
      model.name = "tiny-gpt3";
      model.num_key_value_heads = 4;
      model.norm = NormKind::LayerNorm;
      model.position = PositionKind::Learned;
      model.hidden_act = ActivationKind::GeluTanh;
      model.gated_mlp = false;
      model.attention_bias = model.mlp_bias = true;
      model.tie_word_embeddings = true;
      break;
  }
  return model;
}

/// One rank, two sequences of 16 tokens, one at a time, in float64 and without clipping.
inline ParallelPlan tiny_plan() {
  ParallelPlan plan;
  plan.sequence_length = 16;
  plan.micro_batch = 1;
  plan.global_batch = 2;
  plan.precision = Precision::F64;
  plan.optimizer.learning_rate = 1e-2;
  plan.optimizer.clip_grad = 0;
  plan.overlap.param_gather = false;
  return plan;
}

}  // namespace trainyard
