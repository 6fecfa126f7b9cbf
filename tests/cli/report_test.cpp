// What a run is said to have done: the phase ledger of each cause, one recovery minute by minute, spares over time,
// bands over seeds, and what a sweep advises.
#include <catch2/catch.hpp>

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "store/database.h"
#include "store/sweep_store.h"
#include "tests/cli/yard.h"

using namespace trainyard::test;
using nlohmann::json;

namespace {

const std::string kScenarios = std::string(TRAINYARD_SOURCE_DIR) + "/scenarios/";

// A job of two nodes with spares, on which `faults` strike within an hour.
std::string small_run(const Yard& yard, const std::string& faults, const std::string& policy = "") {
  return yard.file("run.json", R"({"schema": 1, "name": "hour", "model": ")" + kScenarios + R"(models/tiny-llama.json",
    "plan": {"tp": 2, "dp": 8, "sequence_length": 16, "global_batch_size": 8},
    "cluster": ")" + kScenarios + R"(clusters/two-racks.json", "duration_s": 3600,
    "policies": [{"base": ")" + kScenarios +
                                   R"(policies/grok-90s.json", "spare_nodes": 4)" + policy + R"(}],
    "faults": {"injected": [)" + faults +
                                   "]}}");
}

json shown(const Yard& yard, const std::string& arguments) {
  const Outcome outcome = yard.run("run show " + arguments + " --json");
  INFO(outcome.err);
  REQUIRE(outcome.code == 0);
  return json::parse(outcome.out);
}

void change(const Yard& yard, const char* sql) {
  trainyard::store::Database store =
      std::move(trainyard::store::Database::open(yard.store(), trainyard::store::Access::ReadWrite)).value();
  REQUIRE(store.execute(sql));
}

std::size_t lines_of(const std::string& text) {
  return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

}  // namespace

TEST_CASE("the phase ledger of each cause adds up to that of all", "[cli]") {
  const Yard yard;
  REQUIRE(yard.run("sim run scenarios/tiny/grok1-a-day.json -q").code == 0);
  const json report = shown(yard, "2")["report"]["run"]["recovery"];
  const json figures = shown(yard, "2 --recoveries")["recoveries"];
  CHECK(figures["all"] == report["all"]);
  CHECK(figures["all"]["count"] == report["count"]);
  CHECK(figures["all"]["total_s"]["median_s"] == report["median_s"]);
  double count = 0, total_s = 0;
  for (const auto& [cause, its] : figures["by_cause"].items()) {
    INFO(cause);
    count += its["count"].get<double>();
    total_s += its["count"].get<double>() * its["total_s"]["mean_s"].get<double>();
    double phases_s = 0;
    for (const auto& [phase, of] : its["phases"].items()) phases_s += of["mean_s"].get<double>();
    CHECK(phases_s == Approx(its["total_s"]["mean_s"].get<double>()));
    CHECK(its["total_s"]["p99_s"] >= its["total_s"]["median_s"]);
  }
  CHECK(count == figures["all"]["count"]);
  CHECK(total_s == Approx(count * figures["all"]["total_s"]["mean_s"].get<double>()));

  const Outcome text = yard.run("run show 2 --recoveries --phases p99");
  CHECK(contains(text.out, "Phases by cause: 99th percentile"));
  CHECK(contains(text.out, "process start"));
  const Outcome causes = yard.run("run export 2 --format csv --table causes");
  CHECK(contains(causes.out, "cause,phase,count,median_s,mean_s,p99_s\nall,total,"));
  const Outcome rows = yard.run("run export 2 --format csv --table recoveries");
  CHECK(static_cast<double>(lines_of(rows.out)) == 1 + count);
}

TEST_CASE("several seeds are one ledger, and bands lie around their mean", "[cli]") {
  const Yard yard;
  const std::string command = "sim run scenarios/tiny/grok1-a-day.json --seeds 3 --no-store -q";
  const json run = json::parse(yard.run(command + " --json").out)["run"];
  double count = 0;
  for (const auto& [cause, its] : run["recovery"]["by_cause"].items()) count += its["count"].get<double>();
  CHECK(count == Approx(run["recovery"]["count"].get<double>()));
  for (const auto& [band, its] : run["bands_over_seeds"].items()) {
    INFO(band);
    CHECK(its["p5_s"] <= run["bands"][band]);
    CHECK(its["p95_s"] >= run["bands"][band]);
    CHECK(its["standard_error_s"] >= 0);
  }
  CHECK(run["bands_over_seeds"]["productive"]["standard_error_s"].get<double>() / 86400 ==
        Approx(run["effective_training_time_standard_error"].get<double>()));
  CHECK(contains(yard.run(command).out, "percentile of 3 seeds"));
}

TEST_CASE("what happened in those minutes is told second by second", "[cli]") {
  const Yard yard;
  const std::string run = small_run(yard, R"({"kind": "node_crash", "node": 1, "at_s": 1000},
                                             {"kind": "node_crash", "node": 0, "at_s": 2000, "duration_s": 300},
                                             {"kind": "node_crash", "node": 2, "at_s": 2040}, )"
                                          // a spare, while nothing else is wrong
                                          R"({"kind": "node_crash", "node": 5, "at_s": 3000})");
  REQUIRE(yard.run("sim run " + run + " -q").code == 0);
  const json story = shown(yard, "latest --recovery 1");
  CHECK(story["recovery"] == 1);
  CHECK(story["recoveries"] == 2);
  CHECK(story["cause"] == "injected");
  CHECK(story["first_fault_s"] == 1000);
  CHECK(story["spares_before"] == 4);
  CHECK(story["spares_after"] == 3);
  CHECK(story["attempts"] == 1);
  const json& timeline = story["timeline"];
  CHECK(timeline.front()["kind"] == "failure");
  CHECK(timeline.front()["at_s"] == 0);
  CHECK(timeline.front()["node"] == 1);
  CHECK(timeline.back()["text"] == "running");
  CHECK(timeline.back()["at_s"] == story["total_s"]);
  std::vector<std::string> kinds;
  for (const json& event : timeline)
    if (event["kind"] != "controller_state") kinds.push_back(event["kind"]);
  CHECK(kinds == std::vector<std::string>{"failure", "symptom", "eject", "promote"});
  double phases_s = 0;
  for (const json& phase : story["phases"]) {
    CHECK(phase["start_s"].get<double>() == Approx(phases_s).margin(1e-9));
    phases_s += phase["seconds"].get<double>();
  }
  CHECK(phases_s == Approx(story["total_s"].get<double>()));
  CHECK(story["lost_work_s"] > 0);
  CHECK(story["restored_step"] >= 0);

  // The second failure strikes while the job recovers from the first: a longer recovery, of two attempts.
  const json longest = shown(yard, "latest --recovery longest");
  CHECK(longest["recovery"] == 2);
  CHECK(longest == shown(yard, "latest --recovery last"));
  CHECK(longest["attempts"] == 2);
  CHECK(longest["spares_after"] == 1);

  const Outcome text = yard.run("run show latest --recovery 1");
  for (const char* said : {"injected on node 1", "no heartbeat of node 1", "deciding", "eject node 1",
                           "promote spare node", "spares free: 3", "process start", "went on from step"}) {
    INFO(said);
    CHECK(contains(text.out, said));
  }
  for (const char* wrong : {"0", "3", "first", "-1"}) {
    const Outcome outcome = yard.run(std::string("run show latest --recovery=") + wrong);
    CHECK(outcome.code == 2);
    CHECK(contains(outcome.err, "which has 1 to 2"));
  }
  CHECK(contains(yard.run("run show 1 --recovery 1").err, "has no recoveries"));  // the step
  CHECK(yard.run("run show latest --recovery 1 --spares").code == 2);
}

TEST_CASE("a planned restart says which slow node it was for", "[cli]") {
  const Yard yard;
  const std::string run = small_run(yard, R"({"kind": "gpu_slow", "node": 1, "device": 1, "at_s": 600, "factor": 3})",
                                    R"(, "stragglers": {"replace_at_slowdown": 1.1, "patience_s": 120})");
  REQUIRE(yard.run("sim run " + run + " -q").code == 0);
  const json story = shown(yard, "latest --recovery median");
  CHECK(story["cause"] == "planned restart");
  CHECK(story["timeline"][0]["kind"] == "fault_begins");
  CHECK(story["timeline"][0]["at_s"] < -120);  // it was watched, and then borne with for a while
  const Outcome text = yard.run("run show latest --recovery median");
  CHECK(contains(text.out, "gpu slow begins on node 1"));
  CHECK(contains(text.out, "times as long"));
}

TEST_CASE("spares over time are as the run counted them", "[cli]") {
  const Yard yard;
  REQUIRE(yard.run("sim run scenarios/tiny/grok1-a-day.json -q").code == 0);
  const json in_report = shown(yard, "2")["report"]["run"]["spares"];
  const json spares = shown(yard, "2 --spares --fewer-than 3")["spares"];
  for (const char* key : {"configured", "fewest", "share_with_none"}) CHECK(spares[key] == in_report[key]);
  CHECK(spares["mean"].get<double>() == Approx(in_report["mean"].get<double>()).epsilon(1e-9));
  CHECK(spares["fewer_than"]["2"] == in_report["fewer_than"]["2"]);
  CHECK(spares["fewer_than"]["3"] >= spares["fewer_than"]["2"]);
  CHECK(spares["free_for"]["0.99"] <= spares["free_for"]["0.5"]);
  CHECK(spares["series"][0] == json({0.0, 4}));
  const Outcome csv = yard.run("run export 2 --format csv --table spares");
  CHECK(lines_of(csv.out) == 1 + spares["series"].size());
  const Outcome text = yard.run("run show 2 --spares --fewer-than 3");
  CHECK(contains(text.out, "time with fewer than 3"));
  CHECK(contains(yard.run("run show 1 --spares").err, "has no count of spares"));
}

// --- advice

namespace {

// Cells as a sweep would leave them: of each variation its effective training time, which seeds move by the same
// amount, and each on its own by `noise`.
class MadeUpSweep {
 public:
  explicit MadeUpSweep(const Yard& yard) : yard_(yard) {
    sweep_.identity = "made-up";
    sweep_.name = "made up";
    sweep_.duration_ns = 86'400'000'000'000;
    sweep_.inputs_json = R"({"job_nodes":100})";
  }
  void add(const std::string& changes, double effective, std::int64_t spares = 0) {
    const std::string name = "p," + std::to_string(sweep_.variations.size());
    sweep_.variations.push_back({name, "p", changes, R"({"name":"p","checkpoint_stall_s":4})"});
    for (std::uint64_t seed = 1; seed <= 8; ++seed) {
      trainyard::store::SweepCell cell;
      cell.variation = static_cast<std::int64_t>(sweep_.variations.size()) - 1;
      cell.seed = seed;
      const double of_seed = 0.02 * std::sin(static_cast<double>(seed));
      const double noise = 0.001 * std::sin(static_cast<double>(seed * (7 + sweep_.variations.size())));
      cell.effective_training_time = effective + of_seed + noise;
      cell.failures = 48;
      cell.spares_configured = spares;
      const auto written = json::parse(changes);
      cell.checkpoint_interval_s = written.value("checkpoint_interval_s", 60.0);
      cells_.push_back(cell);
    }
  }
  json advice() const {
    auto writer = trainyard::store::SweepWriter::open(yard_.store(), sweep_);
    REQUIRE(writer.ok());
    REQUIRE(std::move(writer).value().add(cells_).empty());
    const Outcome outcome = yard_.run("run show --sweep latest --json");
    REQUIRE(outcome.code == 0);
    return json::parse(outcome.out)["advice"];
  }

