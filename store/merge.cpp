#include "store/merge.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "store/database.h"
#include "store/run_reader.h"
#include "store/store_file.h"
#include "store/sweep_store.h"

namespace trainyard::store {

namespace {

// Tables whose rows belong to a run, parents first, with their columns after run_id, and the schema that brought them;
// columns that a later schema added are copied from stores that have them.
struct RunTable {
  const char* name;
  std::string columns;
  std::int64_t schema;
  const char* added = "";
  std::int64_t added_by = 0;
};
const RunTable kRunTables[] = {
    {"streams", "stream, name", 1},
    {"rank_classes", "class, name, stage, representative_rank, ranks", 1},
    {"rank_ranges", "first_rank, last_rank, class", 1},
    {"links", "seq, tier, name, alike, capacity_bytes_per_s, bytes, busy", 6},
    {"run_events", "seq, time_ns, kind, node, text", 1},
    {"recoveries", "recovery, start_ns, end_ns, cause, node, lost_work_ns", 1, ", restored_step", 4},
    {"recovery_phases", "recovery, seq, phase, attempt, start_ns, end_ns", 1},
    {"spare_counts", "seq, time_ns, free", 4},
    {"controller_logs", "config, events, lines", 5},
    {"goodput_bands", "seq, band, duration_ns", 1},
    {"training_steps", "step, loss, grad_norm, start_ns, end_ns", 2},
};

bool exists(const std::string& file) {
  struct stat status {};
  return ::stat(file.c_str(), &status) == 0;
}

Problems check_files(const std::vector<std::string>& files, const std::string& out) {
  Problems problems;
  if (exists(out))
    problems.push_back({out, "", "", "is there already, and merging makes a new store", "name another, or remove it"});
  std::set<std::string> seen;
  for (const std::string& file : files) {
    if (!seen.insert(canonical_store_file(file)).second)
      problems.push_back({file, "", "", "is named twice", "name each store once"});
  }
  return problems;
}

// What makes a run the same run in two stores.
using RunIdentity = std::tuple<std::string, std::int64_t, std::string, std::uint64_t, std::string, std::string>;
RunIdentity identity_of(const Run& run) {
  return {run.name, run.started_unix_ns, run.commit_id, run.seed, run.trace_hash, run.parameters_json};
}

// Copies the runs of one store after another.
class RunCopier {
 public:
  explicit RunCopier(Database& into) : into_(into) {}

  Problems copy(const std::string& file, MergeCounts& counts) {
    Result<RunReader> reader = RunReader::open(file);
    if (!reader) return reader.problems();
    RunReader opened = std::move(reader).value();
    const Result<std::vector<Run>> runs = opened.runs();
    if (!runs) return runs.problems();
    for (const Run& run : runs.value()) {
      if (run.status == RunStatus::Running)
        return {{file, "", fmt::format("run {}", run.id), "is still being written", "wait for its end, or stop it"}};
    }
    if (!into_.attach(opened.file(), "source")) return into_.problems();
    into_.execute("BEGIN IMMEDIATE");
    into_.execute(
        "INSERT OR IGNORE INTO main.labels (label, category) SELECT label, category FROM source.labels ORDER BY id");
    for (const Run& run : runs.value()) {
      if (!known_.insert(identity_of(run)).second) {
        ++counts.runs_again;
        continue;
      }
      copy_run(run);
      ++counts.runs;
    }
    into_.execute("COMMIT");
    into_.execute("DETACH source");
    return into_.problems();
  }

 private:
  std::int64_t source_schema() {
    Statement row = into_.prepare("PRAGMA source.user_version");
    return row.next() ? row.integer(0) : 0;
  }

  // The status is the reader's: a run whose writer died is interrupted, whatever its row says.
  void copy_run(const Run& run) {
    into_
        .prepare(
            "INSERT INTO main.runs (name, kind, status, started_unix_ns, ended_unix_ns, version, commit_id, seed, "
            "parameters, host, report, trace_hash) SELECT name, kind, ?, started_unix_ns, ended_unix_ns, version, "
            "commit_id, seed, parameters, host, report, trace_hash FROM source.runs WHERE id = ?")
        .with(to_string(run.status), run.id)
        .run();
    const std::int64_t id = into_.last_insert_id(), schema = source_schema();
    for (const RunTable& table : kRunTables) {
      if (table.schema > schema) continue;
      const std::string columns = table.columns + (table.added_by <= schema ? table.added : "");
      const std::string sql = fmt::format(
          "INSERT INTO main.{0} (run_id, {1}) SELECT ?, {1} FROM source.{0} WHERE run_id = ?", table.name, columns);
      into_.prepare(sql.c_str()).with(id, run.id).run();
    }
    into_
        .prepare(
            "INSERT INTO main.slices SELECT ?, s.class, s.stream, s.seq, m.id, s.start_ns, s.end_ns FROM "
            "source.slices AS s JOIN source.labels AS l ON l.id = s.label_id JOIN main.labels AS m ON m.label = "
            "l.label AND m.category = l.category WHERE s.run_id = ?")
        .with(id, run.id)
        .run();
  }

