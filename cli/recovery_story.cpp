#include "cli/recovery_story.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <sstream>

#include <fmt/format.h>

#include "cli/recovery_figures.h"
#include "cli/terminal.h"
#include "models/base/units.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;
using Event = store::RunEvent;

double seconds(std::int64_t ns) { return static_cast<double>(ns) / kNsPerS; }

std::vector<std::size_t> by_length(const StoredRun& run) {
  std::vector<std::size_t> order(run.recoveries.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return total_s(run.recoveries[a]) < total_s(run.recoveries[b]);
  });
  return order;
}

// --- what belongs to it

bool is_running(const Event& event) { return event.kind == "controller_state" && event.text == "running"; }

// Behind the event with which training went on after the recovery; behind all events where it did not.
std::size_t events_end(const StoredRun& run, std::size_t index) {
  const std::int64_t end = end_ns(run.recoveries[index]);
  for (std::size_t i = 0; i < run.events.size(); ++i)
    if (run.events[i].time_ns >= end && is_running(run.events[i])) return i + 1;
  return run.events.size();
}

// A failure that struck before the ledger opens was noticed later; and a planned restart drains before it stands still.
std::size_t events_begin(const StoredRun& run, std::size_t from, std::int64_t start_ns) {
  std::size_t begin = from, draining = run.events.size();
  for (; begin < run.events.size() && run.events[begin].time_ns < start_ns; ++begin) {
    const Event& event = run.events[begin];
    if (event.kind == "failure") break;
    if (event.kind == "controller_state") draining = event.text == "draining" ? begin : run.events.size();
  }
  return std::min(begin, draining);
}

// Names a node that has to do with the recovery.
bool is_amiss(const Event& event) {
  return event.kind == "failure" || event.kind == "symptom" || event.kind == "eject";
}

// What began before a recovery and led to it: what was wrong, and said to be wrong, with a node that it struck or left.
std::vector<const Event*> before(const StoredRun& run, std::size_t begin, const std::set<std::int64_t>& nodes) {
  std::map<std::int64_t, std::vector<const Event*>> open;
  for (std::size_t i = 0; i < begin; ++i) {
    const Event& event = run.events[i];
    if (!event.node || nodes.count(*event.node) == 0) continue;
    if (event.kind == "fault_begins" || (event.kind == "symptom" && event.text.rfind("straggling", 0) == 0))
      open[*event.node].push_back(&event);
    if (event.kind == "fault_ends" || event.kind == "eject" || event.kind == "repaired") open.erase(*event.node);
  }
  std::vector<const Event*> out;
  for (const auto& [node, events] : open) out.insert(out.end(), events.begin(), events.end());
  std::stable_sort(out.begin(), out.end(), [](const Event* a, const Event* b) { return a->time_ns < b->time_ns; });
  return out;
}

// The events of a recovery, and when the first fault struck.
struct Scene {
  std::vector<const Event*> events;
  std::int64_t first_fault_ns = 0;
};

Scene scene_of(const StoredRun& run, std::size_t index) {
  const store::Recovery& recovery = run.recoveries[index];
  const std::size_t end = events_end(run, index);
  const std::size_t begin = events_begin(run, index > 0 ? events_end(run, index - 1) : 0, recovery.start_ns);
  Scene scene;
  scene.first_fault_ns = recovery.start_ns;
  std::set<std::int64_t> nodes;
  std::vector<const Event*> its;
  for (std::size_t i = begin; i < end; ++i) {
    const Event& event = run.events[i];
    its.push_back(&event);
    if (event.kind == "failure") scene.first_fault_ns = std::min(scene.first_fault_ns, event.time_ns);
    if (event.node && is_amiss(event)) nodes.insert(*event.node);
  }
  scene.events = before(run, begin, nodes);
  scene.events.insert(scene.events.end(), its.begin(), its.end());
  return scene;
}

std::optional<std::int64_t> spares_at(const StoredRun& run, std::int64_t time_ns) {
  std::optional<std::int64_t> free;
  for (const store::SpareCount& count : run.spares) {
    if (count.time_ns > time_ns) break;
    free = count.free;
  }
  return free;
}

// --- as JSON

json timeline(const StoredRun& run, const Scene& scene) {
  json out = json::array();
  std::optional<std::int64_t> told;
  for (std::size_t i = 0; i < scene.events.size(); ++i) {
    const Event& event = *scene.events[i];
    json entry{{"at_s", seconds(event.time_ns - scene.first_fault_ns)},
               {"kind", event.kind},
               {"node", event.node ? json(*event.node) : json(nullptr)},
               {"text", event.text}};
    // Of events at one time the last one says how many are left.
    const bool last = i + 1 == scene.events.size() || scene.events[i + 1]->time_ns != event.time_ns;
    const auto free = spares_at(run, event.time_ns);
    if (free && last && (!told || *told != *free)) entry["spares_free"] = *(told = free);
    out.push_back(std::move(entry));
  }
  return out;
}

