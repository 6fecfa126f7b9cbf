// A small run with everything in it, for the tests of the store and of the commands that read it.
#pragma once

#include <string>
#include <vector>

#include "store/run_records.h"
#include "store/run_writer.h"

namespace trainyard::store {

inline NewRun sample_new_run(const std::string& name = "tiny", std::uint64_t seed = 7) {
  NewRun run;
  run.name = name;
  run.kind = RunKind::Run;
  run.version = "0.1.0";
  run.commit_id = "a1b2c3d4e5f6";
  run.seed = seed;
  run.parameters_json = R"({"scenario":"scenarios/tiny.json","policy":"recover-90s"})";
  run.host_json = R"({"cores":2,"memory_bytes":16000000000})";
  run.streams = {"compute", "tp", "dp"};
  return run;
}

inline std::vector<RankClass> sample_classes() {
  return {{0, "stage 0", 0, 0, 4, {{0, 1}, {4, 5}}}, {1, "stage 1", 1, 2, 4, {{2, 3}, {6, 7}}}};
}

/// Per class: a parent with two children on compute, and two slices on dp that overlap without nesting.
inline std::vector<Slice> sample_slices(std::int64_t class_id) {
  const std::int64_t t = class_id * 1000;
  return {
      {class_id, 0, "forward", "block", t, t + 900},
      {class_id, 0, "layer0.attn", "compute", t, t + 400},
      {class_id, 0, "layer0.mlp", "compute", t + 400, t + 900},
      {class_id, 2, "bucket0.reduce_scatter", "communication", t + 100, t + 600},
      {class_id, 2, "bucket1.reduce_scatter", "communication", t + 300, t + 1001},
  };
}

inline std::vector<RunEvent> sample_events() {
  return {{0, "start", std::nullopt, "training starts"},
          {3'600'000'000'000, "fault", 17, "GPU 3 of node 17 fell off the bus (XID 79)"},
          {3'612'000'000'000, "eject", 17, "node 17 ejected, spare 2 takes over"},
          {3'690'000'000'000, "resume", std::nullopt, "training resumes at step 171"}};
}

inline std::vector<Recovery> sample_recoveries() {
  const std::int64_t t = 3'600'000'000'000, s = 1'000'000'000;
  return {
      {t,
       t + 90 * s,
       "gpu",
       17,
       41 * s,
       {{"detect", t, t + 12 * s},
        {"decide", t + 12 * s, t + 15 * s},
        {"communicators", t + 15 * s, t + 60 * s, 2},
        {"load_state", t + 60 * s, t + 90 * s, 2}},
       171},
      {t + 4000 * s, std::nullopt, "network", std::nullopt, 0, {{"detect", t + 4000 * s, t + 4012 * s}}, std::nullopt}};
}

inline std::vector<SpareCount> sample_spare_counts() { return {{0, 2}, {3'615'000'000'000, 1}}; }

inline recovery::ControllerLog sample_log() { return {R"({"some":"settings"})", {0x78, 0x00, 0xff}, 3}; }

inline std::vector<GoodputBand> sample_bands() {
  const std::int64_t s = 1'000'000'000;
  return {{"productive", 7000 * s}, {"checkpoint_stall", 69 * s}, {"lost_work", 41 * s}, {"communicators", 90 * s}};
}

inline std::string sample_report() {
  return R"({"step":{"time_s":20.91,"mfu":0.382,"memory_peak_bytes":65700000000},)"
         R"("run":{"effective_training_time":0.9722,"failures":{"total":2,"by_cause":{"gpu":1,"network":1}},)"
         R"("recovery":{"median_s":90.0}},"host":{"wall_s":0.41,"peak_rss_bytes":183500800},)"
         R"("seed":7,"trace_hash":"00c0ffee00c0ffee"})";
}

/// Adds everything above; finish() is left to the caller.
inline void add_sample(RunWriter& writer) {
  for (const RankClass& c : sample_classes()) {
    writer.add_rank_class(c);
    for (const Slice& slice : sample_slices(c.class_id)) writer.add_slice(slice);
  }
  for (const RunEvent& event : sample_events()) writer.add_event(event);
  for (const Recovery& recovery : sample_recoveries()) writer.add_recovery(recovery);
  for (const SpareCount& count : sample_spare_counts()) writer.add_spare_count(count);
  writer.add_controller_log(sample_log());
  for (const GoodputBand& band : sample_bands()) writer.add_band(band);
}

}  // namespace trainyard::store
