// The cost model: shipped profiles load, predictions meet measurements, and more work never takes less time.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>

#include "models/base/random.h"
#include "models/cost/cost.h"
#include "models/cost/op_rate_fit.h"
#include "models/program/program.h"
#include "tests/program/tiny_models.h"

using namespace trainyard;

namespace {

const std::string kProfiles = std::string(TRAINYARD_SOURCE_DIR) + "/scenarios/profiles/";

CostModel model_of(const std::string& gpu) {
  StackProfile isolated;  // kernels alone: no throttling, no gaps
  return CostModel(load_hardware_profile(kProfiles + gpu + ".json").value(), isolated);
}

}  // namespace

TEST_CASE("every shipped profile loads", "[cost]") {
  for (const char* gpu : {"a100-sxm", "a100-sxm-40gb", "h100-sxm", "h200-sxm", "localhost"})
    CHECK(load_hardware_profile(kProfiles + gpu + ".json").ok());
  for (const char* stack : {"default", "megatron-core", "megatron-2021", "megatron-deepspeed", "zero3-2021", "torch",
                            "torch-a100", "composer", "composer-amp", "localhost"})
    CHECK(load_stack_profile(kProfiles + "stack-" + stack + ".json").ok());
}

TEST_CASE("GEMM times are those measured", "[cost]") {
  // Rows of NVIDIA aiconfigurator's database (Apache-2.0), H100 SXM, bf16: m, n, k, microseconds.
  struct Row {
    double m, n, k, us;
  };
  const CostModel h100 = model_of("h100-sxm");
  for (const Row& row : {Row{8192, 8192, 8192, 1404.8}, Row{4096, 4096, 4096, 174.3}, Row{2048, 8192, 8192, 346.3},
                         Row{8192, 1024, 8192, 172.6}, Row{4096, 65536, 4096, 2890.5}, Row{1024, 8192, 8192, 190.7}}) {
    INFO(row.m << " x " << row.n << " x " << row.k);
    CHECK(h100.gemm_seconds(row.m, row.n, row.k) == Approx(row.us * 1e-6).epsilon(0.10));
  }
}

TEST_CASE("collectives inside a node take what was measured", "[cost]") {
  const CostModel h100 = model_of("h100-sxm");
  // Same database, eight H100, NCCL 2.29.2: large all-reduces reach 445 GB/s of bus bandwidth, all-gathers 335.
  const double gib = 1 << 30;
  CHECK(2.0 * 7 / 8 * gib / h100.nvlink_collective_seconds(Collective::AllReduce, 8, gib) ==
        Approx(445e9).epsilon(0.08));
  CHECK(7.0 / 8 * gib / h100.nvlink_collective_seconds(Collective::AllGather, 8, gib) == Approx(335e9).epsilon(0.08));
}

TEST_CASE("no kernel beats its roofline, and more work never takes less time", "[cost]") {
  RandomStream random(2, "cost");
  for (const char* gpu : {"a100-sxm", "h100-sxm", "h200-sxm"}) {
    const CostModel cost = model_of(gpu);
    const HardwareProfile& hardware = cost.hardware();
    for (int i = 0; i < 2000; ++i) {
      const auto size = [&] { return std::floor(std::exp2(5 + 11 * random.uniform())); };
      const double m = size(), n = size(), k = size();
      const double seconds = cost.gemm_seconds(m, n, k);
      CHECK(2 * m * n * k / seconds <= hardware.peak_bf16_flops);
      CHECK(2 * (m * k + n * k + m * n) / seconds <= hardware.memory_bytes_per_s);
      CHECK(cost.gemm_seconds(m, n, 3 * k) >= seconds);  // as aligned as k is
      CHECK(cost.gemm_seconds(m, 8 * n, 16 * k) >= cost.gemm_seconds(m, 8 * n, 8 * k));
      CHECK(cost.gemm_seconds(2 * m, n, k) >= seconds * (1 - 1e-12));
      const double bytes = std::exp2(10 + 22 * random.uniform());
      for (const Collective kind :
           {Collective::AllReduce, Collective::AllGather, Collective::ReduceScatter, Collective::AllToAll}) {
        CHECK(cost.nvlink_collective_seconds(kind, 8, 2 * bytes) >= cost.nvlink_collective_seconds(kind, 8, bytes));
      }
    }
  }
}

TEST_CASE("rows that are no multiple of 16 bytes go without tensor cores", "[cost]") {
  const CostModel a100 = model_of("a100-sxm");
  CHECK(a100.gemm_seconds(8192, 8192, 8192 + 4) > 2.5 * a100.gemm_seconds(8192, 8192, 8192));
  CHECK(a100.gemm_seconds(8192, 8192 + 8, 8192) < 1.1 * a100.gemm_seconds(8192, 8192, 8192));
}