json phases(const store::Recovery& recovery, std::int64_t zero_ns) {
  json out = json::array();
  for (const store::RecoveryPhase& phase : recovery.phases)
    out.push_back({{"phase", phase.phase},
                   {"attempt", phase.attempt},
                   {"start_s", seconds(phase.start_ns - zero_ns)},
                   {"seconds", seconds(phase.end_ns - phase.start_ns)}});
  return out;
}

}  // namespace

Result<std::size_t> find_recovery(const StoredRun& run, const std::string& selector) {
  const std::size_t count = run.recoveries.size();
  if (count == 0)
    return Problems{{run.file, "", selector, fmt::format("run {} ({}) has no recoveries", run.run.id, run.run.name),
                     "see `trainyard run list`, and name a run over time in which something failed"}};
  if (selector == "last") return count - 1;
  if (selector == "longest") return longest_recoveries(run, 1).front();
  if (selector == "median") return by_length(run)[count / 2];
  std::size_t number = 0;
  const auto [end, error] = std::from_chars(selector.data(), selector.data() + selector.size(), number);
  if (error == std::errc{} && end == selector.data() + selector.size() && number >= 1 && number <= count)
    return number - 1;
  return Problems{{run.file, "", selector,
                   fmt::format("is no recovery of run {} ({}), which has 1 to {}", run.run.id, run.run.name, count),
                   "give one of these numbers, or longest, median or last"}};
}

std::vector<std::size_t> longest_recoveries(const StoredRun& run, std::size_t count) {
  std::vector<std::size_t> order = by_length(run);
  std::reverse(order.begin(), order.end());
  order.resize(std::min(order.size(), count));
  return order;
}

json recovery_story(const StoredRun& run, std::size_t index) {
  const store::Recovery& recovery = run.recoveries[index];
  const Scene scene = scene_of(run, index);
  const std::int64_t end = end_ns(recovery);
  json out;
  out["run"] = run.run.id;
  out["name"] = run.run.name;
  out["recovery"] = index + 1;
  out["recoveries"] = run.recoveries.size();
  out["cause"] = recovery.cause;
  out["first_fault_s"] = seconds(scene.first_fault_ns);
  out["total_s"] = total_s(recovery);
  out["lost_work_s"] = seconds(recovery.lost_work_ns);
  out["attempts"] = recovery.phases.empty() ? 0 : recovery.phases.back().attempt;
  out["restored_step"] = recovery.restored_step ? json(*recovery.restored_step) : json(nullptr);
  const auto spares_before = spares_at(run, scene.first_fault_ns - 1), spares_after = spares_at(run, end);
  out["spares_before"] = spares_before ? json(*spares_before) : json(nullptr);
  out["spares_after"] = spares_after ? json(*spares_after) : json(nullptr);
  out["ended"] = recovery.end_ns.has_value();
  out["timeline"] = timeline(run, scene);
  out["phases"] = phases(recovery, scene.first_fault_ns);
  return out;
}

// --- text

namespace {

std::string spaced(std::string name) {
  std::replace(name.begin(), name.end(), '_', ' ');
  return name;
}

// The fields of "xid_reported node=3 xid=79", by name.
std::map<std::string, std::string> fields_of(const std::string& text) {
  std::map<std::string, std::string> out;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    const std::size_t at = word.find('=');
    if (at != std::string::npos) out[word.substr(0, at)] = word.substr(at + 1);
  }
  return out;
}

// What the controller was told, in words; as it was told where there are none for it.
std::string symptom_text(const std::string& text) {
  auto its = fields_of(text);
  const std::string kind = text.substr(0, text.find(' '));
  if (kind == "heartbeat_lost") return fmt::format("no heartbeat of node {}", its["node"]);
  if (kind == "xid_reported") return fmt::format("XID {} of GPU {} of node {}", its["xid"], its["gpu"], its["node"]);
  if (kind == "straggling")
    return fmt::format("node {} makes steps {:.2f} times as long", its["node"],
                       std::strtod(its["slowdown"].c_str(), nullptr));
  if (kind == "communicator_error")
    return fmt::format("communicator error at node {}{}", its["reporter"],
                       its["suspect"] == "none" ? "" : ", which suspects node " + its["suspect"]);
  return text;
}

struct Line {
  std::string who, what;
};

