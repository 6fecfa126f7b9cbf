// trainyard run diff: what was predicted beside what was measured, op kind by op kind.

#include <algorithm>
#include <cmath>
#include <iostream>
#include <map>
#include <set>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/terminal.h"
#include "models/base/units.h"
#include "store/run_reader.h"
#include "store/store_file.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

struct Total {
  double seconds = 0, count = 0;  // a rank, on average
};

// One run's ops by kind, and its step.
struct Side {
  store::Run run;
  std::map<std::string, Total> kinds;
  double step_s = 0;
};

Result<Side> read_side(store::RunReader& reader, const std::string& selector) {
  const Result<store::Run> found = reader.find(selector);
  if (!found) return found.problems();
  Side side;
  side.run = found.value();
  const auto classes = reader.rank_classes(side.run.id);
  if (!classes) return classes.problems();
  double ranks = 0;
  for (const store::RankClass& rank_class : classes.value()) ranks += static_cast<double>(rank_class.ranks);
  for (const store::RankClass& rank_class : classes.value()) {
    const auto slices = reader.slices(side.run.id, rank_class.class_id);
    if (!slices) return slices.problems();
    const double weight = static_cast<double>(rank_class.ranks) / ranks;
    for (const store::Slice& slice : slices.value()) {
      Total& total = side.kinds[slice.category];
      total.seconds += weight * static_cast<double>(slice.end_ns - slice.start_ns) * 1e-9;
      total.count += weight;
      side.step_s = std::max(side.step_s, static_cast<double>(slice.end_ns) * 1e-9);
    }
  }
  if (side.kinds.empty())
    return Problem{reader.file(), "", selector, "has no timeline",
                   "simulate with --timeline; what exec run stores has one"};
  // A run that trained knows its median step; the timeline is of its last.
  if (!side.run.report_json.empty()) {
    const json report = json::parse(side.run.report_json);
    if (side.run.kind == store::RunKind::Exec) side.step_s = report["step_time_s"];
    if (side.run.kind == store::RunKind::Step) side.step_s = report["step"]["time_s"];
  }
  return side;
}

bool communicates(const std::string& kind) {
  static const std::set<std::string> kKinds{"AllReduce", "AllGather", "ReduceScatter", "AllToAllCounts",
                                            "AllToAllV", "RingShift", "SendRecv"};
  return kKinds.count(kind) > 0;
}

json compare(const Side& predicted, const Side& measured) {
  json rows = json::array();
  bool same_ops = true;
  std::set<std::string> kinds;
  for (const Side* side : {&predicted, &measured}) {
    for (const auto& entry : side->kinds) kinds.insert(entry.first);
  }
  for (const std::string& kind : kinds) {
    const auto of = [&](const Side& side) {
      const auto found = side.kinds.find(kind);
      return found == side.kinds.end() ? Total{} : found->second;
    };
    const Total p = of(predicted), m = of(measured);
    if (p.seconds == 0 && m.seconds < 1e-6) continue;
    same_ops &= std::abs(p.count - m.count) < 0.5;
    rows.push_back({{"kind", kind},
                    {"communication", communicates(kind)},
                    {"count", m.count > 0 ? m.count : p.count},
                    {"predicted_s", p.seconds},
                    {"measured_s", m.seconds},
                    {"error", m.seconds > 0 ? json(p.seconds / m.seconds - 1) : json(nullptr)},
                    {"of_step", (p.seconds - m.seconds) / measured.step_s}});
  }
  std::stable_sort(rows.begin(), rows.end(), [](const json& a, const json& b) {
    if (a["communication"] != b["communication"]) return b["communication"].get<bool>();
    return a["measured_s"].get<double>() > b["measured_s"].get<double>();
  });
  return {{"predicted", {{"run", predicted.run.id}, {"name", predicted.run.name}, {"step_s", predicted.step_s}}},
          {"measured", {{"run", measured.run.id}, {"name", measured.run.name}, {"step_s", measured.step_s}}},
          {"error", predicted.step_s / measured.step_s - 1},
          {"same_ops", same_ops},
          {"kinds", rows}};
}

std::string percent(const json& share) {
  return share.is_null() ? "" : fmt::format("{:+.1f}%", 100 * share.get<double>());
}

std::string text_of(const json& diff) {
  std::string out = fmt::format("step   {} predicted (run {}, {}), {} measured (run {}, {}): {}\n\n",
                                format_duration(diff["predicted"]["step_s"]), diff["predicted"]["run"].get<int>(),
                                diff["predicted"]["name"].get<std::string>(),
                                format_duration(diff["measured"]["step_s"]), diff["measured"]["run"].get<int>(),
                                diff["measured"]["name"].get<std::string>(), percent(diff["error"]));
  if (!diff["same_ops"].get<bool>())
    out += "These ran different ops: of two plans or models, or of recomputation. Times are compared all the same.\n\n";
  std::vector<std::vector<std::string>> rows;
  bool talking = false;
  for (const json& row : diff["kinds"]) {
    if (row["communication"].get<bool>() && !talking) rows.push_back({"communication, with waiting for others"});
    talking = row["communication"];
    rows.push_back({row["kind"], fmt::format("{:.0f}", row["count"].get<double>()), format_duration(row["predicted_s"]),
                    format_duration(row["measured_s"]), percent(row["error"]), percent(row["of_step"])});
  }
  return out + table({"op", "times", "predicted", "measured", "off by", "of the step"}, rows);
}

int diff_runs(const std::string& predicted, const std::string& measured, const Context& context) {
  Result<store::RunReader> opened =
      store::RunReader::open(context.store_file.empty() ? store::default_store_file() : context.store_file);
  if (!opened) return fail(opened.problems(), context);
  store::RunReader reader = std::move(opened).value();
  const Result<Side> left = read_side(reader, predicted), right = read_side(reader, measured);
  if (!left) return fail(left.problems(), context);
  if (!right) return fail(right.problems(), context);
  const bool trained = left.value().run.kind == store::RunKind::Exec;
  if (trained || right.value().run.kind != store::RunKind::Exec)
    return fail(
        {{"", trained ? "predicted" : "measured", trained ? predicted : measured,
          trained ? "is a run that trained, and was not simulated" : "is a run that was simulated, and did not train",
          "name a simulated run first, then one that trained: trainyard run list"}},
        context);
  const json diff = compare(left.value(), right.value());
  std::cout << (context.json ? diff.dump(2) + "\n" : text_of(diff));
  return kOk;
}

}  // namespace

void add_run_diff(CLI::App& run, Context& context) {
  CLI::App* diff = add_command(run, "diff", "Predicted beside measured, op kind by op kind: seconds of an average rank",
                               "  trainyard sim run job.json --timeline && trainyard exec run job.json\n"
                               "  trainyard run list                 # which are they?\n"
                               "  trainyard run diff 1 2");
  auto predicted = std::make_shared<std::string>(), measured = std::make_shared<std::string>();
  diff->add_option("predicted", *predicted, "Run that was simulated with --timeline: id, name or \"latest\"")
      ->required();
  diff->add_option("measured", *measured, "Run that trained")->required();
  diff->callback([=, &context] { context.run = [=, &context] { return diff_runs(*predicted, *measured, context); }; });
}

}  // namespace trainyard::cli
