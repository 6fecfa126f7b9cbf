#include "tests/faults/fleet_statistics.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <map>
#include <queue>
#include <tuple>
#include <utility>

#include "models/base/units.h"
#include "models/faults/fault_source.h"
#include "models/spec/scenario.h"

using namespace trainyard;
using namespace trainyard::faults;

namespace {

constexpr std::int64_t kNodes = 400;
constexpr double kDays = 348.9798, kDay_s = 86400;

struct Outage {
  NodeId node = 0;
  double start = 0, end = 0;  // days
};

double days(std::int64_t ns) { return static_cast<double>(ns) / kNsPerS / kDay_s; }

/// In the order of their starts.
std::vector<Outage> outages(const FaultSpec& spec, std::uint64_t seed) {
  const FleetShape shape{kNodes, kNodes, 8, to_ns(kDays * kDay_s)};
  const auto source = make_fault_source(spec, shape, seed);
  const bool tells = spec.generator.kind != GeneratorKind::Trace;
  using Back = std::pair<std::int64_t, NodeId>;
  std::priority_queue<Back, std::vector<Back>, std::greater<>> back;
  std::vector<Outage> out;
  while (const auto at_ns = source->next_ns()) {
    if (!back.empty() && back.top().first <= *at_ns) {
      source->node_changed({back.top().first, back.top().second, NodeUse::Job, back.top().second});
      back.pop();
      continue;
    }
    const auto fault = source->take();
    if (!fault) continue;
    const std::int64_t end_ns = fault->at_ns + *fault->repair_ns;
    out.push_back({fault->node, days(fault->at_ns), days(end_ns)});
    if (!tells) continue;
    source->node_changed({fault->at_ns, fault->node, NodeUse::InRepair, 0});
    back.emplace(end_ns, fault->node);
  }
  return out;
}

void nodes(const std::vector<Outage>& all, FleetStatistics& to) {
  std::map<NodeId, std::vector<Outage>> by_node;
  for (const Outage& outage : all) by_node[outage.node].push_back(outage);
  std::vector<std::size_t> counts;
  double again_1 = 0, again_7 = 0, again_30 = 0;
  for (const auto& [node, list] : by_node) {
    counts.push_back(list.size());
    for (std::size_t i = 1; i < list.size(); ++i) {
      const double up = list[i].start - list[i - 1].end;
      again_1 += up <= 1;
      again_7 += up <= 7;
      again_30 += up <= 30;
    }
  }
  std::sort(counts.rbegin(), counts.rend());
  const auto share_of = [&](std::size_t most) {
    double sum = 0;
    for (std::size_t i = 0; i < std::min(most, counts.size()); ++i) sum += static_cast<double>(counts[i]);
    return sum / to.faults;
  };
  to.failed_share = static_cast<double>(counts.size()) / kNodes;
  to.worst_5_share = share_of(kNodes / 20);
  to.worst_10_share = share_of(kNodes / 10);
  to.most_of_a_node = static_cast<double>(counts.front());
  to.again_1_day = again_1 / to.faults;
  to.again_7_days = again_7 / to.faults;
  to.again_30_days = again_30 / to.faults;
}

void repairs(const std::vector<Outage>& all, FleetStatistics& to) {
  std::vector<double> hours;
  for (const Outage& outage : all) hours.push_back((std::min(outage.end, kDays) - outage.start) * 24);
  std::sort(hours.begin(), hours.end());
  for (const double h : hours) to.repair_mean_h += h / to.faults;
  to.repair_median_h = hours[hours.size() / 2];
  to.repair_p90_h = hours[hours.size() * 9 / 10];
}

void rhythm(const std::vector<Outage>& all, FleetStatistics& to) {
  std::vector<double> a_day(static_cast<std::size_t>(std::ceil(kDays)));
  double close = 0, sum = 0, squares = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    ++a_day[static_cast<std::size_t>(all[i].start)];
    if (i == 0) continue;
    const double gap = all[i].start - all[i - 1].start;
    close += gap < 10.0 / 1440;
    sum += gap;
    squares += gap * gap;
  }
  const double gaps = to.faults - 1, mean_gap = sum / gaps;
  to.under_10_min = close / gaps;
  to.interarrival_cv = std::sqrt(squares / gaps - mean_gap * mean_gap) / mean_gap;
  const double n = static_cast<double>(a_day.size()), mean = to.faults / n;
  double variance = 0;
  for (const double count : a_day) variance += (count - mean) * (count - mean) / (n - 1);
  to.daily_dispersion = variance / mean;
}

