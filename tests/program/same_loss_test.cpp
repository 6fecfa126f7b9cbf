// Any two plans of one job train alike, and gradients are the slopes of the loss: for every family,
// with schedules and features that the goldens are too small for.
#include <catch2/catch.hpp>

#include <cmath>

#include "tests/program/reference.h"
#include "tests/program/tiny_models.h"
#include "tests/program/training.h"
#include "tests/sanitized.h"

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

StepProgram checked(const ModelSpec& model, const ParallelPlan& plan) {
  StepProgram program = lower(model, plan);
  REQUIRE(check(program).empty());
  return program;
}

double size(const std::vector<double>& x) {
  double squares = 0;
  for (const double value : x) squares += value * value;
  return std::sqrt(squares);
}

void check_same(const Run& got, const Run& want) {
  for (std::size_t i = 0; i < want.steps.size(); ++i) {
    CHECK(got.steps[i].loss == Approx(want.steps[i].loss).epsilon(1e-11));
    CHECK(got.steps[i].grad_norm == Approx(want.steps[i].grad_norm).epsilon(1e-10));
  }
  REQUIRE(got.gradients.size() == want.gradients.size());
  for (const auto& [name, tensor] : want.gradients) {
    std::vector<double> difference = got.gradients.at(name).data;
    for (std::size_t i = 0; i < difference.size(); ++i) difference[i] -= tensor.data[i];
    INFO("gradient of " << name);
    CHECK(size(difference) <= 1e-10 * size(tensor.data) + 1e-14);
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
  if (testing::kSanitized && (family == ModelFamily::Llama || family == ModelFamily::Mixtral)) return;
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
  SECTION("muP: every matrix at a rate of its own") {
    model.mup = MupSpec{8, 24, 2, 4};
    plan.tp = plan.dp = plan.pp = 2;
    plan.zero_stage = 1;
  }
  SECTION("ALiBi over tensor and context ranks") {
    model.position = PositionKind::Alibi;
    plan.tp = plan.cp = 2;
    plan.sequence_parallel = true;
  }
  SECTION("sliding window over context ranks") {
    model.sliding_window = 5;
    plan.cp = 4;
  }
  ParallelPlan single = four_sequences();
  check_same(train(checked(model, plan), 3, 1), train(checked(model, single), 3, 2));
}

TEST_CASE("random order of ready ops gives the same bits, memory that is free being poisoned with NaN", "[program]") {
  ParallelPlan plan = four_sequences();
  plan.pp = plan.virtual_stages = plan.tp = plan.dp = 2;
  plan.ep = 2;
  plan.schedule = PipelineSchedule::Interleaved;
  plan.sequence_parallel = true;
  plan.zero_stage = 1;
  const StepProgram program = checked(four_layers(ModelFamily::Grok1), plan);
  const Run first = train(program, 3, 1);
  for (std::uint64_t seed = 2; seed < 6; ++seed) CHECK(same_bits(train(program, 3, seed), first));
}

namespace {

// `cases` random plans against one rank, all sequences in one micro-batch there.
void compare_random_plans(std::uint64_t seed, int cases) {
  RandomStream random(seed, "plans");
  for (int i = 0; i < cases; ++i) {
    ModelSpec model = tiny_model(static_cast<ModelFamily>(i % 4));
    model.num_hidden_layers = 8;
    model.hidden_dropout = random.below(3) == 0 ? 0.1 : 0;
    model.sliding_window = random.below(3) == 0 ? 5 : 0;
    ParallelPlan plan = random_plan(model, random);
    while (plan.global_batch > 16) plan = random_plan(model, random);
    plan.optimizer.clip_grad = 0.5;
    ParallelPlan single = four_sequences();
    single.global_batch = single.micro_batch = plan.global_batch;
    INFO("seed " << seed << " case " << i << " " << describe(model, plan));
    REQUIRE(validate(plan, model, nullptr).empty());
    check_same(train(checked(model, plan), 2, 1), train(checked(model, single), 2, 2));
  }
}

}  // namespace

TEST_CASE("random plans, same loss", "[program]") { compare_random_plans(21, testing::kSanitized ? 2 : 8); }
TEST_CASE("many random plans, same loss", "[.nightly]") { compare_random_plans(22, 400); }

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
  int probe = 0;
  for (const auto& [name, tensor] : weights) {
    if (testing::kSanitized && probe++ % 10 != 0) continue;
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
