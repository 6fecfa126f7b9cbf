// The fuzzer itself: it is deterministic, its nights can be written down, and it finds what is wrong. What it finds
// wrong with planted bugs is in mutants/.
#include <filesystem>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "models/spec/json_reader.h"
#include "sim/fuzz/fuzz.h"

using namespace trainyard;
using namespace trainyard::fuzz;

TEST_CASE("nights pass, alike on one thread and on two") {
  FuzzOptions options;
  options.seeds = 150;
  options.threads = 1;
  const FuzzResult alone = fuzz::fuzz(options);
  for (const Violation& violation : alone.violations) FAIL_CHECK("seed " << violation.seed << ": " << violation.what);
  CHECK(alone.nights == 150);
  CHECK(alone.median_mischief() >= 20);
  CHECK(alone.recoveries > 300);
  CHECK(alone.takeovers > 100);
  options.threads = 2;
  const FuzzResult together = fuzz::fuzz(options);
  CHECK(together.action_hash == alone.action_hash);
  CHECK(together.transitions == alone.transitions);
  CHECK(together.mischief == alone.mischief);
}

TEST_CASE("a night that is written down is the same night") {
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    const Night night = draw_night(seed);
    const std::string text = to_json(night).dump();
    const Result<Night> read = night_from_json(nlohmann::json::parse(text), "night.json");
    REQUIRE(read);
    CHECK(to_json(read.value()).dump() == text);
    const NightResult first = play(night), again = play(read.value());
    CHECK(first.action_hash == again.action_hash);
    CHECK(first.messages == again.messages);
  }
}

TEST_CASE("a broken night file says what is wrong with it") {
  const auto paths = [](const char* text) {
    const Result<Night> night = night_from_json(nlohmann::json::parse(text), "night.json");
    std::string all;
    if (!night)
      for (const Problem& problem : night.problems()) all += problem.path + " ";
    return all;
  };
  CHECK(paths(R"({"schema": 1})").empty());
  CHECK(paths(R"({"schema": 2})") == "$.schema ");
  CHECK(paths(R"({"schema": 1, "knobs": {"slot": 3}})") == "$.knobs.slot ");
  CHECK(paths(R"({"schema": 1, "knobs": {"slots": 5, "replicas": 2}})") == "$.knobs.replicas ");
  CHECK(paths(R"({"schema": 1, "knobs": {"training_s": 60}})") == "$.knobs.training_s ");
  CHECK(paths(R"({"schema": 1, "mischief": [{"kind": "node_crash", "node": 99}]})") == "$.mischief[0].node ");
  CHECK(paths(R"({"schema": 1, "mischief": [{"kind": "earthquake"}]})") == "$.mischief[0].kind ");
}

TEST_CASE("a night that goes wrong is cut down to what it takes") {
  // Nobody can be well again ten seconds after a node was lost: the crash is needed, the rest is not.
  Night night;
  night.knobs.hot_spares = 0;
  night.knobs.mischief_ends_s = 600;
  night.knobs.calm_s = 150;
  night.knobs.checkpoint_interval_s = 60;
  REQUIRE(play(night).violation.empty());
  for (int i = 0; i < 9; ++i) night.mischief.push_back({60.0 * i, MischiefKind::Stale, 1, 0, 0, 1, 2});
  night.mischief.push_back({590, MischiefKind::NodeCrash, 2, 0, 500, 1, 1});
  REQUIRE(play(night).violation.rfind("liveness", 0) == 0);
  std::int64_t played = 0;
  const Night shortest = minimise(night, &played);
  REQUIRE(shortest.mischief.size() == 1);
  CHECK(shortest.mischief[0].kind == MischiefKind::NodeCrash);
  CHECK(play(shortest).violation.rfind("liveness", 0) == 0);
  CHECK(played < 100);
}

TEST_CASE("the nights on which planted bugs showed pass without them") {
  std::int64_t nights = 0;
  for (const auto& file : std::filesystem::directory_iterator(TRAINYARD_SOURCE_DIR "/tests/sim/nights")) {
    if (file.path().extension() != ".json") continue;
    INFO(file.path());
    const Result<nlohmann::json> json = read_json_file(file.path().string());
    REQUIRE(json);
    const Result<Night> night = night_from_json(json.value(), file.path().string());
    REQUIRE(night);
    CHECK(play(night.value()).violation.empty());
    ++nights;
  }
  CHECK(nights >= 15);
}
