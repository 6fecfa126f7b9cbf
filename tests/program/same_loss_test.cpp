// Any two plans of one job train alike, and gradients are the slopes of the loss: for every family,
// with schedules and features that the goldens are too small for.
#include <catch2/catch.hpp>

#include <cmath>

#include "tests/program/reference.h"
#include "tests/program/tiny_models.h"

using namespace trainyard;

namespace {

ModelSpec four_layers(ModelFamily family) {
  ModelSpec model = tiny_model(family);
  model.num_hidden_layers = 4;
  return model;
}

ParallelPlan four_sequences() {
  ParallelPlan plan = tiny_plan();
  plan.global_batch = 4;
  plan.optimizer.clip_grad = 0.5;  // bites: gradient norms are above it
  return plan;
}

// Random weights for every tensor that the sharding table names, and random tokens.
Weights random_weights(const StepProgram& program) {
  Weights weights;
  for (const StageProgram& stage : program.stages) {
    for (const Chunk& chunk : stage.chunks) {
      for (const Bucket& bucket : chunk.buckets) {
        for (const Param& param : bucket.params) {
          for (const ParamPart& part : param.parts) {
            GoldenTensor& tensor = weights[part.name];
            tensor.shape = part.global_shape;
            std::int64_t size = 1;
            for (const std::int64_t dim : part.global_shape) size *= dim;
            tensor.data.resize(static_cast<std::size_t>(size));
          }
        }
      }
    }
  }
  for (auto& [name, tensor] : weights) {
    RandomStream random(3, name);
    const double scale = tensor.shape.size() == 2 ? 1 / std::sqrt(32.0) : 0.2;
    for (double& x : tensor.data) x = scale * random.normal() + (tensor.shape.size() == 1 ? 0.7 : 0.0);
  }
  return weights;
}

GoldenTensor random_tokens(const ModelSpec& model, const ParallelPlan& plan) {
  RandomStream random(4, "tokens");
  GoldenTensor tokens;
  for (std::int64_t i = 0; i < plan.global_batch * (plan.sequence_length + 1); ++i) {
    tokens.data.push_back(static_cast<double>(random.below(static_cast<std::uint64_t>(model.vocab_size))));
  }
  return tokens;
}

struct Run {
  std::vector<Reference::Step> steps;
  Weights weights;
};

Run train(const ModelSpec& model, const ParallelPlan& plan, std::uint64_t seed) {
  const StepProgram program = lower(model, plan);
  REQUIRE(check(program).empty());
  Reference reference(program, seed);
  reference.set_weights(random_weights(program));
  Run run;
  for (int i = 0; i < 3; ++i) run.steps.push_back(reference.step(random_tokens(model, plan)));
  run.weights = reference.weights();
  return run;
}

void check_same(const Run& got, const Run& want) {
  for (std::size_t i = 0; i < want.steps.size(); ++i) {
    CHECK(got.steps[i].loss == Approx(want.steps[i].loss).epsilon(1e-11));
    CHECK(got.steps[i].grad_norm == Approx(want.steps[i].grad_norm).epsilon(1e-10));
  }
  for (const auto& [name, tensor] : want.weights) {
    double worst = 0;
    for (std::size_t i = 0; i < tensor.data.size(); ++i)
      worst = std::max(worst, std::fabs(got.weights.at(name).data[i] - tensor.data[i]));
    INFO(name);
    CHECK(worst < 1e-7);  // Adam's first steps divide by tiny second moments
  }
}

}  // namespace

TEST_CASE("any plan, same loss", "[program]") {
  const auto family = GENERATE(ModelFamily::Llama, ModelFamily::Mixtral, ModelFamily::Grok1, ModelFamily::Gpt3);
  ModelSpec model = four_layers(family);
  const bool moe = model.moe.has_value();
  ParallelPlan plan = four_sequences();
  SECTION("interleaved pipeline") {
    plan.pp = plan.virtual_stages = 2;
    plan.schedule = PipelineSchedule::Interleaved;
  }
  SECTION("interleaved, tensor, data and expert parallel, optimizer sharded") {
    plan.pp = plan.virtual_stages = plan.tp = plan.dp = 2;
    plan.ep = moe ? 2 : 1;
    plan.schedule = PipelineSchedule::Interleaved;
    plan.sequence_parallel = true;
    plan.zero_stage = 1;
    plan.overlap.param_gather = true;
  }
  SECTION("deep 1F1B pipeline, context parallel, full recompute") {
    plan.pp = 4;
    plan.cp = 2;
    plan.recompute = RecomputeMode::Full;
  }
  SECTION("uneven chunks, a head on its own") {
    plan.pp = 2;
    plan.layers_per_chunk = {4, 0};
  }
  SECTION("dropout, the same on every plan") {
    model.hidden_dropout = 0.2;
    plan.tp = plan.pp = plan.cp = 2;
    plan.sequence_parallel = true;
    plan.recompute = RecomputeMode::Full;
  }
  SECTION("sliding window over context ranks") {
    model.sliding_window = 5;
    plan.cp = 4;
  }
  ParallelPlan single = four_sequences();
  check_same(train(model, plan, 1), train(model, single, 2));
}

TEST_CASE("random order of ready ops gives the same bits", "[program]") {
  ParallelPlan plan = four_sequences();
  plan.pp = plan.virtual_stages = plan.tp = plan.dp = 2;
  plan.ep = 2;
  plan.schedule = PipelineSchedule::Interleaved;
  plan.sequence_parallel = true;
  plan.zero_stage = 1;
  const Run first = train(four_layers(ModelFamily::Grok1), plan, 1);
  for (std::uint64_t seed = 2; seed < 6; ++seed) {
    const Run again = train(four_layers(ModelFamily::Grok1), plan, seed);
    for (std::size_t i = 0; i < first.steps.size(); ++i) {
      CHECK(again.steps[i].loss == first.steps[i].loss);
      CHECK(again.steps[i].grad_norm == first.steps[i].grad_norm);
    }
    for (const auto& [name, tensor] : first.weights) CHECK(again.weights.at(name).data == tensor.data);
  }
}

TEST_CASE("gradients are the slopes of the loss", "[program]") {
  const auto family = GENERATE(ModelFamily::Llama, ModelFamily::Mixtral, ModelFamily::Grok1, ModelFamily::Gpt3);
  ModelSpec model = tiny_model(family);
  model.hidden_act =
      GENERATE(ActivationKind::Silu, ActivationKind::Gelu, ActivationKind::GeluTanh, ActivationKind::SquaredRelu);
  ParallelPlan plan = tiny_plan();
  plan.optimizer.clip_grad = 0;
  const StepProgram program = lower(model, plan);
  const GoldenTensor tokens = random_tokens(model, plan);
  const Weights weights = random_weights(program);
  const auto loss_of = [&](const Weights& at) {
    Reference reference(program, 1);
    reference.set_weights(at);
    return reference.step(tokens).loss;
  };
  Reference reference(program, 1);
  reference.set_weights(weights);
  reference.step(tokens);
  const Weights gradients = reference.gradients();
  RandomStream random(9, "probe");
  for (const auto& [name, tensor] : weights) {
    const std::size_t i = random.below(tensor.data.size());
    // A step small enough that no token changes its expert, large enough for float64.
    const double h = 1e-5;
    Weights above = weights, below = weights;
    above[name].data[i] += h;
    below[name].data[i] -= h;
    const double slope = (loss_of(above) - loss_of(below)) / (2 * h);
    INFO(name << "[" << i << "]");
    CHECK(gradients.at(name).data[i] == Approx(slope).epsilon(1e-5).margin(1e-8));
  }
}