Line line_of(const json& event) {
  const std::string kind = event["kind"], text = event["text"];
  const std::string node = event["node"].is_null() ? "" : std::to_string(event["node"].get<std::int64_t>());
  if (kind == "failure") return {"struck", text + (node.empty() ? " (the whole job)" : " on node " + node)};
  if (kind == "spare_failure") return {"struck", fmt::format("{} on spare node {}", text, node)};
  if (kind == "fault_begins") return {"struck", fmt::format("{} begins on node {}", spaced(text), node)};
  if (kind == "fault_ends") return {"mended", spaced(text.empty() ? "slow part" : text) + " on node " + node};
  if (kind == "symptom") return {"told", symptom_text(text)};
  if (kind == "controller_state") return {"state", spaced(text)};
  if (kind == "eject") return {"action", fmt::format("eject node {}", node)};
  if (kind == "promote") return {"action", fmt::format("promote spare node {}", node)};
  if (kind == "page") return {"action", "page a human: " + spaced(text)};
  if (kind == "repaired") return {"mended", fmt::format("node {} is back from repair", node)};
  if (kind == "checkpoint_durable") return {"saved", "the checkpoint of step " + text + " is durable"};
  return {spaced(kind), text};
}

// A leaf switch takes dozens of nodes with it, each with its symptoms: of one kind at one time so many are shown.
constexpr std::size_t kAlike = 4;

std::string timeline_text(const json& timeline) {
  std::vector<std::vector<std::string>> rows;
  const auto spares_cell = [](const json& event) {
    return event.contains("spares_free") ? fmt::format("spares free: {}", event["spares_free"].get<std::int64_t>())
                                         : "";
  };
  for (std::size_t i = 0; i < timeline.size();) {
    std::size_t alike = i;
    while (alike < timeline.size() && timeline[alike]["kind"] == timeline[i]["kind"] &&
           timeline[alike]["at_s"] == timeline[i]["at_s"])
      ++alike;
    const std::size_t shown = alike - i > kAlike + 1 ? i + kAlike : alike;
    for (std::size_t j = i; j < shown; ++j) {
      const Line line = line_of(timeline[j]);
      rows.push_back(
          {fmt::format("{:.1f} s", timeline[j]["at_s"].get<double>()), line.who, line.what, spares_cell(timeline[j])});
    }
    if (shown < alike)
      rows.push_back({"", "", fmt::format("... and {} more such", alike - shown), spares_cell(timeline[alike - 1])});
    i = alike;
  }
  return left_table(rows, {true, false, false, false});
}

constexpr int kPhaseWidth = 40;

std::string phases_text(const json& story) {
  double begin_s = 0, end_s = 0;
  for (const json& phase : story["phases"]) {
    begin_s = std::min(begin_s, phase["start_s"].get<double>());
    end_s = std::max(end_s, phase["start_s"].get<double>() + phase["seconds"].get<double>());
  }
  const double length_s = std::max(end_s - begin_s, 1e-9);
  std::vector<std::vector<std::string>> rows;
  for (const json& phase : story["phases"]) {
    const double start_s = phase["start_s"], seconds = phase["seconds"];
    const std::string attempt = story["attempts"] > 1 ? fmt::format(" ({})", phase["attempt"].get<std::int64_t>()) : "";
    rows.push_back({spaced(phase["phase"]) + attempt, format_duration(seconds),
                    span_bar((start_s - begin_s) / length_s, (start_s + seconds - begin_s) / length_s, kPhaseWidth)});
  }
  rows.push_back({"in all", format_duration(story["total_s"]), ""});
  return "\nPhases" + std::string(story["attempts"] > 1 ? " (attempt)" : "") + "\n" +
         left_table(rows, {false, true, false});
}

}  // namespace

std::string story_text(const json& story) {
  std::string out = fmt::format(
      "Recovery {} of {} of run {} ({}): {}, {} after {} of the run\n\n", story["recovery"].get<std::size_t>(),
      story["recoveries"].get<std::size_t>(), story["run"].get<std::int64_t>(), story["name"].get<std::string>(),
      story["cause"].get<std::string>(), format_duration(story["total_s"]), format_duration(story["first_fault_s"]));
  out += timeline_text(story["timeline"]) + phases_text(story);
  const double lost_s = story["lost_work_s"];
  if (!story["ended"]) return out + "\nIt had not ended when the run did.\n";
  out += lost_s > 0 ? fmt::format("\n{} of work was lost, and done again afterwards", format_duration(lost_s))
                    : std::string("\nNo work was lost");
  if (!story["restored_step"].is_null())
    out += fmt::format("; training went on from step {}", format_count(story["restored_step"]));
  return out + ".\n";
}

}  // namespace trainyard::cli
