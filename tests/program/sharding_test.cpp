// The sharding table: every parameter of the model exactly once, every element on the right ranks.
#include <catch2/catch.hpp>

#include <map>
#include <set>
#include <string>

#include "models/program/program.h"
#include "tests/program/tiny_models.h"

using namespace trainyard;

namespace {

std::int64_t elements(const std::vector<std::int64_t>& shape) {
  std::int64_t count = 1;
  for (const std::int64_t dim : shape) count *= dim;
  return count;
}

// Elements of distinct Hugging Face tensors that the table names.
std::int64_t table_parameters(const StepProgram& program) {
  std::map<std::string, std::int64_t> tensors;
  for (const StageProgram& stage : program.stages) {
    for (const Chunk& chunk : stage.chunks) {
      for (const Bucket& bucket : chunk.buckets) {
        for (const Param& param : bucket.params) {
          for (const ParamPart& part : param.parts) tensors[part.name] = elements(part.global_shape);
        }
      }
    }
  }
  std::int64_t total = 0;
  for (const auto& [name, count] : tensors) total += count;
  return total;
}

// Elements that all ranks of the mesh hold together, replicas over dp and cp taken out.
double held_parameters(const StepProgram& program) {
  const ParallelPlan& plan = program.plan;
  double total = 0;
  for (const StageProgram& stage : program.stages) {
    for (const Chunk& chunk : stage.chunks) {
      for (const Bucket& bucket : chunk.buckets) {
        for (const Param& param : bucket.params) {
          if (param.tied_copy) continue;
          const double copies = param.tp_replicated() ? 1 : static_cast<double>(plan.tp);
          total +=
              static_cast<double>(param.elements()) * copies * static_cast<double>(param.expert_parallel ? plan.ep : 1);
        }
      }
    }
  }
  return total;
}

ModelSpec grok1() {
  ModelSpec model = tiny_model(ModelFamily::Grok1);
  model.num_hidden_layers = 64;
  model.hidden_size = 6144;
  model.num_attention_heads = 48;
  model.num_key_value_heads = 8;
  model.head_dim = 128;
  model.intermediate_size = 32768;
  model.vocab_size = 131072;
  model.max_position_embeddings = 8192;
  return model;
}

ParallelPlan grok1_plan() {
  ParallelPlan plan;
  plan.tp = 4;
  plan.cp = 2;
  plan.ep = 8;
  plan.pp = 8;
  plan.dp = 8;
  plan.sequence_parallel = true;
  plan.zero_stage = 1;
  plan.virtual_stages = 8;
  plan.schedule = PipelineSchedule::Interleaved;
  plan.sequence_length = 8192;
  plan.global_batch = 64;
  plan.moe.buffer_factor = 1.1;
  return plan;
}

}  // namespace

TEST_CASE("Grok-1 has its 315,684,820,992 parameters, named once, held once", "[program]") {
  const StepProgram program = lower(grok1(), grok1_plan());
  CHECK(table_parameters(program) == 315684820992);
  CHECK(held_parameters(program) == 315684820992.0);
}

TEST_CASE("no two parameters of a bucket overlap, and shards tile it", "[program]") {
  for (const ModelFamily family : {ModelFamily::Llama, ModelFamily::Mixtral, ModelFamily::Grok1, ModelFamily::Gpt3}) {
    ParallelPlan plan = tiny_plan();
    plan.tp = 2;
    plan.dp = 4;
    plan.ep = tiny_model(family).moe ? 2 : 1;
    plan.zero_stage = 1;
    plan.global_batch = 4;
    plan.bucket_bytes = 8192;
    const StepProgram program = lower(tiny_model(family), plan);
    for (const Bucket& bucket : program.stages[0].chunks[0].buckets) {
      std::int64_t end = 0;
      for (const Param& param : bucket.params) {
        CHECK(param.offset_elements >= end);
        end = param.offset_elements + param.elements();
      }
      CHECK(bucket.elements >= end);
      CHECK(bucket.shard_elements * Mesh(plan).group_size(bucket.group) == bucket.elements);
    }
  }
}

TEST_CASE("parts of every fused parameter add up to its local shape", "[program]") {
  for (const ModelFamily family : {ModelFamily::Llama, ModelFamily::Mixtral, ModelFamily::Grok1, ModelFamily::Gpt3}) {
    ParallelPlan plan = tiny_plan();
    plan.tp = 2;
    const StepProgram program = lower(tiny_model(family), plan);
    for (const Bucket& bucket : program.stages[0].chunks[0].buckets) {
      for (const Param& param : bucket.params) {
        std::int64_t rows = 0;
        for (const ParamPart& part : param.parts) rows += part.rows;
        if (param.split0 == Split::Tp) rows /= plan.tp;
        const std::int64_t stored = param.expert_parallel
                                        ? param.local_shape.dims[0] * plan.ep * param.local_shape.dims[1]
                                        : param.local_shape.dims[0];
        INFO(param.name);
        CHECK(rows == stored);
      }
    }
  }
}

TEST_CASE("matrix FLOPs of a program are those of the model", "[program]") {
  // 6 FLOPs per active matrix parameter and token, forward and backward; attention aside.
  const ModelSpec model = grok1();
  const StepProgram program = lower(model, grok1_plan());
  double flops = 0;
  for (const StageProgram& stage : program.stages) {
    for (const Item& item : stage.items) {
      if (item.block < 0) continue;
      for (const Op& op : program.block(item).ops) {
        const bool matrix =
            op.kind == OpKind::Matmul || op.kind == OpKind::GroupedMatmul || op.kind == OpKind::GroupedMatmulWgrad;
        if (matrix) flops += op.flops;
      }
    }
  }
  const ParallelPlan& plan = program.plan;
  const double tokens = static_cast<double>(plan.global_batch * plan.sequence_length);
  const double per_layer = 6144.0 * (6144 + 2 * 1024) + 6144.0 * 6144 + 2 * 3.0 * 6144 * 32768;
  const double router = 8.0 * 6144;
  // Every tp rank routes its own rows under sequence parallelism, so the router is counted once too.
  const double expected = 6 * tokens * (64 * (per_layer + router) + 131072.0 * 6144);
  const double ranks = static_cast<double>(plan.tp * plan.cp * plan.dp);
  CHECK(flops * ranks == Approx(expected).epsilon(1e-12));
}
