// Fault tables: modes and generators as users write them, and what is said of those that are wrong.
#include <catch2/catch.hpp>

#include "models/faults/fault_mode.h"
#include "models/spec/scenario.h"
#include "tests/spec/broken.h"

using namespace trainyard;
using namespace trainyard::testing;

namespace {

Result<Scenario> with(const std::string& faults, const std::string& policy = R"("policies/grok-90s.json")") {
  return parse_scenario(R"({
    "schema": 1, "name": "s", "seed": 1,
    "model": "models/tiny-llama.json",
    "plan": { "tp": 2, "pp": 2, "dp": 2, "sequence_length": 16, "global_batch_size": 4 },
    "cluster": "clusters/two-racks.json",
    "policies": [{ "base": )" +
                            policy + R"(, "spare_nodes": 2 }],
    "duration_s": 86400,
    "faults": )" + faults + "}",
                        kScenarios + "test.json");
}

FaultSpec faults_of(const std::string& text) {
  const Result<Scenario> scenario = with(text);
  if (!scenario) FAIL(to_string(scenario.problems().front()));
  return scenario.value().faults;
}

void expect_of_faults(const std::string& faults, const std::vector<std::string>& fragments, std::size_t problems = 1) {
  const Result<Scenario> scenario = with(faults);
  REQUIRE_FALSE(scenario.ok());
  const std::string all = all_problems(scenario);
  INFO(all);
  CHECK(scenario.problems().size() == problems);
  for (const std::string& fragment : fragments) CHECK(all.find(fragment) != std::string::npos);
}

std::string cause(const std::string& scope, const std::string& mode) {
  return R"({"causes": [{"name": "x", "scope": ")" + scope +
         R"(", "rate_per_gpu_hour": 1e-5, "source": "y", "mode": ")" + mode + R"("}]})";
}

const std::string kFleet = R"({"generator": {"kind": "fleet", "source": "y", "rate_per_node_day": 0.01,
  "lemons": {"share": 0.1, "factor": 5},
  "refailure": {"probability": 0.3, "median_days": 1, "sigma": 2},
  "bursts": {"per_1000_node_days": 0.2, "size_exponent": 2, "max_nodes": 9},
  "classes": [{"name": "a", "mode": "host_crash", "weight": 1, "burst_weight": 1, "repair_scale_hours": 10}]}})";

const std::string kTrace = R"({"generator": {"kind": "trace", "source": "y", "nodes": 8, "days": 2,
  "classes": [{"name": "a", "mode": "host_crash"}], "faults": [[3, 0.5, 1, 0], [4, 1, 1.5, 0]]}})";

}  // namespace

TEST_CASE("a cause may say what breaks") {
  CHECK(faults_of(cause("gpu", "gsp_hang")).causes[0].effective_mode() == FaultMode::GspHang);
  CHECK(faults_of(cause("network", "switch_crash")).causes[0].mode == FaultMode::SwitchCrash);
  const FaultSpec silent =
      faults_of(R"({"causes": [{"name": "x", "scope": "job", "rate_per_gpu_hour": 1e-5, "source": "y"}]})");
  CHECK_FALSE(silent.causes[0].mode.has_value());
  CHECK(silent.causes[0].effective_mode() == FaultMode::SoftwareCrash);
  CHECK(silent.generator.kind == GeneratorKind::Poisson);
}

TEST_CASE("modes that are wrong") {
  expect_of_faults(cause("gpu", "gsp_hnag"), {"$.faults.causes[0].mode", "did you mean \"gsp_hang\""});
  expect_of_faults(cause("node", "gsp_hang"),
                   {"$.faults.causes[0].mode = gsp_hang", "is of scope gpu", "\"scope\": \"gpu\""});
}

TEST_CASE("an injected fault has a kind or a mode") {
  const FaultSpec both = faults_of(R"({"injected": [{"kind": "link_down", "node": 0},
    {"mode": "gpu_power_throttle", "node": 0, "factor": 1.5}, {"mode": "gpu_off_bus", "node": 1}]})");
  CHECK_FALSE(both.injected[0].mode.has_value());
  CHECK(both.injected[0].kind == InjectedKind::LinkDown);
  CHECK(both.injected[1].kind == InjectedKind::GpuSlow);
  CHECK(both.injected[2].mode == FaultMode::GpuOffBus);
  CHECK(both.injected[2].kind == InjectedKind::NodeCrash);
  expect_of_faults(R"({"injected": [{"node": 0}]})", {"$.faults.injected[0].kind", "or a mode"});
  expect_of_faults(R"({"injected": [{"node": 0, "kind": "link_down", "mode": "link_flap"}]})", {"and not both"});
  expect_of_faults(R"({"injected": [{"node": 0, "mode": "gpu_power_throttle"}]})", {"injected[0].factor", "above 1"});
  expect_of_faults(R"({"injected": [{"node": 0, "mode": "gpu_off_bus", "factor": 2}]})",
                   {"injected[0].factor", "means nothing"});
  expect_of_faults(R"({"injected": [{"node": 0, "mode": "host_crash", "device": 2}]})",
                   {"injected[0].device", "not of one device", "remove it"});
  expect_of_faults(R"({"injected": [{"node": 0, "mode": "silent_data_corruption", "duration_s": 60}]})",
                   {"injected[0].duration_s", "has no end of its own"});
}

