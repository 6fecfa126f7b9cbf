// Maximal update parametrization: what it changes of a program, and what it leaves.
#include <catch2/catch.hpp>

#include <cmath>

#include "models/program/initial_weights.h"
#include "tests/program/tiny_models.h"

using namespace trainyard;

namespace {

const Param& find(const StepProgram& program, const std::string& name) {
  for (const StageProgram& stage : program.stages) {
    for (const Chunk& chunk : stage.chunks) {
      for (const Bucket& bucket : chunk.buckets) {
        for (const Param& param : bucket.params) {
          if (param.name == name) return param;
        }
      }
    }
  }
  throw std::runtime_error("no parameter " + name);
}

const Op& find_op(const StepProgram& program, OpKind kind) {
  for (const Block& block : program.blocks) {
    for (const Op& op : block.ops) {
      if (op.kind == kind) return op;
    }
  }
  throw std::runtime_error("no such op");
}

double deviation(const ModelSpec& model, const Param& param) {
  const InitialWeights weights(model, param, param.parts[0], 1);
  double squares = 0;
  constexpr int kCount = 20000;
  for (int i = 0; i < kCount; ++i) squares += weights.at(i) * weights.at(i);
  return std::sqrt(squares / kCount);
}

}  // namespace

TEST_CASE("at the sizes of its base, muP is the standard parametrization with a readout of nought", "[program]") {
  const ModelFamily family = GENERATE(ModelFamily::Llama, ModelFamily::Mixtral, ModelFamily::Grok1, ModelFamily::Gpt3);
  const ModelSpec standard = tiny_model(family);
  ModelSpec mup = standard;
  mup.mup = MupSpec{standard.hidden_size, standard.intermediate_size, standard.num_attention_heads, standard.head_dim};
  CHECK(dump(lower(mup, tiny_plan())) == dump(lower(standard, tiny_plan())));
  if (!standard.tie_word_embeddings) CHECK(find(lower(mup, tiny_plan()), "head").init == Init::Zeros);
}

TEST_CASE("under muP variances and rates fall with the fan-in, the logits and the scores with the width", "[program]") {
  ModelSpec model = tiny_model(ModelFamily::Llama);  // 32 wide, 4 heads of 8, 64 in the MLP
  const double standard_deviation = deviation(model, find(lower(model, tiny_plan()), "layer0.mlp.up"));
  model.mup = MupSpec{8, 4, 2, 4};
  const StepProgram program = lower(model, tiny_plan());
  struct Want {
    const char* param;
    double rate, deviation;  // over the standard ones
  };
  for (const Want& want :
       {Want{"layer0.attn.qkv", 1. / 4, 1. / 2}, Want{"layer0.attn.out", 1. / 4, 1. / 2},
        Want{"layer0.mlp.up", 1. / 4, 1. / 2}, Want{"layer0.mlp.down", 1. / 16, 1. / 4}, Want{"embedding", 1, 1}}) {
    INFO(want.param);
    const Param& param = find(program, want.param);
    CHECK(param.rate_scale == Approx(want.rate));
    const double residual = param.init == Init::Residual ? std::sqrt(2.0 * 2) : 1;
    CHECK(deviation(model, param) * residual == Approx(standard_deviation * want.deviation).epsilon(0.03));
  }
  CHECK(find(program, "layer0.attn_norm.weight").rate_scale == 1);
  CHECK(find(program, "head").rate_scale == 1);
  CHECK(find_op(program, OpKind::XentMax).attr.alpha == Approx(1. / 4));
  CHECK(find_op(program, OpKind::Attention).attr.scale ==
        Approx(0.5 * 4 / 8));  // 1/sqrt(4) at the base, 1/d from there
  model.mup->base_intermediate_size = model.mup->base_num_attention_heads = model.mup->base_head_dim = 0;
  CHECK(find(lower(model, tiny_plan()), "layer0.mlp.down").rate_scale == Approx(1. / 4));  // in proportion
}

TEST_CASE("a router is a readout under muP", "[program]") {
  ModelSpec model = tiny_model(ModelFamily::Mixtral);
  model.mup = MupSpec{8, 0, 0, 0};
  const Param router = find(lower(model, tiny_plan()), "layer0.router");
  CHECK(router.rate_scale == Approx(1. / 4));
  CHECK(router.init_scale == Approx(1. / 4));
}
