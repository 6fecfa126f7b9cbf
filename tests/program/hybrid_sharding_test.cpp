// Hybrid sharding: what is sharded over blocks of ranks, and what goes between them.
#include <catch2/catch.hpp>

#include <functional>

#include "models/program/program.h"
#include "tests/program/tiny_models.h"

using namespace trainyard;

namespace {

ParallelPlan plan_over(std::int64_t zero_stage, std::int64_t shard_size) {
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.dp = 8;
  plan.global_batch = 16;
  plan.zero_stage = zero_stage;
  plan.zero_shard_size = shard_size;
  plan.bucket_bytes = 4096;
  return plan;
}

StepProgram experts_over(std::int64_t zero_stage, std::int64_t shard_size) {
  ParallelPlan plan = plan_over(zero_stage, shard_size);
  plan.ep = 2;
  return lower(tiny_model(ModelFamily::Mixtral), plan);
}

void for_each_op(const StepProgram& program, const std::function<void(const Op&, const Chunk*)>& visit) {
  const StageProgram& stage = program.stages[0];
  for (const Item& item : stage.items) {
    if (item.block < 0) continue;
    const Chunk* chunk = item.chunk < 0 ? nullptr : &stage.chunks[static_cast<std::size_t>(item.chunk)];
    for (const Op& op : program.block(item).ops) visit(op, chunk);
  }
}

// Bytes that a step's collectives of this kind and group have as payload.
double payload_bytes(const StepProgram& program, OpKind kind, Group group) {
  double bytes = 0;
  for_each_op(program, [&](const Op& op, const Chunk*) {
    if (op.kind == kind && op.group == group && op.attr.bucket >= 0) bytes += op.payload_bytes;
  });
  return bytes;
}

}  // namespace

TEST_CASE("blocks that are the whole group, or one rank, are no blocks", "[program]") {
  for (const std::int64_t stage : {1, 2, 3}) {
    CHECK(dump(experts_over(stage, 8)) == dump(experts_over(stage, 0)));
    CHECK(dump(experts_over(stage, 1)) == dump(experts_over(0, 0)));
    CHECK(dump(experts_over(stage, 4)) != dump(experts_over(stage, 0)));
  }
}

TEST_CASE("gathers and reduce-scatters stay inside a copy, and shards alone are summed over copies", "[program]") {
  const std::int64_t stage = GENERATE(1, 2, 3);
  const StepProgram hybrid = lower(tiny_model(ModelFamily::Llama), plan_over(stage, 2)),
                    full = lower(tiny_model(ModelFamily::Llama), plan_over(stage, 0));
  REQUIRE(check(hybrid).empty());
  double elements = 0;
  for (const Bucket& bucket : hybrid.stages[0].chunks[0].buckets) elements += static_cast<double>(bucket.elements);
  // Gradients in f32, summed with both micro-batches from ZeRO 2 on.
  const double syncs = stage >= 2 ? 2 : 1;
  CHECK(payload_bytes(hybrid, OpKind::ReduceScatter, Group::DpCpShard) == syncs * 4 * elements);
  CHECK(payload_bytes(hybrid, OpKind::AllReduce, Group::DpCpCopy) == syncs * 4 * elements / 2);
  CHECK(payload_bytes(hybrid, OpKind::AllGather, Group::DpCpShard) ==
        payload_bytes(full, OpKind::AllGather, Group::DpCp));
  CHECK(payload_bytes(full, OpKind::AllGather, Group::DpCp) > 0);
  for_each_op(hybrid, [](const Op& op, const Chunk*) {
    CHECK((op.group != Group::DpCp || op.attr.bucket < 0));
    CHECK((op.group == Group::DpCpCopy) == (op.stream == Stream::DpCopies));  // gathers do not queue behind it
  });
}

TEST_CASE("a rank holds a block's share: as with fewer ranks, not with more", "[program]") {
  const std::int64_t stage = GENERATE(1, 2, 3);
  const ModelSpec model = tiny_model(ModelFamily::Llama);
  ParallelPlan two = plan_over(stage, 0);
  two.dp = 2;
  two.global_batch = 4;
  const MemoryUse hybrid = memory_use(lower(model, plan_over(stage, 2)).stages[0]),
                  few = memory_use(lower(model, two).stages[0]),
                  all = memory_use(lower(model, plan_over(stage, 0)).stages[0]);
  const auto bytes = [](const MemoryUse& use, Role role) {
    return static_cast<double>(use.by_role[static_cast<std::size_t>(role)]);
  };
  for (const Role role : {Role::Params, Role::Grads, Role::Optimizer})
    CHECK(bytes(hybrid, role) == Approx(bytes(few, role)).epsilon(0.1));  // but for padding
  CHECK(bytes(hybrid, Role::Optimizer) > 3.5 * bytes(all, Role::Optimizer));
}
