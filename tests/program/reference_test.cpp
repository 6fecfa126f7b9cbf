// The interpreter itself: what it must notice, it notices. A proof by running is worth only as much
// as its power to fail.
#include <catch2/catch.hpp>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <vector>

#include "tests/program/reference.h"
#include "tests/program/tiny_models.h"
#include "tests/program/training.h"
#include "tests/sanitized.h"

using namespace trainyard;

namespace {

StepProgram small_program(ModelFamily family = ModelFamily::Llama) {
  ParallelPlan plan = tiny_plan();
  plan.tp = plan.pp = plan.dp = 2;
  plan.sequence_parallel = true;
  plan.global_batch = 4;
  return lower(tiny_model(family), plan);
}

// What came of a run: its bits, or what it threw.
struct Outcome {
  std::optional<Run> run;
  std::string error;
};

Outcome outcome(const StepProgram& program, std::uint64_t seed) {
  try {
    return {train(program, 1, seed), ""};
  } catch (const std::runtime_error& error) {
    return {std::nullopt, error.what()};
  }
}

Item& first_item(StageProgram& stage, bool transfers) {
  return *std::find_if(stage.items.begin(), stage.items.end(),
                       [&](const Item& item) { return !item.transfers.empty() == transfers; });
}

}  // namespace

TEST_CASE("a transfer without its other side is a deadlock, told op by op", "[program]") {
  StepProgram program = small_program();
  first_item(program.stages[0], true).transfers.clear();
  CHECK_THROWS_WITH(train(program, 1, 1),
                    Catch::Contains("deadlock: rank 0") && Catch::Contains("transfers (for a partner)"));
}

TEST_CASE("a wait for something later is a deadlock", "[program]") {
  StepProgram program = small_program();
  StageProgram& stage = program.stages[0];
  first_item(stage, false).waits.push_back({static_cast<std::int32_t>(stage.items.size()) - 1, -1});
  CHECK_THROWS_WITH(train(program, 1, 1), Catch::Contains("deadlock: rank 0 compute item 0"));
}

TEST_CASE("replicas that drift apart are noticed", "[program]") {
  StepProgram program = small_program();
  const bool over_tp = GENERATE(true, false);  // norms under sequence parallelism, or everything over dp
  int dropped = 0;
  for (Block& block : program.blocks) {
    for (Op& op : block.ops) {
      const bool dp_sync = op.group == Group::DpCp && op.attr.bucket >= 0;
      const bool tp_sync = op.group == Group::Tp && op.attr.bucket >= 0;
      if (op.kind != OpKind::AllReduce || !(over_tp ? tp_sync : dp_sync)) continue;
      op.kind = OpKind::Join;
      ++dropped;
    }
  }
  REQUIRE(dropped > 0);
  CHECK_THROWS_WITH(train(program, 1, 1), Catch::Contains("replicas disagree"));
}

TEST_CASE("memory outside its frame or the arena is noticed", "[program]") {
  StepProgram program = small_program();
  SECTION("a tensor past its frame") {
    Block& block = *std::find_if(program.blocks.begin(), program.blocks.end(),
                                 [](const Block& b) { return b.kind == BlockKind::Forward; });
    Tensor& tensor = *std::find_if(block.tensors.begin(), block.tensors.end(),
                                   [](const Tensor& t) { return t.role == Role::Transient; });
    tensor.offset_bytes = std::int64_t{1} << 40;
    CHECK_THROWS_WITH(train(program, 1, 1), Catch::Contains("does not lie in its frame"));
  }
  SECTION("a frame past the arena") {
    program.stages[1].arena_bytes -= 256;
    CHECK_THROWS_WITH(train(program, 1, 1), Catch::Contains("does not lie in the arena"));
  }
}

TEST_CASE("frames that overlap give other bits", "[program]") {
  StepProgram program = small_program();
  const Run want = train(program, 1, 1);
  StageProgram& stage = program.stages[0];
  std::vector<Frame*> saved;
  for (Frame& frame : stage.frames) {
    if (frame.role == Role::Saved) saved.push_back(&frame);
  }
  REQUIRE(saved.size() == 2);
  saved[1]->offset_bytes = saved[0]->offset_bytes;
  const Outcome got = outcome(program, 1);
  CHECK((!got.run || !same_bits(*got.run, want)));
}