void unavailability(const std::vector<Outage>& all, FleetStatistics& to) {
  std::vector<std::tuple<double, int, NodeId>> changes;
  for (const Outage& outage : all) {
    changes.emplace_back(outage.start, 1, outage.node);
    changes.emplace_back(std::min(outage.end, kDays), -1, outage.node);
  }
  std::sort(changes.begin(), changes.end());
  std::vector<double> days_with(kNodes + 1);
  std::vector<int> depth(kNodes);
  std::size_t out = 0;
  double last = 0;
  for (const auto& [day, change, node] : changes) {
    days_with[out] += day - last;
    last = day;
    int& of_node = depth[static_cast<std::size_t>(node)];
    const bool was_out = of_node > 0;
    of_node += change;
    if (of_node > 0 && !was_out) ++out;
    if (of_node <= 0 && was_out) --out;
  }
  days_with[out] += kDays - last;
  double passed = 0;
  for (std::size_t n = 0; n < days_with.size(); ++n) {
    to.mean_unavailable += days_with[n] / kDays * static_cast<double>(n) / kNodes;
    if (passed < 0.99 * kDays && passed + days_with[n] >= 0.99 * kDays)
      to.p99_unavailable = static_cast<double>(n) / kNodes;
    passed += days_with[n];
  }
}

}  // namespace

FaultSpec shipped(const std::string& file) {
  const std::string folder = std::string(TRAINYARD_SOURCE_DIR) + "/scenarios/";
  const Result<Scenario> scenario = parse_scenario(R"({ "schema": 1, "name": "s",
      "model": "models/tiny-llama.json",
      "plan": { "tp": 2, "sequence_length": 16, "global_batch_size": 4 },
      "cluster": "clusters/two-racks.json",
      "faults": "faults/)" + file + R"(" })",
                                                   folder + "test.json");
  if (!scenario) FAIL(to_string(scenario.problems().front()));
  return scenario.value().faults;
}

FleetStatistics statistics_of(const FaultSpec& spec, std::uint64_t seed) {
  const std::vector<Outage> all = outages(spec, seed);
  REQUIRE(all.size() > 1);
  FleetStatistics out;
  out.faults = static_cast<double>(all.size());
  nodes(all, out);
  repairs(all, out);
  rhythm(all, out);
  unavailability(all, out);
  return out;
}

const std::vector<FleetFigure>& fleet_figures() {
  using S = FleetStatistics;
  static const std::vector<FleetFigure> kFigures{
      {"faults", &S::faults, 1, 0},
      {"nodes that ever failed, %", &S::failed_share, 100, 1},
      {"faults on the worst 5% of nodes, %", &S::worst_5_share, 100, 1},
      {"faults on the worst 10% of nodes, %", &S::worst_10_share, 100, 1},
      {"most faults of a node", &S::most_of_a_node, 1, 0},
      {"faults within 1 day of the node's repair, %", &S::again_1_day, 100, 1},
      {"faults within 7 days of it, %", &S::again_7_days, 100, 1},
      {"faults within 30 days of it, %", &S::again_30_days, 100, 1},
      {"repair, mean, h", &S::repair_mean_h, 1, 0},
      {"repair, median, h", &S::repair_median_h, 1, 1},
      {"repair, 90th percentile, h", &S::repair_p90_h, 1, 0},
      {"nodes out, mean, %", &S::mean_unavailable, 100, 2},
      {"nodes out, 99th percentile, %", &S::p99_unavailable, 100, 2},
      {"faults a day, variance over mean", &S::daily_dispersion, 1, 2},
      {"time between faults, coefficient of variation", &S::interarrival_cv, 1, 2},
      {"faults within 10 min of the one before, %", &S::under_10_min, 100, 1},
  };
  return kFigures;
}