  Database& into_;
  std::set<RunIdentity> known_;
};

Problems copy_runs(const std::vector<std::string>& files, const std::string& part, MergeCounts& counts) {
  Result<Database> opened = open_for_writing(part);
  if (!opened) return opened.problems();
  Database into = std::move(opened).value();
  RunCopier copier(into);
  for (const std::string& file : files) {
    if (Problems problems = copier.copy(file, counts); !problems.empty()) return problems;
  }
  return {};
}

// Joins the sweeps of one store after another.
class SweepJoiner {
 public:
  SweepJoiner(std::string into, MergeCounts& counts) : into_(std::move(into)), counts_(counts) {}

  Problems join(const std::string& file) {
    Result<SweepReader> opened = SweepReader::open(file);
    if (!opened) return opened.problems();
    SweepReader reader = std::move(opened).value();
    const Result<std::vector<SweepRow>> sweeps = reader.sweeps();
    if (!sweeps) return sweeps.problems();
    for (const SweepRow& sweep : sweeps.value()) {
      const Result<std::vector<SweepCell>> cells = reader.cells(sweep.id);
      if (!cells) return cells.problems();
      if (Problems problems = join(sweep, cells.value(), file); !problems.empty()) return problems;
    }
    return {};
  }

 private:
  struct Known {
    SweepCell cell;
    std::string file;
  };

  Problems join(const SweepRow& sweep, const std::vector<SweepCell>& cells, const std::string& file) {
    Result<SweepWriter> writer = SweepWriter::open(into_, sweep);
    if (!writer) return writer.problems();
    SweepWriter opened = std::move(writer).value();
    if (sweeps_.insert(sweep.identity).second) ++counts_.sweeps;
    std::vector<SweepCell> fresh;
    for (SweepCell cell : cells) {
      const std::string& variation = sweep.variations.at(static_cast<std::size_t>(cell.variation)).name;
      const auto [entry, is_new] = known_.try_emplace({sweep.identity, variation, cell.seed}, Known{cell, file});
      if (!is_new && !agree(entry->second.cell, cell)) return {disagreement(sweep, variation, entry->second, file)};
      ++(is_new ? counts_.cells : counts_.cells_again);
      if (!is_new) continue;
      cell.variation = opened.variations()[static_cast<std::size_t>(cell.variation)];
      fresh.push_back(std::move(cell));
    }
    return opened.add(fresh);
  }

  static Problem disagreement(const SweepRow& sweep, const std::string& variation, const Known& known,
                              const std::string& file) {
    return {
        file, "", fmt::format("sweep {}, {}, seed {}", sweep.name, variation, known.cell.seed),
        fmt::format("differs from the same cell of {}, which no two simulations of one commit may", known.file),
        "were they made on processors of different kinds, or edited? keep one of them, and simulate the rest again"};
  }

  std::string into_;
  MergeCounts& counts_;
  std::set<std::string> sweeps_;
  std::map<std::tuple<std::string, std::string, std::uint64_t>, Known> known_;
};

Problems fill(const std::vector<std::string>& files, const std::string& part, MergeCounts& counts) {
  if (Problems problems = copy_runs(files, part, counts); !problems.empty()) return problems;
  SweepJoiner joiner(part, counts);
  for (const std::string& file : files) {
    if (Problems problems = joiner.join(file); !problems.empty()) return problems;
  }
  return {};
}

}  // namespace

Result<MergeCounts> merge(const std::vector<std::string>& files, const std::string& out) {
  if (Problems problems = check_files(files, out); !problems.empty()) return problems;
  const std::string target = canonical_store_file(out), part = target + ".part";
  remove_with_side_files(part);
  MergeCounts counts;
  Problems problems = fill(files, part, counts);
  if (problems.empty() && std::rename(part.c_str(), target.c_str()) != 0)
    problems.push_back({out, "", "", fmt::format("cannot be written: {}", std::strerror(errno)),
                        "check the folder and its permissions", ProblemKind::MissingCapability});
  if (problems.empty()) return counts;
  remove_with_side_files(part);
  return problems;
}

}  // namespace trainyard::store
