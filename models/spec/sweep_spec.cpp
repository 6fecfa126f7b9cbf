#include "models/spec/sweep_spec.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "models/spec/json_reader.h"

namespace trainyard {

namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr std::int64_t kSweepSchema = 1;
// Where the policies of a grid stand while the scenario's rules look at them; `told_of_axes` turns that into places
// that the user knows.
constexpr char kGrid[] = "$grid";

// --- reading

bool is_scalar(const json& value) { return value.is_number() || value.is_string() || value.is_boolean(); }

void read_axis(const std::string& key, const json& values, const std::string& file, const std::string& path,
               SweepSpec& sweep, Problems& problems) {
  if (key == "name" || key == "base")
    return add_problem(problems, {file, path, "", "cannot be varied", "vary keys that say how recovery is done"});
  if (!values.is_array() || values.empty())
    return add_problem(problems,
                       {file, path, shown(values), "must be a list of values", "write [ ... ] with one at least"});
  SweepAxis axis{key, {}, file, path};
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::string at = fmt::format("{}[{}]", path, i), text = values[i].dump();
    if (!is_scalar(values[i]))
      add_problem(problems, {file, at, shown(values[i]), "must be a number, a text, true or false", "give one value"});
    else if (std::find(axis.values.begin(), axis.values.end(), text) != axis.values.end())
      add_problem(problems, {file, at, text, "is there twice", "give each value once"});
    axis.values.push_back(text);
  }
  sweep.vary.push_back(axis);
}

void read_sweep(ObjectReader& from, const std::string& file, SweepSpec& sweep, Problems& problems) {
  std::int64_t schema = kSweepSchema;
  from.require({"schema", "scenario"}).integer("schema", schema, {kSweepSchema, kSweepSchema});
  from.text("name", sweep.name).text("scenario", sweep.scenario).integer("seeds", sweep.seeds, {1, kMaxSweepSeeds});
  if (from.has("first_seed")) from.unsigned_integer("first_seed", sweep.first_seed.emplace());
  if (const json* policies = from.take("policies")) {
    if (policies->is_array() && !policies->empty())
      sweep.policies = OtherPolicies{policies->dump(), file, from.path_of("policies")};
    else
      from.problem("policies", "must be a list of policies", "write [ ... ], or leave it out for the scenario's own");
  }
  if (const json* vary = from.take("vary")) {
    if (!vary->is_object())
      from.problem("vary", "must be an object", "write { \"checkpoint_interval_s\": [60, 120] }");
    else
      for (const auto& [key, values] : vary->items())
        read_axis(key, values, file, from.path_of("vary") + path_step(key), sweep, problems);
  }
  from.finish();
  sweep.scenario = (fs::path(file).parent_path() / sweep.scenario).lexically_normal().string();
}

// --- the grid

using Combination = std::vector<std::size_t>;  // of each axis, the index of its value

// The last axis changes fastest.
std::vector<Combination> combinations(const std::vector<SweepAxis>& axes) {
  std::vector<Combination> out{{}};
  for (const SweepAxis& axis : axes) {
    std::vector<Combination> longer;
    for (const Combination& combination : out) {
      for (std::size_t i = 0; i < axis.values.size(); ++i) {
        longer.push_back(combination);
        longer.back().push_back(i);
      }
    }
    out = std::move(longer);
  }
  return out;
}

