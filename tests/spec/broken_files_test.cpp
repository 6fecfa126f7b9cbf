// Broken input gives clear errors that name the place and the rule, and never a crash.
#include <catch2/catch.hpp>

#include <filesystem>
#include <fstream>
#include <random>

#include "models/spec/scenario.h"

using namespace trainyard;

namespace {

const std::string kScenarios = std::string(TRAINYARD_SOURCE_DIR) + "/scenarios/";

// A scenario file in scenarios/, so that references resolve; only its text is made up.
std::string good() {
  return R"({
    "schema": 1, "name": "s", "seed": 1,
    "model": "models/tiny-llama.json",
    "plan": { "tp": 2, "pp": 2, "dp": 2, "sequence_length": 16, "global_batch_size": 4 },
    "cluster": "clusters/two-racks.json",
    "policies": ["policies/fast-90s.json"],
    "duration_s": 100
  })";
}

std::string replaced(std::string text, const std::string& what, const std::string& with) {
  const std::size_t at = text.find(what);
  REQUIRE(at != std::string::npos);
  return text.replace(at, what.size(), with);
}

// All problems as one text, or "" when the scenario is fine.
std::string problems_of(const std::string& text) {
  const Result<Scenario> scenario = parse_scenario(text, kScenarios + "test.json");
  if (scenario) return "";
  std::string all;
  for (const Problem& problem : scenario.problems()) {
    CHECK_FALSE(problem.rule.empty());
    CHECK_FALSE(problem.fix.empty());
    all += to_string(problem) + "\n";
  }
  return all;
}

void expect(const std::string& text, const std::vector<std::string>& fragments) {
  const std::string problems = problems_of(text);
  INFO(problems);
  for (const std::string& fragment : fragments) CHECK(problems.find(fragment) != std::string::npos);
  CHECK_FALSE(problems.empty());
}

}  // namespace

TEST_CASE("the file that the others are broken from is fine") {
  const std::string without_spares =
      replaced(good(), "\"policies/fast-90s.json\"", R"({"base": "policies/fast-90s.json", "spare_nodes": 2})");
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
    expect(replaced(good(), "\"policies\": [\"policies/fast-90s.json\"],", ""), {"$.policies", "recovery policy"});
  }
  SECTION("more spares than nodes") { expect(good(), {"spare_nodes", "keep at most"}); }
  SECTION("deep nesting") { expect(std::string(100000, '[') + std::string(100000, ']'), {"nests deeper than 64"}); }
  SECTION("not UTF-8") { expect(replaced(good(), "\"s\"", "\"\xff\xfe\""), {"is not JSON at line"}); }
  SECTION("several at once are all named") {
    expect(replaced(replaced(good(), "\"tp\": 2", "\"tp\": 0"), "\"pp\": 2", "\"pp\": \"x\""),
           {"$.plan.tp", "$.plan.pp"});
  }
}

TEST_CASE("references in a circle, and files that are too large") {
  const auto folder =
      std::filesystem::temp_directory_path() / ("trainyard-spec-" + std::to_string(std::random_device{}()));
  std::filesystem::create_directory(folder);
  const auto write = [&](const char* name, const std::string& text) { std::ofstream(folder / name) << text; };
  write("a.json", R"({"base": "b.json", "schema": 1})");
  write("b.json", R"({"base": "a.json", "schema": 1})");
  const Result<ModelSpec> circle = load_model((folder / "a.json").string());
  REQUIRE_FALSE(circle.ok());
  CHECK(circle.problems()[0].rule.find("circle") != std::string::npos);

  std::ofstream large(folder / "large.json");
  large.seekp(100 << 20);
  large << "}";
  large.close();
  const Result<Scenario> refused = load_scenario((folder / "large.json").string());
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.problems()[0].rule == "is larger than 16 MiB");
  std::filesystem::remove_all(folder);
}
