// Real processes, one for each rank: in float64 they compute what the reference computes on all logical ranks at once,
// and in float32 what PyTorch does, as near as float32 is.
#include <catch2/catch.hpp>

#include <cmath>

#include "tests/exec/goldens.h"
#include "tests/exec/processes.h"
#include "tests/program/tiny_models.h"
#include "tests/program/training.h"
#include "tests/sanitized.h"

using namespace trainyard;
using namespace trainyard::test;

TEST_CASE("processes train as the reference does, under any plan", "[exec]") {
  RandomStream random(5, "step_interpreter_test");
  constexpr int kSteps = 3;
  for (const ModelFamily family : {ModelFamily::Llama, ModelFamily::Mixtral, ModelFamily::Grok1, ModelFamily::Gpt3}) {
    ModelSpec model = tiny_model(family);
    model.num_hidden_layers = 8;
    for (int i = 0; i < (testing::kSanitized ? 1 : 3); ++i) {
      ParallelPlan plan = random_plan(model, random);
      if (plan.ranks() > 8) plan.dp = 1, plan.global_batch = plan.micro_batch * plan.pp, plan.ep = 1;
      if (plan.ranks() > 8) plan.cp = 1;
      INFO(describe(model, plan));
      const StepProgram program = lower(model, plan);
      const Run want = train(program, kSteps, 1);
      const Run got = train_in_processes(program, random_weights(program), random_tokens(model, plan), kSteps);
      REQUIRE(got.steps.size() == kSteps);
      for (std::size_t s = 0; s < got.steps.size(); ++s) {
        CHECK(got.steps[s].loss == Approx(want.steps[s].loss).epsilon(1e-10));
        CHECK(got.steps[s].grad_norm == Approx(want.steps[s].grad_norm).epsilon(1e-9));
      }
      check_close(got.gradients, want.gradients, 1e-9);
      check_close(got.weights, want.weights, 1e-6);  // Adam's first steps divide by tiny second moments
    }
  }
}

TEST_CASE("the same processes twice give the same bits", "[exec]") {
  ModelSpec model = tiny_model(ModelFamily::Mixtral);
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::F32;
  plan.tp = plan.dp = 2;
  plan.ep = 2;
  plan.zero_stage = 1;
  const StepProgram program = lower(model, plan);
  const auto run = [&] { return train_in_processes(program, random_weights(program), random_tokens(model, plan), 3); };
  CHECK(same_bits(run(), run()));
}

TEST_CASE("in float32, processes train as PyTorch does", "[exec]") {
  const auto family = GENERATE(ModelFamily::Llama, ModelFamily::Mixtral, ModelFamily::Grok1, ModelFamily::Gpt3);
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::F32;
  SECTION("one rank") {}
  SECTION("tp x pp") { plan.tp = plan.pp = 2; }
  SECTION("dp x tp, sequence parallel, optimizer sharded") {
    plan.dp = plan.tp = 2;
    plan.sequence_parallel = true;
    plan.zero_stage = 1;
  }
  SECTION("context parallel") { plan.cp = 2; }
  SECTION("context parallel, around a ring") {
    plan.cp = 4;
    plan.cp_comm_type = CpCommType::P2p;
  }
  const Weights golden = read_safetensors(golden_file(family));
  const Run got = train_in_processes(lower(tiny_model(family), plan), section(golden, "init."), golden.at("tokens"), 3);
  for (std::size_t step = 0; step < 3; ++step)
    CHECK(got.steps.at(step).loss == Approx(golden.at("loss." + std::to_string(step)).data[0]).epsilon(1e-5));
  check_close(got.gradients, section(golden, "grad."), 2e-5);
  check_close(without_key_biases(got.weights), without_key_biases(section(golden, "final.")), 2e-4);
}
