// The rules of a plan: each says what it refuses, and what they let through can be lowered.
#include <catch2/catch.hpp>

#include <algorithm>
#include <numeric>

#include "models/base/random.h"
#include "models/program/program.h"
#include "models/spec/scenario.h"

using namespace trainyard;

namespace {

ModelSpec shipped(const std::string& name) {
  return load_model(std::string(TRAINYARD_SOURCE_DIR) + "/scenarios/models/" + name + ".json").value();
}

ParallelPlan small_plan() {
  ParallelPlan plan;
  plan.sequence_length = 16;
  plan.global_batch = 4;
  return plan;
}

std::string all(const Problems& problems) {
  std::string text;
  for (const Problem& problem : problems) text += to_string(problem) + "\n";
  return text;
}

// What validation says of a plan that `change` has spoilt.
template <class Change>
std::string refusal(const ModelSpec& model, Change change, const ClusterSpec* cluster = nullptr) {
  ParallelPlan plan = small_plan();
  change(plan);
  return all(validate(plan, model, cluster));
}

void says(const std::string& problems, const std::vector<std::string>& fragments) {
  INFO(problems);
  for (const std::string& fragment : fragments) CHECK(problems.find(fragment) != std::string::npos);
}

}  // namespace

TEST_CASE("each rule of a plan says what is wrong and what to do", "[plan]") {
  const ModelSpec llama = shipped("tiny-llama"), mixtral = shipped("tiny-mixtral"), gpt = shipped("tiny-gpt3");
  REQUIRE(refusal(llama, [](ParallelPlan&) {}).empty());
  SECTION("tensor axis") {
    says(refusal(llama, [](auto& p) { p.tp = 8; }), {"$.tp = 8", "num_attention_heads = 4", "num_key_value_heads = 2"});
    ModelSpec odd = llama;
    odd.vocab_size = 50257;
    says(refusal(odd, [](auto& p) { p.tp = 2; }), {"vocab_size = 50257", "pad the vocabulary to 50432"});
    says(refusal(llama, [](auto& p) { p.tp = 2, p.sequence_length = 15, p.sequence_parallel = true; }),
         {"$.sequence_parallel", "15 token rows"});
  }
  SECTION("context axis") {
    says(refusal(llama, [](auto& p) { p.cp = 4, p.sequence_length = 12; }), {"$.cp = 4", "divisible by 2*cp"});
    says(refusal(gpt, [](auto& p) { p.sequence_length = 32; }), {"$.sequence_length = 32", "16 learned positions"});
    ModelSpec windowed = llama;
    windowed.sliding_window = 4;
    says(refusal(windowed, [](auto& p) { p.cp = 2, p.cp_comm_type = CpCommType::P2p; }),
         {"$.cp_comm_type = p2p", "sliding window"});
  }
  SECTION("expert axis") {
    says(refusal(llama, [](auto& p) { p.dp = 2, p.ep = 2; }), {"$.ep = 2", "experts"});
    says(refusal(llama, [](auto& p) { p.moe.buffer_factor = 2; }), {"$.moe.buffer_factor"});
    says(refusal(mixtral, [](auto& p) { p.dp = 4, p.ep = 3; }), {"must divide the model's 8 experts", "cp*dp = 4"});
    says(refusal(mixtral, [](auto& p) { p.recompute = RecomputeMode::Selective, p.recompute_modules.mlp = true; }),
         {"$.recompute_modules = mlp", "experts have none"});
    says(refusal(mixtral, [](auto& p) { p.moe.overflow = MoeOverflow::Drop; }), {"$.moe.overflow", "not lowered yet"});
  }
  SECTION("pipeline axis") {
    const auto interleaved = [](ParallelPlan& p, std::int64_t pp, std::int64_t virtual_stages) {
      p.schedule = PipelineSchedule::Interleaved;
      p.pp = pp;
      p.virtual_stages = virtual_stages;
    };
    says(refusal(llama, [&](auto& p) { interleaved(p, 2, 1); }), {"$.virtual_stages = 1"});
    says(refusal(llama, [&](auto& p) { interleaved(p, 1, 2); }), {"$.schedule", "pp above 1"});
    says(refusal(llama, [](auto& p) { p.pp = 2, p.virtual_stages = 2; }), {"$.virtual_stages = 2"});
    says(refusal(llama, [&](auto& p) { interleaved(p, 2, 2), p.global_batch = 3; }), {"3 micro-batches", "pp = 2"});
    says(refusal(llama, [](auto& p) { p.pp = 8; }), {"$.pp = 8", "the model has 4"});
    says(refusal(llama, [](auto& p) { p.pp = 2, p.layers_per_chunk = {1, 2}; }), {"sum 3", "4 layers"});
    says(refusal(llama, [](auto& p) { p.pp = 2, p.layers_per_chunk = {4}; }), {"1 entries", "pp*virtual_stages = 2"});
    says(refusal(llama, [](auto& p) { p.pp = 4, p.layers_per_chunk = {2, 0, 1, 1}; }), {"$.layers_per_chunk[1] = 0"});
    CHECK(refusal(llama, [](auto& p) { p.pp = 4, p.layers_per_chunk = {0, 2, 2, 0}; }).empty());
  }
  SECTION("recompute") {
    says(refusal(llama, [](auto& p) { p.recompute_early_stop = false; }),
         {"$.recompute_early_stop = false", "full recompute"});
    CHECK(refusal(llama, [](auto& p) { p.recompute = RecomputeMode::Full, p.recompute_early_stop = false; }).empty());
  }
  SECTION("stage boundaries") {
    says(refusal(llama, [](auto& p) { p.tp = 2, p.pipeline_scatter_gather = true; }),
         {"$.pipeline_scatter_gather = true", "tp and pp above 1"});
    says(refusal(llama, [](auto& p) { p.tp = p.pp = 2, p.sequence_parallel = p.pipeline_scatter_gather = true; }),
         {"$.pipeline_scatter_gather = true", "sequence parallelism"});
  }
  SECTION("batch") {
    says(refusal(llama, [](auto& p) { p.dp = 3; }), {"$.global_batch_size = 4", "use 6"});
    says(refusal(llama, [](auto& p) { p.dp = 4, p.zero_shard_size = 2; }), {"$.zero_shard_size = 2", "from ZeRO 1 on"});
    says(refusal(llama, [](auto& p) { p.dp = p.cp = 2, p.zero_stage = 1, p.zero_shard_size = 3; }),
         {"$.zero_shard_size = 3", "divide dp*cp = 4"});
    says(refusal(llama, [](auto& p) { p.dp = 2, p.zero_stage = 3, p.zero_shard_size = 4; }), {"divide dp*cp = 2"});
    // Twelve ranks hold what is dense, and six each half of the experts: blocks of four do not fit those.
    const auto experts = [](ParallelPlan& p, std::int64_t shard_size) {
      p.dp = 12, p.ep = 2, p.global_batch = 12, p.zero_stage = 3, p.zero_shard_size = shard_size;
    };
    says(refusal(mixtral, [&](auto& p) { experts(p, 4); }), {"$.zero_shard_size = 4", "dp*cp/ep = 6", "no less"});
    for (const std::int64_t size : {0, 1, 2, 3, 6, 12})
      CHECK(refusal(mixtral, [&](auto& p) { experts(p, size); }).empty());
    says(refusal(llama, [](auto& p) { p.grad_sync = GradSync::EveryMicroBatch; }), {"$.grad_sync", "ZeRO 2"});
  }
  SECTION("placement") {
    ClusterSpec cluster;
    cluster.name = "c";
    cluster.nodes = 1;
    cluster.gpus_per_node = 3;
    says(refusal(
             llama, [](auto& p) { p.tp = 2; }, &cluster),
         {"$.tp = 2", "the 3 GPUs of a node"});
    says(refusal(
             llama, [](auto& p) { p.dp = 4; }, &cluster),
         {"4 ranks", "3 GPUs", "lower dp to 3"});
  }
}