TEST_CASE("attention takes what its kernel takes, and materialised scores take more", "[cost]") {
  const HardwareProfile hardware = load_hardware_profile(kProfiles + "h100-sxm.json").value();
  Op op;
  op.kind = OpKind::Attention;
  op.attr.batch = 4;
  op.attr.heads = op.attr.kv_heads = 32;
  op.attr.head_dim = 128;
  op.attr.m = 4 * 8192;
  op.flops = 4.0 * 4 * 32 * 128 * 8192 * 8193 / 2;
  const auto seconds = [&](const char* kernel, bool dropout = false) {
    StackProfile stack;
    stack.attention = kernel;
    stack.attention_dropout = dropout;
    return CostModel(hardware, stack).op_seconds(op);
  };
  // FlashAttention-3's paper, forward, causal, heads of 128 at 8k: 333 TFLOP/s for FlashAttention-2, 529 for cuDNN.
  CHECK(op.flops / seconds("cudnn") == Approx(529e12).epsilon(0.02));
  CHECK(op.flops / seconds("flash2") == Approx(333e12).epsilon(0.1));
  CHECK(seconds("fastest") <= std::min({seconds("cudnn"), seconds("flash2"), seconds("flash3")}));
  CHECK(seconds("materialised") > 2 * seconds("flash2"));
  CHECK(seconds("materialised", true) > seconds("materialised"));
  const double of_128 = seconds("flash3");
  op.attr.head_dim = 96;
  op.flops *= 96.0 / 128;
  CHECK(seconds("flash3") < of_128);
  CHECK(seconds("flash3") > of_128 * 96 / 128);  // smaller heads are less efficient
}

TEST_CASE("the slowest of many ranks is slower than the mean", "[cost]") {
  const HardwareProfile hardware = load_hardware_profile(kProfiles + "h100-sxm.json").value();
  StackProfile stack;
  stack.jitter = 0.01;
  Op op;
  op.kind = OpKind::Matmul;
  op.attr.m = op.attr.n = op.attr.k = 4096;
  ParallelPlan one, many;
  many.dp = 2048;
  const double alone = CostModel(hardware, stack, one).op_seconds(op);
  CHECK(CostModel(hardware, stack, many).op_seconds(op) == Approx(alone * (1 + 0.01 * std::sqrt(2 * std::log(2048)))));
}

TEST_CASE("a ring's wire bytes are the textbook's", "[cost]") {
  const CostModel h100 = model_of("h100-sxm");
  // 16 ranks, two on each of eight nodes: two rings share the payload.
  const FabricCost reduce = h100.fabric_collective(Collective::AllReduce, 16, 8, 1e9, 50e9);
  CHECK(reduce.bytes_per_nic == Approx(2.0 * 15 / 16 * 1e9 / 2));
  const FabricCost gather = h100.fabric_collective(Collective::AllGather, 8, 8, 1e9, 50e9);
  CHECK(gather.bytes_per_nic == Approx(7.0 / 8 * 1e9));
  // Two ranks a node of eight: six of the other seven peers are on other nodes.
  const FabricCost exchange = h100.fabric_collective(Collective::AllToAll, 8, 4, 8e6, 50e9);
  CHECK(exchange.bytes_per_nic == Approx(6e6));
  // Small all-reduces over many nodes go by trees: latency grows with the logarithm.
  CHECK(h100.fabric_collective(Collective::AllReduce, 8192, 8192, 1024, 50e9).latency_s < 1e-3);
}

TEST_CASE("a fit of op rates finds what made the samples, and takes no number below nought", "[cost]") {
  const OpRate truth{2e-6, 4e-12, 5e-11};
  std::vector<OpSample> samples;
  RandomStream random(5, "rates");
  for (int i = 0; i < 40; ++i) {
    const double flops = std::exp2(16 + 14 * random.uniform()), bytes = std::exp2(12 + 12 * random.uniform());
    samples.push_back({flops, bytes, predicted_seconds(truth, flops, bytes) * (0.98 + 0.04 * random.uniform())});
  }
  const OpRate found = fit_rate(samples);
  CHECK(found.floor_s == Approx(truth.floor_s).epsilon(0.1));
  CHECK(found.seconds_per_flop == Approx(truth.seconds_per_flop).epsilon(0.05));
  CHECK(found.seconds_per_byte == Approx(truth.seconds_per_byte).epsilon(0.05));
  CHECK(median_error(found, samples) < 0.02);

  const OpRate falling = fit_rate({{0, 1e3, 3e-6}, {0, 1e6, 2e-6}, {0, 1e7, 1e-6}});
  CHECK(falling.floor_s > 0);
  CHECK(falling.seconds_per_byte == 0);
  CHECK(falling.seconds_per_flop == 0);
  const OpRate only = fit_rate({{1e6, 0, 1e-3}});
  CHECK(predicted_seconds(only, 1e6, 0) == Approx(1e-3));
}