std::vector<std::string> parts_of(const std::string& key) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= key.size();) {
    const std::size_t end = std::min(key.find('.', begin), key.size());
    parts.push_back(key.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

// "spares.hot" as a path below the policy: ".spares.hot".
std::string path_below(const std::string& key) {
  std::string path;
  for (const std::string& part : parts_of(key)) path += path_step(part);
  return path;
}

// As a change of the policy: { "spares": { "hot": value } }.
json change_of(const std::string& key, json value) {
  std::vector<std::string> parts = parts_of(key);
  for (; !parts.empty(); parts.pop_back()) value = json::object({{parts.back(), value}});
  return value;
}

Variation varied(const std::string& policy, const std::vector<SweepAxis>& axes, const Combination& combination) {
  json value = json::parse(policy), changes = json::object();
  Variation out;
  out.name = out.policy = value.value("name", "");
  for (std::size_t a = 0; a < axes.size(); ++a) {
    const json chosen = json::parse(axes[a].values[combination[a]]);
    changes[axes[a].key] = chosen;
    value.merge_patch(change_of(axes[a].key, chosen));
    out.name += fmt::format(",{}={}", axes[a].key, chosen.is_string() ? chosen.get<std::string>() : chosen.dump());
  }
  out.changes = changes.dump();
  value["name"] = out.name;
  out.written = value.dump();
  return out;
}

std::string list_of(const std::vector<Variation>& variations) {
  std::string list;
  for (const Variation& variation : variations) list += (list.empty() ? "" : ",") + variation.written;
  return "[" + list + "]";
}

// A problem of one of the grid's policies: "$grid[5].spare_nodes" is the axis "spare_nodes", at the value that the
// fifth variation takes; a key that is not varied is its policy's own.
struct GridPlace {
  std::size_t policy = 0;
  std::string rest;  // ".spare_nodes"
  const SweepAxis* axis = nullptr;
  std::size_t value = 0;
};

std::optional<GridPlace> place_in_grid(const std::string& path, const SweepSpec& spec,
                                       const std::vector<Combination>& grid) {
  const std::string prefix = std::string(kGrid) + "[";
  if (path.rfind(prefix, 0) != 0) return std::nullopt;
  const std::size_t end = path.find(']'), index = std::stoul(path.substr(prefix.size(), end - prefix.size()));
  GridPlace place{index / grid.size(), path.substr(end + 1), nullptr, 0};
  for (std::size_t a = 0; a < spec.vary.size(); ++a) {
    if (place.rest != path_below(spec.vary[a].key)) continue;
    place.axis = &spec.vary[a];
    place.value = grid[index % grid.size()][a];
  }
  return place;
}

// Each is told once, however many variations have it, and without a value when it is that of every value: the key's.
Problems told_of_axes(const Problems& problems, const SweepSpec& spec, const std::vector<Combination>& grid) {
  Problems out;
  std::map<std::pair<const SweepAxis*, std::string>, std::map<std::size_t, Problem>> of_axis;
  std::set<std::string> told;
  for (Problem problem : problems) {
    const std::optional<GridPlace> place = place_in_grid(problem.path, spec, grid);
    if (place && place->axis != nullptr) {
      problem.file = place->axis->file;
      of_axis[{place->axis, problem.rule}].emplace(place->value, problem);
      continue;
    }
    if (place) {
      problem.file = spec.policies ? spec.policies->file : spec.scenario;
      problem.path = fmt::format("$.policies[{}]{}", place->policy, place->rest);
    }
    if (told.insert(to_string(problem)).second) out.push_back(std::move(problem));
  }
  for (const auto& [key, by_value] : of_axis) {
    const SweepAxis& axis = *key.first;
    const bool all = by_value.size() == axis.values.size() && axis.values.size() > 1;
    for (auto [value, problem] : by_value) {
      problem.path = all ? axis.path : fmt::format("{}[{}]", axis.path, value);
      if (all) problem.value.clear();
      out.push_back(std::move(problem));
      if (all) break;
    }
  }
  return out;
}

Problems check_size(const SweepSpec& spec, std::size_t policies) {
  double variations = static_cast<double>(policies);
  for (const SweepAxis& axis : spec.vary) variations *= static_cast<double>(axis.values.size());
  if (variations <= static_cast<double>(kMaxSweepVariations)) return {};
  return {{spec.file, "$.vary", fmt::format("{:g} variations", variations),
           fmt::format("a sweep has at most {}", kMaxSweepVariations), "vary fewer keys, or over fewer values"}};
}

Result<Scenario> load(const SweepSpec& spec) {
  Result<Scenario> loaded = spec.policies ? load_scenario(spec.scenario, *spec.policies) : load_scenario(spec.scenario);
  if (loaded || spec.scenario == spec.file) return loaded;
  Problems problems = loaded.problems();
  for (Problem& problem : problems) {
    if (problem.path.empty()) problem.rule += fmt::format(" (named by $.scenario of {})", spec.file);
  }
  return problems;
}

}  // namespace

Result<SweepSpec> load_sweep(const std::string& file) {
  const Result<json> text = read_json_file(file);
  if (!text) return text.problems();
  SweepSpec sweep;
  sweep.file = file;
  if (!text.value().is_object() || !(text.value().contains("scenario") || text.value().contains("vary"))) {
    sweep.scenario = file;
    return sweep;
  }
  Problems problems;
  ObjectReader from(text.value(), file, "$", problems);
  read_sweep(from, file, sweep, problems);
  if (!problems.empty()) return problems;
  return sweep;
}

Problems add_axis(const std::string& text, SweepSpec& sweep) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size())
    return {{"", "--vary", text, "must be a key of a policy with its values",
             "write it as --vary checkpoint_interval_s=30,60,120"}};
  const std::string key = text.substr(0, equals);
  json values = json::array();
  for (std::size_t begin = equals + 1; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    const json parsed = json::parse(word, nullptr, false);
    values.push_back(is_scalar(parsed) ? parsed : json(word));
    begin = end + 1;
  }
  sweep.vary.erase(std::remove_if(sweep.vary.begin(), sweep.vary.end(), [&](const auto& a) { return a.key == key; }),
                   sweep.vary.end());
  Problems problems;
  read_axis(key, values, "", "--vary " + key, sweep, problems);
  return problems;
}

Result<Sweep> expand(const SweepSpec& spec) {
  Result<Scenario> base = load(spec);
  if (!base) return base.problems();
  Sweep sweep{spec, std::move(base).value(), {}, {}};
  sweep.policies = sweep.scenario.written.policies;
  if (sweep.spec.name.empty()) sweep.spec.name = sweep.scenario.name;
  if (sweep.scenario.duration_s <= 0)
    return Problem{spec.scenario, "$.duration_days", "0", "a sweep compares recovery, and this is one step only",
                   "give the scenario a duration and recovery policies"};
  if (Problems problems = check_size(spec, sweep.scenario.policies.size()); !problems.empty()) return problems;
  const std::vector<Combination> grid = combinations(spec.vary);
  for (const std::string& policy : sweep.policies) {
    for (const Combination& combination : grid) sweep.variations.push_back(varied(policy, spec.vary, combination));
  }
  if (!spec.vary.empty()) {
    Result<Scenario> varied = load_scenario(spec.scenario, {list_of(sweep.variations), spec.file, kGrid});
    if (!varied) return told_of_axes(varied.problems(), spec, grid);
    sweep.scenario = std::move(varied).value();
  }
  return sweep;
}

}  // namespace trainyard