TEST_CASE("what a NIC loses, and which way") {
  const FaultSpec lossy = faults_of(
      R"({"injected": [{"node": 0, "device": 1, "mode": "gray_loss", "loss": 1e-3, "direction": "out"},
                       {"node": 0, "device": 1, "mode": "rate_downgrade"},
                       {"node": 0, "device": 1, "mode": "leaf_flap", "duration_s": 8}]})");
  CHECK(lossy.injected[0].kind == InjectedKind::NicSlow);
  CHECK(lossy.injected[0].direction == LinkDirection::Out);
  CHECK(lossy.injected[1].factor == 2);
  CHECK(lossy.injected[2].kind == InjectedKind::LinkDown);
  expect_of_faults(R"({"injected": [{"node": 0, "mode": "gray_loss"}]})", {"injected[0].loss", "above 0", "1e-4"});
  expect_of_faults(R"({"injected": [{"node": 0, "mode": "gray_loss", "loss": 0.9}]})", {"injected[0].loss"});
  expect_of_faults(R"({"injected": [{"node": 0, "mode": "gray_loss", "loss": 1e-3, "factor": 2}]})",
                   {"injected[0].factor", "follows from the loss"});
  expect_of_faults(R"({"injected": [{"node": 0, "kind": "nic_slow", "factor": 2, "loss": 1e-3}]})",
                   {"injected[0].loss", "gray_loss"});
  expect_of_faults(R"({"injected": [{"node": 0, "kind": "gpu_slow", "factor": 2, "direction": "in"}]})",
                   {"injected[0].direction"});
}

TEST_CASE("a mode that slows is a slow part when it is injected, or drawn") {
  for (std::size_t i = 0; i < kFaultModes; ++i) {
    const auto mode = static_cast<FaultMode>(i);
    const InjectedKind kind = kind_of(mode);
    INFO(to_string(mode));
    CHECK((kind == InjectedKind::GpuSlow || kind == InjectedKind::NicSlow) ==
          (faults::row_of(mode).effect == faults::Effect::Slows));
  }
}

TEST_CASE("a mode that stops the job needs a run over time") {
  const Result<Scenario> one_step = parse_scenario(R"({ "schema": 1, "name": "s", "model": "models/tiny-llama.json",
    "plan": { "sequence_length": 16, "global_batch_size": 1 }, "cluster": "clusters/two-racks.json",
    "faults": {"injected": [{"node": 0, "mode": "gsp_hang"}]} })",
                                                   kScenarios + "test.json");
  REQUIRE_FALSE(one_step.ok());
  CHECK(one_step.problems().front().path == "$.faults.injected[0].mode");
  CHECK(one_step.problems().front().value == "gsp_hang");
}

TEST_CASE("a fleet is read, and its long-run rate is stated") {
  const FleetModel fleet = faults_of(kFleet).generator.fleet;
  CHECK(fleet.lemons.factor == 5);
  CHECK(fleet.classes[0].repair_shape == 1);
  FaultGenerator alone;
  alone.kind = GeneratorKind::Fleet;
  alone.fleet.rate_per_node_day = 0.01;
  CHECK(alone.faults_per_node_day() == Approx(0.01));
  alone.fleet.lemons = {0.1, 5};
  CHECK(alone.faults_per_node_day() == Approx(0.014));
  alone.fleet.bursts = {.per_1000_node_days = 2, .size_exponent = 0, .max_nodes = 4};
  CHECK(alone.faults_per_node_day() == Approx(0.014 + 0.006));  // three nodes on average
  alone.fleet.refailure.probability = 0.5;
  CHECK(alone.faults_per_node_day() == Approx(0.04));
}

