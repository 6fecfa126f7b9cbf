// Reads runs back. A reader never changes the file.
//
// A run that is entered as running but whose writer is dead reads as Interrupted: see "Read order" in
// run_reader.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/base/status.h"
#include "models/recovery/replay.h"
#include "store/database.h"
#include "store/run_records.h"

namespace trainyard::store {

class RunReader {
 public:
  /// Foreign, damaged and newer files give one Problem and are left as they are.
  static Result<RunReader> open(const std::string& file);

  /// All runs, oldest first, their reports included.
  Result<std::vector<Run>> runs();
  /// The run that `selector` names: an id, "latest", or a run's name (the latest one so named).
  Result<Run> find(const std::string& selector);

  Result<std::vector<std::string>> streams(std::int64_t run_id);
  Result<std::vector<RankClass>> rank_classes(std::int64_t run_id);
  /// None in stores of older versions.
  Result<std::vector<Link>> links(std::int64_t run_id);
  /// In the order in which they were added, one stream after the other.
  Result<std::vector<Slice>> slices(std::int64_t run_id, std::int64_t class_id);
  /// Whether any slice of the run is stored.
  Result<bool> has_timeline(std::int64_t run_id);
  Result<std::vector<RunEvent>> events(std::int64_t run_id);
  Result<std::vector<Recovery>> recoveries(std::int64_t run_id);
  /// Empty also in stores of older versions, which did not keep them.
  Result<std::vector<SpareCount>> spare_counts(std::int64_t run_id);
  /// Empty for runs without a controller, and those of older versions.
  Result<recovery::ControllerLog> controller_log(std::int64_t run_id);
  Result<std::vector<GoodputBand>> bands(std::int64_t run_id);
  /// Of an Exec run.
  Result<std::vector<TrainingStep>> training_steps(std::int64_t run_id);

  [[nodiscard]] const std::string& file() const { return file_; }

 private:
  RunReader(std::string file, Database database);
  std::vector<Run> select_runs();
  std::int64_t schema();

  std::string file_;  // canonical
  Database database_;
};

}  // namespace trainyard::store
