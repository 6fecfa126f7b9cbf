// What commands look up in the store: a run with all that happened in it, or a sweep with its cells.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/spares_report.h"
#include "cli/sweep_table.h"
#include "models/base/status.h"
#include "store/run_reader.h"
#include "store/sweep_store.h"

namespace trainyard::cli {

/// All that the store has of a run over time.
struct StoredRun {
  std::string file;
  store::Run run;
  std::vector<store::RunEvent> events;
  std::vector<store::Recovery> recoveries;
  std::vector<store::SpareCount> spares;
};

Result<store::RunReader> open_store(const Context& context);
Result<store::SweepReader> open_sweeps(const Context& context);

/// By id, name or "latest".
Result<StoredRun> find_stored_run(const std::string& selector, const Context& context);
Result<SweepTable> find_sweep(const std::string& selector, const Context& context);

/// A Problem for a step, for real training, and in a store of an older version: nothing is known of spares there.
Result<SparesOverTime> spares_of(const StoredRun& stored);

/// "id", "name", "kind", "status", "seed", "commit", "started_unix_ns", "trace_hash".
nlohmann::ordered_json summary(const store::Run& run);

}  // namespace trainyard::cli
