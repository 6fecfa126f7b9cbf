// The interface that worlds pull faults from; Poisson causes; the replay of a trace.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>

#include "models/base/units.h"
#include "models/faults/fault_mode.h"
#include "models/faults/fault_source.h"
#include "tests/faults/fleet_statistics.h"

using namespace trainyard;
using namespace trainyard::faults;

namespace {

const double kHour = 3600;

FaultCause cause(std::string name, FaultScope scope, double rate_per_gpu_hour) {
  FaultCause out;
  out.name = std::move(name);
  out.scope = scope;
  out.rate_per_gpu_hour = rate_per_gpu_hour;
  return out;
}

FleetShape shape_of(std::int64_t job, std::int64_t held, double hours) { return {job, held, 8, to_ns(hours * kHour)}; }

std::vector<Fault> all_of(FaultSource& source) {
  std::vector<Fault> out;
  std::int64_t last_ns = 0;
  while (const auto at_ns = source.next_ns()) {
    CHECK(*at_ns >= last_ns);
    last_ns = *at_ns;
    if (const auto fault = source.take()) {
      CHECK(fault->at_ns == last_ns);
      out.push_back(*fault);
    }
  }
  return out;
}

}  // namespace

TEST_CASE("Poisson causes strike at their rates, spares where the scope says so") {
  const std::vector<FaultCause> causes{cause("gpu", FaultScope::Gpu, 1e-3), cause("link", FaultScope::Network, 1e-3),
                                       cause("bug", FaultScope::Job, 1e-3), cause("never", FaultScope::Node, 0)};
  const auto source = make_poisson_source(causes, shape_of(4, 5, 50000), 7);
  std::map<std::size_t, int> counts;
  int on_the_spare = 0;
  for (const Fault& fault : all_of(*source)) {
    ++counts[fault.cause];
    CHECK(fault.mode == causes[fault.cause].effective_mode());
    CHECK((fault.node == kWholeJob) == (causes[fault.cause].scope == FaultScope::Job));
    on_the_spare += fault.node == 4;
    if (fault.node == 4) CHECK(fault.cause == 0);
  }
  // 8 GPUs x 50,000 h x 1e-3 = 400 a node; four standard deviations.
  CHECK(counts[0] == Approx(2000).margin(180));
  CHECK(counts[1] == Approx(1600).margin(160));
  CHECK(counts[2] == Approx(1600).margin(160));
  CHECK(counts.count(3) == 0);
  CHECK(on_the_spare == Approx(400).margin(80));
}

TEST_CASE("One cause more moves none of the others") {
  const std::vector<FaultCause> few{cause("gpu", FaultScope::Gpu, 1e-3)};
  const std::vector<FaultCause> more{few[0], cause("bug", FaultScope::Job, 1e-2)};
  const auto a = make_poisson_source(few, shape_of(4, 4, 5000), 7),
             b = make_poisson_source(more, shape_of(4, 4, 5000), 7);
  const std::vector<Fault> alone = all_of(*a);
  std::vector<Fault> among = all_of(*b);
  std::erase_if(among, [](const Fault& fault) { return fault.cause != 0; });
  REQUIRE(alone.size() == among.size());
  for (std::size_t i = 0; i < alone.size(); ++i) {
    CHECK(alone[i].at_ns == among[i].at_ns);
    CHECK(alone[i].node == among[i].node);
    CHECK(alone[i].device == among[i].device);
  }
}

TEST_CASE("The job's nodes meet the same faults whatever the number of spares") {
  const std::vector<FaultCause> causes{cause("gpu", FaultScope::Gpu, 1e-3), cause("link", FaultScope::Network, 1e-3),
                                       cause("bug", FaultScope::Job, 1e-3), cause("host", FaultScope::Node, 1e-3)};
  const auto on_the_job = [&](std::int64_t held) {
    std::vector<Fault> faults = all_of(*make_poisson_source(causes, shape_of(4, held, 5000), 7));
    std::erase_if(faults, [](const Fault& fault) { return fault.node >= 4; });
    return faults;
  };
  const std::vector<Fault> none = on_the_job(4), many = on_the_job(40);
  REQUIRE(none.size() > 300);
  REQUIRE(none.size() == many.size());
  for (std::size_t i = 0; i < none.size(); ++i) {
    CHECK(none[i].at_ns == many[i].at_ns);
    CHECK(none[i].cause == many[i].cause);
    CHECK(none[i].node == many[i].node);
    CHECK(none[i].device == many[i].device);
  }
}

