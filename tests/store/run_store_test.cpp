#include <catch2/catch.hpp>

#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <limits>
#include <regex>

#include "store/run_reader.h"
#include "store/run_writer.h"
#include "store/sweep_store.h"
#include "tests/store/sample_run.h"
#include "tests/store/sample_sweep.h"
#include "tests/store/temp_dir.h"

using namespace trainyard;
using namespace trainyard::store;

namespace {

RunWriter open_writer(const std::string& file, const NewRun& run = sample_new_run(), WriterOptions options = {}) {
  auto writer = RunWriter::open(file, run, options);
  if (!writer) FAIL(to_string(writer.problems().front()));
  return std::move(writer).value();
}

RunReader open_reader(const std::string& file) {
  auto reader = RunReader::open(file);
  if (!reader) FAIL(to_string(reader.problems().front()));
  return std::move(reader).value();
}

std::string sample_store(const TempDir& dir) {
  const std::string file = dir.file("s.sqlite");
  RunWriter writer = open_writer(file);
  add_sample(writer);
  REQUIRE(writer.finish({RunStatus::Finished, sample_report(), "00c0ffee00c0ffee"}).empty());
  return file;
}

}  // namespace

TEST_CASE("what is written is read back") {
  const TempDir dir;
  RunReader reader = open_reader(sample_store(dir));
  const auto runs = reader.runs().value();
  REQUIRE(runs.size() == 1);
  const Run& run = runs[0];
  CHECK(run.name == "tiny");
  CHECK(run.kind == RunKind::Run);
  CHECK(run.status == RunStatus::Finished);
  CHECK(run.seed == 7);
  CHECK(run.version == "0.1.0");
  CHECK(run.commit_id == "a1b2c3d4e5f6");
  CHECK(run.report_json == sample_report());
  CHECK(run.parameters_json == sample_new_run().parameters_json);
  CHECK(run.trace_hash == "00c0ffee00c0ffee");
  CHECK(run.ended_unix_ns.value() >= run.started_unix_ns);

  CHECK(reader.streams(run.id).value() == sample_new_run().streams);
  const auto classes = reader.rank_classes(run.id).value();
  REQUIRE(classes.size() == 2);
  CHECK(classes[1].name == "stage 1");
  CHECK(classes[1].representative_rank == 2);
  CHECK(classes[1].ranks == 4);
  REQUIRE(classes[1].ranges.size() == 2);
  CHECK(classes[1].ranges[1].first_rank == 6);
  CHECK(classes[1].ranges[1].last_rank == 7);

  const auto slices = reader.slices(run.id, 1).value();
  const auto expected = sample_slices(1);
  REQUIRE(slices.size() == expected.size());
  for (std::size_t i = 0; i < slices.size(); ++i) {
    CHECK(slices[i].label == expected[i].label);
    CHECK(slices[i].category == expected[i].category);
    CHECK(slices[i].stream == expected[i].stream);
    CHECK(slices[i].start_ns == expected[i].start_ns);
    CHECK(slices[i].end_ns == expected[i].end_ns);
  }

  const auto events = reader.events(run.id).value();
  REQUIRE(events.size() == sample_events().size());
  CHECK(events[1].text == sample_events()[1].text);
  CHECK(events[1].node == 17);
  CHECK_FALSE(events[3].node.has_value());

  const auto recoveries = reader.recoveries(run.id).value();
  REQUIRE(recoveries.size() == 2);
  CHECK(recoveries[0].lost_work_ns == 41'000'000'000);
  REQUIRE(recoveries[0].phases.size() == 4);
  CHECK(recoveries[0].phases[2].phase == "communicators");
  CHECK(recoveries[0].phases[1].attempt == 1);
  CHECK(recoveries[0].phases[2].attempt == 2);
  CHECK_FALSE(recoveries[1].end_ns.has_value());
  CHECK(recoveries[0].restored_step == 171);
  CHECK_FALSE(recoveries[1].restored_step.has_value());

  const auto spares = reader.spare_counts(run.id).value();
  REQUIRE(spares.size() == 2);
  CHECK(spares[1].time_ns == 3'615'000'000'000);
  CHECK(spares[1].free == 1);

  CHECK(reader.controller_log(run.id).value() == sample_log());

  const auto bands = reader.bands(run.id).value();
  REQUIRE(bands.size() == 4);
  CHECK(bands[3].band == "communicators");
  CHECK(bands[3].duration_ns == 90'000'000'000);
}

TEST_CASE("extreme values survive: 64-bit seeds, times at the ends, text of any kind") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  const std::string odd = "layer \xE2\x98\x83 'quoted' \"twice\"; DROP TABLE runs; --";
  NewRun run = sample_new_run(odd, std::numeric_limits<std::uint64_t>::max());
  RunWriter writer = open_writer(file, run);
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  writer.add_event({most, "", 0, ""});
  REQUIRE(writer.finish({RunStatus::Finished, "", ""}).empty());
  RunReader reader = open_reader(file);
  const Run read = reader.find("latest").value();
  CHECK(read.seed == std::numeric_limits<std::uint64_t>::max());
  CHECK(read.name == odd);
  CHECK(reader.events(read.id).value()[0].time_ns == most);
}

TEST_CASE("a run is found by id, by name and as the latest") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  for (const char* name : {"a", "b", "a", "2"})
    REQUIRE(open_writer(file, sample_new_run(name)).finish({RunStatus::Finished, "", ""}).empty());
  RunReader reader = open_reader(file);
  CHECK(reader.find("latest").value().id == 4);
  CHECK(reader.find("a").value().id == 3);
  CHECK(reader.find("b").value().id == 2);
  CHECK(reader.find("2").value().name == "b");
  const auto missing = reader.find("nonesuch");
  REQUIRE_FALSE(missing.ok());
  CHECK(to_string(missing.problems()[0]).find("nonesuch") != std::string::npos);
}

