// Broken input gives clear errors that name the place and the rule, and never a crash.
#include <catch2/catch.hpp>

#include "models/spec/scenario.h"
#include "tests/spec/broken.h"

using namespace trainyard;
using namespace trainyard::testing;

namespace {

// A scenario file in scenarios/, so that references resolve; only its text is made up.
std::string good() {
  return R"({
    "schema": 1, "name": "s", "seed": 1,
    "model": "models/tiny-llama.json",
    "plan": { "tp": 2, "pp": 2, "dp": 2, "sequence_length": 16, "global_batch_size": 4 },
    "cluster": "clusters/two-racks.json",
    "policies": ["policies/grok-90s.json"],
    "duration_s": 100
  })";
}

std::string problems_of(const std::string& text) {
  return all_problems(parse_scenario(text, kScenarios + "test.json"));
}

void expect(const std::string& text, const std::vector<std::string>& fragments) {
  const std::string problems = problems_of(text);
  INFO(problems);
  for (const std::string& fragment : fragments) CHECK(problems.find(fragment) != std::string::npos);
  CHECK_FALSE(problems.empty());
}

}  // namespace

TEST_CASE("queue pairs give up as NCCL's variables say, or after so many seconds") {
  const auto timeouts = [](const char* keys) {
    const std::string policy =
        R"({"base": "policies/baseline-2023.json", "spare_nodes": 2, "timeouts": {)" + std::string(keys) + "}}";
    return replaced(good(), "\"policies/grok-90s.json\"", policy);
  };
  const Result<Scenario> read =
      parse_scenario(timeouts(R"("ib_timeout": 18, "ib_retry_cnt": 6)"), kScenarios + "t.json");
  REQUIRE(read.ok());
  CHECK(read.value().policies[0].timeouts.link_s == Approx(4.096e-6 * 262144 * 6));
  CHECK(read.value().policies[0].timeouts.ib_retry_cnt == 6);
  expect(timeouts(R"("ib_timeout": 18, "link_s": 3)"), {"timeouts.link_s", "follows from ib_timeout", "keep one form"});
  expect(timeouts(R"("ib_timeout": 31)"), {"timeouts.collective_s", "link_s"});  // ten hours and more
}

TEST_CASE("the file that the others are broken from is fine") {
  const std::string without_spares =
      replaced(good(), "\"policies/grok-90s.json\"", R"({"base": "policies/grok-90s.json", "spare_nodes": 2})");
  CHECK(problems_of(without_spares).empty());
}