TEST_CASE("structs that never passed a reader are refused, not divided by", "[plan]") {
  const ModelSpec llama = shipped("tiny-llama");
  says(refusal(llama, [](auto& p) { p.tp = 0, p.dp = -1; }), {"$.tp = 0", "$.dp = -1"});
  says(refusal(llama, [](auto& p) { p.zero_stage = 1, p.zero_shard_size = -1; }), {"$.zero_shard_size = -1"});
  says(refusal(llama, [](auto& p) { p.micro_batch = 0; }), {"$.micro_batch_size = 0"});
  says(all(validate(ParallelPlan{}, llama, nullptr)), {"$.sequence_length = 0", "$.global_batch_size = 0"});
  says(all(validate(ModelSpec{})), {"$.num_key_value_heads = 0", "$.hidden_size = 0"});
  says(all(validate(ClusterSpec{})), {"$.nodes = 0", "$.hardware"});
}

TEST_CASE("layers are spread evenly, the middle first", "[plan]") {
  ModelSpec model = shipped("tiny-llama");
  ParallelPlan plan = small_plan();
  for (model.num_hidden_layers = 1; model.num_hidden_layers <= 40; ++model.num_hidden_layers) {
    for (plan.pp = 1; plan.pp <= 8; ++plan.pp) {
      for (plan.virtual_stages = 1; plan.virtual_stages <= 3; ++plan.virtual_stages) {
        const std::vector<std::int64_t> layers = layers_per_chunk(model, plan);
        REQUIRE(static_cast<std::int64_t>(layers.size()) == plan.chunks());
        REQUIRE(std::accumulate(layers.begin(), layers.end(), std::int64_t{0}) == model.num_hidden_layers);
        const auto [least, most] = std::minmax_element(layers.begin(), layers.end());
        REQUIRE(*most - *least <= 1);
        REQUIRE(*std::max_element(layers.begin(), layers.end()) == layers[(layers.size() - 1) / 2]);
      }
    }
  }
}

