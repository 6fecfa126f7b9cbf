// The cells of a sweep: what makes it this sweep, which cells are to be done here, which are there already, and the
// simulation of the rest.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/job.h"
#include "cli/shard.h"
#include "cli/step_memo.h"
#include "cli/sweep_table.h"
#include "models/spec/sweep_spec.h"
#include "store/sweep_store.h"

namespace trainyard::cli {

/// What is entered in the store: with the identity, which is that of everything that all cells depend on.
Result<store::NewSweep> describe(const Sweep& sweep, const Job& job);

/// Names of the inputs in which two sweeps differ.
std::vector<std::string> changed_inputs(const std::string& inputs_json, const std::string& other_inputs_json);

/// Cells of one sweep that are wanted here, and those of them that are done: in a store, or in memory alone.
class SweepCells {
 public:
  using Key = std::pair<std::size_t, std::uint64_t>;  // variation of the sweep, seed

  /// With an empty `store_file` nothing is stored.
  static Result<SweepCells> open(const store::NewSweep& sweep, std::vector<Key> wanted, const std::string& store_file);

  [[nodiscard]] std::vector<Key> missing() const;
  [[nodiscard]] std::size_t wanted() const { return wanted_.size(); }
  /// One more is done. It is in the store on return, unless that failed.
  Problems add(std::size_t variation, const store::SweepCell& cell);
  /// The wanted cells that are done.
  [[nodiscard]] SweepTable table() const;
  [[nodiscard]] std::int64_t sweep_id() const { return writer_ ? writer_->sweep_id() : 0; }

 private:
  SweepCells() = default;
  Problems read_done(const std::string& store_file);

  store::NewSweep sweep_;
  std::vector<Key> wanted_;
  std::map<Key, store::SweepCell> done_;
  std::optional<store::SweepWriter> writer_;
};

/// Seed by seed, so that a sweep that is interrupted leaves whole pairs.
std::vector<SweepCells::Key> cells_of(const Sweep& sweep, const Shard& shard);

struct SweepSimulation {
  int jobs = 0;            // simulations at a time; 0: one per processor
  std::string store_file;  // for step times; empty: none
  std::string progress = "none";
};

/// Simulates the cells that are missing.
Problems simulate(const Sweep& sweep, const Job& job, const SweepSimulation& options, SweepCells& cells);

}  // namespace trainyard::cli
