// sim fuzz as a user runs it.
#include <catch2/catch.hpp>

#include <nlohmann/json.hpp>

#include "tests/cli/yard.h"

using namespace trainyard::test;

TEST_CASE("nights are played and accounted for", "[cli][fuzz]") {
  const Yard yard;
  const Outcome outcome = yard.run("sim fuzz --seeds 40 --json -q");
  REQUIRE(outcome.code == 0);
  const nlohmann::json report = nlohmann::json::parse(outcome.out);
  CHECK(report["seeds"] == 40);
  CHECK(report["violations"].empty());
  CHECK(report["seeds_per_s"].get<double>() > 0);
  CHECK(report["median_events"].get<int>() >= 20);
  CHECK(report["transitions"]["covered"].get<int>() > 40);
  // The same seeds, the same actions, however many at a time.
  const Outcome alone = yard.run("sim fuzz --seeds 40 --jobs 1 --json -q");
  CHECK(nlohmann::json::parse(alone.out)["action_hash"] == report["action_hash"]);
}

TEST_CASE("one night is told line by line", "[cli][fuzz]") {
  const Yard yard;
  const std::string night = TRAINYARD_SOURCE_DIR "/tests/sim/nights/promotes_before_the_vote.json";
  const Outcome outcome = yard.run("sim fuzz --night " + night + " --log");
  CHECK(outcome.code == 0);
  CHECK(contains(outcome.out, "no invariant was violated"));
  CHECK(contains(outcome.err, "MISCHIEF corrupt"));
  CHECK(contains(outcome.err, "hashes_differ"));
}

TEST_CASE("a broken night is refused with its place", "[cli][fuzz]") {
  const Yard yard;
  const std::string file = yard.file("night.json", R"({"schema": 1, "mischief": [{"kind": "node_crush"}]})");
  const Outcome outcome = yard.run("sim fuzz --night " + file);
  CHECK(outcome.code == 2);
  CHECK(contains(outcome.err, "$.mischief[0].kind"));
  CHECK(contains(outcome.err, "node_crash"));
  CHECK(yard.run("sim fuzz --night nowhere.json").code == 2);
  CHECK(yard.run("sim fuzz --seeds 0").code == 2);
}