 private:
  const Yard& yard_;
  trainyard::store::NewSweep sweep_;
  std::vector<trainyard::store::SweepCell> cells_;
};

}  // namespace

TEST_CASE("spares are advised as long as they gain more than they would in training", "[cli][sweep]") {
  const Yard yard;
  MadeUpSweep sweep(yard);
  sweep.add(R"({"spare_nodes":0})", 0.50, 0);
  sweep.add(R"({"spare_nodes":2})", 0.80, 2);
  sweep.add(R"({"spare_nodes":12})", 0.82, 12);  // two points more, for a tenth of the nodes
  const json advice = sweep.advice()[0];
  CHECK(advice["value"] == 2);
  CHECK(advice["best"] == 2);
  const json& first = advice["marginal"][0];
  CHECK(first["worth_it"] == true);
  CHECK(first["gain"]["mean"].get<double>() == Approx(0.3).margin(0.002));
  CHECK(first["cost"].get<double>() == Approx(0.8 * 2 / 102).margin(0.001));
  const json& second = advice["marginal"][1];
  CHECK(second["worth_it"] == false);
  CHECK(second["gain"]["mean"].get<double>() == Approx(0.02).margin(0.002));
  CHECK(second["net"]["mean"].get<double>() == Approx(0.82 * 100 / 112 - 0.8 * 100 / 102).margin(0.002));
  const Outcome text = yard.run("run show --sweep latest");
  CHECK(contains(text.out, "2 -> 12"));
  CHECK(contains(text.out, "not worth it"));
}

TEST_CASE("a tier is worth its cost where it gains something", "[cli][sweep]") {
  const Yard yard;
  MadeUpSweep sweep(yard);
  sweep.add(R"({"checkpoints.usual_tier":"remote"})", 0.9001);  // the deepest, and no better than a peer
  sweep.add(R"({"checkpoints.usual_tier":"host"})", 0.85);
  sweep.add(R"({"checkpoints.usual_tier":"peer"})", 0.90);
  const json advice = sweep.advice()[0];
  CHECK(advice["value"] == "peer");
  CHECK(advice["points"][0]["value"] == "host");  // shallow to deep
  CHECK(advice["at_edge"].is_null());
  CHECK(contains(advice["text"], "shallowest that 8 seeds do not tell from the best"));
  CHECK(contains(advice["text"], "host costs 4.99"));
}

TEST_CASE("an interval stands beside the formula's, and choices beside one another", "[cli][sweep]") {
  const Yard yard;
  MadeUpSweep sweep(yard);
  for (const auto& [interval, loss] : {std::pair(30, 0.02), std::pair(120, 0.0), std::pair(480, 0.04)})
    for (const char* vote : {"true", "false"})
      sweep.add(R"({"checkpoint_interval_s":)" + std::to_string(interval) + R"(,"checkpoints.hash_vote":)" + vote + "}",
                0.9 - loss);
  const json advice = sweep.advice();
  REQUIRE(advice.size() == 2);
  CHECK(advice[0]["value"] == 120);
  // One failure in half an hour and 4 s a save: sqrt(2 * 4 * 1800) = 120 s, and a little less by the exact formula.
  CHECK(advice[0]["formula_s"].get<double>() == Approx(117.35).margin(0.01));
  CHECK(contains(advice[0]["text"], "The optimum by formula is 117 s"));
  // No vote or a vote: alike, so nothing is advised.
  CHECK(advice[1]["key"] == "checkpoints.hash_vote");
  CHECK(advice[1]["told"] == false);
  CHECK(advice[1]["value"].is_null());
  CHECK(contains(advice[1]["text"], "8 seeds cannot tell true and false apart"));
}

TEST_CASE("a run's controller does the same when its work is done again", "[cli]") {
  const Yard yard;
  REQUIRE(yard.run("sim run scenarios/tiny/grok1-a-day.json -q").code == 0);
  const Outcome replayed = yard.run("run replay latest --json");
  INFO(replayed.err);
  REQUIRE(replayed.code == 0);
  const json same = json::parse(replayed.out);
  CHECK(same["same"] == true);
  CHECK(same["events"] > 100);
  CHECK(same["actions"] > 100);

  const Outcome log = yard.run("run replay latest --log --json");
  std::istringstream lines(log.out);
  std::string line;
  std::size_t events = 0, actions = 0;
  bool ejects = false;
  while (std::getline(lines, line)) {
    const json told = json::parse(line);
    ++events;
    actions += told["actions"].size();
    for (const json& action : told["actions"]) ejects = ejects || contains(action.get<std::string>(), " eject node=");
  }
  CHECK(events == same["events"]);
  CHECK(actions == same["actions"]);
  CHECK(ejects);
  CHECK(contains(yard.run("run replay latest --log").out, "-> "));

  const Outcome none = yard.run("run replay 1");  // the step
  CHECK(none.code == 2);
  CHECK(contains(none.err, "has no log of a controller"));
}

TEST_CASE("a controller that does something else is caught, with the event at which it does", "[cli]") {
  const Yard yard;
  const std::string run = small_run(yard, R"({"kind": "node_crash", "node": 1, "at_s": 1000})");
  REQUIRE(yard.run("sim run " + run + " -q").code == 0);
  change(yard, R"(UPDATE controller_logs SET config = json_set(config, '$.diagnosis_ns', 5000000000))");
  const Outcome other = yard.run("run replay latest --json");
  CHECK(other.code == 6);
  const json report = json::parse(other.out);
  CHECK(report["same"] == false);
  CHECK(report["difference"]["time_ns"].get<double>() > 1000e9);
  CHECK(report["difference"]["actions_now"].size() > 0);
  CHECK(contains(yard.run("run replay latest").out, "leads to other actions than it did"));

  REQUIRE(yard.run("sim run " + run + " -q").code == 0);
  REQUIRE(yard.run("run replay latest").code == 0);
  change(yard, "UPDATE controller_logs SET lines = substr(lines, 1, length(lines) / 2)");
  const Outcome damaged = yard.run("run replay latest");
  CHECK(damaged.code == 2);
  CHECK(contains(damaged.err, "cannot be read"));

  // "0 0:0 \xff launched step=0": what is no text is told all the same.
  change(yard,
         "UPDATE controller_logs SET events = 1, lines = "
         "x'789c335030b03250f8af9093589a979c919aa2505c925a606bc005005f3c07c1'");
  for (const char* options : {"", " --json", " --log --json"}) {
    INFO(options);
    CHECK(yard.run(std::string("run replay latest") + options).code == 2);
  }
}

TEST_CASE("a step that was simulated for one run is not simulated for the next", "[cli]") {
  const Yard yard;
  const std::string run = small_run(yard, R"({"kind": "gpu_slow", "node": 1, "device": 2, "factor": 1.5, "at_s": 100},
                                             {"kind": "gpu_slow", "node": 0, "device": 3, "factor": 2, "at_s": 900})");
  const auto simulated = [&](const std::string& options) {
    const Outcome outcome = yard.run("sim run " + run + " -q --json" + options);
    INFO(outcome.err);
    REQUIRE(outcome.code == 0);
    return json::parse(outcome.out);
  };
  json cold = simulated(""), warm = simulated("");
  CHECK(cold["memo"]["step_known"] == false);
  CHECK(warm["memo"]["step_known"] == true);
  for (json* its : {&cold, &warm})
    for (const char* key : {"fold_wall_s", "simulate_wall_s"}) (*its)["step"].erase(key);
  CHECK(warm["step"] == cold["step"]);
  CHECK(cold["memo"]["misses"] > 0);
  CHECK(warm["memo"]["misses"] == 0);
  CHECK(warm["memo"]["hits"] == cold["memo"]["hits"].get<int>() + cold["memo"]["misses"].get<int>());
  CHECK(warm["trace_hash"] == cold["trace_hash"]);
  CHECK(warm["run"] == cold["run"]);
  CHECK(simulated(" --unfold")["memo"]["misses"] > 0);  // another way to simulate: not the same answer, perhaps
  CHECK(simulated(" --no-store")["memo"]["misses"] == cold["memo"]["misses"]);
}
