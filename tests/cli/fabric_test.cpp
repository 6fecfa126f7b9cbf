// fabric stress, sim run --explain, and the links in the store.
#include <algorithm>
#include <vector>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "store/run_reader.h"
#include "tests/cli/yard.h"

using namespace trainyard;
using namespace trainyard::test;

TEST_CASE("stress finds where a fault of the fabric hurts most", "[cli]") {
  const Yard yard;
  const Outcome outcome = yard.run(
      "fabric stress scenarios/tiny/grok1-a-day.json --fault rate_downgrade --fault switch_crash "
      "--fault leaf_flap --targets 0 --duration 2 --json -q");
  REQUIRE(outcome.code == 0);
  const auto report = nlohmann::json::parse(outcome.out);
  double before = 1;
  for (const auto& its : report["everybody_sends"]["spread"]) {
    const double mean = its["mean_share_of_line_rate"];
    CHECK(mean < 1);
    CHECK(its["slowest_share_of_line_rate"] <= mean);
    if (its["routing"] == "adaptive") before = mean;
    if (its["routing"] == "ecmp, 1 flow") CHECK(mean < before - 0.2);
  }
  REQUIRE(report["faults"].size() == 3);
  CHECK(report["targets_tried"] == report["targets"]);
  for (const auto& fault : report["faults"]) {
    CHECK(fault["targets"].size() == report["targets"]);
    for (const auto& target : fault["targets"]) CHECK(target["step_s"] <= fault["worst"]["step_s"]);
    const double healthy_s = report["step_s"], worst_s = fault["worst"]["step_s"];
    if (fault["mode"] != "rate_downgrade") {  // everybody waits for the leaf
      CHECK(worst_s > 2);
      CHECK(worst_s < 2 + 2 * healthy_s);
    } else {
      CHECK(worst_s >= healthy_s);
    }
  }
}

TEST_CASE("stress says what it cannot try", "[cli]") {
  const Yard yard;
  for (const char* fault : {"gsp_hang", "nonsense", "pfc_deadlock"}) {
    const Outcome outcome = yard.run(std::string("fabric stress scenarios/tiny/llama.json --fault ") + fault);
    CHECK(outcome.code == 2);
    CHECK(contains(outcome.err, fault));
    CHECK(contains(outcome.err, "gray_loss"));
  }
}

TEST_CASE("a step explains which link it waits for, and stores what links carried", "[cli]") {
  const Yard yard;
  const Outcome outcome = yard.run("sim run scenarios/tiny/mixtral-nic-slow.json --explain --json -q");
  REQUIRE(outcome.code == 0);
  const auto report = nlohmann::json::parse(outcome.out);
  // The scenario slows one NIC: whoever waits for experts waits for that.
  REQUIRE(!report["explain"].empty());
  double before = 1e9;
  bool names_the_slow_one = false;
  for (const auto& wait : report["explain"]) {
    CHECK(wait["seconds"] <= before);
    before = wait["seconds"];
    CHECK(wait["longest"]["seconds"] >= wait["seconds"]);
    if (wait["link"].is_null()) continue;
    names_the_slow_one |= wait["link"]["alike"] == 1 && contains(wait["link"]["name"].get<std::string>(), "NIC");
  }
  CHECK(names_the_slow_one);
  CHECK(contains(yard.run("sim run scenarios/tiny/mixtral-nic-slow.json --explain -q --no-store").out,
                 "What compute waits for"));

  store::RunReader store = store::RunReader::open(yard.store()).value();
  const auto links = store.links(store.find("latest").value().id).value();
  REQUIRE(!links.empty());
  for (const store::Link& link : links) {
    CHECK(link.busy <= 1 + 1e-6);
    CHECK(link.bytes > 0);
  }
}

TEST_CASE("all-reduces over nodes take what others measured", "[cli]") {
  const Yard yard;
  const Outcome outcome =
      yard.run("fabric sweep scenarios/01-grok1-100k-week.json --measured scenarios/measured/nccl.json --json");
  REQUIRE(outcome.code == 0);
  const auto report = nlohmann::json::parse(outcome.out);
  CHECK(report["rows"] == 191);
  CHECK(report["held_aside_rows"] == 164);
  CHECK(report["held_aside_median_abs_error"] < 0.10);
  for (const auto& source : report["by_source"]) CHECK(source["median_abs_error"] < 0.10);
  for (const char* text : {"{}", "[1", R"({"sources": [{"name": "x", "all_reduce": [{"gpus": 8}]}]})"}) {
    const Outcome bad =
        yard.run("fabric sweep scenarios/tiny/llama.json --measured '" + yard.file("bad.json", text) + "'");
    CHECK(bad.code == 2);
    CHECK(contains(bad.err, "bad.json"));
    CHECK(contains(bad.err, "measured all-reduces"));
  }
}

TEST_CASE("a sweep obeys the laws of its collectives", "[cli]") {
  const Yard yard;
  const auto seconds = [&](const std::string& collective, const std::string& gpus) {
    const Outcome outcome = yard.run("fabric sweep scenarios/01-grok1-100k-week.json --collective " + collective +
                                     " --gpus " + gpus + " --from 1KiB --to 8GiB --json");
    REQUIRE(outcome.code == 0);
    std::vector<double> out;
    const auto report = nlohmann::json::parse(outcome.out);
    for (const auto& row : report["sweeps"][0]["rows"]) {
      out.push_back(row["seconds"]);
      CHECK(row["bus_bytes_per_s"] < (gpus == "8" ? 500e9 : 400e9));  // of a NIC for each GPU
    }
    CHECK(out.size() == 24);
    CHECK(std::is_sorted(out.begin(), out.end()));  // more never takes less
    return out;
  };
  for (const char* gpus : {"8", "64", "1024"}) {
    const auto reduce = seconds("all_reduce", gpus), gather = seconds("all_gather", gpus),
               scatter = seconds("reduce_scatter", gpus);
    // Over nodes, all that a reduce-scatter and an all-gather do.
    CHECK(reduce.back() <= (gather.back() + scatter.back()) * 1.01);
    CHECK(reduce.back() > gather.back());
  }
  for (const char* sizes : {"--from 0", "--from 1MiB --to 1KiB", "--measured /tmp", "--measured /nowhere",
                            "--collective all_to_all --gpus 65536"}) {
    INFO(sizes);
    CHECK(yard.run(std::string("fabric sweep scenarios/01-grok1-100k-week.json ") + sizes).code == 2);
  }
  const Outcome too_many = yard.run("fabric sweep scenarios/tiny/llama.json --gpus 1000000");
  CHECK(too_many.code == 2);
  CHECK(contains(too_many.err, "--gpus"));
}
