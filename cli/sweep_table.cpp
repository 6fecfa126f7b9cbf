#include "cli/sweep_table.h"

#include <algorithm>
#include <cmath>
#include <set>

#include <fmt/format.h>
#include <xxhash.h>

#include "cli/csv.h"
#include "cli/sweep_advice.h"
#include "cli/terminal.h"
#include "models/base/units.h"
#include "sim/run_result.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;
using Cells = std::vector<store::SweepCell>;

// Of the cells that have the figure.
template <class Of>
std::vector<double> over(const Cells& cells, Of of) {
  std::vector<double> out;
  for (const store::SweepCell& cell : cells) {
    const auto value = static_cast<double>(of(cell));
    if (!std::isnan(value)) out.push_back(value);
  }
  return out;
}

template <class Of>
double mean_over(const Cells& cells, Of of) {
  return mean(over(cells, of));
}

json estimate_json(const Estimate& estimate) {
  return {{"mean", estimate.mean},
          {"half_width", finite(estimate.half_width)},
          {"low", finite(estimate.mean - estimate.half_width)},
          {"high", finite(estimate.mean + estimate.half_width)}};
}

// Seconds of all recoveries of all seeds: each cell's mean counts as often as it has recoveries.
json recovery_json(const Cells& cells) {
  double seconds = 0, count = 0;
  for (const store::SweepCell& cell : cells) {
    if (cell.recoveries == 0) continue;
    seconds += cell.recovery_mean_s * static_cast<double>(cell.recoveries);
    count += static_cast<double>(cell.recoveries);
  }
  if (count == 0) return {{"count", 0.0}, {"median_s", nullptr}, {"mean_s", nullptr}, {"p99_s", nullptr}};
  return {{"count", count / static_cast<double>(cells.size())},
          {"median_s", mean_over(cells, median_recovery_s)},
          {"mean_s", seconds / count},
          {"p99_s", mean_over(cells, [](const auto& c) { return c.recovery_p99_s; })}};
}

json bands_json(const Cells& cells, const std::vector<std::string>& names) {
  json out = json::object();
  for (const std::string& name : names) {
    out[name] = mean_over(cells, [&](const store::SweepCell& cell) {
      for (const store::GoodputBand& band : cell.bands)
        if (band.band == name) return static_cast<double>(band.duration_ns) * 1e-9;
      return 0.0;
    });
  }
  return out;
}

// Every band that some cell has, in the order of Band; those that only another version knows come last.
std::vector<std::string> band_names(const SweepTable& table) {
  std::set<std::string> seen;
  for (const Cells& cells : table.cells) {
    for (const store::SweepCell& cell : cells)
      for (const store::GoodputBand& band : cell.bands) seen.insert(band.band);
  }
  std::vector<std::string> names;
  for (std::size_t b = 0; b < kBandCount; ++b) {
    const std::string name = to_string(static_cast<Band>(b));
    if (seen.erase(name) > 0) names.push_back(name);
  }
  names.insert(names.end(), seen.begin(), seen.end());
  return names;
}

std::uint64_t trace_hash(const Cells& cells, std::uint64_t hash) {
  for (const store::SweepCell& cell : cells) hash = XXH64(cell.trace_hash.data(), cell.trace_hash.size(), hash);
  return hash;
}

json variation_json(const store::SweepVariation& variation, const Cells& cells, const std::vector<std::string>& bands) {
  json out;
  out["name"] = variation.name;
  out["policy"] = variation.policy;
  out["changes"] = json::parse(variation.changes_json, nullptr, false);
  out["seeds"] = cells.size();
  if (cells.empty()) return out;
  out["effective_training_time"] = estimate_json(estimate(over(cells, effective_training_time)));
  out["recovery"] = recovery_json(cells);
  out["failures"] = mean_over(cells, [](const auto& c) { return c.failures; });
  out["lost_work_s"] = mean_over(cells, [](const auto& c) { return c.lost_work_ns; }) * 1e-9;
  out["pages"] = mean_over(cells, [](const auto& c) { return c.pages; });
  const auto fewest = over(cells, [](const auto& c) { return c.spares_fewest; });
  out["spares"] = {{"configured", cells.front().spares_configured},
                   {"fewest", static_cast<std::int64_t>(*std::min_element(fewest.begin(), fewest.end()))},
                   {"mean", mean_over(cells, [](const auto& c) { return c.spares_mean; })}};
  out["checkpoint_interval_s"] = cells.front().checkpoint_interval_s;
  out["checkpoints"] = mean_over(cells, [](const auto& c) { return c.checkpoints; });
  out["steps_done"] = mean_over(cells, [](const auto& c) { return c.steps_done; });
  out["down_at_end"] = std::count_if(cells.begin(), cells.end(), [](const auto& c) { return !c.waiting_for.empty(); });
  out["bands"] = bands_json(cells, bands);
  out["trace_hash"] = fmt::format("{:016x}", trace_hash(cells, 0));
  return out;
}

