// Kill -9 at any moment: the store opens, shows the run as interrupted, and holds at least what the writer
// was told had been committed, without a gap.
#include <catch2/catch.hpp>

#include <signal.h>
#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

#include "models/base/random.h"
#include "store/run_reader.h"
#include "store/run_writer.h"
#include "tests/store/sample_run.h"
#include "tests/store/temp_dir.h"

using namespace trainyard;
using namespace trainyard::store;

namespace {

constexpr std::int64_t kRowsPerBatch = 50;

// The victim: adds events and slices for ever, and after each commit sends how many of each are committed.
[[noreturn]] void write_until_killed(const std::string& file, int acknowledge) {
  WriterOptions options;
  options.batch_rows = 1'000'000'000;
  options.batch_s = 1e9;
  auto opened = RunWriter::open(file, sample_new_run("victim"), options);
  if (!opened) ::_exit(1);
  RunWriter writer = std::move(opened).value();
  writer.add_rank_class(sample_classes()[0]);
  for (std::int64_t i = 0;; ++i) {
    writer.add_event({i, "tick", i, "a text of some length, so that pages fill"});
    writer.add_slice({0, 0, "op " + std::to_string(i % 97), "compute", i, i + 1});
    if ((i + 1) % kRowsPerBatch != 0) continue;
    writer.commit();
    const std::int64_t committed = i + 1;
    if (::write(acknowledge, &committed, sizeof committed) != sizeof committed) ::_exit(1);
  }
}

// Starts the victim, kills it after `delay_us` and returns the last count that it acknowledged.
std::int64_t kill_a_writer(const std::string& file, std::uint64_t delay_us) {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::close(ends[0]);
    write_until_killed(file, ends[1]);
  }
  ::close(ends[1]);
  ::usleep(static_cast<useconds_t>(delay_us));
  REQUIRE(::kill(child, SIGKILL) == 0);
  int status = 0;
  ::waitpid(child, &status, 0);
  REQUIRE(WIFSIGNALED(status));
  std::int64_t committed = 0, count = 0;
  while (::read(ends[0], &count, sizeof count) == sizeof count) committed = count;
  ::close(ends[0]);
  return committed;
}

std::string integrity(const std::string& file) {
  sqlite3* handle = nullptr;
  sqlite3_open_v2(file.c_str(), &handle, SQLITE_OPEN_READONLY, nullptr);
  sqlite3_stmt* check = nullptr;
  sqlite3_prepare_v2(handle, "PRAGMA integrity_check", -1, &check, nullptr);
  std::string verdict;
  if (sqlite3_step(check) == SQLITE_ROW) verdict = reinterpret_cast<const char*>(sqlite3_column_text(check, 0));
  sqlite3_finalize(check);
  sqlite3_close(handle);
  return verdict;
}

std::int64_t latest_id(const std::string& file) {
  auto opened = RunReader::open(file);
  if (!opened) return 0;
  const auto runs = std::move(opened).value().runs().value();
  return runs.empty() ? 0 : runs.back().id;
}

// What a victim left that began when `previous_id` was the latest run.
void check_interrupted(const std::string& file, std::int64_t previous_id, std::int64_t committed) {
  auto opened = RunReader::open(file);
  REQUIRE(opened.ok());
  RunReader reader = std::move(opened).value();
  const auto runs = reader.runs().value();
  for (const Run& run : runs) CHECK(run.status == RunStatus::Interrupted);
  if (runs.empty() || runs.back().id == previous_id) {
    CHECK(committed == 0);
    return;
  }
  const Run& run = runs.back();
  const auto events = reader.events(run.id).value();
  const auto slices = reader.slices(run.id, 0).value();
  const auto count = static_cast<std::int64_t>(events.size());
  CHECK(count >= committed);
  CHECK(count <= committed + kRowsPerBatch);
  CHECK(count % kRowsPerBatch == 0);
  CHECK(slices.size() == events.size());
  for (std::size_t i = 0; i < events.size(); ++i) {
    if (events[i].time_ns != static_cast<std::int64_t>(i)) FAIL("a gap in the events at " << i);
    if (slices[i].start_ns != static_cast<std::int64_t>(i)) FAIL("a gap in the slices at " << i);
  }
}

}  // namespace

TEST_CASE("a writer killed at any moment leaves an interrupted run with what was committed") {
  // Half of the writers are killed early, while the store is being made or the run entered.
  RandomStream stream(20260101, "kill");
  const TempDir dir;
  const std::string shared = dir.file("shared.sqlite");
  int stores = 0, with_rows = 0;
  // At least 50, and as many more as a busy machine needs to be caught at both kinds of moment.
  for (int i = 0; i < 50 || (i < 1000 && (stores < 25 || with_rows < 20)); ++i) {
    const bool fresh = i % 2 == 0;
    const std::string file = fresh ? dir.file("fresh" + std::to_string(i)) : shared;
    const std::int64_t previous_id = latest_id(file);
    const std::int64_t committed = kill_a_writer(file, stream.below(fresh ? 12'000 : 50'000));
    with_rows += committed > 0 ? 1 : 0;
    if (!std::filesystem::exists(file)) {
      CHECK(committed == 0);
      continue;
    }
    ++stores;
    CHECK(integrity(file) == "ok");
    check_interrupted(file, previous_id, committed);
  }
  CHECK(stores >= 25);
  CHECK(with_rows >= 20);
}

TEST_CASE("the next writer states for good what a kill interrupted") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  REQUIRE(kill_a_writer(file, 100'000) > 0);
  CHECK(read_file(file + "-writer") != "");
  auto writer = RunWriter::open(file, sample_new_run("next"));
  REQUIRE(writer.ok());
  RunWriter next = std::move(writer).value();
  auto opened = RunReader::open(file);
  REQUIRE(opened.ok());
  RunReader reader = std::move(opened).value();
  CHECK(reader.find("victim").value().status == RunStatus::Interrupted);
  CHECK(reader.find("next").value().status == RunStatus::Running);
  REQUIRE(next.finish({RunStatus::Finished, "", ""}).empty());
  CHECK_FALSE(std::filesystem::exists(file + "-writer"));
  CHECK(reader.find("victim").value().status == RunStatus::Interrupted);
  CHECK(reader.find("next").value().status == RunStatus::Finished);
}

TEST_CASE("a killed writer's orphans do not keep its run running") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    auto opened = RunWriter::open(file, sample_new_run("parent"));
    if (!opened) ::_exit(1);
    const pid_t orphan = ::fork();
    if (orphan == 0) {
      ::pause();
      ::_exit(0);
    }
    if (::write(ends[1], &orphan, sizeof orphan) < 0) ::_exit(1);
    ::pause();
    ::_exit(0);
  }
  ::close(ends[1]);
  pid_t orphan = 0;
  REQUIRE(::read(ends[0], &orphan, sizeof orphan) == sizeof orphan);
  const auto status_now = [&] {
    auto opened = RunReader::open(file);
    REQUIRE(opened.ok());
    return std::move(opened).value().find("latest").value().status;
  };
  CHECK(status_now() == RunStatus::Running);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  CHECK(::kill(orphan, 0) == 0);
  CHECK(status_now() == RunStatus::Interrupted);
  ::kill(orphan, SIGKILL);
  ::close(ends[0]);
}
