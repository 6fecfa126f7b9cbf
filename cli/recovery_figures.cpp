#include "cli/recovery_figures.h"

#include <algorithm>
#include <array>
#include <map>

#include <fmt/format.h>

#include "cli/csv.h"
#include "cli/terminal.h"
#include "models/base/statistics.h"
#include "models/base/units.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;
using Recoveries = std::vector<store::Recovery>;
using PhaseSeconds = std::map<std::string, double>;  // by name; looked up, never walked

double seconds(std::int64_t ns) { return static_cast<double>(ns) / kNsPerS; }

PhaseSeconds phase_seconds(const store::Recovery& recovery) {
  PhaseSeconds out;
  for (const store::RecoveryPhase& phase : recovery.phases) out[phase.phase] += seconds(phase.end_ns - phase.start_ns);
  return out;
}

std::string cause_of(const store::Recovery& recovery) {
  return recovery.cause.empty() ? "no failure" : recovery.cause;  // older versions left it empty
}

json figures_of(const std::vector<double>& values) {
  return {{"median_s", median(values)}, {"mean_s", mean(values)}, {"p99_s", percentile(values, 0.99)}};
}

template <class Of>
json figures_over(const std::vector<const store::Recovery*>& recoveries, Of of) {
  std::vector<double> values;
  for (const store::Recovery* recovery : recoveries) values.push_back(of(*recovery));
  return figures_of(values);
}

json figures_of(const std::vector<const store::Recovery*>& recoveries, std::size_t runs) {
  json out{{"count", static_cast<double>(recoveries.size()) / static_cast<double>(runs)}};
  out["total_s"] = figures_over(recoveries, total_s);
  out["lost_work_s"] = figures_over(recoveries, [](const store::Recovery& r) { return seconds(r.lost_work_ns); });
  std::vector<PhaseSeconds> by_phase;
  for (const store::Recovery* recovery : recoveries) by_phase.push_back(phase_seconds(*recovery));
  for (int p = 0; p < recovery::kPhaseCount; ++p) {
    const std::string name = recovery::to_string(static_cast<recovery::Phase>(p));
    std::vector<double> values;
    bool any = false;
    for (const PhaseSeconds& its : by_phase) {
      const auto found = its.find(name);
      any |= found != its.end();
      values.push_back(found == its.end() ? 0 : found->second);
    }
    if (any) out["phases"][name] = figures_of(values);
  }
  return out;
}

}  // namespace

store::Recovery recovery_row(const RunRecovery& recovery) {
  store::Recovery row;
  row.start_ns = recovery.ledger.begin_ns();
  row.end_ns = recovery.ledger.end_ns();
  const auto& spans = recovery.ledger.spans;
  // Draining takes no time where the state is safe at once.
  const bool planned =
      !spans.empty() && (spans[0].phase == recovery::Phase::Drain || spans[0].phase == recovery::Phase::Fence);
  row.cause = !recovery.causes.empty() ? recovery.causes.front() : planned ? "planned restart" : "no failure";
  if (!recovery.ledger.ejected_nodes.empty()) row.node = recovery.ledger.ejected_nodes.front();
  row.lost_work_ns = to_ns(recovery.lost_work_s);
  row.restored_step = recovery.ledger.restored_step;
  for (const recovery::PhaseSpan& span : spans)
    row.phases.push_back({recovery::to_string(span.phase), span.begin_ns, span.end_ns, span.attempt});
  return row;
}

std::int64_t end_ns(const store::Recovery& r) {
  return r.end_ns.value_or(r.phases.empty() ? r.start_ns : std::max(r.start_ns, r.phases.back().end_ns));
}

double total_s(const store::Recovery& recovery) { return seconds(end_ns(recovery) - recovery.start_ns); }

json recovery_figures(const Recoveries& recoveries, std::size_t runs) {
  json out{{"all", nullptr}, {"by_cause", json::object()}};
  if (recoveries.empty()) return out;
  std::vector<const store::Recovery*> all;
  std::map<std::string, std::vector<const store::Recovery*>> by_cause;
  for (const store::Recovery& recovery : recoveries) {
    all.push_back(&recovery);
    by_cause[cause_of(recovery)].push_back(&recovery);
  }
  out["all"] = figures_of(all, runs);
  std::vector<std::pair<double, std::string>> order;  // by time taken; of two that took as long, by name
  for (const auto& [cause, its] : by_cause) {
    double sum = 0;
    for (const store::Recovery* recovery : its) sum += total_s(*recovery);
    order.emplace_back(-sum, cause);
  }
  std::sort(order.begin(), order.end());
  for (const auto& [sum, cause] : order) out["by_cause"][cause] = figures_of(by_cause[cause], runs);
  return out;
}

// --- text

