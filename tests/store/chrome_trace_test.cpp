#include "store/chrome_trace.h"

#include <catch2/catch.hpp>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "models/base/random.h"
#include "store/run_writer.h"
#include "tests/store/sample_run.h"
#include "tests/store/temp_dir.h"

using namespace trainyard;
using namespace trainyard::store;
using nlohmann::json;

namespace {

struct Exported {
  json trace;
  ChromeTraceCounts counts;
};

template <class Fill>
Exported export_run(const NewRun& run, Fill fill) {
  const TempDir dir;
  auto opened = RunWriter::open(dir.file("s.sqlite"), run);
  REQUIRE(opened.ok());
  RunWriter writer = std::move(opened).value();
  fill(writer);
  const Problems problems = writer.finish({RunStatus::Finished, "", "00c0ffee00c0ffee"});
  REQUIRE(problems.empty());
  auto reading = RunReader::open(dir.file("s.sqlite"));
  REQUIRE(reading.ok());
  RunReader reader = std::move(reading).value();
  std::ostringstream out;
  const auto counts = export_chrome(reader, reader.find("latest").value(), out);
  REQUIRE(counts.ok());
  return {json::parse(out.str()), counts.value()};
}

std::int64_t to_ns(const json& microseconds) { return std::llround(microseconds.get<double>() * 1000); }

using Track = std::pair<std::int64_t, std::int64_t>;

std::map<Track, std::vector<json>> slices_by_track(const json& trace) {
  std::map<Track, std::vector<json>> tracks;
  for (const json& event : trace["traceEvents"])
    if (event["ph"] == "X") tracks[{event["pid"], event["tid"]}].push_back(event);
  return tracks;
}

// Starts never go back, and each slice lies within the one that is open or begins after its end.
void check_nesting(const json& trace) {
  for (const auto& [track, slices] : slices_by_track(trace)) {
    INFO("pid " << track.first << ", tid " << track.second);
    std::vector<std::int64_t> open_ends;
    std::int64_t previous_start = INT64_MIN;
    for (const json& slice : slices) {
      const std::int64_t start = to_ns(slice["ts"]), end = start + to_ns(slice["dur"]);
      REQUIRE(start >= previous_start);
      REQUIRE(end >= start);
      previous_start = start;
      while (!open_ends.empty() && open_ends.back() <= start) open_ends.pop_back();
      if (!open_ends.empty()) REQUIRE(end <= open_ends.back());
      open_ends.push_back(end);
    }
  }
}

// Every track that has a slice or an instant is named once, and its process too.
void check_names(const json& trace) {
  std::map<std::int64_t, int> processes;
  std::map<Track, int> threads;
  for (const json& event : trace["traceEvents"]) {
    if (event["ph"] != "M") continue;
    if (event["name"] == "process_name") ++processes[event["pid"]];
    if (event["name"] == "thread_name") ++threads[{event["pid"], event["tid"]}];
  }
  for (const json& event : trace["traceEvents"]) {
    if (event["ph"] == "M") continue;
    CHECK(processes[event["pid"]] == 1);
    CHECK(threads[{event["pid"], event["tid"]}] == 1);
  }
}

}  // namespace

TEST_CASE("a run exports as a Chrome trace that parses, nests and is named") {
  const Exported exported = export_run(sample_new_run(), add_sample);
  const json& trace = exported.trace;
  check_nesting(trace);
  check_names(trace);
  CHECK(trace["otherData"]["seed"] == "7");
  CHECK(trace["otherData"]["trace_hash"] == "00c0ffee00c0ffee");
  // Two classes of five slices; two recoveries with four phases and one; four events.
  CHECK(exported.counts.slices == 10 + 2 + 5);
  CHECK(exported.counts.instants == 4);
  CHECK(exported.counts.processes == 3);

  std::map<std::string, std::int64_t> pid_of;
  std::set<std::string> threads_of_rank_2;
  for (const json& event : trace["traceEvents"]) {
    if (event["name"] == "process_name") pid_of[event["args"]["name"]] = event["pid"];
    if (event["name"] == "thread_name" && event["pid"] == 2) threads_of_rank_2.insert(event["args"]["name"]);
  }
  CHECK(pid_of.at("rank 2: stage 1, for 4 ranks") == 2);
  CHECK(pid_of.at("run: tiny") == kRunProcess);
  // The two slices of dp overlap, so one of them goes to a second track; tp has none at all.
  CHECK(threads_of_rank_2 == std::set<std::string>{"compute", "dp", "dp (2)"});
}

TEST_CASE("trace times keep every nanosecond") {
  const Exported exported = export_run(sample_new_run(), [](RunWriter& writer) {
    writer.add_rank_class(sample_classes()[0]);
    writer.add_slice({0, 0, "late", "compute", 604'800'000'000'001, 604'800'000'000'008});
  });
  const auto tracks = slices_by_track(exported.trace);
  const json& slice = tracks.begin()->second.front();
  CHECK(to_ns(slice["ts"]) == 604'800'000'000'001);
  CHECK(to_ns(slice["dur"]) == 7);
}

TEST_CASE("labels of any kind stay valid JSON") {
  NewRun run = sample_new_run("quote \" backslash \\ newline \n");
  const Exported exported = export_run(run, [](RunWriter& writer) {
    writer.add_rank_class(sample_classes()[0]);
    writer.add_slice({0, 0, "not UTF-8: \xff\xfe, control: \x01, quote: \"", "compute", 0, 1});
    writer.add_event({0, "kind\t", std::nullopt, "}]\""});
  });
  check_names(exported.trace);
  CHECK(exported.trace["otherData"]["name"] == run.name);
}

TEST_CASE("any set of overlapping slices is laid out so that tracks nest, and none is lost") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    RandomStream stream(seed, "slices");
    std::multiset<std::pair<std::int64_t, std::int64_t>> given, shown;
    const Exported exported = export_run(sample_new_run(), [&](RunWriter& writer) {
      writer.add_rank_class(sample_classes()[0]);
      for (int i = 0; i < 300; ++i) {
        const auto start = static_cast<std::int64_t>(stream.below(1000));
        const auto end = start + static_cast<std::int64_t>(stream.below(stream.below(4) == 0 ? 300 : 20));
        given.insert({start, end});
        writer.add_slice({0, static_cast<std::int64_t>(stream.below(3)), "op", "compute", start, end});
      }
    });
    check_nesting(exported.trace);
    check_names(exported.trace);
    for (const auto& [track, slices] : slices_by_track(exported.trace))
      for (const json& s : slices) shown.insert({to_ns(s["ts"]), to_ns(s["ts"]) + to_ns(s["dur"])});
    CHECK(given == shown);
  }
}