// Which variation is best, and which of the others these seeds cannot tell from it.
void mark_best(const SweepTable& table, json& variations) {
  std::vector<std::size_t> candidates;
  for (std::size_t v = 0; v < table.cells.size(); ++v)
    if (!table.cells[v].empty()) candidates.push_back(v);
  if (candidates.size() < 2) return;
  const std::size_t best = best_of(table, candidates);
  for (const std::size_t v : candidates) {
    variations[v]["best"] = v == best;
    const auto behind = difference(table.cells[v], table.cells[best], effective_training_time);
    if (v == best || !behind) continue;
    variations[v]["behind_best"] = to_json(*behind);
    variations[v]["as_good_as_best"] = !behind->is_real();
  }
}

}  // namespace

SweepTable make_table(store::SweepRow sweep, const std::vector<store::SweepCell>& cells) {
  SweepTable table{std::move(sweep), {}};
  table.cells.resize(table.sweep.variations.size());
  for (const store::SweepCell& cell : cells) {
    const auto variation = static_cast<std::size_t>(cell.variation);
    if (variation < table.cells.size()) table.cells[variation].push_back(cell);
  }
  return table;
}

double effective_training_time(const store::SweepCell& cell) { return cell.effective_training_time; }
double median_recovery_s(const store::SweepCell& cell) { return cell.recovery_median_s; }

std::optional<PairedDifference> difference(const Cells& a, const Cells& b, const Figure& figure) {
  std::vector<double> of_a, of_b;
  for (std::size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    if (a[i].seed != b[j].seed) {
      ++(a[i].seed < b[j].seed ? i : j);
      continue;
    }
    const double its_a = figure(a[i++]), its_b = figure(b[j++]);
    if (std::isnan(its_a) || std::isnan(its_b)) continue;
    of_a.push_back(its_a);
    of_b.push_back(its_b);
  }
  if (of_a.empty()) return std::nullopt;
  return paired_difference(of_a, of_b);
}

json finite(double value) { return std::isfinite(value) ? json(value) : json(nullptr); }

json to_json(const PairedDifference& d) {
  const std::optional<std::int64_t> needed = d.pairs_needed();
  return {{"seeds", d.pairs},
          {"mean", d.mean},
          {"half_width", finite(d.half_width)},
          {"low", finite(d.mean - d.half_width)},
          {"high", finite(d.mean + d.half_width)},
          {"p_value", d.p_value},
          {"greater", d.greater},
          {"smaller", d.smaller},
          {"sign_p_value", d.sign_p_value},
          {"unpaired_half_width", finite(d.unpaired_half_width)},
          {"real", d.is_real()},
          {"seeds_needed", needed ? json(*needed) : json(nullptr)}};
}

json sweep_report(const SweepTable& table) {
  const store::SweepRow& sweep = table.sweep;
  json out;
  out["sweep"] = sweep.name;
  out["id"] = sweep.id > 0 ? json(sweep.id) : json(nullptr);
  out["identity"] = sweep.identity;
  out["scenario"] = sweep.scenario;
  out["version"] = sweep.version;
  out["commit"] = sweep.commit_id;
  out["duration_s"] = static_cast<double>(sweep.duration_ns) * 1e-9;
  std::set<std::uint64_t> seeds;
  std::size_t cells = 0;
  std::uint64_t hash = 0;
  for (const Cells& its : table.cells) {
    for (const store::SweepCell& cell : its) seeds.insert(cell.seed);
    cells += its.size();
    hash = trace_hash(its, hash);
  }
  out["seeds"] = seeds.size();
  out["first_seed"] = seeds.empty() ? json(nullptr) : json(*seeds.begin());
  out["last_seed"] = seeds.empty() ? json(nullptr) : json(*seeds.rbegin());
  out["cells"] = cells;
  out["variations"] = json::array();
  const std::vector<std::string> bands = band_names(table);
  for (std::size_t v = 0; v < table.cells.size(); ++v)
    out["variations"].push_back(variation_json(sweep.variations[v], table.cells[v], bands));
  mark_best(table, out["variations"]);
  out["advice"] = advice(table);
  out["trace_hash"] = fmt::format("{:016x}", hash);
  return out;
}

// --- text

