// Lowering and its proofs: any plan that we accept gives a program that `check` finds sound, and
// a program that we break on purpose is found out.
#include <catch2/catch.hpp>

#include <algorithm>
#include <functional>
#include <map>
#include <vector>

#include "models/base/random.h"
#include "models/program/block_builder.h"
#include "models/program/program.h"
#include "models/program/schedule.h"
#include "tests/program/tiny_models.h"
#include "tests/program/training.h"

using namespace trainyard;

namespace {

std::string all(const Problems& problems) {
  std::string text;
  for (const Problem& problem : problems) text += to_string(problem) + "\n";
  return text;
}

}  // namespace

TEST_CASE("every plan gives a sound program", "[program]") {
  RandomStream random(11, "plans");
  for (int i = 0; i < 300; ++i) {
    ModelSpec model = tiny_model(static_cast<ModelFamily>(random.below(4)));
    model.num_hidden_layers = 8;
    const ParallelPlan plan = random_plan(model, random);
    INFO("case " << i << " " << describe(model, plan));
    const Problems problems = check(lower(model, plan));
    INFO(all(problems));
    REQUIRE(problems.empty());
  }
}

TEST_CASE("lowering is a pure function", "[program]") {
  const ModelSpec model = tiny_model(ModelFamily::Mixtral);
  ParallelPlan plan = tiny_plan();
  plan.pp = 2;
  plan.global_batch = 4;
  CHECK(dump(lower(model, plan)) == dump(lower(model, plan)));
}

namespace {

StepProgram pipelined(ModelFamily family) {
  ModelSpec model = tiny_model(family);
  model.num_hidden_layers = 8;
  ParallelPlan plan = tiny_plan();
  plan.tp = 2;
  plan.pp = 2;
  plan.dp = 2;
  plan.sequence_parallel = true;
  plan.zero_stage = 1;
  plan.virtual_stages = 2;
  plan.schedule = PipelineSchedule::Interleaved;
  plan.global_batch = 8;
  return lower(model, plan);
}

Op* find_op(StepProgram& program, BlockKind kind, const std::function<bool(const Op&)>& wanted) {
  for (Block& block : program.blocks) {
    if (block.kind != kind) continue;
    for (Op& op : block.ops) {
      if (wanted(op)) return &op;
    }
  }
  return nullptr;
}

}  // namespace

TEST_CASE("a program that was broken on purpose is found out", "[program]") {
  StepProgram program = pipelined(ModelFamily::Llama);
  REQUIRE(check(program).empty());

  SECTION("a compute op that no longer waits for its collective") {
    Op* op =
        find_op(program, BlockKind::Forward, [](const Op& o) { return o.kind == OpKind::Matmul && !o.deps.empty(); });
    REQUIRE(op != nullptr);
    op->deps.clear();
  }
  SECTION("a gradient reduction that starts before its gradients are written") {
    Op* op = find_op(program, BlockKind::Backward, [](const Op& o) { return o.stream == Stream::Dp; });
    REQUIRE(op != nullptr);
    op->deps.clear();
  }
  SECTION("an optimizer that does not wait for the reductions") {
    for (Item& item : program.stages[0].items) {
      if (item.block >= 0 && program.block(item).kind == BlockKind::GradNorm) item.waits.clear();
    }
  }
  SECTION("a forward pass that does not wait for what it receives") {
    StageProgram& stage = program.stages[1];
    const auto item = std::find_if(stage.items.begin(), stage.items.end(), [&](const Item& i) {
      return i.block >= 0 && program.block(i).kind == BlockKind::Forward;
    });
    std::erase_if(item->waits,
                  [&](const Wait& wait) { return stage.items[static_cast<std::size_t>(wait.item)].block < 0; });
  }
  SECTION("blocks of a boundary that nobody gathers") {
    ParallelPlan plan = tiny_plan();
    plan.tp = plan.pp = 2;
    plan.pipeline_scatter_gather = true;
    program = lower(tiny_model(ModelFamily::Llama), plan);
    REQUIRE(check(program).empty());
    for (Block& block : program.blocks) {
      if (block.kind != BlockKind::BoundaryGather) continue;
      block.ops[0].kind = OpKind::Join;
      block.ops[0].in.clear();
      block.ops[0].out.clear();
    }
  }
  SECTION("two frames in one place") {
    StageProgram& stage = program.stages[0];
    std::vector<Frame*> saved;
    for (Frame& frame : stage.frames) {
      if (frame.role == Role::Saved) saved.push_back(&frame);
    }
    saved[1]->offset_bytes = saved[0]->offset_bytes;
  }
  SECTION("an arena one byte too small") { program.stages[0].arena_bytes -= 256; }
  SECTION("two transient tensors in one place") {
    Block& block = *std::find_if(program.blocks.begin(), program.blocks.end(),
                                 [](const Block& b) { return b.kind == BlockKind::Backward; });
    for (Tensor& tensor : block.tensors) {
      if (tensor.role == Role::Transient) tensor.offset_bytes = 0;
    }
  }
  SECTION("a send that nobody receives") {
    StageProgram& stage = program.stages[1];
    for (Item& item : stage.items) {
      if (!item.transfers.empty() && !item.transfers[0].send) {
        item.transfers[0].micro_batch += 1;
        break;
      }
    }
  }
  SECTION("stages that receive before they send, in a circle") {
    // Both stages swap the first slot's send with the receive that it enables.
    for (StageProgram& stage : program.stages) {
      std::vector<std::size_t> batches;
      for (std::size_t i = 0; i < stage.items.size(); ++i) {
        if (!stage.items[i].transfers.empty()) batches.push_back(i);
      }
      for (const std::size_t b : batches) {
        stage.items[b].stream = Stream::Pp;  // one communicator for all: order now matters
      }
    }
  }
  SECTION("gradients that are never zeroed") {
    for (Block& block : program.blocks) {
      if (block.kind == BlockKind::StepBegin) {
        for (Op& op : block.ops) op.kind = OpKind::Join;
        for (Op& op : block.ops) op.out.clear();
      }
    }
  }
  const Problems problems = check(program);
  INFO(all(problems));
  CHECK_FALSE(problems.empty());
}

