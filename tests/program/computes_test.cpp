// The program computes: the reference interpreter runs lowered programs on all their ranks and
// gets PyTorch's losses, gradients and weights (tests/golden), whatever the plan.
#include <catch2/catch.hpp>

#include <cmath>
#include <stdexcept>

#include "tests/program/reference.h"
#include "tests/program/tiny_models.h"

using namespace trainyard;

namespace {

struct Golden {
  Weights all;

  explicit Golden(ModelFamily family) {
    all = read_safetensors(std::string(TRAINYARD_SOURCE_DIR) + "/tests/golden/" + file_of(family) + "_f64.safetensors");
  }
  static const char* file_of(ModelFamily family) {
    switch (family) {
      case ModelFamily::Llama: return "llama";
      case ModelFamily::Mixtral: return "mixtral";
      case ModelFamily::Grok1: return "grok1";
      case ModelFamily::Gpt3: return "gpt3";
    }
    throw std::logic_error("a family without a golden");
  }
  // Tensors whose names start with the prefix, without it.
  Weights section(const std::string& prefix) const {
    Weights out;
    for (const auto& [name, tensor] : all) {
      if (name.rfind(prefix, 0) == 0) out[name.substr(prefix.size())] = tensor;
    }
    return out;
  }
  double scalar(const std::string& name) const { return all.at(name).data[0]; }
};

// Relative L2 distance; NaN where anything is missing.
double distance(const GoldenTensor& got, const GoldenTensor& want) {
  if (got.shape != want.shape) return std::nan("");
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < want.data.size(); ++i) {
    difference += (got.data[i] - want.data[i]) * (got.data[i] - want.data[i]);
    size += want.data[i] * want.data[i];
  }
  return std::sqrt(difference / size);
}

void check_close(const Weights& got, const Weights& want, double tolerance) {
  for (const auto& [name, tensor] : want) {
    INFO(name);
    REQUIRE(got.count(name) == 1);
    CHECK(distance(got.at(name), tensor) < tolerance);
  }
}

// Three AdamW steps against the golden: losses, gradient norms, first gradients, final weights.
void train_and_compare(ModelFamily family, const ParallelPlan& plan, std::uint64_t seed = 1) {
  const Golden golden(family);
  const StepProgram program = lower(tiny_model(family), plan);
  REQUIRE(check(program).empty());
  Reference reference(program, seed);
  reference.set_weights(golden.section("init."));
  for (int step = 0; step < 3; ++step) {
    INFO("step " << step);
    const Reference::Step result = reference.step(golden.all.at("tokens"));
    CHECK(result.loss == Approx(golden.scalar("loss." + std::to_string(step))).epsilon(1e-12));
    CHECK(result.grad_norm == Approx(golden.scalar("gradnorm." + std::to_string(step))).epsilon(1e-10));
    if (step == 0) check_close(reference.gradients(), golden.section("grad."), 1e-10);
  }
  check_close(reference.weights(), golden.section("final."), 1e-9);
}

}  // namespace

TEST_CASE("one rank trains as PyTorch does", "[program]") {
  const auto family = GENERATE(ModelFamily::Llama, ModelFamily::Mixtral, ModelFamily::Grok1, ModelFamily::Gpt3);
  train_and_compare(family, tiny_plan());
}

TEST_CASE("2x2 ranks train as PyTorch does", "[program]") {
  const auto family = GENERATE(ModelFamily::Llama, ModelFamily::Mixtral, ModelFamily::Grok1, ModelFamily::Gpt3);
  ParallelPlan plan = tiny_plan();
  plan.tp = 2;
  SECTION("tp x pp") { plan.pp = 2; }
  SECTION("tp x pp, sequence parallel") {
    plan.pp = 2;
    plan.sequence_parallel = true;
  }
  SECTION("dp x tp") { plan.dp = 2; }
  SECTION("dp x tp, sequence parallel, optimizer sharded") {
    plan.dp = 2;
    plan.sequence_parallel = true;
    plan.zero_stage = 1;
  }
  for (const std::uint64_t seed : {1, 2, 3}) train_and_compare(family, plan, seed);
}

