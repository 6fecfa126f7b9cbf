#include "store/sweep_store.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "store/run_lock.h"
#include "store/store_file.h"

namespace trainyard::store {

namespace {

// Wall-clock time, for people who read a list of sweeps; no result depends on it.
std::int64_t unix_now_ns() {
  using std::chrono::nanoseconds;
  return std::chrono::duration_cast<nanoseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string bands_text(const std::vector<GoodputBand>& bands) {
  nlohmann::ordered_json out = nlohmann::ordered_json::object();
  for (const GoodputBand& band : bands) out[band.band] = band.duration_ns;
  return out.dump();
}

// A store may have been edited by anyone: what is no band is left out.
std::vector<GoodputBand> bands_from(const std::string& text) {
  std::vector<GoodputBand> bands;
  const auto parsed = nlohmann::ordered_json::parse(text, nullptr, false);
  if (!parsed.is_object()) return bands;
  for (const auto& [name, duration_ns] : parsed.items())
    if (duration_ns.is_number_integer()) bands.push_back({name, duration_ns.get<std::int64_t>()});
  return bands;
}

SweepCell read_cell(const Statement& row) {
  SweepCell cell;
  cell.variation = row.integer(0);
  const std::string seed = row.text(1);
  std::from_chars(seed.data(), seed.data() + seed.size(), cell.seed);
  cell.effective_training_time = row.real(2);
  cell.failures = row.integer(3);
  cell.recoveries = row.integer(4);
  cell.recovery_median_s = row.real(5);
  cell.recovery_mean_s = row.real(6);
  cell.recovery_p99_s = row.real(7);
  cell.lost_work_ns = row.integer(8);
  cell.bands = bands_from(row.text(9));
  cell.checkpoint_interval_s = row.real(10);
  cell.checkpoints = row.integer(11);
  cell.steps_done = row.integer(12);
  cell.steps_committed = row.integer(13);
  cell.pages = row.integer(14);
  cell.spares_configured = row.integer(15);
  cell.spares_fewest = row.integer(16);
  cell.spares_mean = row.real(17);
  cell.waiting_for = row.text(18);
  cell.trace_hash = row.text(19);
  return cell;
}

SweepRow read_sweep(const Statement& row) {
  SweepRow sweep;
  sweep.id = row.integer(0);
  sweep.identity = row.text(1);
  sweep.name = row.text(2);
  sweep.scenario = row.text(3);
  sweep.duration_ns = row.integer(4);
  sweep.version = row.text(5);
  sweep.commit_id = row.text(6);
  sweep.inputs_json = row.text(7);
  sweep.started_unix_ns = row.integer(8);
  sweep.worked_on_unix_ns = row.integer(9);
  return sweep;
}

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

}  // namespace

bool agree(const SweepCell& a, const SweepCell& b) {
  const auto counts = [](const SweepCell& c) {
    return std::make_tuple(c.failures, c.recoveries, c.lost_work_ns, bands_text(c.bands), c.checkpoints, c.steps_done,
                           c.steps_committed, c.pages, c.spares_configured, c.spares_fewest, c.waiting_for,
                           c.trace_hash);
  };
  return counts(a) == counts(b) && same(a.effective_training_time, b.effective_training_time) &&
         same(a.recovery_median_s, b.recovery_median_s) && same(a.recovery_mean_s, b.recovery_mean_s) &&
         same(a.recovery_p99_s, b.recovery_p99_s) && same(a.checkpoint_interval_s, b.checkpoint_interval_s) &&
         same(a.spares_mean, b.spares_mean);
}

Result<SweepWriter> SweepWriter::open(const std::string& file, const NewSweep& sweep, double lock_wait_s) {
  const std::string canonical = canonical_store_file(file);
  auto lock = RunLock::enter(canonical, lock_wait_s);
  if (!lock) return lock.problems();
  auto database = open_for_writing(canonical);
  if (!database) return database.problems();
  SweepWriter writer(std::move(database).value());
  writer.enter(sweep);
  if (writer.database_.failed()) return writer.database_.problems();
  return writer;
}

void SweepWriter::enter(const NewSweep& sweep) {
  const std::int64_t now_ns = unix_now_ns();
  database_.execute("BEGIN IMMEDIATE");
  database_
      .prepare(
          "INSERT INTO sweeps (identity, name, scenario, duration_ns, version, commit_id, inputs, started_unix_ns, "
          "worked_on_unix_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (identity) DO UPDATE SET "
          "worked_on_unix_ns = excluded.worked_on_unix_ns")
      .with(sweep.identity, sweep.name, sweep.scenario, sweep.duration_ns, sweep.version, sweep.commit_id,
            sweep.inputs_json, sweep.started_unix_ns > 0 ? sweep.started_unix_ns : now_ns, now_ns)
      .run();
  {
    Statement row = database_.prepare("SELECT id FROM sweeps WHERE identity = ?");
    if (row.with(sweep.identity).next()) sweep_id_ = row.integer(0);
  }
  enter_variations(sweep);
  database_.execute("COMMIT");
}

void SweepWriter::enter_variations(const NewSweep& sweep) {
  std::map<std::string, std::int64_t> known;
  {
    Statement rows = database_.prepare("SELECT name, variation FROM sweep_variations WHERE sweep_id = ?");
    rows.with(sweep_id_);
    while (rows.next()) known[rows.text(0)] = rows.integer(1);
  }
  Statement insert = database_.prepare("INSERT INTO sweep_variations VALUES (?, ?, ?, ?, ?, ?)");
  for (const SweepVariation& its : sweep.variations) {
    const auto [entry, is_new] = known.try_emplace(its.name, static_cast<std::int64_t>(known.size()));
    if (is_new) insert.with(sweep_id_, entry->second, its.name, its.policy, its.changes_json, its.policy_json).run();
    variations_.push_back(entry->second);
  }
}

Problems SweepWriter::add(const std::vector<SweepCell>& cells) {
  database_.execute("BEGIN IMMEDIATE");
  {
    Statement insert = database_.prepare(
        "INSERT OR IGNORE INTO sweep_cells VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
    for (const SweepCell& c : cells) {
      insert
          .with(sweep_id_, c.variation, std::to_string(c.seed), c.effective_training_time, c.failures, c.recoveries,
                c.recovery_median_s, c.recovery_mean_s, c.recovery_p99_s, c.lost_work_ns, bands_text(c.bands),
                c.checkpoint_interval_s, c.checkpoints, c.steps_done, c.steps_committed, c.pages, c.spares_configured,
                c.spares_fewest, c.spares_mean, c.waiting_for, c.trace_hash)
          .run();
    }
  }
  database_.execute("COMMIT");
  return database_.problems();
}

Result<SweepReader> SweepReader::open(const std::string& file) {
  const std::string canonical = canonical_store_file(file);
  if (Problems problems = check_header(canonical); !problems.empty()) return problems;
  auto database = open_for_reading(canonical);
  if (!database) return database.problems();
  return SweepReader(canonical, std::move(database).value());
}

// Stores of schema 1 and 2 have no sweeps, and a reader does not upgrade them.
bool SweepReader::has_sweeps() {
  return database_.prepare("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'sweep_cells'").next();
}

Result<std::vector<SweepRow>> SweepReader::sweeps() {
  std::vector<SweepRow> sweeps;
  if (has_sweeps()) {
    Statement rows = database_.prepare(
        "SELECT id, identity, name, scenario, duration_ns, version, commit_id, inputs, started_unix_ns, "
        "worked_on_unix_ns FROM sweeps ORDER BY worked_on_unix_ns, id");
    Statement variations = database_.prepare(
        "SELECT name, policy, changes, policy_json FROM sweep_variations WHERE sweep_id = ? ORDER BY variation");
    while (rows.next()) {
      SweepRow& sweep = sweeps.emplace_back(read_sweep(rows));
      variations.with(sweep.id);
      while (variations.next())
        sweep.variations.push_back({variations.text(0), variations.text(1), variations.text(2), variations.text(3)});
    }
  }
  if (database_.failed()) return database_.problems();
  return sweeps;
}

Result<SweepRow> SweepReader::find(const std::string& selector) {
  const Result<std::vector<SweepRow>> all = sweeps();
  if (!all) return all.problems();
  const std::vector<SweepRow>& rows = all.value();
  if (rows.empty())
    return Problem{file_, "", selector, "the store has no sweeps yet", "make one with `trainyard sim sweep SCENARIO`"};
  for (const SweepRow& row : rows)
    if (std::to_string(row.id) == selector) return row;
  const auto is_meant = [&](const SweepRow& row) { return selector == "latest" || row.name == selector; };
  const auto found = std::find_if(rows.rbegin(), rows.rend(), is_meant);
  if (found != rows.rend()) return *found;
  std::string names;
  for (const SweepRow& row : rows) names += fmt::format("{}{} ({})", names.empty() ? "" : ", ", row.id, row.name);
  return Problem{file_, "", selector, "no sweep has this id or name", "use one of " + names};
}

Result<std::vector<SweepCell>> SweepReader::cells(std::int64_t sweep_id) {
  std::vector<SweepCell> cells;
  if (has_sweeps()) {
    Statement rows = database_.prepare(
        "SELECT variation, seed, effective_training_time, failures, recoveries, recovery_median_s, recovery_mean_s, "
        "recovery_p99_s, lost_work_ns, bands, checkpoint_interval_s, checkpoints, steps_done, steps_committed, pages, "
        "spares_configured, spares_fewest, spares_mean, waiting_for, trace_hash FROM sweep_cells WHERE sweep_id = ? "
        "AND variation BETWEEN 0 AND (SELECT count(*) - 1 FROM sweep_variations WHERE sweep_id = ?)");
    rows.with(sweep_id, sweep_id);
    while (rows.next()) cells.push_back(read_cell(rows));
  }
  if (database_.failed()) return database_.problems();
  std::sort(cells.begin(), cells.end(), [](const SweepCell& a, const SweepCell& b) {
    return std::tie(a.variation, a.seed) < std::tie(b.variation, b.seed);
  });
  return cells;
}

}  // namespace trainyard::store
