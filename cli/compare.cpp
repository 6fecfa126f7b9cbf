// trainyard sim compare: is one policy of a sweep really better than another, seed by seed?

#include <algorithm>
#include <cmath>
#include <iostream>
#include <set>
#include <sstream>

#include <fmt/format.h>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/sweep_table.h"
#include "cli/terminal.h"
#include "models/base/units.h"
#include "store/store_file.h"
#include "store/sweep_store.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

struct Options {
  std::string a, b;
  std::string sweep = "latest";
  bool sweeps = false;  // a and b are sweeps
};

// What is compared, and how it is told.
struct Measure {
  const char* key;
  const char* name;
  Figure figure;
  bool more_is_better;
  bool is_seconds;
};
const Measure kMeasures[] = {
    {"effective_training_time", "effective training time", effective_training_time, true, false},
    {"median_recovery_s", "median recovery", median_recovery_s, false, true},
};

// Clocks that count nanoseconds tell apart what nobody would call a difference.
constexpr double kAlike_s = 1e-3;

// Digits enough that the interval shows two.
std::string shown(const Measure& measure, double value, double half_width) {
  const double scale = std::isfinite(half_width) && half_width > 0 ? half_width : std::abs(value);
  const int digits = scale > 0 ? std::clamp(1 - static_cast<int>(std::floor(std::log10(scale))), 0, 9) : 3;
  return fmt::format("{:.{}f}{}", value, measure.is_seconds ? std::min(digits, 3) : digits,
                     measure.is_seconds ? " s" : "");
}

// The plain sentence: which is better, by how much, and whether that is more than chance.
std::string verdict(const Measure& measure, const PairedDifference& d) {
  const bool b_better = (d.mean > 0) == measure.more_is_better;
  const std::string by = fmt::format("by {} +- {}", shown(measure, std::abs(d.mean), d.half_width),
                                     std::isfinite(d.half_width) ? shown(measure, d.half_width, d.half_width) : "?");
  if (d.greater == 0 && d.smaller == 0)
    return fmt::format("no difference at all: {} of {} seeds alike", d.pairs, d.pairs);
  if (measure.is_seconds && std::abs(d.mean) + d.half_width < kAlike_s)
    return fmt::format("alike to a millisecond over {} seeds", d.pairs);
  if (d.pairs < 2) return fmt::format("{} looks better {}, but one seed cannot tell", b_better ? "B" : "A", by);
  if (d.is_real()) return fmt::format("{} is better {}: real (p = {:.2g})", b_better ? "B" : "A", by, d.p_value);
  const auto needed = d.pairs_needed();
  return fmt::format("no difference can be told from {} seeds ({} {}, p = {:.2g}){}", d.pairs,
                     b_better ? "B better" : "A better", by, d.p_value,
                     needed ? fmt::format(": about {} would", format_count(*needed)) : "");
}

// How many times as many seeds the same interval would take if they were not paired.
std::string pairing_text(const PairedDifference& d) {
  if (!(d.half_width > 0) || !std::isfinite(d.unpaired_half_width)) return "";
  const double ratio = d.unpaired_half_width / d.half_width;
  if (ratio * ratio < 1.1) return "";
  return fmt::format("; pairing is worth {} times as many seeds",
                     ratio * ratio < 10 ? fmt::format("{:.2g}", ratio * ratio)
                                        : format_count(std::llround(std::min(ratio * ratio, 1e15))));
}

struct Side {
  std::string name;
  const std::vector<store::SweepCell>* cells = nullptr;
};

