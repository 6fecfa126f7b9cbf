#include "store/chrome_trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

namespace trainyard::store {

namespace {

struct TraceSlice {
  std::int64_t start_ns = 0, end_ns = 0;
  std::string_view name, category;
  std::string args;  // a JSON object, or empty
};

// Text as a JSON string. Labels may hold anything: what is not UTF-8 is replaced.
std::string json_string(std::string_view text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// Trace times are microseconds; three decimals keep every nanosecond.
std::string microseconds(std::int64_t ns) {
  const std::int64_t magnitude = ns < 0 ? -ns : ns;
  return fmt::format("{}{}.{:03}", ns < 0 ? "-" : "", magnitude / 1000, magnitude % 1000);
}

/// Sorts slices by start, parents first, and puts each on the first lane where it nests. Returns the
/// lane of each.
std::vector<std::size_t> assign_lanes(std::vector<TraceSlice>& slices) {
  std::stable_sort(slices.begin(), slices.end(), [](const TraceSlice& a, const TraceSlice& b) {
    return a.start_ns != b.start_ns ? a.start_ns < b.start_ns : a.end_ns > b.end_ns;
  });
  std::vector<std::vector<std::int64_t>> open_ends;  // of each lane: the ends of slices still open, innermost last
  std::vector<std::size_t> lanes;
  lanes.reserve(slices.size());
  for (const TraceSlice& slice : slices) {
    std::size_t lane = 0;
    for (; lane < open_ends.size(); ++lane) {
      auto& ends = open_ends[lane];
      while (!ends.empty() && ends.back() <= slice.start_ns) ends.pop_back();
      if (ends.empty() || slice.end_ns <= ends.back()) break;
    }
    if (lane == open_ends.size()) open_ends.emplace_back();
    open_ends[lane].push_back(slice.end_ns);
    lanes.push_back(lane);
  }
  return lanes;
}

class TraceWriter {
 public:
  explicit TraceWriter(std::ostream& out) : out_(out) {}

  void begin() { out_ << "{\"displayTimeUnit\":\"ns\",\"traceEvents\":["; }

  void end(const Run& run) {
    out_ << fmt::format(
        "\n],\"otherData\":{{\"run\":{},\"name\":{},\"status\":{},\"seed\":\"{}\",\"trace_hash\":{},"
        "\"version\":{},\"commit\":{}}}}}\n",
        run.id, json_string(run.name), json_string(to_string(run.status)), run.seed, json_string(run.trace_hash),
        json_string(run.version), json_string(run.commit_id));
  }

  void process(std::int64_t pid, std::string_view name, std::int64_t sort_index) {
    ++counts_.processes;
    next_tid_ = 1;
    event(fmt::format(R"({{"ph":"M","pid":{},"name":"process_name","args":{{"name":{}}}}})", pid, json_string(name)));
    event(fmt::format(R"({{"ph":"M","pid":{},"name":"process_sort_index","args":{{"sort_index":{}}}}})", pid,
                      sort_index));
  }

  /// Opens a track in the process and returns its thread number.
  std::int64_t track(std::int64_t pid, std::string_view name) {
    ++counts_.tracks;
    const std::int64_t tid = next_tid_++;
    event(fmt::format(R"({{"ph":"M","pid":{},"tid":{},"name":"thread_name","args":{{"name":{}}}}})", pid, tid,
                      json_string(name)));
    event(fmt::format(R"({{"ph":"M","pid":{},"tid":{},"name":"thread_sort_index","args":{{"sort_index":{}}}}})", pid,
                      tid, tid));
    return tid;
  }

  /// All slices of one stream, on as many tracks as nesting needs.
  void stream(std::int64_t pid, std::string_view name, std::vector<TraceSlice> slices) {
    if (slices.empty()) return;
    const std::vector<std::size_t> lanes = assign_lanes(slices);
    std::vector<std::int64_t> tids;
    const std::size_t lane_count = *std::max_element(lanes.begin(), lanes.end()) + 1;
    for (std::size_t lane = 0; lane < lane_count; ++lane)
      tids.push_back(track(pid, lane == 0 ? std::string(name) : fmt::format("{} ({})", name, lane + 1)));
    for (std::size_t i = 0; i < slices.size(); ++i) slice(pid, tids[lanes[i]], slices[i]);
  }

  void instant(std::int64_t pid, std::int64_t tid, const RunEvent& e) {
    ++counts_.instants;
    const std::string node = e.node ? fmt::format(",\"node\":{}", *e.node) : "";
    event(fmt::format(R"({{"ph":"i","s":"p","pid":{},"tid":{},"ts":{},"name":{},"args":{{"text":{}{}}}}})", pid, tid,
                      microseconds(e.time_ns), json_string(e.kind), json_string(e.text), node));
  }

  [[nodiscard]] const ChromeTraceCounts& counts() const { return counts_; }
  ChromeTraceCounts stopped() {
    counts_.stopped = true;
    return counts_;
  }

 private:
  void slice(std::int64_t pid, std::int64_t tid, const TraceSlice& s) {
    ++counts_.slices;
    const std::string args = s.args.empty() ? "" : ",\"args\":" + s.args;
    event(fmt::format(R"({{"ph":"X","pid":{},"tid":{},"ts":{},"dur":{},"name":{},"cat":{}{}}})", pid, tid,
                      microseconds(s.start_ns), microseconds(s.end_ns - s.start_ns), json_string(s.name),
                      json_string(s.category), args));
  }

  void event(const std::string& text) {
    out_ << (first_ ? "\n" : ",\n") << text;
    first_ = false;
  }

  std::ostream& out_;
  bool first_ = true;
  std::int64_t next_tid_ = 1;
  ChromeTraceCounts counts_;
};

std::string process_name(const RankClass& c) {
  const std::string like_it = c.ranks > 1 ? fmt::format(", for {} ranks", c.ranks) : "";
  return fmt::format("rank {}: {}{}", c.representative_rank, c.name, like_it);
}

Problems write_class(RunReader& reader, const Run& run, const std::vector<std::string>& streams, const RankClass& c,
                     TraceWriter& trace) {
  auto loaded = reader.slices(run.id, c.class_id);
  if (!loaded) return loaded.problems();
  std::vector<std::vector<TraceSlice>> by_stream(streams.size());
  for (const Slice& s : loaded.value())
    if (s.stream >= 0 && s.stream < static_cast<std::int64_t>(streams.size()))
      by_stream[static_cast<std::size_t>(s.stream)].push_back({s.start_ns, s.end_ns, s.label, s.category, ""});
  trace.process(c.representative_rank, process_name(c), c.class_id);
  for (std::size_t i = 0; i < streams.size(); ++i)
    trace.stream(c.representative_rank, streams[i], std::move(by_stream[i]));
  return {};
}

std::string recovery_args(const Recovery& r) {
  const std::string node = r.node ? fmt::format(",\"node\":{}", *r.node) : "";
  return fmt::format(R"({{"lost_work_s":{:.3f}{}}})", static_cast<double>(r.lost_work_ns) / 1e9, node);
}

// A recovery that was still under way has no end: it reaches as far as its last phase.
std::int64_t shown_end_ns(const Recovery& r) {
  return r.end_ns.value_or(r.phases.empty() ? r.start_ns : std::max(r.start_ns, r.phases.back().end_ns));
}

Problems write_run_process(RunReader& reader, const Run& run, TraceWriter& trace) {
  auto events = reader.events(run.id);
  if (!events) return events.problems();
  auto recoveries = reader.recoveries(run.id);
  if (!recoveries) return recoveries.problems();
  if (events.value().empty() && recoveries.value().empty()) return {};
  trace.process(kRunProcess, "run: " + run.name, -1);
  std::vector<TraceSlice> slices;
  for (const Recovery& r : recoveries.value()) {
    slices.push_back({r.start_ns, shown_end_ns(r), r.cause, "recovery", recovery_args(r)});
    for (const RecoveryPhase& p : r.phases) slices.push_back({p.start_ns, p.end_ns, p.phase, "phase", ""});
  }
  trace.stream(kRunProcess, "recoveries", std::move(slices));
  if (events.value().empty()) return {};
  const std::int64_t tid = trace.track(kRunProcess, "events");
  for (const RunEvent& event : events.value()) trace.instant(kRunProcess, tid, event);
  return {};
}

// Leaves the classes that `only` names; all, when it names none.
Problems keep_only(const std::vector<std::int64_t>& only, const Run& run, const std::string& file,
                   std::vector<RankClass>& classes) {
  if (only.empty()) return {};
  std::vector<RankClass> kept;
  for (const std::int64_t id : only) {
    const auto found =
        std::find_if(classes.begin(), classes.end(), [&](const RankClass& c) { return c.class_id == id; });
    if (found == classes.end()) {
      return {{file, "", std::to_string(id), fmt::format("run {} has no such rank class", run.id),
               classes.empty() ? "it is a run over time, or has none stored: export the run of its step"
                               : fmt::format("choose from 0 to {}", classes.back().class_id)}};
    }
    kept.push_back(*found);
  }
  classes = std::move(kept);
  return {};
}

}  // namespace

Result<ChromeTraceCounts> export_chrome(RunReader& reader, const Run& run, std::ostream& out,
                                        const std::vector<std::int64_t>& only, const ExportProgress& progress) {
  auto streams = reader.streams(run.id);
  if (!streams) return streams.problems();
  auto classes = reader.rank_classes(run.id);
  if (!classes) return classes.problems();
  std::vector<RankClass> wanted = std::move(classes).value();
  if (Problems problems = keep_only(only, run, reader.file(), wanted); !problems.empty()) return problems;
  TraceWriter trace(out);
  trace.begin();
  if (Problems problems = write_run_process(reader, run, trace); !problems.empty()) return problems;
  const double total = static_cast<double>(wanted.size());
  double done = 0;
  for (const RankClass& c : wanted) {
    if (progress && !progress(done++ / total)) return trace.stopped();
    if (Problems problems = write_class(reader, run, streams.value(), c, trace); !problems.empty()) return problems;
  }
  trace.end(run);
  return trace.counts();
}

}  // namespace trainyard::store