TEST_CASE("generators that are wrong") {
  SECTION("no kind") {
    expect_of_faults(R"({"generator": {"source": "y", "nodes": 3}})", {"$.faults.generator.kind", "is missing"});
  }
  SECTION("an unknown kind") {
    expect_of_faults(replaced(kFleet, "\"fleet\"", "\"flet\""), {"$.faults.generator.kind", "did you mean \"fleet\""});
  }
  SECTION("keys of another kind") {
    expect_of_faults(R"({"generator": {"kind": "poisson", "nodes": 3}})", {"$.faults.generator.nodes", "not a key"});
  }
  SECTION("no source") {
    expect_of_faults(replaced(kFleet, R"("source": "y",)", ""), {"generator.source", "is missing"});
  }
  SECTION("a share above 1") {
    expect_of_faults(replaced(kFleet, "\"share\": 0.1", "\"share\": 1.1"), {"$.faults.generator.lemons.share = 1.1"});
  }
  SECTION("a factor of no lemons") {
    expect_of_faults(replaced(kFleet, "\"share\": 0.1", "\"share\": 0"),
                     {"$.faults.generator.lemons.factor = 5", "means nothing"});
  }
  SECTION("always fails again") {
    expect_of_faults(replaced(kFleet, "\"probability\": 0.3", "\"probability\": 1"), {"refailure.probability = 1"});
  }
  SECTION("a burst of one") {
    expect_of_faults(replaced(kFleet, "\"max_nodes\": 9", "\"max_nodes\": 1"), {"bursts.max_nodes = 1"});
  }
  SECTION("bursts of nothing") {
    expect_of_faults(replaced(kFleet, "\"burst_weight\": 1, ", ""), {"$.faults.generator.classes", "burst_weight"});
  }
  SECTION("no weight") {
    expect_of_faults(replaced(kFleet, "\"weight\": 1", "\"weight\": 0"), {"generator.classes", "weight"});
  }
  SECTION("no classes") {
    expect_of_faults(R"({"generator": {"kind": "fleet", "source": "y", "rate_per_node_day": 0.01, "classes": []}})",
                     {"generator.classes = []"}, 2);
  }
  SECTION("a rate of 0") {
    expect_of_faults(replaced(kFleet, "\"rate_per_node_day\": 0.01", "\"rate_per_node_day\": 0"),
                     {"rate_per_node_day = 0"});
  }
  SECTION("a class that strikes the job") {
    expect_of_faults(replaced(kFleet, "host_crash", "user_error"),
                     {"generator.classes[0].mode = user_error", "one of the causes"});
  }
  SECTION("a class that is called like a cause") {
    expect_of_faults(
        replaced(
            kFleet, "{\"generator\"",
            R"({"causes": [{"name": "a", "scope": "gpu", "rate_per_gpu_hour": 1e-5, "source": "y"}], "generator")"),
        {"generator.classes[0].name = a"});
  }
  SECTION("far too many faults") {
    expect_of_faults(replaced(replaced(kFleet, "\"rate_per_node_day\": 0.01", "\"rate_per_node_day\": 24"),
                              "\"factor\": 5", "\"factor\": 1e6"),
                     {"failures", "are expected in this run"});
  }
}

TEST_CASE("traces that are wrong") {
  CHECK(faults_of(kTrace).generator.trace.faults[1].start_day == 1);
  SECTION("three numbers") {
    expect_of_faults(replaced(kTrace, "[4, 1, 1.5, 0]", "[4, 1, 1.5]"),
                     {"$.faults.generator.faults", "[4,1,1.5]", "four numbers"});
  }
  SECTION("a negative node") {
    expect_of_faults(replaced(kTrace, "[4, 1", "[-4, 1"), {"generator.faults", "[-4,1,1.5,0]"});
  }
  SECTION("text") { expect_of_faults(replaced(kTrace, "[4, 1", "[\"a\", 1"), {"generator.faults"}); }
  SECTION("no list") {
    expect_of_faults(replaced(kTrace, "[[3, 0.5, 1, 0], [4, 1, 1.5, 0]]", "7"), {"generator.faults", "must be a list"});
  }
  SECTION("a node that is not there") {
    expect_of_faults(replaced(kTrace, "[4, 1", "[8, 1"), {"$.faults.generator.faults[1] = node 8", "8 nodes"});
  }
  SECTION("a class that is not there") {
    expect_of_faults(replaced(kTrace, "1.5, 0]", "1.5, 7]"), {"generator.faults[1] = class 7"});
  }
  SECTION("a node number beyond 64 bits' half") {
    expect_of_faults(replaced(kTrace, "[4, 1", "[18446744073709551615, 1"), {"generator.faults[1] = node"});
  }
  SECTION("an end before its start") {
    expect_of_faults(replaced(kTrace, "[4, 1, 1.5", "[4, 1, 0.5"), {"generator.faults[1] = days 1 to 0.5"});
  }
  SECTION("an end after the trace's") {
    expect_of_faults(replaced(kTrace, "[4, 1, 1.5", "[4, 1, 2.5"), {"generator.faults[1] = days 1 to 2.5", "2 days"});
  }
  SECTION("fewer nodes than the run holds") {
    expect_of_faults(R"({"generator": {"kind": "trace", "source": "y", "nodes": 2, "days": 2,
               "classes": [{"name": "a", "mode": "host_crash"}], "faults": []}})",
                     {"$.faults.generator.nodes = 2", "holds 3 nodes"});
  }
  SECTION("a trace that ends before the run") {
    expect_of_faults(R"({"generator": {"kind": "trace", "source": "y", "nodes": 8, "days": 0.5,
               "classes": [{"name": "a", "mode": "host_crash"}], "faults": []}})",
                     {"$.faults.generator.days = 0.5", "1 days"});
  }
}