json comparison(const Side& a, const Side& b) {
  json out{{"a", a.name}, {"b", b.name}};
  for (const Measure& measure : kMeasures) {
    const auto d = difference(*a.cells, *b.cells, measure.figure);
    if (!d) {
      out[measure.key] = nullptr;
      continue;
    }
    json entry = to_json(*d);
    // Of the seeds in common only: b's mean is a's and the difference.
    std::vector<double> of_a;
    for (const store::SweepCell& cell : *a.cells) {
      const auto same = [&](const store::SweepCell& other) { return other.seed == cell.seed; };
      const auto pair = std::find_if(b.cells->begin(), b.cells->end(), same);
      if (pair == b.cells->end() || std::isnan(measure.figure(cell)) || std::isnan(measure.figure(*pair))) continue;
      of_a.push_back(measure.figure(cell));
    }
    entry["a"] = mean(of_a);
    entry["b"] = mean(of_a) + d->mean;
    entry["verdict"] = verdict(measure, *d);
    entry["pairing"] = pairing_text(*d);
    out[measure.key] = std::move(entry);
  }
  return out;
}

std::string number_or_dash(const Measure& measure, const json& value, double scale) {
  return value.is_null() ? "-" : shown(measure, value, scale);
}

std::string comparison_text(const json& its) {
  std::string out = fmt::format("A  {}\nB  {}\n\n", its["a"].get<std::string>(), its["b"].get<std::string>());
  std::vector<std::vector<std::string>> rows;
  std::string sentences;
  for (const Measure& measure : kMeasures) {
    const json& d = its[measure.key];
    if (d.is_null()) {
      sentences += fmt::format("{}: no seed has it on both sides\n", measure.name);
      continue;
    }
    const double scale = d["half_width"].is_null() ? 0 : d["half_width"].get<double>();
    const std::string unpaired = number_or_dash(measure, d["unpaired_half_width"], scale);
    rows.push_back({measure.name, std::to_string(d["seeds"].get<std::int64_t>()), shown(measure, d["a"], scale),
                    shown(measure, d["b"], scale), shown(measure, d["mean"], scale),
                    number_or_dash(measure, d["half_width"], scale), unpaired,
                    fmt::format("{:.2g}", d["p_value"].get<double>()),
                    fmt::format("{} up, {} down", d["greater"].get<std::int64_t>(), d["smaller"].get<std::int64_t>()),
                    fmt::format("{:.2g}", d["sign_p_value"].get<double>())});
    sentences +=
        fmt::format("{}: {}{}\n", measure.name, d["verdict"].get<std::string>(), d["pairing"].get<std::string>());
  }
  if (!rows.empty())
    out += table({"", "seeds", "A", "B", "B - A", "+-", "unpaired +-", "p", "signs", "p of signs"}, rows) + "\n";
  return out + sentences;
}

// --- who is meant

// "grok-90s,spare_nodes=4" as its parts.
std::set<std::string> parts_of(const std::string& name) {
  std::set<std::string> parts;
  std::istringstream stream(name);
  for (std::string part; std::getline(stream, part, ',');) parts.insert(part);
  return parts;
}

// By name, by number, or by parts of a name that only one has.
Result<std::size_t> find_variation(const store::SweepRow& sweep, const std::string& selector) {
  std::vector<std::size_t> found;
  const std::set<std::string> asked = parts_of(selector);
  std::string names;
  for (std::size_t v = 0; v < sweep.variations.size(); ++v) {
    const std::string& name = sweep.variations[v].name;
    if (name == selector) return v;
    const std::set<std::string> parts = parts_of(name);
    if (!asked.empty() && std::includes(parts.begin(), parts.end(), asked.begin(), asked.end())) found.push_back(v);
    if (v < 12) names += (names.empty() ? "" : "; ") + name;
  }
  if (found.size() == 1) return found.front();
  if (sweep.variations.size() > 12) names += "; ...";
  return Problem{"", "", selector,
                 found.empty()
                     ? fmt::format("is no variation of sweep {} ({})", sweep.id, sweep.name)
                     : fmt::format("names {} variations of sweep {} ({})", found.size(), sweep.id, sweep.name),
                 "name one of these, or parts that only one has: " + names};
}

Result<SweepTable> read_table(store::SweepReader& reader, const std::string& selector) {
  Result<store::SweepRow> sweep = reader.find(selector);
  if (!sweep) return sweep.problems();
  const Result<std::vector<store::SweepCell>> cells = reader.cells(sweep.value().id);
  if (!cells) return cells.problems();
  return make_table(std::move(sweep).value(), cells.value());
}

