// Files that are not stores, or not any more: one clear Problem from readers and writers, and not a
// byte changed.
#include "store/store_file.h"

#include <catch2/catch.hpp>

#include <sqlite3.h>
#include <sys/stat.h>

#include <cmath>
#include <limits>

#include "models/base/random.h"
#include "store/merge.h"
#include "store/run_reader.h"
#include "store/run_writer.h"
#include "tests/store/sample_run.h"
#include "tests/store/temp_dir.h"

using namespace trainyard;
using namespace trainyard::store;

namespace {

std::string execute(const std::string& file, const std::string& sql) {
  sqlite3* handle = nullptr;
  sqlite3_open(file.c_str(), &handle);
  char* error = nullptr;
  sqlite3_exec(handle, sql.c_str(), nullptr, nullptr, &error);
  const std::string message = error == nullptr ? "" : error;
  sqlite3_free(error);
  sqlite3_close(handle);
  return message;
}

std::string big_store(const TempDir& dir) {
  const std::string file = dir.file("s.sqlite");
  auto opened = RunWriter::open(file, sample_new_run());
  REQUIRE(opened.ok());
  RunWriter writer = std::move(opened).value();
  add_sample(writer);
  for (int i = 0; i < 5000; ++i) writer.add_event({i, "tick", i, "something happened here"});
  REQUIRE(writer.finish({RunStatus::Finished, sample_report(), "00"}).empty());
  return file;
}

// The rule that the reader states, when reader and writer both refuse with one problem and leave the file alone.
std::string refusal(const std::string& file) {
  const std::string before = read_file(file);
  const auto reader = RunReader::open(file);
  REQUIRE_FALSE(reader.ok());
  REQUIRE(reader.problems().size() == 1);
  const auto writer = RunWriter::open(file, sample_new_run());
  REQUIRE_FALSE(writer.ok());
  REQUIRE(writer.problems().size() == 1);
  CHECK(read_file(file) == before);
  CHECK_FALSE(reader.problems()[0].fix.empty());
  return reader.problems()[0].rule;
}

bool says(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a file that is no SQLite file is refused") {
  const TempDir dir;
  const std::string file = dir.file("notes.txt");
  for (const std::string& bytes : {std::string("{}"), std::string("SQLite format 3, I promise"), std::string(5000, 'x'),
                                   std::string(5000, '\0')}) {
    write_file(file, bytes);
    CHECK(says(refusal(file), "not an SQLite file"));
  }
}

TEST_CASE("another program's database is refused, in both journal modes") {
  const TempDir dir;
  for (const char* mode : {"DELETE", "WAL"}) {
    const std::string file = dir.file(std::string("other-") + mode);
    REQUIRE(execute(file, std::string("PRAGMA journal_mode = ") + mode + "; CREATE TABLE runs (id);").empty());
    CHECK(says(refusal(file), "another program"));
    CHECK_FALSE(says(read_file(file), "interrupted"));
  }
}

TEST_CASE("a newer schema is refused, and says so") {
  const TempDir dir;
  const std::string file = big_store(dir);
  REQUIRE(execute(file, "PRAGMA user_version = 999").empty());
  CHECK(says(refusal(file), "newer Trainyard (schema 999"));
}

TEST_CASE("a store of the first schema is brought up to date by its next writer, with all it holds") {
  const TempDir dir;
  const std::string file = big_store(dir);
  const std::string slices = std::to_string(RunReader::open(file).value().slices(1, 0).value().size());
  // As the first schema had it: no runs that trained, no sweeps, nothing of spares and restored steps.
  REQUIRE(execute(file, R"(
    PRAGMA foreign_keys = OFF; DROP TABLE training_steps; DROP VIEW named_cells; DROP TABLE sweep_cells;
    DROP TABLE sweep_variations; DROP TABLE sweeps; DROP TABLE spare_counts;
    DROP TABLE links; DROP TABLE controller_logs; DROP TABLE step_times; DROP TABLE healthy_steps;
    ALTER TABLE recoveries DROP COLUMN restored_step;
    CREATE TABLE old (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL,
      kind TEXT NOT NULL CHECK (kind IN ('step', 'run')), status TEXT NOT NULL, started_unix_ns INTEGER NOT NULL,
      ended_unix_ns INTEGER, version TEXT NOT NULL, commit_id TEXT NOT NULL, seed TEXT NOT NULL, parameters TEXT NOT NULL,
      host TEXT NOT NULL, report TEXT, trace_hash TEXT) STRICT;
    INSERT INTO old SELECT * FROM runs; DROP TABLE runs; ALTER TABLE old RENAME TO runs; PRAGMA user_version = 1;)")
              .empty());
  {  // readers need no upgrade
    RunReader reader = RunReader::open(file).value();
    REQUIRE(reader.runs().ok());
    CHECK(reader.spare_counts(1).value().empty());
    CHECK(reader.links(1).value().empty());
    CHECK(reader.controller_log(1).value().config.empty());
    const auto recoveries = reader.recoveries(1).value();
    REQUIRE(recoveries.size() == 2);
    CHECK_FALSE(recoveries[0].restored_step.has_value());
  }
  {  // nor does joining stores
    const std::string joined = dir.file("joined.sqlite");
    REQUIRE(merge({file}, joined).ok());
    CHECK(RunReader::open(joined).value().recoveries(1).value()[0].lost_work_ns == 41'000'000'000);
  }
  NewRun run = sample_new_run();
  run.kind = RunKind::Exec;
  {
    auto writer = RunWriter::open(file, run);
    REQUIRE(writer.ok());
    RunWriter open = std::move(writer).value();
    open.add_training_step({0, 5.5, 1.25, 10, 20});
    open.add_training_step({1, std::numeric_limits<double>::quiet_NaN(), 2, 20, 35});
    REQUIRE(open.finish({}).empty());
  }
  RunReader reader = RunReader::open(file).value();
  const auto runs = reader.runs().value();
  REQUIRE(runs.size() == 2);
  CHECK(reader.recoveries(1).value()[0].phases.size() == 4);
  CHECK(reader.spare_counts(1).value().empty());
  CHECK(runs[0].id == 1);
  CHECK(runs[1].kind == RunKind::Exec);
  CHECK(std::to_string(reader.slices(1, 0).value().size()) == slices);
  const auto steps = reader.training_steps(runs[1].id).value();
  REQUIRE(steps.size() == 2);
  CHECK(steps[0].loss == 5.5);
  CHECK(std::isnan(steps[1].loss));
  CHECK(steps[1].end_ns == 35);
  CHECK(check_pages(file).empty());
}

TEST_CASE("a truncated store is refused") {
  const TempDir dir;
  const std::string whole = read_file(big_store(dir));
  const std::string file = dir.file("cut.sqlite");
  RandomStream stream(1, "truncate");
  for (int i = 0; i < 20; ++i) {
    write_file(file, whole.substr(0, 1 + stream.below(whole.size() - 5000)));
    refusal(file);
  }
}

TEST_CASE("a damaged page never gets a writer to touch the file, nor anything worse than a Problem") {
  const TempDir dir;
  const std::string whole = read_file(big_store(dir));
  const std::string file = dir.file("damaged.sqlite");
  RandomStream stream(1, "damage");
  int refused = 0;
  for (int i = 0; i < 60; ++i) {
    std::string bytes = whole;
    const std::size_t page = 1 + stream.below(whole.size() / 4096 - 1);
    for (int k = 0; k < 64; ++k) bytes[page * 4096 + k] = static_cast<char>(stream.below(256));
    write_file(file, bytes);
    auto writer = RunWriter::open(file, sample_new_run());
    if (!writer) {
      ++refused;
      CHECK(says(writer.problems()[0].rule, "damaged"));
      CHECK(read_file(file) == bytes);
    }
    auto opened = RunReader::open(file);
    if (!opened) continue;
    RunReader reader = std::move(opened).value();
    static_cast<void>(reader.events(1));
    static_cast<void>(reader.slices(1, 0));
    static_cast<void>(reader.runs());
  }
  CHECK(refused == 60);
}

TEST_CASE("missing files, directories and missing directories are told apart") {
  const TempDir dir;
  const auto missing = RunReader::open(dir.file("none.sqlite"));
  REQUIRE_FALSE(missing.ok());
  CHECK(says(missing.problems()[0].rule, "no run store"));
  CHECK_FALSE(std::filesystem::exists(dir.file("none.sqlite")));
  const auto directory = RunReader::open(dir.path());
  REQUIRE_FALSE(directory.ok());
  CHECK(says(directory.problems()[0].rule, "regular file"));
  const auto nowhere = RunWriter::open(dir.file("no/such/dir/s.sqlite"), sample_new_run());
  REQUIRE_FALSE(nowhere.ok());
  CHECK(nowhere.problems()[0].kind == ProblemKind::MissingCapability);
}

TEST_CASE("a pipe is refused rather than waited for") {
  const TempDir dir;
  REQUIRE(::mkfifo(dir.file("pipe").c_str(), 0600) == 0);
  CHECK_FALSE(RunReader::open(dir.file("pipe")).ok());
  CHECK_FALSE(RunWriter::open(dir.file("pipe"), sample_new_run()).ok());
}

TEST_CASE("an empty file becomes a store, and file names may hold anything") {
  const TempDir dir;
  for (const char* name : {"empty", "a b", "what?mode=memory", "50%25#x", "\xC3\xBC.sqlite"}) {
    const std::string file = dir.file(name);
    write_file(file, "");
    auto writer = RunWriter::open(file, sample_new_run());
    REQUIRE(writer.ok());
    REQUIRE(std::move(writer).value().finish({RunStatus::Finished, "", ""}).empty());
    auto reader = RunReader::open(file);
    REQUIRE(reader.ok());
    CHECK(std::move(reader).value().runs().value().size() == 1);
  }
}

TEST_CASE("a store that was removed does not come back through its log") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  {
    auto writer = RunWriter::open(file, sample_new_run("old"));
    REQUIRE(writer.ok());
    RunWriter old = std::move(writer).value();
    old.add_event({0, "tick", std::nullopt, ""});
    old.commit();
    std::filesystem::copy_file(file + "-wal", dir.file("kept-wal"));
    REQUIRE(old.finish({RunStatus::Finished, "", ""}).empty());
  }
  std::filesystem::remove(file);
  std::filesystem::rename(dir.file("kept-wal"), file + "-wal");
  auto writer = RunWriter::open(file, sample_new_run("new"));
  REQUIRE(writer.ok());
  REQUIRE(std::move(writer).value().finish({RunStatus::Finished, "", ""}).empty());
  auto reader = RunReader::open(file);
  REQUIRE(reader.ok());
  const auto runs = std::move(reader).value().runs().value();
  REQUIRE(runs.size() == 1);
  CHECK(runs[0].name == "new");
}

TEST_CASE("the default store is $TRAINYARD_STORE, else in the working directory") {
  ::setenv("TRAINYARD_STORE", "/somewhere/else.sqlite", 1);
  CHECK(default_store_file() == "/somewhere/else.sqlite");
  ::setenv("TRAINYARD_STORE", "", 1);
  CHECK(default_store_file() == "trainyard.sqlite");
  ::unsetenv("TRAINYARD_STORE");
  CHECK(default_store_file() == "trainyard.sqlite");
}