TEST_CASE("a reader sees a live run's committed batches, and the rest once it is committed") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  WriterOptions options;
  options.batch_rows = 10;
  options.batch_s = 1e9;
  RunWriter writer = open_writer(file, sample_new_run(), options);
  for (int i = 0; i < 25; ++i) writer.add_event({i, "tick", std::nullopt, ""});
  RunReader reader = open_reader(file);
  CHECK(reader.find("latest").value().status == RunStatus::Running);
  CHECK(reader.events(writer.run_id()).value().size() == 20);
  writer.commit();
  CHECK(reader.events(writer.run_id()).value().size() == 25);
}

TEST_CASE("a batch that has grown old is committed by the next row") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  WriterOptions options;
  options.batch_s = 0.02;
  RunWriter writer = open_writer(file, sample_new_run(), options);
  writer.add_event({0, "first", std::nullopt, ""});
  RunReader reader = open_reader(file);
  CHECK(reader.events(writer.run_id()).value().empty());
  ::usleep(30'000);
  writer.add_event({1, "second", std::nullopt, ""});
  CHECK(reader.events(writer.run_id()).value().size() == 2);
}

TEST_CASE("a writer that is dropped leaves an interrupted run with what was added") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  { open_writer(file).add_event({5, "tick", std::nullopt, ""}); }
  RunReader reader = open_reader(file);
  const Run run = reader.find("latest").value();
  CHECK(run.status == RunStatus::Interrupted);
  CHECK(reader.events(run.id).value().size() == 1);
}

TEST_CASE("several processes write runs into one store at once") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  RunWriter first = open_writer(file);
  std::vector<pid_t> children;
  for (int i = 0; i < 4; ++i) {
    const pid_t child = ::fork();
    if (child == 0) {
      auto opened = RunWriter::open(file, sample_new_run());
      if (!opened.ok()) ::_exit(1);
      RunWriter writer = std::move(opened).value();
      for (int j = 0; j < 200; ++j) writer.add_event({j, "tick", std::nullopt, ""}), writer.commit();
      ::_exit(writer.finish({RunStatus::Finished, "", ""}).empty() ? 0 : 1);
    }
    children.push_back(child);
  }
  for (int j = 0; j < 200; ++j) first.add_event({j, "tick", std::nullopt, ""}), first.commit();
  for (const pid_t child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    CHECK(WEXITSTATUS(status) == 0);
  }
  RunReader reader = open_reader(file);
  const std::vector<Run> runs = reader.runs().value();
  REQUIRE(runs.size() == 5);
  for (const Run& run : runs) {
    CHECK(run.status == (run.id == first.run_id() ? RunStatus::Running : RunStatus::Finished));
    CHECK(reader.events(run.id).value().size() == 200);
  }
  REQUIRE(first.finish({RunStatus::Finished, "", ""}).empty());
  CHECK_FALSE(std::filesystem::exists(file + "-writer"));  // the last one out removes it
}

TEST_CASE("of two writers the one that is killed is interrupted, and the other goes on") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  RunWriter living = open_writer(file);
  const pid_t victim = ::fork();
  if (victim == 0) {
    auto doomed = RunWriter::open(file, sample_new_run());
    ::kill(::getpid(), SIGKILL);
    ::_exit(1);
  }
  ::waitpid(victim, nullptr, 0);
  const auto statuses = [&] {
    std::vector<RunStatus> all;
    const std::vector<Run> runs = open_reader(file).runs().value();
    for (const Run& run : runs) all.push_back(run.status);
    return all;
  };
  CHECK(statuses() == std::vector{RunStatus::Running, RunStatus::Interrupted});
  const RunWriter third = open_writer(file);  // enters it for good, and leaves the living one alone
  CHECK(statuses() == std::vector{RunStatus::Running, RunStatus::Interrupted, RunStatus::Running});
  living.add_event({1, "tick", std::nullopt, ""});
  CHECK(living.finish({RunStatus::Finished, "", ""}).empty());
}