Problem nothing_in_common(const std::string& a, const std::string& b) {
  return {"", "", a + " and " + b, "have no seed in common", "sweep both over the same seeds"};
}

Result<json> compare_variations(store::SweepReader& reader, const Options& options) {
  const Result<SweepTable> read = read_table(reader, options.sweep);
  if (!read) return read.problems();
  const SweepTable& table = read.value();
  const auto a = find_variation(table.sweep, options.a), b = find_variation(table.sweep, options.b);
  if (!a) return a.problems();
  if (!b) return b.problems();
  const Side side_a{table.sweep.variations[a.value()].name, &table.cells[a.value()]};
  const Side side_b{table.sweep.variations[b.value()].name, &table.cells[b.value()]};
  if (!difference(*side_a.cells, *side_b.cells, effective_training_time))
    return nothing_in_common(side_a.name, side_b.name);
  return json::array({comparison(side_a, side_b)});
}

// Each variation that both sweeps have.
Result<json> compare_sweeps(store::SweepReader& reader, const Options& options) {
  const Result<SweepTable> read_a = read_table(reader, options.a), read_b = read_table(reader, options.b);
  if (!read_a) return read_a.problems();
  if (!read_b) return read_b.problems();
  const SweepTable &a = read_a.value(), &b = read_b.value();
  json out = json::array();
  for (std::size_t v = 0; v < a.cells.size(); ++v) {
    for (std::size_t w = 0; w < b.cells.size(); ++w) {
      const std::string& name = a.sweep.variations[v].name;
      if (b.sweep.variations[w].name != name || !difference(a.cells[v], b.cells[w], effective_training_time)) continue;
      out.push_back(comparison({fmt::format("sweep {}: {}", a.sweep.id, name), &a.cells[v]},
                               {fmt::format("sweep {}: {}", b.sweep.id, name), &b.cells[w]}));
    }
  }
  if (out.empty())
    return Problem{"", "", options.a + " and " + options.b, "have no variation with seeds in common",
                   "sweep the same policies over the same seeds"};
  return out;
}

int compare(const Options& options, const Context& context) {
  Result<store::SweepReader> opened =
      store::SweepReader::open(context.store_file.empty() ? store::default_store_file() : context.store_file);
  if (!opened) return fail(opened.problems(), context);
  store::SweepReader reader = std::move(opened).value();
  const Result<json> compared = options.sweeps ? compare_sweeps(reader, options) : compare_variations(reader, options);
  if (!compared) return fail(compared.problems(), context);
  if (context.json) {
    std::cout << compared.value().dump(2) << "\n";
    return kOk;
  }
  bool first = true;
  for (const json& its : compared.value()) {
    std::cout << (first ? "" : "\n") << comparison_text(its);
    first = false;
  }
  return kOk;
}

}  // namespace

void add_sim_compare(CLI::App& sim, Context& context) {
  CLI::App* command = add_command(
      sim, "compare", "Whether one policy of a sweep is really better than another, seed by seed",
      "  trainyard sim compare baseline-2023 grok-90s\n"
      "  trainyard sim compare grok-90s,checkpoint_interval_s=60 grok-90s,checkpoint_interval_s=120 --sweep latest\n"
      "  trainyard sim compare checkpoint_interval_s=60 checkpoint_interval_s=120    # where that names one each\n"
      "  trainyard sim compare --sweeps 3 5    # variation by variation, such as before and after a change");
  auto options = std::make_shared<Options>();
  command->add_option("A", options->a, "Variation: its name, or parts of it that no other has")->required();
  command->add_option("B", options->b, "The same")->required();
  command->add_option("--sweep", options->sweep, "Id or name of the sweep (default: the latest)");
  command->add_flag("--sweeps", options->sweeps, "A and B are sweeps, by id or name");
  command->callback([options, &context] { context.run = [options, &context] { return compare(*options, context); }; });
}

}  // namespace trainyard::cli
