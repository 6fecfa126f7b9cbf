#include "cli/stored_run.h"

#include <fmt/format.h>

#include "store/store_file.h"

namespace trainyard::cli {

Result<store::RunReader> open_store(const Context& context) {
  return store::RunReader::open(context.store_file.empty() ? store::default_store_file() : context.store_file);
}

Result<store::SweepReader> open_sweeps(const Context& context) {
  return store::SweepReader::open(context.store_file.empty() ? store::default_store_file() : context.store_file);
}

Result<StoredRun> find_stored_run(const std::string& selector, const Context& context) {
  Result<store::RunReader> opened = open_store(context);
  if (!opened) return opened.problems();
  store::RunReader reader = std::move(opened).value();
  Result<store::Run> found = reader.find(selector);
  if (!found) return found.problems();
  StoredRun out{reader.file(), std::move(found).value(), {}, {}, {}};
  Result<std::vector<store::RunEvent>> events = reader.events(out.run.id);
  Result<std::vector<store::Recovery>> recoveries = reader.recoveries(out.run.id);
  Result<std::vector<store::SpareCount>> spares = reader.spare_counts(out.run.id);
  if (!events) return events.problems();
  if (!recoveries) return recoveries.problems();
  if (!spares) return spares.problems();
  out.events = std::move(events).value();
  out.recoveries = std::move(recoveries).value();
  out.spares = std::move(spares).value();
  return out;
}

Result<SweepTable> find_sweep(const std::string& selector, const Context& context) {
  Result<store::SweepReader> opened = open_sweeps(context);
  if (!opened) return opened.problems();
  store::SweepReader reader = std::move(opened).value();
  Result<store::SweepRow> found = reader.find(selector);
  if (!found) return found.problems();
  const Result<std::vector<store::SweepCell>> cells = reader.cells(found.value().id);
  if (!cells) return cells.problems();
  return make_table(std::move(found).value(), cells.value());
}

Result<SparesOverTime> spares_of(const StoredRun& stored) {
  if (stored.spares.empty() || stored.events.empty() || stored.events.back().time_ns <= 0)
    return Problems{{stored.file, "", fmt::format("run {}", stored.run.id), "has no count of spares over time",
                     "name a run over time that this version simulated to its end (see `trainyard run list`)"}};
  return SparesOverTime(stored.spares, stored.events.back().time_ns);
}

nlohmann::ordered_json summary(const store::Run& run) {
  return {{"id", run.id},
          {"name", run.name},
          {"kind", to_string(run.kind)},
          {"status", to_string(run.status)},
          {"seed", run.seed},
          {"commit", run.commit_id},
          {"started_unix_ns", run.started_unix_ns},
          {"trace_hash", run.trace_hash}};
}

}  // namespace trainyard::cli