TEST_CASE("ops of processors take their measured rates, and workspaces are counted", "[cost]") {
  const HardwareProfile hardware = load_hardware_profile(kProfiles + "localhost.json").value();
  REQUIRE(hardware.of_processors());
  ParallelPlan plan;
  plan.precision = Precision::F32;
  const OpRates* rates = hardware.rates_for(plan);
  REQUIRE(rates != nullptr);
  StackProfile stack;
  stack.kernel_gap_s = 1e-6;
  Op op;
  op.kind = OpKind::Matmul;
  op.flops = 1e9;
  op.bytes_read = 3e6, op.bytes_written = 1e6;
  CHECK(CostModel(hardware, stack, plan).op_seconds(op) ==
        Approx(1e-6 + predicted_seconds(rates->kinds.at(OpKind::Matmul), 1e9, 4e6)));
  op.kind = OpKind::Join;
  CHECK(CostModel(hardware, stack, plan).op_seconds(op) == 0);

  plan.cpu_threads = 77;
  CHECK(hardware.rates_for(plan) == nullptr);

  // Operands in bf16 are converted; those in f32 are computed with as they are.
  StepProgram program;
  program.blocks.emplace_back();
  op.kind = OpKind::Matmul;
  Tensor weights, gradients;
  weights.dtype = Dtype::Bf16;
  weights.shape = Shape(1000, 1000);
  gradients.dtype = Dtype::F32;
  gradients.shape = Shape(500, 1000);
  program.blocks[0].tensors = {weights, gradients};
  op.in = {0}, op.out = {1};
  program.blocks[0].ops = {op};
  StageProgram stage;
  stage.arena_bytes = 1000;
  stage.items.emplace_back();
  stage.items[0].block = 0;
  plan.cpu_threads = 1;
  CHECK(CostModel(hardware, StackProfile{}, plan).process_peak_bytes(program, stage) == 1000);
  plan.precision = Precision::Bf16;
  CHECK(CostModel(hardware, StackProfile{}, plan).process_peak_bytes(program, stage) == 1000 + 2 * 2e6);
}

TEST_CASE("what a stack keeps beside the arena is counted by what it is of", "[cost]") {
  const ModelSpec model = tiny_model(ModelFamily::Llama);
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  const auto memory = [&](const StackProfile& stack) {
    const StepProgram program = lower(model, plan);
    return CostModel(load_hardware_profile(kProfiles + "h100-sxm.json").value(), stack)
        .process_memory(program, program.stages[0]);
  };
  const StepProgram program = lower(model, plan);
  double parameters = 0, kept = 0;
  for (const Bucket& bucket : program.stages[0].chunks[0].buckets) parameters += static_cast<double>(bucket.elements);
  StackProfile stack;
  SECTION("gradients in the parameters' type beside those in f32") {
    stack.gradient_copy_bytes = 2;
    CHECK(memory(stack).gradient_copy_bytes == 2 * parameters);
    plan.fp32_gradients = false;
    CHECK(memory(stack).gradient_copy_bytes == 0);
  }
  SECTION("16-bit gradients in f32 for the step, where activations leave no room") {
    stack.step_gradient_bytes = 4;
    CHECK(memory(stack).step_gradient_bytes == 0);
    plan.fp32_gradients = false;
    const StepProgram in_16_bits = lower(model, plan);
    for (const Frame& frame : in_16_bits.stages[0].frames) {
      if (frame.role == Role::Params || frame.role == Role::Grads || frame.role == Role::Optimizer)
        kept += static_cast<double>(frame.bytes);
    }
    const double free_by_then = static_cast<double>(in_16_bits.stages[0].arena_bytes) - kept;
    CHECK(memory(stack).step_gradient_bytes == std::max(0.0, 4 * parameters - free_by_then));
    stack.step_gradient_bytes = 400;
    CHECK(memory(stack).step_gradient_bytes == 400 * parameters - free_by_then);
  }
  SECTION("logits, on the stage that has them") {
    stack.logit_copy_bytes = 8;
    const auto rows = static_cast<double>(plan.micro_batch * plan.sequence_length);
    CHECK(memory(stack).logit_copy_bytes == 8 * rows * static_cast<double>(model.vocab_size));
    plan.pp = 2;
    CHECK(memory(stack).logit_copy_bytes == 0);  // of the first of two stages
  }
  CHECK(memory(stack).total_bytes() >= memory(StackProfile{}).total_bytes());
}

TEST_CASE("biases and views cost nothing, unless something is rotated", "[cost]") {
  const CostModel h100 = model_of("h100-sxm");
  Op op;
  op.bytes_read = op.bytes_written = 1e8;
  op.kind = OpKind::BiasAdd;
  CHECK(h100.op_seconds(op) == 0);
  op.kind = OpKind::SplitQkv;
  CHECK(h100.op_seconds(op) == 0);
  op.attr.rope = true;
  CHECK(h100.op_seconds(op) > 2e8 / h100.hardware().memory_bytes_per_s);
}
