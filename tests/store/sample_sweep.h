// A small sweep for the tests of the store.
#pragma once

#include <cstdint>
#include <string>

#include "store/sweep_records.h"

namespace trainyard::store {

inline NewSweep sample_sweep(const std::string& identity = "feed") {
  NewSweep sweep;
  sweep.identity = identity;
  sweep.name = "grid";
  sweep.scenario = "grid.json";
  sweep.duration_ns = 86'400'000'000'000;
  sweep.version = "0.1.0";
  sweep.commit_id = "abc";
  sweep.inputs_json = R"({"model":"1"})";
  sweep.variations = {{"fast", "fast", "{}", R"({"name":"fast"})"},
                      {"fast,spare_nodes=2", "fast", R"({"spare_nodes":2})", R"({"name":"fast","spare_nodes":2})"}};
  return sweep;
}

inline SweepCell sample_cell(std::int64_t variation, std::uint64_t seed) {
  SweepCell cell;
  cell.variation = variation;
  cell.seed = seed;
  cell.effective_training_time = 0.1 + 1e-3 * static_cast<double>(seed % 1000);
  cell.failures = 3;
  cell.recoveries = 2;
  cell.recovery_median_s = 90;
  cell.recovery_mean_s = 91.5;
  cell.recovery_p99_s = 100.25;
  cell.lost_work_ns = 12;
  cell.bands = {{"productive", 80}, {"lost_work", 12}};
  cell.checkpoint_interval_s = 60;
  cell.checkpoints = 7;
  cell.steps_done = 1000;
  cell.steps_committed = 990;
  cell.pages = 1;
  cell.spares_configured = 2;
  cell.spares_fewest = 1;
  cell.spares_mean = 1.5;
  cell.waiting_for = "a spare";
  cell.trace_hash = "00000000000000ff";
  return cell;
}

}  // namespace trainyard::store