TEST_CASE("another name of the file is the same store") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  RunWriter writer = open_writer(file);
  REQUIRE(::symlink(file.c_str(), dir.file("link.sqlite").c_str()) == 0);
  for (const std::string& name : {dir.file("link.sqlite"), dir.path() + "/./s.sqlite"})
    CHECK(open_reader(name).find("latest").value().status == RunStatus::Running);
}

TEST_CASE("reading within the writer's process does not give its lock away") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  RunWriter writer = open_writer(file);
  { CHECK(open_reader(file).find("latest").value().status == RunStatus::Running); }
  // Another process must still find the run running.
  const pid_t child = ::fork();
  if (child == 0) {
    auto reader = RunReader::open(file);
    const bool running = reader.ok() && std::move(reader).value().find("latest").value().status == RunStatus::Running;
    ::_exit(running ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("a forked child may end as it likes: the run stays its parent's") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  RunWriter writer = open_writer(file);
  writer.add_event({0, "before", std::nullopt, ""});
  const pid_t child = ::fork();
  if (child == 0) {
    { const RunWriter inherited = std::move(writer); }
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(WIFEXITED(status));
  writer.add_event({1, "after", std::nullopt, ""});
  REQUIRE(writer.finish({RunStatus::Finished, "", ""}).empty());
  RunReader reader = open_reader(file);
  CHECK(reader.find("latest").value().status == RunStatus::Finished);
  CHECK(reader.events(1).value().size() == 2);
}

TEST_CASE("an error is kept and told once") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  RunWriter writer = open_writer(file);
  writer.add_event({0, "good", std::nullopt, ""});
  writer.commit();
  writer.add_slice({99, 0, "a class that was never added", "compute", 0, 1});
  writer.add_event({1, "ignored", std::nullopt, ""});
  const Problems problems = writer.finish({RunStatus::Finished, "", ""});
  REQUIRE(problems.size() == 1);
  CHECK(problems[0].rule.find("FOREIGN KEY") != std::string::npos);
  RunReader reader = open_reader(file);
  CHECK(reader.find("latest").value().status == RunStatus::Interrupted);
  CHECK(reader.events(1).value().size() == 1);
}

TEST_CASE("the queries in README.md run, and give rows where there is something to give") {
  const TempDir dir;
  const std::string file = sample_store(dir);
  const std::string readme = read_file(TRAINYARD_SOURCE_DIR "/store/README.md");
  {
    SweepWriter sweep = SweepWriter::open(file, sample_sweep()).value();
    REQUIRE(sweep.add({sample_cell(0, 1), sample_cell(1, 1)}).empty());
  }
  const std::regex block("```sql\n([^`]*)```");
  sqlite3* handle = nullptr;
  REQUIRE(sqlite3_open(file.c_str(), &handle) == SQLITE_OK);
  int queries = 0;
  for (std::sregex_iterator it(readme.begin(), readme.end(), block), end; it != end; ++it, ++queries) {
    const std::string sql = (*it)[1].str();
    INFO(sql);
    int rows = 0;
    char* error = nullptr;
    const auto count = [](void* sum, int, char**, char**) { return ++*static_cast<int*>(sum), 0; };
    CHECK(sqlite3_exec(handle, sql.c_str(), count, &rows, &error) == SQLITE_OK);
    if (sql.find("4711") == std::string::npos) CHECK(rows > 0);
  }
  CHECK(queries == 7);
  sqlite3_close(handle);
}

TEST_CASE("README.md explains every table and view") {
  const TempDir dir;
  sqlite3* handle = nullptr;
  REQUIRE(sqlite3_open(sample_store(dir).c_str(), &handle) == SQLITE_OK);
  const std::string readme = read_file(TRAINYARD_SOURCE_DIR "/store/README.md");
  sqlite3_stmt* names = nullptr;
  sqlite3_prepare_v2(handle,
                     "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite%'", -1,
                     &names, nullptr);
  int count = 0;
  while (sqlite3_step(names) == SQLITE_ROW) {
    const std::string name = reinterpret_cast<const char*>(sqlite3_column_text(names, 0));
    INFO(name);
    CHECK(readme.find("**" + name + "**") != std::string::npos);
    ++count;
  }
  CHECK(count >= 10);
  sqlite3_finalize(names);
  sqlite3_close(handle);
}