TEST_CASE("any plan trains as PyTorch does", "[program]") {
  const auto family = GENERATE(ModelFamily::Llama, ModelFamily::Mixtral, ModelFamily::Grok1, ModelFamily::Gpt3);
  const bool moe = tiny_model(family).moe.has_value();
  ParallelPlan plan = tiny_plan();
  SECTION("both sequences in one micro-batch") { plan.micro_batch = 2; }
  SECTION("context parallel") { plan.cp = 2; }
  SECTION("context x tensor parallel x data parallel") {
    plan.cp = plan.tp = plan.dp = 2;
    plan.sequence_parallel = true;
    plan.zero_stage = 1;
  }
  SECTION("expert parallel over data parallel ranks") {
    plan.dp = 2;
    plan.ep = moe ? 2 : 1;
  }
  SECTION("expert parallel over context and data parallel ranks, experts sharded by tp too") {
    plan.cp = plan.dp = plan.tp = 2;
    plan.ep = moe ? 4 : 1;
    plan.sequence_parallel = true;
    plan.zero_stage = 2;
  }
  SECTION("expert parallel with tensor parallel but no sequence parallel") {
    plan.dp = plan.tp = 2;
    plan.ep = moe ? 2 : 1;
  }
  SECTION("expert replicas: ep smaller than dp") {
    plan.dp = plan.cp = 2;
    plan.ep = moe ? 2 : 1;
    plan.zero_stage = 1;
  }
  SECTION("ZeRO 2, reduced with every micro-batch") {
    plan.dp = 2;
    plan.zero_stage = 2;
    plan.bucket_bytes = 4096;
  }
  SECTION("ZeRO 2 over a pipeline, every micro-batch") {
    plan.cp = plan.pp = 2;
    plan.zero_stage = 2;
    plan.grad_sync = GradSync::EveryMicroBatch;
    plan.bucket_bytes = 1;
  }
  SECTION("ZeRO 3: parameters gathered for each pass") {
    plan.dp = 2;
    plan.zero_stage = 3;
    plan.bucket_bytes = 1;
  }
  SECTION("ZeRO 3 over a pipeline, with tp, experts and recompute") {
    plan.dp = plan.tp = plan.pp = 2;
    plan.ep = moe ? 2 : 1;
    plan.zero_stage = 3;
    plan.recompute = RecomputeMode::Full;
    plan.bucket_bytes = 4096;
  }
  SECTION("ZeRO 3 with whole gradients, reduced at the end") {
    plan.dp = plan.cp = 2;
    plan.zero_stage = 3;
    plan.grad_sync = GradSync::LastMicroBatch;
  }
  SECTION("a pipeline whose tensor-parallel ranks send blocks of a boundary") {
    plan.tp = plan.pp = 2;
    plan.pipeline_scatter_gather = true;
  }
  SECTION("blocks of a boundary in an interleaved pipeline, with recompute") {
    plan.tp = plan.pp = 2;
    plan.virtual_stages = 2;
    plan.schedule = PipelineSchedule::Interleaved;
    plan.pipeline_scatter_gather = true;
    plan.recompute = RecomputeMode::Full;
  }
  SECTION("keys and values around a ring of four") {
    plan.cp = 4;
    plan.cp_comm_type = CpCommType::P2p;
    plan.recompute = GENERATE(RecomputeMode::None, RecomputeMode::Selective, RecomputeMode::Full);
  }
  SECTION("a ring beside tensor and pipeline parallelism") {
    plan.tp = plan.cp = plan.pp = 2;
    plan.cp_comm_type = CpCommType::P2p;
    plan.recompute = RecomputeMode::Full;
    plan.recompute_early_stop = false;
  }
  SECTION("an interleaved pipeline whose stages exchange in step") {
    plan.pp = plan.virtual_stages = 2;
    plan.schedule = PipelineSchedule::Interleaved;
    plan.overlap.p2p = false;
  }
  SECTION("tensor-parallel sums after weight gradients") {
    plan.tp = 2;
    plan.sequence_parallel = GENERATE(false, true);
    plan.overlap.tensor_parallel = false;
  }
  SECTION("hybrid sharding: two copies of optimizer state in two shards each") {
    plan.dp = plan.cp = 2;
    plan.zero_stage = 1;
    plan.zero_shard_size = 2;
  }
  SECTION("hybrid ZeRO 2, reduced and summed over copies with every micro-batch") {
    plan.dp = plan.cp = 2;
    plan.zero_stage = 2;
    plan.zero_shard_size = 2;
    plan.bucket_bytes = 4096;
  }
  SECTION("hybrid ZeRO 3, with tp and copies of experts") {
    plan.dp = plan.cp = plan.tp = 2;
    plan.zero_stage = 3;
    plan.zero_shard_size = 2;
    plan.bucket_bytes = 1;
  }
  SECTION("hybrid ZeRO 3 over a pipeline, with whole gradients and experts that are sharded over all who hold them") {
    plan.dp = plan.cp = plan.pp = 2;
    plan.ep = moe ? 2 : 1;
    plan.zero_stage = 3;
    plan.zero_shard_size = 2;
    plan.grad_sync = GradSync::LastMicroBatch;
    plan.recompute = RecomputeMode::Full;
  }
  SECTION("parameters gathered by the next step") {
    plan.dp = 2;
    plan.zero_stage = 1;
    plan.overlap.param_gather = true;
  }
  SECTION("gradients reduced after the backward pass") {
    plan.dp = 2;
    plan.zero_stage = 1;
    plan.overlap.grad_reduce = false;
  }
  SECTION("full recompute") {
    plan.recompute = RecomputeMode::Full;
    plan.tp = 2;
    plan.sequence_parallel = true;
  }
  SECTION("full recompute of whole layers") {
    plan.recompute = RecomputeMode::Full;
    plan.recompute_early_stop = false;
    plan.tp = 2;
    plan.pp = 2;
    plan.ep = moe ? 2 : 1;
    plan.dp = 2;
    plan.sequence_parallel = GENERATE(false, true);
  }
  SECTION("selective recompute of everything it can") {
    plan.recompute = RecomputeMode::Selective;
    plan.recompute_modules = {true, true, true, !moe, true, !moe};
  }
  SECTION("pipeline in Megatron's other rank order") {
    plan.pp = plan.cp = 2;
    plan.order = "tp-cp-ep-pp-dp";
  }
  train_and_compare(family, plan);
}