namespace {

std::string spaced(std::string name) {
  std::replace(name.begin(), name.end(), '_', ' ');
  return name;
}

std::vector<std::string> total_cells(const std::string& name, const json& figures, double all_s) {
  const json& total = figures["total_s"];
  const double count = figures["count"], sum_s = count * total["mean_s"].get<double>();
  return {name,
          fmt::format("{:.4g}", count),
          format_duration(total["median_s"]),
          format_duration(total["mean_s"]),
          format_duration(total["p99_s"]),
          format_duration(figures["lost_work_s"]["mean_s"]),
          format_duration(sum_s),
          fmt::format("{:.1f}%", 100 * sum_s / all_s)};
}

std::string totals_text(const json& figures) {
  const json& all = figures["all"];
  const double all_s = all["count"].get<double>() * all["total_s"]["mean_s"].get<double>();
  std::vector<std::vector<std::string>> rows;
  for (const auto& [cause, its] : figures["by_cause"].items()) rows.push_back(total_cells(cause, its, all_s));
  rows.push_back(total_cells("all", all, all_s));
  return table({"", "times", "median", "mean", "99th", "lost work, mean", "in all", ""}, rows);
}

// Of all causes together.
std::string phases_text(const json& all) {
  std::vector<std::vector<std::string>> rows;
  std::vector<double> shares;
  const double total_s = all["total_s"]["mean_s"];
  for (const auto& [phase, its] : all["phases"].items()) {
    shares.push_back(its["mean_s"].get<double>() / total_s);
    rows.push_back({spaced(phase), format_duration(its["median_s"]), format_duration(its["mean_s"]),
                    format_duration(its["p99_s"]), fmt::format("{:.1f}%", 100 * shares.back())});
  }
  return "\nPhases, of all recoveries\n" + with_bars(table({"", "median", "mean", "99th", "of mean"}, rows), 1, shares);
}

std::string matrix_text(const json& figures, const std::string& figure) {
  std::vector<std::string> header{""}, phases;
  for (const auto& [phase, its] : figures["all"]["phases"].items()) {
    phases.push_back(phase);
    header.push_back(spaced(phase));
  }
  std::vector<std::vector<std::string>> rows;
  const auto add = [&](const std::string& name, const json& its) {
    rows.push_back({name});
    for (const std::string& phase : phases) {
      const bool has = its["phases"].contains(phase);
      rows.back().push_back(has ? format_duration(its["phases"][phase][figure + "_s"]) : "-");
    }
  };
  for (const auto& [cause, its] : figures["by_cause"].items()) add(cause, its);
  add("all", figures["all"]);
  return fmt::format("\nPhases by cause: {}\n", figure == "p99" ? "99th percentile" : figure) + table(header, rows);
}

}  // namespace

std::string recovery_figures_text(const json& figures, const std::string& phases) {
  if (figures["all"].is_null()) return "No recoveries.\n";
  std::string out = totals_text(figures) + phases_text(figures["all"]);
  if (!phases.empty()) out += matrix_text(figures, phases);
  return out + "  99th: 99 of 100 were no longer; of fewer than 100 it is the longest\n";
}

// --- CSV

void write_figures_csv(const json& figures, std::ostream& out) {
  out << csv_row({"cause", "phase", "count", "median_s", "mean_s", "p99_s"});
  const auto write = [&](const std::string& cause, const json& its) {
    const auto row = [&](const std::string& phase, const json& of) {
      out << csv_row({cause, phase, csv_number(its["count"]), csv_number(of["median_s"]), csv_number(of["mean_s"]),
                      csv_number(of["p99_s"])});
    };
    row("total", its["total_s"]);
    row("lost_work", its["lost_work_s"]);
    for (const auto& [phase, of] : its["phases"].items()) row(phase, of);
  };
  if (!figures["all"].is_null()) write("all", figures["all"]);
  for (const auto& [cause, its] : figures["by_cause"].items()) write(cause, its);
}

void write_recoveries_csv(const Recoveries& recoveries, std::ostream& out) {
  std::vector<std::string> header{"recovery", "cause",       "start_s",  "total_s",
                                  "node",     "lost_work_s", "attempts", "restored_step"};
  for (int p = 0; p < recovery::kPhaseCount; ++p)
    header.push_back(fmt::format("phase.{}_s", recovery::to_string(static_cast<recovery::Phase>(p))));
  out << csv_row(header);
  const auto optional = [](const std::optional<std::int64_t>& value) { return value ? std::to_string(*value) : ""; };
  for (std::size_t i = 0; i < recoveries.size(); ++i) {
    const store::Recovery& r = recoveries[i];
    const PhaseSeconds phases = phase_seconds(r);
    std::vector<std::string> fields{std::to_string(i + 1),
                                    cause_of(r),
                                    csv_number(seconds(r.start_ns)),
                                    csv_number(total_s(r)),
                                    optional(r.node),
                                    csv_number(seconds(r.lost_work_ns)),
                                    std::to_string(r.phases.empty() ? 0 : r.phases.back().attempt),
                                    optional(r.restored_step)};
    for (int p = 0; p < recovery::kPhaseCount; ++p) {
      const auto found = phases.find(recovery::to_string(static_cast<recovery::Phase>(p)));
      fields.push_back(csv_number(found == phases.end() ? 0 : found->second));
    }
    out << csv_row(fields);
  }
}

}  // namespace trainyard::cli
