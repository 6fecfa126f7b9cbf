// A fleet without a job: every fault takes its node out until it is repaired. What is counted of it is what is counted
// of the InfiniteHBD trace, so that the two can be compared.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/spec/fault_spec.h"

struct FleetStatistics {
  double faults = 0;
  double failed_share = 0;                       // of nodes that ever failed
  double worst_5_share = 0, worst_10_share = 0;  // of faults on the worst 5% and 10% of nodes
  double most_of_a_node = 0;
  double again_1_day = 0, again_7_days = 0, again_30_days = 0;  // of faults: share so soon after their node's repair
  double repair_mean_h = 0, repair_median_h = 0, repair_p90_h = 0;
  double mean_unavailable = 0, p99_unavailable = 0;  // share of nodes, over time
  double daily_dispersion = 0;                       // variance of faults a day over their mean
  double interarrival_cv = 0;
  double under_10_min = 0;  // share of faults within 10 minutes of the one before
};

/// A fault table of scenarios/faults, as a scenario would load it.
trainyard::FaultSpec shipped(const std::string& file);

/// 400 nodes for as long as the trace. A replay is not told of repairs: one node of the trace failed while it was out.
FleetStatistics statistics_of(const trainyard::FaultSpec& spec, std::uint64_t seed);

/// One line of the comparison: a name, and where the number is.
struct FleetFigure {
  const char* name;
  double FleetStatistics::*value;
  double unit;  // of the printed number
  int decimals;
};
const std::vector<FleetFigure>& fleet_figures();
