// Sweeps in a store: what is added is there, at once, and once; joined stores hold what their parts did.
#include <catch2/catch.hpp>

#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <filesystem>

#include "store/merge.h"
#include "store/run_reader.h"
#include "store/run_writer.h"
#include "store/sweep_store.h"
#include "tests/store/sample_run.h"
#include "tests/store/sample_sweep.h"
#include "tests/store/temp_dir.h"

using namespace trainyard;
using namespace trainyard::store;

namespace {

SweepWriter writer_of(const std::string& file, const NewSweep& sweep = sample_sweep()) {
  auto opened = SweepWriter::open(file, sweep);
  if (!opened) FAIL(to_string(opened.problems()[0]));
  return std::move(opened).value();
}

std::vector<SweepCell> cells_of(const std::string& file, const std::string& selector = "latest") {
  SweepReader reader = SweepReader::open(file).value();
  return reader.cells(reader.find(selector).value().id).value();
}

void write_sample_run(const std::string& file, const std::string& name) {
  RunWriter writer = RunWriter::open(file, sample_new_run(name)).value();
  add_sample(writer);
  REQUIRE(writer.finish({}).empty());
}

void execute(const std::string& file, const char* sql) {
  sqlite3* database = nullptr;
  REQUIRE(sqlite3_open(file.c_str(), &database) == SQLITE_OK);
  CHECK(sqlite3_exec(database, sql, nullptr, nullptr, nullptr) == SQLITE_OK);
  sqlite3_close(database);
}

}  // namespace

TEST_CASE("a sweep comes back as it was written") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  SweepCell without_recovery = sample_cell(1, 18446744073709551615ULL);
  without_recovery.recoveries = 0;
  without_recovery.recovery_median_s = without_recovery.recovery_mean_s = without_recovery.recovery_p99_s =
      std::numeric_limits<double>::quiet_NaN();
  SweepWriter writer = writer_of(file);
  REQUIRE(writer.add({sample_cell(1, 9), sample_cell(0, 10), sample_cell(0, 9), without_recovery}).empty());
  SweepReader reader = SweepReader::open(file).value();
  const auto sweeps = reader.sweeps().value();
  REQUIRE(sweeps.size() == 1);
  CHECK(sweeps[0].variations == sample_sweep().variations);
  CHECK(sweeps[0].inputs_json == sample_sweep().inputs_json);
  CHECK(sweeps[0].duration_ns == sample_sweep().duration_ns);
  const auto cells = reader.cells(writer.sweep_id()).value();
  REQUIRE(cells.size() == 4);  // by variation, then by seed as a number
  CHECK((cells[0].seed == 9 && cells[1].seed == 10 && cells[2].variation == 1));
  CHECK(agree(cells[0], sample_cell(0, 9)));
  CHECK(cells[3].seed == 18446744073709551615ULL);
  CHECK(std::isnan(cells[3].recovery_median_s));
  CHECK(agree(cells[3], without_recovery));
  CHECK(reader.find("grid").value().id == writer.sweep_id());
  CHECK_FALSE(reader.find("other").ok());
}

TEST_CASE("the same sweep goes on, with more variations; another identity is another sweep") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  std::int64_t first = 0;
  {
    SweepWriter writer = writer_of(file);
    first = writer.sweep_id();
    REQUIRE(writer.add({sample_cell(0, 1)}).empty());
  }
  NewSweep wider = sample_sweep();
  std::swap(wider.variations[0], wider.variations[1]);
  wider.variations.push_back({"slow", "slow", "{}", "{}"});
  SweepWriter again = writer_of(file, wider);
  CHECK(again.sweep_id() == first);
  CHECK(again.variations() == std::vector<std::int64_t>{1, 0, 2});
  SweepCell other_figures = sample_cell(0, 1);
  other_figures.failures = 99;
  REQUIRE(again.add({other_figures, sample_cell(2, 1)}).empty());
  const auto cells = cells_of(file);
  REQUIRE(cells.size() == 2);
  CHECK(cells[0].failures == 3);  // what is there stays
  CHECK(writer_of(file, sample_sweep("beef")).sweep_id() != first);
  CHECK(cells_of(file).empty());
  writer_of(file);  // worked on again: the latest
  CHECK(cells_of(file).size() == 2);
}

TEST_CASE("what was added survives a kill at any moment") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  for (int round = 0; round < 5; ++round) {
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    const pid_t child = ::fork();
    if (child == 0) {
      auto opened = SweepWriter::open(file, sample_sweep());
      if (!opened) ::_exit(1);
      SweepWriter writer = std::move(opened).value();
      for (std::uint64_t seed = 1000 * static_cast<std::uint64_t>(round);; ++seed) {
        if (!writer.add({sample_cell(0, seed)}).empty() || ::write(ends[1], "x", 1) != 1) ::_exit(1);
      }
    }
    ::close(ends[1]);
    char heard[64];
    std::size_t acknowledged = 0;
    while (acknowledged < 20 + 7 * static_cast<std::size_t>(round)) {
      const ssize_t count = ::read(ends[0], heard, sizeof heard);
      REQUIRE(count > 0);
      acknowledged += static_cast<std::size_t>(count);
    }
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    while (true) {
      const ssize_t count = ::read(ends[0], heard, sizeof heard);
      if (count <= 0) break;
      acknowledged += static_cast<std::size_t>(count);
    }
    ::close(ends[0]);
    std::size_t stored = 0;
    for (const SweepCell& cell : cells_of(file))
      stored += cell.seed / 1000 == static_cast<std::uint64_t>(round) ? 1 : 0;
    CHECK(stored >= acknowledged);
    CHECK(stored <= acknowledged + 1);
  }
}

