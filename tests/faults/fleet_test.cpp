// The fleet model against the trace that it was fitted on: docs/faults.md shows the same numbers.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cstdio>
#include <set>
#include <vector>

#include "models/base/units.h"
#include "models/faults/fault_source.h"
#include "tests/faults/fleet_statistics.h"

using namespace trainyard;
using namespace trainyard::faults;

namespace {

/// What the trace says of a figure, and what the model says over many seeds.
struct Compared {
  double observed = 0, mean = 0, low = 0, high = 0;  // low to high: 95% of the seeds
};

Compared compared(const FleetFigure& figure, const FleetStatistics& trace, const std::vector<FleetStatistics>& seeds) {
  std::vector<double> values;
  for (const FleetStatistics& seed : seeds) values.push_back(seed.*figure.value);
  std::sort(values.begin(), values.end());
  Compared out{.observed = trace.*figure.value};
  for (const double value : values) out.mean += value / static_cast<double>(values.size());
  out.low = values[values.size() / 40];
  out.high = values[values.size() - 1 - values.size() / 40];
  return out;
}

std::vector<FleetStatistics> seeds_of(const FaultSpec& spec, std::uint64_t seeds) {
  std::vector<FleetStatistics> out;
  for (std::uint64_t seed = 1; seed <= seeds; ++seed) out.push_back(statistics_of(spec, seed));
  return out;
}

/// What the model is known to miss: nodes that come back together also fail again together.
const std::set<std::string> kMissed{"faults within 10 min of the one before, %"};

FleetModel plain(double rate_per_node_day) {
  FleetModel model;
  model.rate_per_node_day = rate_per_node_day;
  model.classes.resize(1);
  model.classes[0].name = "any";
  model.classes[0].weight = 1;
  return model;
}

}  // namespace

TEST_CASE("The trace lies within what the fleet model does over seeds, but for what is known to miss") {
  const FleetStatistics trace = statistics_of(shipped("infinitehbd-trace.json"), 1);
  const std::vector<FleetStatistics> seeds = seeds_of(shipped("infinitehbd-fleet.json"), 400);
  for (const FleetFigure& figure : fleet_figures()) {
    const Compared c = compared(figure, trace, seeds);
    INFO(figure.name << ": observed " << c.observed << ", predicted " << c.mean << ", " << c.low << " to " << c.high);
    const bool within = c.observed >= c.low && c.observed <= c.high;
    CHECK(within == (kMissed.count(figure.name) == 0));
  }
}

TEST_CASE("A fleet of equal nodes that forget is not like the trace") {
  FaultSpec spec = shipped("infinitehbd-fleet.json");
  FleetModel& model = spec.generator.fleet;
  model.rate_per_node_day = 584.0 / (400 * 348.9798);
  model.lemons = {};
  model.refailure = {};
  model.bursts = {};
  model.seasons = {};
  const FleetStatistics trace = statistics_of(shipped("infinitehbd-trace.json"), 1);
  const std::vector<FleetStatistics> seeds = seeds_of(spec, 100);
  std::set<std::string> misses;
  for (const FleetFigure& figure : fleet_figures()) {
    const Compared c = compared(figure, trace, seeds);
    if (c.observed < c.low || c.observed > c.high) misses.insert(figure.name);
  }
  for (const char* figure : {"nodes that ever failed, %", "faults on the worst 10% of nodes, %",
                             "faults within 7 days of it, %", "faults a day, variance over mean",
                             "time between faults, coefficient of variation", "nodes out, 99th percentile, %"})
    CHECK(misses.count(figure) == 1);
}

TEST_CASE("The long-run rate that the spec states is the one that is simulated, nearly") {
  // Refailures later than the end of a run are in the one and not in the other.
  const FaultSpec spec = shipped("infinitehbd-fleet.json");
  double faults = 0;
  for (std::uint64_t seed = 1; seed <= 50; ++seed) faults += statistics_of(spec, seed).faults / 50;
  CHECK(faults / (400 * 348.9798) == Approx(spec.generator.faults_per_node_day()).epsilon(0.15));
}