TEST_CASE("full recompute runs a layer's last product again where it does not stop early", "[program]") {
  const ModelSpec model = tiny_model(ModelFamily::Llama);
  const auto products = [&](bool early_stop) {
    ParallelPlan plan = tiny_plan();
    plan.tp = 2;
    plan.recompute = RecomputeMode::Full;
    plan.recompute_early_stop = early_stop;
    const StepProgram program = lower(model, plan);
    const auto backward = std::find_if(program.blocks.begin(), program.blocks.end(),
                                       [](const Block& block) { return block.kind == BlockKind::Backward; });
    std::map<OpKind, std::int64_t> again;
    for (const Op& op : backward->ops) again[op.kind] += op.recomputed ? 1 : 0;
    return std::vector<std::int64_t>{again[OpKind::Matmul], again[OpKind::AllReduce]};
  };
  const std::int64_t layers = model.num_hidden_layers;
  CHECK(products(true) == std::vector<std::int64_t>{3 * layers, layers});
  CHECK(products(false) == std::vector<std::int64_t>{4 * layers, 2 * layers});
}

TEST_CASE("1F1B keeps at most pp - stage activations, interleaving the number Megatron states", "[program]") {
  for (const std::int64_t vp : {1, 2, 4}) {
    ParallelPlan plan = tiny_plan();
    plan.pp = 4;
    plan.virtual_stages = vp;
    plan.schedule = vp > 1 ? PipelineSchedule::Interleaved : PipelineSchedule::OneFOneB;
    plan.global_batch = 16;
    for (std::int64_t stage = 0; stage < plan.pp; ++stage) {
      std::int64_t live = 0, peak = 0, forward = 0, backward = 0;
      for (const Slot& slot : pipeline_schedule(plan, stage)) {
        live += slot.forward ? 1 : -1;
        (slot.forward ? forward : backward) += 1;
        peak = std::max(peak, live);
      }
      CHECK(forward == plan.micro_batches() * vp);
      CHECK(backward == forward);
      CHECK(peak == (vp == 1 ? plan.pp - stage : 2 * (plan.pp - stage - 1) + (vp - 1) * plan.pp + 1));
    }
  }
}

TEST_CASE("packing keeps apart what overlaps in time, within the best size for a stack", "[program]") {
  RandomStream random(5, "pack");
  for (int round = 0; round < 100; ++round) {
    std::vector<Interval> intervals;
    for (int i = 0; i < 60; ++i) {
      const auto begin = static_cast<std::int64_t>(random.below(100));
      intervals.push_back({begin, begin + static_cast<std::int64_t>(random.below(20)),
                           256 * static_cast<std::int64_t>(1 + random.below(8))});
    }
    const std::vector<std::int64_t> offsets = pack(intervals);
    std::int64_t highest_load = 0;
    for (std::size_t a = 0; a < intervals.size(); ++a) {
      std::int64_t load = 0;
      for (std::size_t b = 0; b < intervals.size(); ++b) {
        if (intervals[b].begin <= intervals[a].begin && intervals[a].begin <= intervals[b].end)
          load += intervals[b].bytes;
        if (a == b || intervals[a].begin > intervals[b].end || intervals[b].begin > intervals[a].end) continue;
        const bool apart =
            offsets[a] + intervals[a].bytes <= offsets[b] || offsets[b] + intervals[b].bytes <= offsets[a];
        REQUIRE(apart);
      }
      highest_load = std::max(highest_load, load);
    }
    CHECK(offsets.back() >= highest_load);
    CHECK(static_cast<double>(offsets.back()) <= 1.6 * static_cast<double>(highest_load));
  }
}
