// Kill -9 at any moment: the store opens, shows the run as interrupted, and holds at least what the writer
// was told had been committed, without a gap.
#include <catch2/catch.hpp>

#include <signal.h>
#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>

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

using Clock = std::chrono::steady_clock;

struct Victim {
  pid_t process = -1;
  int acknowledgements = -1;
  std::int64_t committed = 0;  // acknowledged so far
};

Victim start_victim(const std::string& file) {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::close(ends[0]);
    const std::int64_t begun = 0;
    if (::write(ends[1], &begun, sizeof begun) != sizeof begun) ::_exit(1);
    write_until_killed(file, ends[1]);
  }
  ::close(ends[1]);
  return {child, ends[0], 0};
}

// Blocks for the victim's next word; false once there is none.
bool hear(Victim& victim) {
  std::int64_t count = 0;
  if (::read(victim.acknowledgements, &count, sizeof count) != sizeof count) return false;
  victim.committed = count;
  return true;
}

// Kills it and takes in what it had still said.
void kill_victim(Victim& victim) {
  REQUIRE(::kill(victim.process, SIGKILL) == 0);
  int status = 0;
  ::waitpid(victim.process, &status, 0);
  REQUIRE(WIFSIGNALED(status));
  while (hear(victim)) {
  }
  ::close(victim.acknowledgements);
}

// Kills a writer at a random moment: either while it makes the store and enters its run, or after its first
// commits. Waiting for the victim's own words keeps both likely on a busy machine. Returns what was committed.
std::int64_t kill_a_writer(const std::string& file, bool early, RandomStream& stream) {
  static double opening_us = 5000;  // what opening and the first batch took last time
  Victim victim = start_victim(file);
  REQUIRE(hear(victim));
  const auto begun = Clock::now();
  if (early) {
    ::usleep(static_cast<useconds_t>(stream.uniform() * opening_us));
  } else {
    REQUIRE(hear(victim));
    opening_us = std::chrono::duration<double, std::micro>(Clock::now() - begun).count();
    ::usleep(static_cast<useconds_t>(stream.below(20'000)));
  }
  kill_victim(victim);
  return victim.committed;
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
  RandomStream stream(20260101, "kill");
  const TempDir dir;
  const std::string shared = dir.file("shared.sqlite");
  for (int i = 0; i < 50; ++i) {
    const bool early = i % 2 == 1;
    const std::string file = i % 4 < 2 ? dir.file("fresh" + std::to_string(i)) : shared;
    const std::int64_t previous_id = latest_id(file);
    const std::int64_t committed = kill_a_writer(file, early, stream);
    CHECK((early || committed > 0));
    if (!std::filesystem::exists(file)) {
      CHECK(committed == 0);
      continue;
    }
    CHECK(integrity(file) == "ok");
    check_interrupted(file, previous_id, committed);
  }
}

TEST_CASE("the next writer states for good what a kill interrupted") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  RandomStream stream(1, "kill");
  REQUIRE(kill_a_writer(file, false, stream) > 0);
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
      // Its own word, so that it is known to have got past fork().
      const pid_t self = ::getpid();
      if (::write(ends[1], &self, sizeof self) < 0) ::_exit(1);
      ::pause();
      ::_exit(0);
    }
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