TEST_CASE("What a policy does with its nodes moves no fault of other nodes") {
  const FaultSpec spec = shipped("infinitehbd-fleet.json");
  const FleetShape shape{400, 400, 8, to_ns(100 * 86400.0)};
  const auto kept = make_fault_source(spec, shape, 9), repaired = make_fault_source(spec, shape, 9);
  std::vector<Fault> a, b;
  while (kept->next_ns())
    if (const auto fault = kept->take()) a.push_back(*fault);
  repaired->node_changed({0, 17, NodeUse::InRepair, 0});
  while (repaired->next_ns())
    if (const auto fault = repaired->take()) b.push_back(*fault);
  const auto struck_17 = [](const Fault& fault) { return fault.node == 17; };
  CHECK(std::none_of(b.begin(), b.end(), struck_17));
  std::erase_if(a, struck_17);
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    CHECK(a[i].at_ns == b[i].at_ns);
    CHECK(a[i].node == b[i].node);
    CHECK(a[i].repair_ns == b[i].repair_ns);
  }
  CHECK(kept->next_draw() == kept->next_draw());
}

TEST_CASE("A repaired node fails again as often as its model says, and not when it is repaired anew before") {
  FleetModel model = plain(1e-9);
  model.refailure = {.probability = 0.5, .median_days = 1, .sigma = 0.1, .same_class_share = 1};
  const FleetShape shape{1000, 1000, 8, to_ns(100 * 86400.0)};
  const auto source = make_fleet_source(model, shape, 3);
  CHECK_FALSE(source->next_ns().has_value());
  for (NodeId node = 0; node < 1000; ++node) source->node_changed({0, node, NodeUse::InRepair, 0});
  const std::int64_t back_ns = to_ns(86400);
  for (NodeId node = 0; node < 1000; ++node) source->node_changed({back_ns, node, NodeUse::Job, node});
  source->node_changed({back_ns, 5, NodeUse::InRepair, 0});
  int again = 0;
  while (const auto at_ns = source->next_ns()) {
    const auto fault = source->take();
    REQUIRE(fault.has_value());
    CHECK(fault->node != 5);
    CHECK(*at_ns > back_ns + to_ns(86400 * 0.6));
    ++again;
  }
  CHECK(again == Approx(500).margin(64));  // four standard deviations
}

TEST_CASE("Bursts strike different nodes, and scale with the fleet") {
  FleetModel model = plain(1e-9);
  model.classes[0].burst_weight = 1;
  model.bursts = {.per_1000_node_days = 1,
                  .size_exponent = 2,
                  .max_nodes = 6,
                  .simultaneous_share = 1,
                  .spread_hours = 1,
                  .shared_repair_share = 1};
  const auto source = make_fleet_source(model, {1000, 1000, 8, to_ns(400 * 86400.0)}, 3);
  std::int64_t bursts = 0;
  while (const auto at_ns = source->next_ns()) {
    std::set<NodeId> nodes;
    std::set<std::int64_t> ends;
    std::size_t members = 0;
    for (; source->next_ns() == at_ns; ++members) {
      const auto fault = source->take();
      nodes.insert(fault->node);
      ends.insert(*fault->repair_ns);
    }
    CHECK((members >= 2 && members <= 6));
    CHECK(nodes.size() == members);
    CHECK(ends.size() == 1);
    ++bursts;
  }
  CHECK(bursts == Approx(400).margin(80));
  // One node alone has no company to fail in.
  CHECK_FALSE(make_fleet_source(model, {1, 1, 8, to_ns(400 * 86400.0)}, 3)->next_ns().has_value());
}

// Prints the table of docs/faults.md: test_faults "[table]".
TEST_CASE("The table of predicted against observed", "[.][table]") {
  const FleetStatistics trace = statistics_of(shipped("infinitehbd-trace.json"), 1);
  const std::vector<FleetStatistics> seeds = seeds_of(shipped("infinitehbd-fleet.json"), 2000);
  std::printf(
      "| of 400 nodes over 349 days | observed | predicted | 95%% of seeds | |\n| --- | --: | --: | --: | --- |\n");
  for (const FleetFigure& figure : fleet_figures()) {
    const Compared c = compared(figure, trace, seeds);
    const bool within = c.observed >= c.low && c.observed <= c.high;
    const auto shown = [&](double value) { return value * figure.unit; };
    std::printf("| %s | %.*f | %.*f | %.*f to %.*f | %s |\n", figure.name, figure.decimals, shown(c.observed),
                figure.decimals, shown(c.mean), figure.decimals, shown(c.low), figure.decimals, shown(c.high),
                within ? "" : "missed");
  }
}
