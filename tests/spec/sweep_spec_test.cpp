// Sweep files: their grid, and where a mistake in it is said to be.
#include <catch2/catch.hpp>

#include <set>

#include "models/spec/sweep_spec.h"
#include "tests/store/temp_dir.h"

using namespace trainyard;

namespace {

const std::string kScenario = std::string(TRAINYARD_SOURCE_DIR) + "/scenarios/tiny/grok1-a-day.json";
const std::string kPolicies = std::string(TRAINYARD_SOURCE_DIR) + "/scenarios/policies/";

// A sweep of a shipped scenario, with these keys besides.
struct SweepFile {
  TempDir dir;
  explicit SweepFile(const std::string& more) {
    write_file(dir.file("sweep.json"), R"({ "schema": 1, "scenario": ")" + kScenario + "\"" + more + "}");
  }
  [[nodiscard]] Result<Sweep> load() const {
    const Result<SweepSpec> spec = load_sweep(dir.file("sweep.json"));
    if (!spec) return spec.problems();
    return expand(spec.value());
  }
  // "path: rule" of each problem.
  [[nodiscard]] std::vector<std::string> complaints() const {
    const Result<Sweep> loaded = load();
    std::vector<std::string> out;
    if (loaded) return out;
    for (const Problem& problem : loaded.problems()) out.push_back(problem.path + ": " + problem.rule);
    return out;
  }
};

bool is_like(const std::vector<std::string>& complaints, const std::vector<std::string>& begins) {
  INFO((complaints.empty() ? "none" : complaints.front()));
  bool like = complaints.size() == begins.size();
  for (std::size_t i = 0; like && i < begins.size(); ++i) like = complaints[i].rfind(begins[i], 0) == 0;
  CHECK(like);
  return like;
}

}  // namespace

TEST_CASE("a scenario is a sweep of its own policies") {
  const Result<SweepSpec> spec = load_sweep(kScenario);
  REQUIRE(spec.ok());
  const Result<Sweep> sweep = expand(spec.value());
  REQUIRE(sweep.ok());
  REQUIRE(sweep.value().variations.size() == 2);
  CHECK(sweep.value().variations[0].name == "grok-90s");
  CHECK(sweep.value().variations[0].changes == "{}");
  CHECK(sweep.value().first_seed() == 2);
  CHECK(sweep.value().spec.name == "grok1-a-day");
}

TEST_CASE("every policy is varied over the whole grid") {
  const SweepFile file(R"(, "name": "g", "seeds": 3, "first_seed": 40,
                            "vary": { "spare_nodes": [1, 2], "checkpoint_interval_s": [60, 90.5, 0] })");
  const Result<Sweep> loaded = file.load();
  REQUIRE(loaded.ok());
  const Sweep& sweep = loaded.value();
  REQUIRE(sweep.variations.size() == 12);
  CHECK(sweep.first_seed() == 40);
  CHECK(sweep.spec.seeds == 3);
  std::set<std::string> names;
  for (std::size_t v = 0; v < 12; ++v) {
    const PolicySpec& policy = sweep.scenario.policies[v];
    CHECK(policy.name == sweep.variations[v].name);
    CHECK(policy.spare_nodes == 1 + static_cast<int>(v % 2));
    names.insert(policy.name);
  }
  CHECK(names.size() == 12);
  CHECK(sweep.variations[3].name == "grok-90s,checkpoint_interval_s=90.5,spare_nodes=2");
  CHECK(sweep.variations[3].policy == "grok-90s");
  CHECK(sweep.variations[3].changes == R"({"checkpoint_interval_s":90.5,"spare_nodes":2})");
  CHECK(sweep.scenario.policies[3].checkpoint_interval_s == 90.5);
  CHECK(sweep.policies.size() == 2);
}

TEST_CASE("keys within keys are varied too") {
  const SweepFile file(
      R"(, "vary": { "spares.hot": [1, 2], "checkpoints.cadence": ["fixed"], "checkpoint_interval_s": [60] })");
  const Result<Sweep> sweep = file.load();
  REQUIRE(sweep.ok());
  REQUIRE(sweep.value().variations.size() == 4);
  CHECK(sweep.value().scenario.policies[1].spares.hot == 2);
  CHECK(sweep.value().variations[1].name == "grok-90s,checkpoint_interval_s=60,checkpoints.cadence=fixed,spares.hot=2");
  CHECK(is_like(SweepFile(R"(, "vary": { "spares.hot": [1, -1] })").complaints(), {"$.vary[\"spares.hot\"][1]: "}));
  CHECK(is_like(SweepFile(R"(, "vary": { "spares.hott": [1] })").complaints(),
                {"$.vary[\"spares.hott\"][0]: is not a key"}));
}