TEST_CASE("what validation accepts can be lowered, and is sound", "[plan]") {
  const std::vector<ModelSpec> models{shipped("tiny-llama"), shipped("tiny-mixtral"), shipped("tiny-grok1"),
                                      shipped("tiny-gpt3")};
  RandomStream random(5, "plan-rules");
  const auto pick = [&](std::initializer_list<std::int64_t> from) {
    return *(from.begin() + random.below(from.size()));
  };
  const auto coin = [&] { return random.below(2) == 0; };
  int accepted = 0;
  for (int i = 0; i < 4000; ++i) {
    ModelSpec model = models[random.below(models.size())];
    model.num_hidden_layers = pick({1, 2, 3, 4, 7});
    model.position = static_cast<PositionKind>(random.below(4));
    model.attention_bias = coin();
    model.tie_word_embeddings = coin();
    model.hidden_dropout = pick({0, 0, 1}) * 0.1;
    model.sliding_window = pick({0, 0, 5});
    ParallelPlan plan = small_plan();
    plan.tp = pick({1, 1, 2, 3});
    plan.cp = pick({1, 1, 2, 4});
    plan.pp = pick({1, 2, 3, 4});
    plan.dp = pick({1, 2, 3});
    plan.ep = model.moe ? pick({1, 2, 4}) : 1;
    plan.order = coin() ? "tp-cp-ep-dp-pp" : "tp-cp-ep-pp-dp";
    plan.virtual_stages = pick({1, 1, 2});
    plan.schedule = plan.virtual_stages > 1 ? PipelineSchedule::Interleaved : PipelineSchedule::OneFOneB;
    if (plan.chunks() > 1 && coin()) {
      plan.layers_per_chunk.assign(static_cast<std::size_t>(plan.chunks()), 1);
      plan.layers_per_chunk.front() = pick({0, 1, 2});
      plan.layers_per_chunk.back() = pick({0, 1, 2});
      model.num_hidden_layers =
          std::accumulate(plan.layers_per_chunk.begin(), plan.layers_per_chunk.end(), std::int64_t{0});
    }
    plan.sequence_length = pick({8, 12, 15, 16});
    plan.micro_batch = pick({1, 2, 3});
    plan.global_batch = plan.dp * plan.micro_batch * pick({1, 2, 3, 4, 6});
    plan.sequence_parallel = coin();
    plan.zero_stage = pick({0, 1, 2, 3});
    if (plan.zero_stage >= 2 && coin()) plan.grad_sync = static_cast<GradSync>(random.below(2));
    if (plan.zero_stage >= 1 && coin()) plan.zero_shard_size = pick({1, 2, 3, 4});
    plan.recompute = static_cast<RecomputeMode>(random.below(3));
    plan.recompute_modules = {coin(), coin(), coin(), coin(), coin(), coin()};
    plan.precision = static_cast<Precision>(random.below(3));
    plan.fp32_gradients = coin();
    plan.overlap = {coin(), coin(), coin(), coin()};
    plan.bucket_bytes = pick({1, 4096, 1 << 20});
    if (coin()) plan.cp_comm_type = CpCommType::P2p;
    if (model.moe && coin()) plan.moe.buffer_factor = 1.0 + random.uniform();
    plan.pipeline_scatter_gather = plan.tp > 1 && plan.pp > 1 && !plan.sequence_parallel && coin();
    if (!validate(model).empty() || !validate(plan, model, nullptr).empty()) continue;
    ++accepted;
    INFO("case " << i << " " << model.name << " layers " << model.num_hidden_layers << " tp" << plan.tp << " cp"
                 << plan.cp << " ep" << plan.ep << " pp" << plan.pp << " dp" << plan.dp << " vp" << plan.virtual_stages
                 << " zero" << plan.zero_stage << " over " << plan.zero_shard_size << " sp" << plan.sequence_parallel
                 << " micro-batch " << plan.micro_batch << " batch " << plan.global_batch);
    const StepProgram program = lower(model, plan);
    REQUIRE(static_cast<std::int64_t>(program.stages.size()) == plan.pp);
    const Problems unsound = check(program);
    INFO(all(unsound));
    REQUIRE(unsound.empty());
  }
  // Enough of them pass for this to mean something; a rule that refuses everything would not.
  CHECK(accepted > 300);
}