namespace {

// A dependency of a block's op or a wait of an item: one that may be dropped.
struct Edge {
  std::vector<OpId>* deps = nullptr;
  std::vector<Wait>* waits = nullptr;
  std::size_t at = 0;
  std::string name;
};

std::vector<Edge> edges_of(StepProgram& program) {
  std::vector<Edge> edges;
  for (Block& block : program.blocks) {
    for (Op& op : block.ops) {
      for (std::size_t i = 0; i < op.deps.size(); ++i) {
        const Op& earlier = block.ops[static_cast<std::size_t>(op.deps[i])];
        edges.push_back({&op.deps, nullptr, i, block.name + ": " + op.label + " after " + earlier.label});
      }
    }
  }
  for (StageProgram& stage : program.stages) {
    const auto item_name = [&](std::size_t i) {
      const Item& item = stage.items[i];
      return "item " + std::to_string(i) + " " + (item.block < 0 ? "transfers" : program.block(item).name);
    };
    for (std::size_t k = 0; k < stage.items.size(); ++k) {
      std::vector<Wait>& waits = stage.items[k].waits;
      for (std::size_t i = 0; i < waits.size(); ++i) {
        edges.push_back({nullptr, &waits, i,
                         "stage " + std::to_string(stage.stage) + ": " + item_name(k) + " after op " +
                             std::to_string(waits[i].op) + " of " +
                             item_name(static_cast<std::size_t>(waits[i].item))});
      }
    }
  }
  return edges;
}

// Drops one edge for as long as it lives.
class Without {
 public:
  explicit Without(const Edge& edge) : edge_(edge) {
    const auto at = static_cast<std::ptrdiff_t>(edge.at);
    if (edge.deps != nullptr) {
      deps_ = *edge.deps;
      edge.deps->erase(edge.deps->begin() + at);
    } else {
      waits_ = *edge.waits;
      edge.waits->erase(edge.waits->begin() + at);
    }
  }
  ~Without() {
    if (edge_.deps != nullptr) {
      *edge_.deps = deps_;
    } else {
      *edge_.waits = waits_;
    }
  }
  Without(const Without&) = delete;
  Without& operator=(const Without&) = delete;

 private:
  Edge edge_;
  std::vector<OpId> deps_;
  std::vector<Wait> waits_;
};

// Drops every `stride`-th edge, one at a time. What `check` still passes must give the same bits in any
// order; most of what it refuses must be seen to go wrong in some order.
void drop_edges(StepProgram program, std::size_t stride) {
  const Run want = train(program, 1, 1);
  const std::vector<Edge> edges = edges_of(program);
  int refused = 0, spoiled = 0;
  for (std::size_t e = 0; e < edges.size(); e += stride) {
    const Without without(edges[e]);
    const bool sound = check(program).empty();
    bool same = true;
    std::string error;
    for (std::uint64_t seed = 1; seed <= 4 && same; ++seed) {
      const Outcome got = outcome(program, seed);
      same = got.run && same_bits(*got.run, want);
      error = got.error;
    }
    INFO("without '" << edges[e].name << "': " << error);
    if (sound) CHECK(same);
    refused += sound ? 0 : 1;
    spoiled += sound || same ? 0 : 1;
  }
  INFO(refused << " of " << edges.size() / stride << " refused, " << spoiled << " of those went wrong");
  CHECK(refused > 0);
  CHECK(4 * spoiled >= 3 * refused);
}

}  // namespace

TEST_CASE("what check passes gives one result in any order; what it refuses goes wrong in some", "[program]") {
  drop_edges(small_program(GENERATE(ModelFamily::Llama, ModelFamily::Grok1)), testing::kSanitized ? 25 : 5);
}

TEST_CASE("the same for every edge", "[.nightly]") {
  drop_edges(small_program(GENERATE(ModelFamily::Llama, ModelFamily::Grok1)), 1);
}

TEST_CASE("the same for interleaved pipelines, sharded gradients, experts over ranks", "[.nightly]") {
  ModelSpec model = tiny_model(GENERATE(ModelFamily::Mixtral, ModelFamily::Gpt3));
  ParallelPlan plan = tiny_plan();
  plan.tp = plan.dp = 2;
  plan.global_batch = 8;
  plan.bucket_bytes = 4096;
  plan.ep = model.moe ? 2 : 1;
  SECTION("interleaved") {
    model.num_hidden_layers = 4;
    plan.pp = plan.virtual_stages = 2;
    plan.schedule = PipelineSchedule::Interleaved;
    plan.zero_stage = 1;
    plan.sequence_parallel = true;
    plan.overlap.param_gather = true;
  }
  SECTION("gradients sharded with every micro-batch") {
    plan.zero_stage = 2;
    plan.sequence_parallel = true;
  }
  SECTION("recomputed, over context ranks") {
    plan.cp = 2;
    plan.recompute = RecomputeMode::Full;
  }
  drop_edges(lower(model, plan), 1);
}
