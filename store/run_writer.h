// Writes one run into a store, in batches.
//
// What has been committed survives anything, kill -9 included: each batch is one transaction, the store
// file appears whole or not at all, and a run whose writer died reads as interrupted (run_reader.h) until
// the next writer says so for good. Runs of several processes may be written at once: their batches take turns. Errors
// are sticky: after the first one, such as a full disk, adding does nothing, and finish() returns the Problem.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "models/base/status.h"
#include "models/recovery/replay.h"
#include "store/run_records.h"

namespace trainyard::store {

struct WriterOptions {
  /// How long to wait while others enter their runs.
  double lock_wait_s = 10;
  /// A batch is committed by the row that makes it this long, or finds it this old.
  std::int64_t batch_rows = 8192;
  double batch_s = 0.5;
};

class RunWriter {
 public:
  /// Opens or makes the store `file` and enters the run as running, which is committed at once.
  static Result<RunWriter> open(const std::string& file, const NewRun& run, const WriterOptions& options = {});

  RunWriter(RunWriter&& other) noexcept;
  RunWriter& operator=(RunWriter&& other) = delete;
  RunWriter(const RunWriter&) = delete;
  RunWriter& operator=(const RunWriter&) = delete;
  /// Without finish() the run ends as interrupted, and what was added is committed. In a forked child,
  /// where the run is the parent's, it does nothing.
  ~RunWriter();

  [[nodiscard]] std::int64_t run_id() const { return run_id_; }

  /// Before the slices of the class.
  void add_rank_class(const RankClass& rank_class);
  /// Slices of one (class, stream) may overlap; a parent comes before its children.
  void add_link(const Link& link);
  void add_slice(const Slice& slice);
  void add_event(const RunEvent& event);
  void add_recovery(const Recovery& recovery);
  /// In order of time.
  void add_spare_count(const SpareCount& count);
  void add_controller_log(const recovery::ControllerLog& log);
  void add_band(const GoodputBand& band);
  void add_training_step(const TrainingStep& step);

  /// Commits what was added so far. Worth calling where the next row may be long in coming.
  void commit();
  /// Enters the outcome, commits, and lets the next writer in. Nothing may be added afterwards.
  Problems finish(const RunOutcome& outcome);
  /// The first error so far, or none.
  [[nodiscard]] Problems problems() const;

 private:
  struct State;
  RunWriter(std::unique_ptr<State> state, std::int64_t run_id);
  State& open_state();

  std::unique_ptr<State> state_;  // null once finished
  std::int64_t run_id_ = 0;
};

}  // namespace trainyard::store