TEST_CASE("a thousand cells are small") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  {
    SweepWriter writer = writer_of(file);
    std::vector<SweepCell> cells;
    for (std::uint64_t seed = 0; seed < 1000; ++seed) cells.push_back(sample_cell(static_cast<int>(seed % 2), seed));
    REQUIRE(writer.add(cells).empty());
  }
  CHECK(std::filesystem::file_size(file) < 1'000'000);
}

TEST_CASE("a store of the second schema has no sweeps, and gets room for them from its next writer") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  REQUIRE(RunWriter::open(file, sample_new_run()).value().finish({}).empty());
  execute(file,
          "DROP VIEW named_cells; DROP TABLE sweep_cells; DROP TABLE sweep_variations; DROP TABLE sweeps; "
          "DROP TABLE links; DROP TABLE controller_logs; DROP TABLE step_times; DROP TABLE healthy_steps; "
          "DROP TABLE spare_counts; ALTER TABLE recoveries DROP COLUMN restored_step; PRAGMA user_version = 2");
  CHECK(SweepReader::open(file).value().sweeps().value().empty());
  SweepWriter writer = writer_of(file);
  REQUIRE(writer.add({sample_cell(0, 1)}).empty());
  CHECK(cells_of(file).size() == 1);
  CHECK(RunReader::open(file).value().runs().value().size() == 1);
  execute(file, "SELECT sweep, policy, changes, seed FROM named_cells");
}

TEST_CASE("joined stores hold the runs and the cells of their parts") {
  const TempDir dir;
  const std::string a = dir.file("a.sqlite"), b = dir.file("b.sqlite"), out = dir.file("out.sqlite");
  write_sample_run(a, "one");
  write_sample_run(b, "two");
  REQUIRE(writer_of(a).add({sample_cell(0, 1), sample_cell(1, 2)}).empty());
  NewSweep other_order = sample_sweep();
  std::swap(other_order.variations[0], other_order.variations[1]);
  REQUIRE(writer_of(b, other_order).add({sample_cell(1, 1), sample_cell(0, 1)}).empty());  // (fast, 1) is in both
  REQUIRE(writer_of(b, sample_sweep("beef")).add({sample_cell(0, 1)}).empty());
  const Result<MergeCounts> merged = merge({a, b}, out);
  if (!merged) FAIL(to_string(merged.problems()[0]));
  CHECK(merged.value().runs == 2);
  CHECK(merged.value().sweeps == 2);
  CHECK(merged.value().cells == 4);
  CHECK(merged.value().cells_again == 1);
  RunReader runs = RunReader::open(out).value();
  RunReader original = RunReader::open(b).value();
  const Run run = runs.find("two").value();
  CHECK(run.started_unix_ns == original.find("two").value().started_unix_ns);
  CHECK(run.status == RunStatus::Finished);
  const auto slices = runs.slices(run.id, 0).value();
  const auto of_original = original.slices(1, 0).value();
  REQUIRE(slices.size() == of_original.size());
  REQUIRE_FALSE(slices.empty());
  for (std::size_t i = 0; i < slices.size(); ++i) CHECK(slices[i].label == of_original[i].label);
  CHECK(runs.recoveries(run.id).value().size() == original.recoveries(1).value().size());
  SweepReader sweeps = SweepReader::open(out).value();
  std::size_t cells = 0;
  const std::vector<SweepRow> joined = sweeps.sweeps().value();
  for (const SweepRow& sweep : joined) cells += sweeps.cells(sweep.id).value().size();
  CHECK(cells == 4);
  CHECK_FALSE(std::filesystem::exists(out + ".part"));
  // What is joined once more is kept once.
  const MergeCounts again = merge({out, a}, dir.file("again.sqlite")).value();
  CHECK(again.runs == 2);
  CHECK(again.runs_again == 1);
  CHECK(again.cells == 4);
  CHECK(again.cells_again == 2);
}

TEST_CASE("cells that disagree are an error that names both stores, and nothing is made") {
  const TempDir dir;
  const std::string a = dir.file("a.sqlite"), b = dir.file("b.sqlite"), out = dir.file("out.sqlite");
  SweepCell other = sample_cell(0, 1);
  other.steps_done += 1;
  REQUIRE(writer_of(a).add({sample_cell(0, 1)}).empty());
  REQUIRE(writer_of(b).add({other}).empty());
  const Result<MergeCounts> merged = merge({a, b}, out);
  REQUIRE_FALSE(merged.ok());
  CHECK(merged.problems()[0].file == b);
  CHECK(merged.problems()[0].rule.find(a) != std::string::npos);
  CHECK(merged.problems()[0].value == "sweep grid, fast, seed 1");
  CHECK_FALSE(std::filesystem::exists(out));
  CHECK_FALSE(std::filesystem::exists(out + ".part"));
}

TEST_CASE("what cannot be joined is refused") {
  const TempDir dir;
  const std::string a = dir.file("a.sqlite"), out = dir.file("out.sqlite");
  REQUIRE(writer_of(a).add({sample_cell(0, 1)}).empty());
  CHECK(merge({a, a}, out).problems()[0].rule == "is named twice");
  CHECK(merge({a}, a).problems()[0].rule.find("is there already") == 0);
  CHECK_FALSE(merge({a, dir.file("none.sqlite")}, out).ok());
  write_file(dir.file("text"),
             "no store at all, but some text that is longer than a header of SQLite would be, and then more");
  CHECK_FALSE(merge({a, dir.file("text")}, out).ok());
  RunWriter living = RunWriter::open(a, sample_new_run()).value();
  CHECK(merge({a}, out).problems()[0].rule == "is still being written");
  CHECK_FALSE(std::filesystem::exists(out));
}
