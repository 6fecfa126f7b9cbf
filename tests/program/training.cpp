#include "tests/program/training.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tests/program/tiny_models.h"

namespace trainyard {

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

Run train(const StepProgram& program, int steps, std::uint64_t seed, Compute compute) {
  Reference reference(program, seed, std::move(compute));
  reference.set_weights(random_weights(program));
  const GoldenTensor tokens = random_tokens(program.model, program.plan);
  Run run;
  for (int i = 0; i < steps; ++i) {
    run.steps.push_back(reference.step(tokens));
    if (i == 0) run.gradients = reference.gradients();
  }
  run.weights = reference.weights();
  return run;
}

bool same_bits(const Run& a, const Run& b) {
  const auto same = [](const Weights& x, const Weights& y) {
    return std::equal(x.begin(), x.end(), y.begin(), y.end(), [](const auto& p, const auto& q) {
      return p.first == q.first && p.second.data == q.second.data;
    });
  };
  return std::equal(a.steps.begin(), a.steps.end(), b.steps.begin(), b.steps.end(),
                    [](const auto& p, const auto& q) { return p.loss == q.loss && p.grad_norm == q.grad_norm; }) &&
         same(a.gradients, b.gradients) && same(a.weights, b.weights);
}

ParallelPlan random_plan(const ModelSpec& model, RandomStream& random) {
  const auto pick = [&](std::initializer_list<std::int64_t> from) {
    return *(from.begin() + random.below(from.size()));
  };
  ParallelPlan plan = tiny_plan();
  plan.tp = pick({1, 2});
  plan.cp = pick({1, 2});
  plan.cp_comm_type = model.sliding_window == 0 && random.below(2) == 0 ? CpCommType::P2p : CpCommType::AllGather;
  plan.pp = pick({1, 2, 4});
  plan.dp = pick({1, 2, 4});
  plan.ep = model.moe ? std::min(pick({1, 2, 4}), plan.cp * plan.dp) : 1;
  plan.sequence_parallel = plan.tp > 1 && random.below(2) == 0;
  plan.zero_stage = pick({0, 1, 2, 3});
  plan.virtual_stages = plan.pp > 1 ? pick({1, 2}) : 1;
  plan.schedule = plan.virtual_stages > 1 ? PipelineSchedule::Interleaved : PipelineSchedule::OneFOneB;
  plan.micro_batch = pick({1, 2});
  const std::int64_t micro_batches = plan.pp * pick({1, 2, 3});
  plan.global_batch = plan.dp * plan.micro_batch * micro_batches;
  plan.recompute = static_cast<RecomputeMode>(random.below(3));
  plan.recompute_modules = {random.below(2) == 0, random.below(2) == 0, random.below(2) == 0,
                            random.below(2) == 0, random.below(2) == 0, random.below(2) == 0};
  plan.recompute_early_stop = plan.recompute != RecomputeMode::Full || random.below(2) == 0;
  if (model.moe) plan.recompute_modules.mlp = plan.recompute_modules.every_second_matmul = false;
  plan.overlap.grad_reduce = random.below(2) == 0;
  plan.overlap.param_gather = random.below(2) == 0;
  plan.overlap.tensor_parallel = random.below(2) == 0;
  plan.overlap.p2p = random.below(2) == 0;
  plan.pipeline_scatter_gather = plan.tp > 1 && plan.pp > 1 && !plan.sequence_parallel && random.below(2) == 0;
  plan.bucket_bytes = pick({1, 4096, 1 << 20});
  const std::int64_t shard_size = pick({0, 0, 2, 4});
  if (plan.zero_stage > 0 && (plan.cp * plan.dp) % std::max<std::int64_t>(shard_size, 1) == 0)
    plan.zero_shard_size = shard_size;
  return plan;
}

std::string describe(const ModelSpec& model, const ParallelPlan& plan) {
  return fmt::format(
      "{} tp{} cp{} ep{} pp{} dp{} vp{} zero{} over {} sp{} micro{} batch{} recompute{} bucket{} overlap {}{}{}{}",
      model.name, plan.tp, plan.cp, plan.ep, plan.pp, plan.dp, plan.virtual_stages, plan.zero_stage,
      plan.zero_shard_size, plan.sequence_parallel ? 1 : 0, plan.micro_batch, plan.global_batch,
      static_cast<int>(plan.recompute), plan.bucket_bytes, plan.overlap.grad_reduce ? "grads " : "",
      plan.overlap.param_gather ? "params" : "", plan.pipeline_scatter_gather ? " scatter-gather" : "",
      plan.ring_attention() ? " ring" : "");
}

}  // namespace trainyard