TEST_CASE("a sweep may bring policies of its own") {
  const SweepFile file(R"(, "policies": [{ "base": ")" + kPolicies +
                       R"(grok-90s.json", "name": "mine", "spare_nodes": 3 }])");
  const Result<Sweep> sweep = file.load();
  REQUIRE(sweep.ok());
  REQUIRE(sweep.value().variations.size() == 1);
  CHECK(sweep.value().variations[0].name == "mine");
  CHECK(sweep.value().scenario.policies[0].fence_s == 5);
}

TEST_CASE("mistakes are told where they were written, once each") {
  CHECK(is_like(SweepFile(R"(, "vary": { "spare_node": [1, 2] })").complaints(), {"$.vary.spare_node: is not a key"}));
  CHECK(is_like(SweepFile(R"(, "vary": { "spare_nodes": [1, -2, 3] })").complaints(), {"$.vary.spare_nodes[1]: "}));
  CHECK(is_like(SweepFile(R"(, "vary": { "spare_nodes": [1, 4000] })").complaints(),
                {"$.vary.spare_nodes[1]: with the job's"}));
  CHECK(is_like(SweepFile(R"(, "vary": { "checkpoint_interval_s": [0], "checkpoint_stall_s": [0, 1] })").complaints(),
                {"$.vary.checkpoint_stall_s[0]: "}));
  CHECK(is_like(SweepFile(R"(, "vary": { "spare_nodes": [] })").complaints(), {"$.vary.spare_nodes: must be a list"}));
  CHECK(is_like(SweepFile(R"(, "vary": { "spare_nodes": [1, 1] })").complaints(),
                {"$.vary.spare_nodes[1]: is there twice"}));
  CHECK(is_like(SweepFile(R"(, "vary": { "spare_nodes": [[1]] })").complaints(), {"$.vary.spare_nodes[0]: must be"}));
  CHECK(is_like(SweepFile(R"(, "vary": { "name": ["a"] })").complaints(), {"$.vary.name: cannot be varied"}));
  CHECK(is_like(SweepFile(R"(, "vary": 3)").complaints(), {"$.vary: must be an object"}));
  CHECK(is_like(SweepFile(R"(, "seeds": 0)").complaints(), {"$.seeds: "}));
  CHECK(is_like(SweepFile(R"(, "sedes": 4)").complaints(), {"$.sedes: is not a key"}));
  CHECK(is_like(SweepFile(R"(, "policies": [])").complaints(), {"$.policies: must be a list"}));
  CHECK(is_like(SweepFile(R"(, "policies": [{ "name": "p", "fence": 3 }])").complaints(),
                {"$.policies[0].fence: is not a key"}));
}

TEST_CASE("a grid has its limits, and a scenario of one step is none to sweep") {
  std::string values = "0";
  for (int i = 1; i < 200; ++i) values += "," + std::to_string(i);
  CHECK(
      is_like(SweepFile(R"(, "vary": { "fence_s": [)" + values + R"(], "allocate_s": [)" + values + "] }").complaints(),
              {"$.vary: a sweep has at most"}));
  const Result<SweepSpec> spec = load_sweep(std::string(TRAINYARD_SOURCE_DIR) + "/scenarios/tiny/llama.json");
  REQUIRE(spec.ok());
  const Result<Sweep> sweep = expand(spec.value());
  REQUIRE_FALSE(sweep.ok());
  CHECK(sweep.problems()[0].path == "$.duration_days");
}

TEST_CASE("axes are written on the command line too") {
  SweepSpec spec;
  REQUIRE(add_axis("spare_nodes=1,2", spec).empty());
  REQUIRE(add_axis("spare_nodes=3,4.5,word", spec).empty());  // the last word counts
  REQUIRE(spec.vary.size() == 1);
  CHECK(spec.vary[0].values == std::vector<std::string>{"3", "4.5", "\"word\""});
  for (const char* wrong : {"spare_nodes", "=3", "spare_nodes="}) CHECK(add_axis(wrong, spec)[0].path == "--vary");
  CHECK(add_axis("a=1,1", spec)[0].path == "--vary a[1]");
}