TEST_CASE("broken scenario files") {
  SECTION("truncated") { expect(good().substr(0, 120), {"is not JSON at line 4"}); }
  SECTION("empty") { expect("", {"is empty"}); }
  SECTION("not an object") { expect("[1, 2]", {"must be an object"}); }
  SECTION("no schema") { expect(replaced(good(), "\"schema\": 1,", ""), {"$.schema", "is missing"}); }
  SECTION("another schema") { expect(replaced(good(), "\"schema\": 1", "\"schema\": 2"), {"$.schema = 2"}); }
  SECTION("an unknown key") { expect(replaced(good(), "\"seed\"", "\"sede\""), {"$.sede", "did you mean \"seed\""}); }
  SECTION("an unknown key inside") { expect(replaced(good(), "\"tp\"", "\"tpp\""), {"$.plan.tpp", "did you mean"}); }
  SECTION("a text for a number") {
    expect(replaced(good(), "\"tp\": 2", "\"tp\": \"2\""), {"$.plan.tp = \"2\"", "whole number"});
  }
  SECTION("a fraction for a whole number") {
    expect(replaced(good(), "\"tp\": 2", "\"tp\": 2.5"), {"$.plan.tp = 2.5"});
  }
  SECTION("a negative degree") { expect(replaced(good(), "\"tp\": 2", "\"tp\": -2"), {"$.plan.tp = -2"}); }
  SECTION("1e308") {
    expect(replaced(good(), "\"duration_s\": 100", "\"duration_s\": 1e308"), {"$.duration_s = 1e+308"});
  }
  SECTION("beyond float64") { expect(replaced(good(), "\"duration_s\": 100", "\"duration_s\": 1e999"), {"test.json"}); }
  SECTION("a duplicate key") { expect(replaced(good(), "\"tp\": 2", "\"tp\": 2, \"tp\": 4"), {"twice", "\"tp\""}); }
  SECTION("a mesh that is too large") {
    expect(replaced(good(), "\"dp\": 2", "\"dp\": 64, \"micro_batch_size\": 1"),
           {"$.plan.dp", "256 ranks", "128 GPUs", "global_batch_size"});
  }
  SECTION("heads that tp does not divide") {
    expect(replaced(good(), "\"tp\": 2", "\"tp\": 8"), {"num_attention_heads = 4"});
  }
  SECTION("experts of a dense model") {
    expect(replaced(good(), "\"tp\": 2", "\"ep\": 2, \"tp\": 2"), {"$.plan.ep", "experts"});
  }
  SECTION("shards of what is not sharded, of a size that does not divide the ranks") {
    expect(replaced(good(), "\"tp\": 2", "\"tp\": 2, \"zero_shard_size\": 3"),
           {"$.plan.zero_shard_size = 3", "from ZeRO 1 on", "set zero_stage", "divide dp*cp = 2", "choose a divisor"});
    expect(replaced(good(), "\"tp\": 2", "\"tp\": 2, \"zero_stage\": 1, \"zero_shard_size\": -1"),
           {"$.plan.zero_shard_size = -1"});
  }
  SECTION("a misspelt choice") {
    expect(replaced(good(), "\"tp\": 2", "\"tp\": 2, \"schedule\": \"interleave\""), {"did you mean \"interleaved\""});
  }
  SECTION("negative rates") {
    expect(
        replaced(
            good(), "\"seed\": 1,",
            R"("seed": 1, "faults": {"causes": [{"name": "x", "scope": "gpu", "rate_per_gpu_hour": -1, "source": "y"}]},)"),
        {"$.faults.causes[0].rate_per_gpu_hour = -1"});
  }
  SECTION("a missing file") {
    expect(replaced(good(), "tiny-llama", "tiny-lama"), {"tiny-lama.json", "does not exist"});
  }
  SECTION("a directory") { expect(replaced(good(), "models/tiny-llama.json", "models"), {"is a directory"}); }
  SECTION("a run without a policy") {
    expect(replaced(good(), "\"policies\": [\"policies/grok-90s.json\"],", ""), {"$.policies", "recovery policy"});
  }
  SECTION("more spares than nodes") { expect(good(), {"spare_nodes", "keep at most"}); }
  SECTION("deep nesting") { expect(std::string(100000, '[') + std::string(100000, ']'), {"nests deeper than 64"}); }
  SECTION("not UTF-8") { expect(replaced(good(), "\"s\"", "\"\xff\xfe\""), {"is not JSON at line"}); }
  SECTION("UTF-16") { expect(std::string("\xff\xfe{\0}\0", 6), {"is not JSON at line 1", "save the file as UTF-8"}); }
  SECTION("degrees whose product wraps around in 64 bits") {
    // 2^10 * 2^22 * 2^10 * 2^22 = 2^64, which is 0 in 64 bits: no more ranks than any cluster has GPUs.
    expect(R"({
      "schema": 1, "name": "s", "seed": 1,
      "model": { "name": "m", "family": "llama", "num_hidden_layers": 1024, "hidden_size": 4096, "num_attention_heads": 1024,
                 "head_dim": 128, "intermediate_size": 4096, "vocab_size": 131072, "max_position_embeddings": 4096 },
      "plan": { "tp": 1024, "cp": 4194304, "pp": 1024, "dp": 4194304, "sequence_length": 268435456, "global_batch_size": 4194304 },
      "cluster": { "base": "clusters/two-racks.json", "gpus_per_node": 1024 }
    })",
           {"$.plan = tp*cp*pp*dp = 1.84e+19"});
  }
  SECTION("more parameters than 64 bits can count") {
    expect(replaced(good(), "\"models/tiny-llama.json\"",
                    R"({ "base": "models/tiny-llama.json", "num_hidden_layers": 1024, "hidden_size": 1048576,
                         "intermediate_size": 16777216, "vocab_size": 67108864 })"),
           {"$.model = about 5.4e+16 parameters", "at most 1e+15"});
  }
  SECTION("a billion micro-batches") {
    expect(replaced(good(), "\"global_batch_size\": 4", "\"global_batch_size\": 1073741824"),
           {"$.plan.global_batch_size = 1073741824", "the limit is 1e+06"});
  }
  SECTION("a rate by way of a count is checked like one by itself") {
    expect(
        replaced(
            good(), "\"seed\": 1,",
            R"("seed": 1, "faults": {"causes": [{"name": "x", "scope": "gpu", "count": 9, "gpu_hours": 2, "source": "y"}]},)"),
        {"$.faults.causes[0] = 4.5 per GPU-hour"});
  }
  SECTION("a rate and half of a count") {
    expect(
        replaced(
            good(), "\"seed\": 1,",
            R"("seed": 1, "faults": {"causes": [{"name": "x", "scope": "gpu", "rate_per_gpu_hour": 0.1, "count": 9, "source": "y"}]},)"),
        {"$.faults.causes[0].rate_per_gpu_hour", "keep one form"});
  }
  SECTION("two causes of one name") {
    expect(
        replaced(
            good(), "\"seed\": 1,",
            R"("seed": 1, "faults": {"causes": [{"name": "x", "scope": "gpu", "rate_per_gpu_hour": 0.1, "source": "y"},
                                              {"name": "x", "scope": "job", "rate_per_gpu_hour": 0.1, "source": "y"}]},)"),
        {"$.faults.causes[1].name = x"});
  }
  SECTION("more failures than a run can mean") {
    const std::string long_run = replaced(good(), "\"duration_s\": 100", "\"duration_s\": 1e9");
    const std::string few_spares =
        replaced(long_run, "\"policies/grok-90s.json\"", R"({"base": "policies/grok-90s.json", "spare_nodes": 2})");
    expect(
        replaced(
            few_spares, "\"seed\": 1,",
            R"("seed": 1, "faults": {"causes": [{"name": "x", "scope": "gpu", "rate_per_gpu_hour": 1, "source": "y"}]},)"),
        {"$.faults = 3.56e+07 failures"});
  }
  SECTION("a profile by path") {
    expect(replaced(good(), "\"clusters/two-racks.json\"",
                    R"({"base": "clusters/two-racks.json", "hardware": "../h100-sxm"})"),
           {"$.cluster.hardware", "not a path"});
    expect(replaced(good(), "\"seed\": 1,", "\"seed\": 1, \"stack\": \"/etc/passwd\","), {"$.stack", "not a path"});
  }
  SECTION("keys that would be ignored are refused") {
    const auto plan_with = [](const char* more) {
      return replaced(good(), "\"tp\": 2", std::string("\"tp\": 2, ") + more);
    };
    expect(plan_with(R"("recompute_modules": ["norm"])"), {"$.plan.recompute_modules", "selective"});
    expect(plan_with(R"("recompute_layers": 2)"), {"$.plan.recompute_layers", "something is recomputed"});
    expect(plan_with(R"("moe": {"overflow": "drop"})"), {"$.plan.moe.overflow", "experts"});
    expect(plan_with(R"("grad_sync": "every_micro_batch")"), {"$.plan.grad_sync", "ZeRO 2"});
    expect(replaced(good(), "\"seed\": 1,",
                    R"("seed": 1, "faults": {"injected": [{"kind": "link_down", "node": 0, "factor": 3}]},)"),
           {"$.faults.injected[0].factor = 3"});
  }
  SECTION("names from other programs") {
    expect(replaced(good(), "\"tp\"", "\"tensor_model_parallel_size\""), {"did you mean \"tp\""});
    expect(
        replaced(good(), "\"models/tiny-llama.json\"", R"({"base": "models/tiny-llama.json", "rms_norm_eps": 1e-6})"),
        {"did you mean \"norm_eps\""});
  }
  SECTION("keys that are no words are shown escaped and cut short") {
    expect(replaced(good(), "\"seed\"", "\"se\\u001b[2Jed\""), {R"($["se\u001b[2Jed"])"});
    const std::string problems = problems_of(replaced(good(), "\"seed\"", "\"" + std::string(1 << 20, 'k') + "\""));
    CHECK(problems.find("kkk...]") != std::string::npos);
    CHECK(problems.size() < 1000);
  }
  SECTION("millions of values, thousands of problems") {
    std::string values = "[0", keys;
    for (int i = 0; i < 1'000'001; ++i) values += ",0";
    expect(values + "]", {"more than 1000000 values"});
    for (int i = 0; i < 5000; ++i) keys += "\"unknown" + std::to_string(i) + "\": 1, ";
    const Result<Scenario> scenario =
        parse_scenario(replaced(good(), "\"seed\"", keys + "\"seed\""), kScenarios + "test.json");
    REQUIRE_FALSE(scenario.ok());
    CHECK(scenario.problems().size() == 101);
    CHECK(scenario.problems().back().rule == "has more problems than the 100 listed");
  }
  SECTION("several at once are all named") {
    expect(replaced(replaced(good(), "\"tp\": 2", "\"tp\": 0"), "\"pp\": 2", "\"pp\": \"x\""),
           {"$.plan.tp", "$.plan.pp"});
  }
}