TEST_CASE("A fault of the fabric strikes whoever holds the slot") {
  const std::vector<FaultCause> causes{cause("link", FaultScope::Network, 1e-2)};
  const auto source = make_poisson_source(causes, shape_of(2, 3, 5000), 7);
  source->node_changed({0, 1, NodeUse::InRepair, 0});
  source->node_changed({0, 2, NodeUse::Job, 1});
  for (const Fault& fault : all_of(*source)) CHECK((fault.node == 0 || fault.node == 2));
  const auto empty = make_poisson_source(causes, shape_of(2, 3, 5000), 7);
  empty->node_changed({0, 1, NodeUse::InRepair, 0});
  const std::vector<Fault> fewer = all_of(*empty);  // nobody holds slot 1
  CHECK_FALSE(fewer.empty());
  for (const Fault& fault : fewer) CHECK(fault.node == 0);
}

TEST_CASE("Details follow the mode") {
  RandomStream draws(3, "details");
  for (const ModeRow& row : fault_modes()) {
    for (int i = 0; i < 100; ++i) {
      Fault fault;
      fault.mode = row.mode;
      draw_details(fault, 8, draws);
      INFO(to_string(row.mode));
      CHECK((fault.device >= 0 && fault.device < 8));
      CHECK((fault.factor >= row.slowdown_least && fault.factor <= row.slowdown_most));
      CHECK(fault.duration_ns.has_value() == (row.mend == Mend::Itself));
    }
  }
}

TEST_CASE("Causes and a generator together are each what they are alone") {
  FaultSpec spec = shipped("infinitehbd-fleet.json");
  const FleetShape shape = shape_of(100, 110, 24 * 100);
  const auto fleet_alone = make_fault_source(spec, shape, 5);
  spec.causes = {cause("bug", FaultScope::Job, 1e-5)};
  const auto both = make_fault_source(spec, shape, 5);
  const std::vector<Fault> alone = all_of(*fleet_alone);
  std::vector<Fault> merged = all_of(*both);
  const std::vector<std::string> names = cause_names(spec);
  REQUIRE(names.size() == 1 + spec.generator.fleet.classes.size());
  CHECK(names[0] == "bug");
  const auto of_cause = [](const Fault& fault) { return fault.cause == 0; };
  CHECK(std::count_if(merged.begin(), merged.end(), of_cause) == Approx(1e-5 * 800 * 2400).margin(18));
  std::erase_if(merged, of_cause);
  REQUIRE(merged.size() == alone.size());
  for (std::size_t i = 0; i < alone.size(); ++i) {
    CHECK(merged[i].at_ns == alone[i].at_ns);
    CHECK(merged[i].cause == alone[i].cause + 1);
  }
}

// ---- The trace ----------------------------------------------------------------------------

// Published with the trace (its statistics folder) and in the paper (arXiv:2502.03885): 584 faults; 2.31% of nodes are
// out on average, 7.75% in the worst hundredth of the time.
TEST_CASE("The replayed trace leaves as many nodes out as was published") {
  const FaultSpec spec = shipped("infinitehbd-trace.json");
  const FleetStatistics seen = statistics_of(spec, 1);
  CHECK(seen.faults == 584);
  CHECK(seen.mean_unavailable == Approx(0.0231).margin(0.0001));
  CHECK(seen.p99_unavailable == Approx(0.0775).margin(1e-9));
  CHECK(spec.generator.faults_per_node_day() * 1000 == Approx(4.1954).epsilon(0.004));
}

TEST_CASE("A replay is exact, and leaves out nodes that are not held or are in repair") {
  FaultSpec spec;
  spec.generator.kind = GeneratorKind::Trace;
  FaultTrace& trace = spec.generator.trace;
  trace.nodes = 3;
  trace.days = 10;
  trace.classes = {{"a", FaultMode::HostCrash}, {"b", FaultMode::LinkDown}};
  trace.faults = {{2, 1, 2, 0}, {0, 3, 3.5, 1}, {1, 2, 9, 1}, {0, 5, 6, 0}};
  const auto source = make_fault_source(spec, shape_of(1, 2, 240), 1);
  const std::vector<Fault> faults = all_of(*source);
  REQUIRE(faults.size() == 3);
  CHECK(faults[0].node == 1);
  CHECK(faults[0].at_ns == to_ns(2 * 86400.0));
  CHECK(*faults[0].repair_ns == to_ns(7 * 86400.0));
  CHECK(faults[0].mode == FaultMode::LinkDown);
  CHECK(faults[2].cause == 0);
  const auto again = make_fault_source(spec, shape_of(1, 2, 240), 1);
  again->node_changed({0, 0, NodeUse::InRepair, 0});
  CHECK(all_of(*again).size() == 1);
}
