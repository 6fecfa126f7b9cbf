#include "cli/training_report.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "cli/terminal.h"
#include "cli/version.h"
#include "models/base/units.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Of the memory that a plan has to fit: a GPU's, or the machine's.
double held_bytes(const json& rank) {
  const double device = rank["device_bytes"];
  return device > 0 ? device : rank["rss_bytes"].get<double>();
}

// Below these, what was validated is what is.
constexpr double kStepTimeDrift = 0.25, kMemoryDrift = 0.1;
constexpr int kStepsToJudge = 5;

}  // namespace

json make_training_report(const Scenario& scenario, const exec::TrainingReport& report, const std::string& device) {
  const double tokens = static_cast<double>(scenario.plan.global_batch * scenario.plan.sequence_length);
  std::vector<double> times;
  double busy_s = 0;
  json losses = json::array();
  for (const exec::StepReport& step : report.steps) {
    times.push_back(static_cast<double>(step.end_ns - step.begin_ns) * 1e-9);
    busy_s += times.back();
    losses.push_back(step.loss);
  }
  // The first step touches its memory for the first time.
  if (times.size() > 1) times.erase(times.begin());
  const double step_s = median(times);
  const double flops = model_flops_per_token(scenario.model, scenario.plan.sequence_length, true) * tokens;
  json ranks = json::array();
  for (std::size_t r = 0; r < report.ranks.size(); ++r)
    ranks.push_back({{"rank", r},
                     {"arena_bytes", report.ranks[r].arena_bytes},
                     {"rss_bytes", report.ranks[r].rss_bytes},
                     {"device_bytes", report.ranks[r].device_bytes}});
  return {{"job", scenario.name},
          {"model", scenario.model.name},
          {"parameters", parameter_count(scenario.model)},
          {"seed", scenario.seed},
          {"commit", commit_id()},
          {"ranks", report.ranks.size()},
          {"device", device},
          {"first_step", report.first_step},
          {"steps", report.steps.size()},
          {"loss", report.steps.empty() ? json(nullptr) : json(report.steps.back().loss)},
          {"step_time_s", step_s},
          {"tokens_per_s", step_s > 0 ? tokens / step_s : 0},
          {"model_flops_per_s", step_s > 0 ? flops / step_s : 0},
          {"wall_s", report.wall_s},
          {"startup_s", report.startup_s},
          {"checkpoint_stall_s", report.checkpoint_stall_s},
          {"goodput", busy_s / std::max(report.wall_s, 1e-9)},
          {"checkpoints", report.checkpoints},
          {"losses", losses},
          {"memory", ranks}};
}

json compare_with_lock(const json& report, const LockedPlan& lock) {
  double rss = 0;
  for (const json& rank : report["memory"]) rss = std::max(rss, held_bytes(rank));
  const double step_s = report["step_time_s"];
  return {{"program", lock.hashes.program},
          {"step_time_s", lock.step_time_s},
          {"step_time_error", step_s > 0 ? json(lock.step_time_s / step_s - 1) : json(nullptr)},
          {"memory_peak_bytes", lock.memory_peak_bytes},
          {"memory_error", rss > 0 ? json(lock.memory_peak_bytes / rss - 1) : json(nullptr)}};
}

std::vector<std::string> drift_notes(const json& report) {
  std::vector<std::string> notes;
  const json& validated = report["validated"];
  const auto off = [&](const char* error, double by) {
    return !validated[error].is_null() && std::fabs(validated[error].get<double>()) > by;
  };
  if (report["steps"] >= kStepsToJudge && off("step_time_error", kStepTimeDrift))
    notes.push_back(
        fmt::format("a step took {}, and {} when the plan was validated: trainyard calibrate, then validate",
                    format_duration(report["step_time_s"]), format_duration(validated["step_time_s"])));
  if (report["steps"] >= kStepsToJudge && off("memory_error", kMemoryDrift))
    notes.push_back(fmt::format("ranks held {:+.0f}% of the memory that was predicted",
                                100 * (1 / (1 + validated["memory_error"].get<double>()) - 1)));
  return notes;
}

std::string training_text(const json& report) {
  std::string out = fmt::format("{}   seed {}   {} of {} parameters on {} rank{}\n\n", report["job"].get<std::string>(),
                                report["seed"].get<std::uint64_t>(), report["model"].get<std::string>(),
                                format_count(report["parameters"]), report["ranks"].get<std::int64_t>(),
                                report["ranks"] == 1 ? "" : "s");
  std::vector<double> losses;
  for (const json& loss : report["losses"])
    losses.push_back(loss.is_number() ? loss.get<double>() : std::numeric_limits<double>::quiet_NaN());
  out += curve(losses, report["first_step"].get<std::int64_t>() + 1, "loss");
  const std::int64_t first = report["first_step"], steps = report["steps"];
  std::vector<std::vector<std::string>> rows;
  rows.push_back({"on", report["device"]});
  rows.push_back(
      {"steps", steps == 0 ? "none: all were done before" : fmt::format("{} to {}", first + 1, first + steps)});
  if (!losses.empty()) rows.push_back({"loss", fmt::format("{:.4f} -> {:.4f}", losses.front(), losses.back())});
  if (steps > 0) {
    rows.push_back({"a step", format_duration(report["step_time_s"])});
    rows.push_back({"tokens/s", format_count(std::llround(report["tokens_per_s"].get<double>()))});
    rows.push_back({"model FLOP/s", fmt::format("{:.3g}", report["model_flops_per_s"].get<double>())});
    rows.push_back({"goodput", fmt::format("{:.1f}% of {}", 100 * report["goodput"].get<double>(),
                                           format_duration(report["wall_s"]))});
  }
  if (report.contains("validated") && steps > 0)
    rows.push_back({"validated", fmt::format("{} a step ({:+.1f}%), {} of memory ({:+.1f}%)",
                                             format_duration(report["validated"]["step_time_s"]),
                                             100 * report["validated"]["step_time_error"].get<double>(),
                                             format_bytes(report["validated"]["memory_peak_bytes"]),
                                             100 * report["validated"]["memory_error"].get<double>())});
  if (!report["checkpoints"].empty())
    rows.push_back(
        {"checkpoints", fmt::format("{}, for which training stood still for {}", report["checkpoints"].size(),
                                    format_duration(report["checkpoint_stall_s"]))});
  double arena = 0, rss = 0;
  for (const json& rank : report["memory"]) {
    arena = std::max(arena, rank["arena_bytes"].get<double>());
    rss = std::max(rss, held_bytes(rank));
  }
  rows.push_back(
      {"memory", fmt::format("arena {}, process {} at most, of one rank", format_bytes(arena), format_bytes(rss))});
  for (const auto& row : rows) out += fmt::format("  {:<14}{}\n", row[0], row[1]);
  return out;
}

}  // namespace trainyard::cli
