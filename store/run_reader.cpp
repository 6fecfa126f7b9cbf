// Read order. A writer commits its run's end before it lets go of the run's lock. So a row that says
// "running", read before the lock was seen free and still there afterwards, has a dead writer. One look
// at each would not do: the writer may end in between.
#include "store/run_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <set>
#include <utility>

#include "store/run_lock.h"
#include "store/store_file.h"

namespace trainyard::store {

namespace {

Run read_run(const Statement& row) {
  Run run;
  run.id = row.integer(0);
  run.name = row.text(1);
  run.kind = run_kind_from(row.text(2)).value_or(RunKind::Run);
  run.status = run_status_from(row.text(3)).value_or(RunStatus::Failed);
  run.started_unix_ns = row.integer(4);
  run.ended_unix_ns = row.optional_integer(5);
  run.version = row.text(6);
  run.commit_id = row.text(7);
  const std::string seed = row.text(8);
  std::from_chars(seed.data(), seed.data() + seed.size(), run.seed);
  run.parameters_json = row.text(9);
  run.host_json = row.text(10);
  run.report_json = row.text(11);
  run.trace_hash = row.text(12);
  return run;
}

Problem no_such_run(const std::string& file, const std::string& selector, const std::vector<Run>& runs) {
  if (runs.empty())
    return {file, "", selector, "the store has no runs yet", "make one with `trainyard sim run SCENARIO`"};
  return {file, "", selector,
          fmt::format("no run has this id or name; the store has {} (ids {} to {})", runs.size(), runs.front().id,
                      runs.back().id),
          "see `trainyard run list`"};
}

}  // namespace

RunReader::RunReader(std::string file, Database database) : file_(std::move(file)), database_(std::move(database)) {}

Result<RunReader> RunReader::open(const std::string& file) {
  const std::string canonical = canonical_store_file(file);
  if (Problems problems = check_header(canonical); !problems.empty()) return problems;
  auto database = open_for_reading(canonical);
  if (!database) return database.problems();
  return RunReader(canonical, std::move(database).value());
}

std::vector<Run> RunReader::select_runs() {
  Statement rows = database_.prepare(
      "SELECT id, name, kind, status, started_unix_ns, ended_unix_ns, version, commit_id, seed, parameters, host, "
      "report, trace_hash FROM runs ORDER BY id");
  std::vector<Run> runs;
  while (rows.next()) runs.push_back(read_run(rows));
  return runs;
}

Result<std::vector<Run>> RunReader::runs() {
  std::vector<Run> runs = select_runs();
  std::set<std::int64_t> orphans;
  for (const Run& run : runs)
    if (run.status == RunStatus::Running && !RunLock::held(file_, run.id)) orphans.insert(run.id);
  if (!orphans.empty()) {
    runs = select_runs();
    for (Run& run : runs)
      if (run.status == RunStatus::Running && orphans.count(run.id) > 0) run.status = RunStatus::Interrupted;
  }
  if (database_.failed()) return database_.problems();
  return runs;
}

Result<Run> RunReader::find(const std::string& selector) {
  auto all = runs();
  if (!all) return all.problems();
  const std::vector<Run>& runs = all.value();
  const auto is_meant = [&](const Run& run) {
    return selector == "latest" || std::to_string(run.id) == selector || run.name == selector;
  };
  // An id comes before a name, should somebody have called a scenario "12".
  for (const Run& run : runs)
    if (std::to_string(run.id) == selector) return run;
  const auto found = std::find_if(runs.rbegin(), runs.rend(), is_meant);
  if (found == runs.rend()) return no_such_run(file_, selector, runs);
  return *found;
}

Result<std::vector<std::string>> RunReader::streams(std::int64_t run_id) {
  Statement rows = database_.prepare("SELECT name FROM streams WHERE run_id = ? ORDER BY stream");
  rows.with(run_id);
  std::vector<std::string> names;
  while (rows.next()) names.push_back(rows.text(0));
  if (database_.failed()) return database_.problems();
  return names;
}

Result<std::vector<RankClass>> RunReader::rank_classes(std::int64_t run_id) {
  Statement rows = database_.prepare(
      "SELECT class, name, stage, representative_rank, ranks FROM rank_classes WHERE run_id = ? ORDER BY class");
  rows.with(run_id);
  std::vector<RankClass> classes;
  std::map<std::int64_t, std::size_t> index_of;
  while (rows.next()) {
    index_of[rows.integer(0)] = classes.size();
    classes.push_back({rows.integer(0), rows.text(1), rows.integer(2), rows.integer(3), rows.integer(4), {}});
  }
  Statement ranges =
      database_.prepare("SELECT class, first_rank, last_rank FROM rank_ranges WHERE run_id = ? ORDER BY first_rank");
  ranges.with(run_id);
  while (ranges.next()) {
    // The foreign key promises that the class is there; someone's own edit may have broken it.
    const auto found = index_of.find(ranges.integer(0));
    if (found != index_of.end()) classes[found->second].ranges.push_back({ranges.integer(1), ranges.integer(2)});
  }
  if (database_.failed()) return database_.problems();
  return classes;
}

Result<std::vector<Slice>> RunReader::slices(std::int64_t run_id, std::int64_t class_id) {
  Statement rows = database_.prepare(
      "SELECT s.stream, l.label, l.category, s.start_ns, s.end_ns FROM slices AS s JOIN labels AS l ON l.id = "
      "s.label_id WHERE s.run_id = ? AND s.class = ? ORDER BY s.stream, s.seq");
  rows.with(run_id, class_id);
  std::vector<Slice> slices;
  while (rows.next())
    slices.push_back({class_id, rows.integer(0), rows.text(1), rows.text(2), rows.integer(3), rows.integer(4)});
  if (database_.failed()) return database_.problems();
  return slices;
}

Result<bool> RunReader::has_timeline(std::int64_t run_id) {
  Statement rows = database_.prepare("SELECT 1 FROM slices WHERE run_id = ? LIMIT 1");
  rows.with(run_id);
  const bool any = rows.next();
  if (database_.failed()) return database_.problems();
  return any;
}

Result<std::vector<RunEvent>> RunReader::events(std::int64_t run_id) {
  Statement rows = database_.prepare("SELECT time_ns, kind, node, text FROM run_events WHERE run_id = ? ORDER BY seq");
  rows.with(run_id);
  std::vector<RunEvent> events;
  while (rows.next()) events.push_back({rows.integer(0), rows.text(1), rows.optional_integer(2), rows.text(3)});
  if (database_.failed()) return database_.problems();
  return events;
}

// A store is upgraded by its next writer, and read as it is.
std::int64_t RunReader::schema() {
  Statement row = database_.prepare("PRAGMA user_version");
  return row.next() ? row.integer(0) : 0;
}

Result<std::vector<Recovery>> RunReader::recoveries(std::int64_t run_id) {
  const std::string select = fmt::format(
      "SELECT recovery, start_ns, end_ns, cause, node, lost_work_ns, {} FROM recoveries WHERE run_id = ? "
      "ORDER BY recovery",
      schema() < 4 ? "NULL" : "restored_step");
  Statement rows = database_.prepare(select.c_str());
  Statement phases = database_.prepare(
      "SELECT phase, start_ns, end_ns, attempt FROM recovery_phases WHERE run_id = ? AND recovery = ? ORDER BY seq");
  rows.with(run_id);
  std::vector<Recovery> recoveries;
  while (rows.next()) {
    Recovery r{rows.integer(1),          rows.optional_integer(2), rows.text(3),
               rows.optional_integer(4), rows.integer(5),          {},
               rows.optional_integer(6)};
    phases.with(run_id, rows.integer(0));
    while (phases.next()) r.phases.push_back({phases.text(0), phases.integer(1), phases.integer(2), phases.integer(3)});
    recoveries.push_back(std::move(r));
  }
  if (database_.failed()) return database_.problems();
  return recoveries;
}

Result<std::vector<Link>> RunReader::links(std::int64_t run_id) {
  std::vector<Link> links;
  if (schema() < 6) return links;
  Statement rows = database_.prepare(
      "SELECT tier, name, alike, capacity_bytes_per_s, bytes, busy FROM links WHERE run_id = ? ORDER BY seq");
  rows.with(run_id);
  while (rows.next())
    links.push_back({rows.text(0), rows.text(1), rows.integer(2), rows.real(3), rows.real(4), rows.real(5)});
  if (database_.failed()) return database_.problems();
  return links;
}

Result<std::vector<SpareCount>> RunReader::spare_counts(std::int64_t run_id) {
  std::vector<SpareCount> counts;
  if (schema() < 4) return counts;
  Statement rows = database_.prepare("SELECT time_ns, free FROM spare_counts WHERE run_id = ? ORDER BY seq");
  rows.with(run_id);
  while (rows.next()) counts.push_back({rows.integer(0), rows.integer(1)});
  if (database_.failed()) return database_.problems();
  return counts;
}

Result<recovery::ControllerLog> RunReader::controller_log(std::int64_t run_id) {
  recovery::ControllerLog log;
  if (schema() < 5) return log;
  Statement row = database_.prepare("SELECT config, lines, events FROM controller_logs WHERE run_id = ?");
  row.with(run_id);
  if (row.next()) log = {row.text(0), row.blob(1), row.integer(2)};
  if (database_.failed()) return database_.problems();
  return log;
}

Result<std::vector<GoodputBand>> RunReader::bands(std::int64_t run_id) {
  Statement rows = database_.prepare("SELECT band, duration_ns FROM goodput_bands WHERE run_id = ? ORDER BY seq");
  rows.with(run_id);
  std::vector<GoodputBand> bands;
  while (rows.next()) bands.push_back({rows.text(0), rows.integer(1)});
  if (database_.failed()) return database_.problems();
  return bands;
}

Result<std::vector<TrainingStep>> RunReader::training_steps(std::int64_t run_id) {
  Statement rows = database_.prepare(
      "SELECT step, loss, grad_norm, start_ns, end_ns FROM training_steps WHERE run_id = ? ORDER BY step");
  rows.with(run_id);
  std::vector<TrainingStep> steps;
  while (rows.next()) steps.push_back({rows.integer(0), rows.real(1), rows.real(2), rows.integer(3), rows.integer(4)});
  if (database_.failed()) return database_.problems();
  return steps;
}

}  // namespace trainyard::store
