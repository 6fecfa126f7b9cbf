// Sweeps in a store: written a cell at a time, and read back.
//
// A cell is committed as it is added, and it is there whole or not at all: whatever ends the program, the store holds
// every cell that had come to its end, and the same sweep started again goes on from there. Several processes may work
// on one sweep; what two of them simulate twice is kept once.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "models/base/status.h"
#include "store/database.h"
#include "store/sweep_records.h"

namespace trainyard::store {

class SweepWriter {
 public:
  /// Opens or makes the store `file`, and enters the sweep, or those of its variations that the store's sweep of the
  /// same identity has not. Waits at most `lock_wait_s` while others enter.
  static Result<SweepWriter> open(const std::string& file, const NewSweep& sweep, double lock_wait_s = 10);

  [[nodiscard]] std::int64_t sweep_id() const { return sweep_id_; }
  /// Of each of the NewSweep's variations, its number in the store.
  [[nodiscard]] const std::vector<std::int64_t>& variations() const { return variations_; }

  /// Cells by the store's numbers of variations. Committed on return, if nothing went wrong.
  Problems add(const std::vector<SweepCell>& cells);

 private:
  explicit SweepWriter(Database database) : database_(std::move(database)) {}
  void enter(const NewSweep& sweep);
  void enter_variations(const NewSweep& sweep);

  Database database_;
  std::int64_t sweep_id_ = 0;
  std::vector<std::int64_t> variations_;
};

class SweepReader {
 public:
  static Result<SweepReader> open(const std::string& file);

  /// In the order in which they were worked on: the latest is the last.
  Result<std::vector<SweepRow>> sweeps();
  /// The sweep that `selector` names: an id, "latest", or a name (the latest one so named).
  Result<SweepRow> find(const std::string& selector);
  /// By variation, then by seed.
  Result<std::vector<SweepCell>> cells(std::int64_t sweep_id);

  [[nodiscard]] const std::string& file() const { return file_; }

 private:
  SweepReader(std::string file, Database database) : file_(std::move(file)), database_(std::move(database)) {}
  bool has_sweeps();

  std::string file_;  // canonical
  Database database_;
};

}  // namespace trainyard::store