namespace {

std::string percent(double share) { return fmt::format("{:.2f}%", 100 * share); }

std::string seconds_or_dash(const json& seconds) { return seconds.is_null() ? "-" : format_duration(seconds); }

std::string value_text(const json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

// Columns of the keys that are varied.
std::vector<std::string> varied_keys(const json& report) {
  std::vector<std::string> keys;
  for (const json& variation : report["variations"]) {
    for (const auto& [key, value] : variation["changes"].items())
      if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
  }
  return keys;
}

std::vector<std::string> names_of(const json& variation, const std::vector<std::string>& keys) {
  std::vector<std::string> cells{variation["policy"]};
  for (const std::string& key : keys)
    cells.push_back(variation["changes"].contains(key) ? value_text(variation["changes"][key]) : "-");
  return cells;
}

std::string mark_of(const json& variation) {
  if (variation.value("best", false)) return "best";
  return variation.value("as_good_as_best", false) ? "~ best" : "";
}

std::vector<std::string> figures_of(const json& v) {
  if (v["seeds"] == 0) return {"0"};
  const json& effective = v["effective_training_time"];
  const json& recovery = v["recovery"];
  const json& half_width = effective["half_width"];
  return {
      std::to_string(v["seeds"].get<std::int64_t>()),
      percent(effective["mean"]),
      half_width.is_null() ? "-" : fmt::format("{:.2f}", 100 * half_width.get<double>()),
      mark_of(v),
      seconds_or_dash(recovery["median_s"]),
      seconds_or_dash(recovery["mean_s"]),
      seconds_or_dash(recovery["p99_s"]),
      fmt::format("{:.4g}", recovery["count"].get<double>()),
      format_duration(v["lost_work_s"]),
      fmt::format("{:.3g}", v["pages"].get<double>()),
      fmt::format("{} of {}", v["spares"]["fewest"].get<std::int64_t>(), v["spares"]["configured"].get<std::int64_t>()),
      v["down_at_end"] == 0 ? "-" : std::to_string(v["down_at_end"].get<std::int64_t>())};
}

std::string figures_text(const json& report, const std::vector<std::string>& keys) {
  std::vector<std::string> header{"policy"};
  header.insert(header.end(), keys.begin(), keys.end());
  for (const char* name : {"seeds", "effective", "+-", "", "recovery: median", "mean", "99th", "times", "lost work",
                           "pages", "spares, fewest", "down at end"})
    header.emplace_back(name);
  std::vector<std::vector<std::string>> rows;
  for (const json& variation : report["variations"]) {
    rows.push_back(names_of(variation, keys));
    const std::vector<std::string> figures = figures_of(variation);
    rows.back().insert(rows.back().end(), figures.begin(), figures.end());
  }
  return table(header, rows);
}

// A band that takes less than this of the time under every policy is not shown.
constexpr double kShownShare = 0.002;

std::string bands_text(const json& report, const std::vector<std::string>& keys) {
  const double duration_s = report["duration_s"];
  std::vector<std::string> shown;
  const auto seen = [&](const std::string& name) {
    return std::any_of(report["variations"].begin(), report["variations"].end(), [&](const json& variation) {
      return variation.contains("bands") && variation["bands"][name].get<double>() >= kShownShare * duration_s;
    });
  };
  for (const json& variation : report["variations"]) {
    if (!variation.contains("bands")) continue;
    for (const auto& [name, seconds] : variation["bands"].items())  // every variation has them all
      if (seen(name)) shown.push_back(name);
    break;
  }
  std::vector<std::string> header{"policy"};
  header.insert(header.end(), keys.begin(), keys.end());
  for (std::string name : shown) {
    std::replace(name.begin(), name.end(), '_', ' ');
    header.push_back(name);
  }
  std::vector<std::vector<std::string>> rows;
  for (const json& variation : report["variations"]) {
    if (!variation.contains("bands")) continue;
    rows.push_back(names_of(variation, keys));
    for (const std::string& name : shown)
      rows.back().push_back(fmt::format("{:.1f}%", 100 * variation["bands"][name].get<double>() / duration_s));
  }
  return "\nWhere the time went\n" + table(header, rows);
}

// What the next spares gain, beside what they cost.
std::string marginal_text(const json& marginal) {
  const auto points = [](const json& d) {
    const json& half_width = d["half_width"];
    return fmt::format("{:+.2f} +- {}", 100 * d["mean"].get<double>(),
                       half_width.is_null() ? "?" : fmt::format("{:.2f}", 100 * half_width.get<double>()));
  };
  std::vector<std::vector<std::string>> rows{{"spare nodes", "gain, points", "GPUs that do not train", "net", ""}};
  for (const json& step : marginal) {
    rows.push_back({fmt::format("{} -> {}", value_text(step["from"]), value_text(step["to"]))});
    if (!step.contains("net")) continue;
    const json& worth = step["worth_it"];
    for (const std::string& cell :
         {points(step["gain"]), fmt::format("{:+.2f}", -100 * step["cost"].get<double>()), points(step["net"]),
          std::string(worth == true    ? "worth it"
                      : worth == false ? "not worth it"
                                       : "cannot be told")})
      rows.back().push_back(cell);
  }
  return left_table(rows, {false, true, true, true, false});
}

std::string advice_text(const json& report) {
  std::string out;
  for (const json& entry : report["advice"]) {
    out += entry["text"].get<std::string>() + "\n";
    if (entry.contains("marginal")) out += marginal_text(entry["marginal"]);
  }
  return out.empty() ? ""
                     : "\nAdvice, from these cells alone, seeds taken in pairs (+- is half the 95% interval)\n" + out;
}

}  // namespace

std::string sweep_text(const json& report) {
  const std::vector<std::string> keys = varied_keys(report);
  std::string out = fmt::format("{}: {} of {}, {} variation{}, {} seed{}, {} cells\n\n",
                                report["sweep"].get<std::string>(), format_duration(report["duration_s"]),
                                report["scenario"].get<std::string>(), report["variations"].size(),
                                report["variations"].size() == 1 ? "" : "s", report["seeds"].get<std::int64_t>(),
                                report["seeds"] == 1 ? "" : "s", report["cells"].get<std::int64_t>());
  out += figures_text(report, keys);
  out +=
      "  +- is half the 95% interval; \"~ best\": these seeds, taken in pairs, do not tell it from the best;\n"
      "  down at end: seeds under which the job waited for a spare or a human when the run ended\n";
  out += bands_text(report, keys) + advice_text(report);
  return out + fmt::format("\ntrace {}\n", report["trace_hash"].get<std::string>());
}

// --- CSV

namespace {

std::vector<std::string> figures_of(const store::SweepCell& c) {
  return {std::to_string(c.seed),
          csv_number(c.effective_training_time),
          std::to_string(c.failures),
          std::to_string(c.recoveries),
          csv_number(c.recovery_median_s),
          csv_number(c.recovery_mean_s),
          csv_number(c.recovery_p99_s),
          csv_number(static_cast<double>(c.lost_work_ns) * 1e-9),
          csv_number(c.checkpoint_interval_s),
          std::to_string(c.checkpoints),
          std::to_string(c.steps_done),
          std::to_string(c.steps_committed),
          std::to_string(c.pages),
          std::to_string(c.spares_configured),
          std::to_string(c.spares_fewest),
          csv_number(c.spares_mean),
          c.waiting_for,
          c.trace_hash};
}

}  // namespace

void write_csv(const SweepTable& table, std::ostream& out) {
  std::set<std::string> keys;
  for (const auto& variation : table.sweep.variations) {
    const json changes = json::parse(variation.changes_json, nullptr, false);
    for (const auto& [key, value] : changes.items()) keys.insert(key);
  }
  std::vector<std::string> header{"sweep", "variation", "policy"};
  for (const std::string& key : keys) header.push_back("vary." + key);
  for (const char* name :
       {"seed", "effective_training_time", "failures", "recoveries", "recovery_median_s", "recovery_mean_s",
        "recovery_p99_s", "lost_work_s", "checkpoint_interval_s", "checkpoints", "steps_done", "steps_committed",
        "pages", "spares_configured", "spares_fewest", "spares_mean", "waiting_for", "trace_hash"})
    header.emplace_back(name);
  const std::vector<std::string> bands = band_names(table);
  for (const std::string& band : bands) header.push_back("band." + band + "_s");
  out << csv_row(header);
  for (std::size_t v = 0; v < table.cells.size(); ++v) {
    const store::SweepVariation& variation = table.sweep.variations[v];
    const json changes = json::parse(variation.changes_json, nullptr, false);
    for (const store::SweepCell& cell : table.cells[v]) {
      std::vector<std::string> row{table.sweep.name, variation.name, variation.policy};
      for (const std::string& key : keys) row.push_back(changes.contains(key) ? value_text(changes[key]) : "");
      const std::vector<std::string> figures = figures_of(cell);
      row.insert(row.end(), figures.begin(), figures.end());
      for (const std::string& band : bands) {
        std::int64_t duration_ns = 0;
        for (const store::GoodputBand& its : cell.bands) duration_ns += its.band == band ? its.duration_ns : 0;
        row.push_back(csv_number(static_cast<double>(duration_ns) * 1e-9));
      }
      out << csv_row(row);
    }
  }
}

}  // namespace trainyard::cli
