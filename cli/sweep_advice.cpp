#include "cli/sweep_advice.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include <fmt/format.h>

#include "models/base/units.h"
#include "models/recovery/goodput.h"
#include "models/spec/policy_spec.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;
using Cells = std::vector<store::SweepCell>;

double effective(const Cells& cells) {
  double sum = 0;
  for (const store::SweepCell& cell : cells) sum += cell.effective_training_time;
  return sum / static_cast<double>(cells.size());
}

std::string points_text(double share) { return fmt::format("{:.2f}", 100 * share); }

// One value of the key that is looked at, all else equal.
struct Point {
  std::size_t variation = 0;
  double value = 0;  // where it stands on the axis
  json written;
};

// How much better `best` is than `other`, as a half sentence.
std::string cost_text(const PairedDifference& cost) {
  if (cost.mean == 0 && cost.half_width == 0) return "makes no difference";
  if (!cost.is_real()) return fmt::format("cannot be told from it by {} seeds", cost.pairs);
  return fmt::format("costs {} +- {} points", points_text(cost.mean), points_text(cost.half_width));
}

// What a key's values are to one another.
enum class Kind : std::uint8_t {
  Number,
  Interval,  // between checkpoints; 0 is the formula's
  Spares,    // more of them cost GPUs that do not train
  Tier,      // deeper ones cost bandwidth and, further down, storage
  Choice,    // in no order
};

// From the shallowest.
constexpr std::array<const char*, 4> kTiers{"host", "peer", "nvme", "remote"};

Kind kind_of(const std::string& key, const std::vector<json>& values) {
  const auto all = [&](auto holds) { return std::all_of(values.begin(), values.end(), holds); };
  const auto is_tier = [](const json& value) {
    return std::any_of(kTiers.begin(), kTiers.end(), [&](const char* tier) { return value == tier; });
  };
  if (all([](const json& value) { return value.is_number(); })) {
    if (key == "checkpoint_interval_s") return Kind::Interval;
    return key == "spare_nodes" ? Kind::Spares : Kind::Number;
  }
  return all(is_tier) ? Kind::Tier : Kind::Choice;
}

// Advice about one key of one policy.
class Axis {
 public:
  Axis(const SweepTable& table, std::string policy, std::string key, std::vector<Point> points, std::string others)
      : table_(table),
        policy_(std::move(policy)),
        key_(std::move(key)),
        points_(std::move(points)),
        others_(std::move(others)) {
    std::vector<json> values;
    for (const Point& point : points_) values.push_back(point.written);
    kind_ = kind_of(key_, values);
    if (kind_ == Kind::Spares) job_nodes_ = json::parse(table_.sweep.inputs_json, nullptr, false).value("job_nodes", 0);
    for (Point& point : points_) point.value = place_of(point);
    std::stable_sort(points_.begin(), points_.end(), [](const Point& a, const Point& b) { return a.value < b.value; });
    choose();
  }

  [[nodiscard]] json entry() const {
    json out{{"policy", policy_}, {"key", key_}, {"with", others_}};
    out["value"] = told_ ? points_[chosen_].written : json(nullptr);
    out["best"] = points_[best_].written;
    out["told"] = told_;
    out["at_edge"] = edge();
    if (const auto optimum_s = formula_s()) out["formula_s"] = *optimum_s;
    out["points"] = json::array();
    for (std::size_t p = 0; p < points_.size(); ++p) out["points"].push_back(point_json(p));
    if (job_nodes_ > 0) {
      out["job_nodes"] = job_nodes_;
      out["marginal"] = json::array();
      for (std::size_t p = 0; p + 1 < points_.size(); ++p) out["marginal"].push_back(marginal_json(p));
    }
    out["text"] = text();
    return out;
  }

 private:
  [[nodiscard]] const Cells& cells(std::size_t point) const { return table_.cells[points_[point].variation]; }

  // Where a value stands among the others. An interval of 0 is the formula's: it stands where that lies.
  [[nodiscard]] double place_of(const Point& point) const {
    if (kind_ == Kind::Interval) return table_.cells[point.variation].front().checkpoint_interval_s;
    if (kind_ == Kind::Choice) return 0;
    if (kind_ != Kind::Tier) return point.written.get<double>();
    return static_cast<double>(std::find(kTiers.begin(), kTiers.end(), point.written.get<std::string>()) -
                               kTiers.begin());
  }

  // What is to be as high as can be. A spare that does not train is paid for like a node that does: what counts is work
  // over all nodes that the job holds.
  [[nodiscard]] double score(const store::SweepCell& cell) const {
    if (job_nodes_ == 0) return cell.effective_training_time;
    const auto nodes = static_cast<double>(job_nodes_);
    return cell.effective_training_time * nodes / (nodes + static_cast<double>(cell.spares_configured));
  }
  [[nodiscard]] double score(std::size_t point) const {
    std::vector<double> scores;
    for (const store::SweepCell& cell : cells(point)) scores.push_back(score(cell));
    return mean(scores);
  }
  // How much better b is than a.
  [[nodiscard]] std::optional<PairedDifference> ahead(std::size_t a, std::size_t b) const {
    return difference(cells(a), cells(b), [this](const store::SweepCell& cell) { return score(cell); });
  }

  // The best; and where fewer or shallower ones are cheaper, the cheapest that these seeds do not tell from it.
  void choose() {
    for (std::size_t p = 1; p < points_.size(); ++p)
      if (score(p) > score(best_)) best_ = p;
    chosen_ = best_;
    for (std::size_t p = 0; p < points_.size(); ++p) {
      const auto behind = ahead(p, best_);
      if (p != best_ && behind && behind->is_real()) told_ = true;
    }
    const bool cheaper_first = kind_ == Kind::Spares || kind_ == Kind::Tier;
    for (std::size_t p = 0; cheaper_first && p < best_; ++p) {
      const auto behind = ahead(p, best_);
      if (!behind || behind->is_real() || behind->pairs < 2) continue;
      chosen_ = p;
      break;
    }
  }

  // Of the exact optimum for the failures that struck and the stall of a save; unset where there is none.
  [[nodiscard]] std::optional<double> formula_s() const {
    if (kind_ != Kind::Interval) return std::nullopt;
    const double stall_s = stall(), mtbf_s = seconds_between_failures();
    if (!(stall_s > 0) || !std::isfinite(mtbf_s)) return std::nullopt;
    return optimal_checkpoint_interval_s(mtbf_s, stall_s);
  }
  [[nodiscard]] double stall() const {
    const std::string& policy = table_.sweep.variations[points_[chosen_].variation].policy_json;
    return json::parse(policy, nullptr, false).value("checkpoint_stall_s", PolicySpec{}.checkpoint_stall_s);
  }
  [[nodiscard]] double seconds_between_failures() const {
    double failures = 0;
    for (const store::SweepCell& cell : cells(chosen_)) failures += static_cast<double>(cell.failures);
    const double run_s = static_cast<double>(table_.sweep.duration_ns) / kNsPerS;
    return run_s * static_cast<double>(cells(chosen_).size()) / failures;
  }

  [[nodiscard]] json point_json(std::size_t p) const {
    json out{{"value", points_[p].written},
             {"variation", table_.sweep.variations[points_[p].variation].name},
             {"seeds", cells(p).size()},
             {"effective_training_time", effective(cells(p))}};
    if (job_nodes_ > 0) out["of_all_nodes_held"] = score(p);
    out["checkpoint_interval_s"] = cells(p).front().checkpoint_interval_s;
    if (const auto behind = ahead(p, best_); behind && p != best_) out["behind_best"] = to_json(*behind);
    return out;
  }

  // From one number of spares to the next: what it gains, what the nodes would have done in training, and what is left.
  [[nodiscard]] json marginal_json(std::size_t p) const {
    json out{{"from", points_[p].written}, {"to", points_[p + 1].written}};
    const auto gain = difference(cells(p), cells(p + 1), effective_training_time), net = ahead(p, p + 1);
    if (!gain || !net) return out;
    out["gain"] = to_json(*gain);
    out["cost"] = gain->mean - net->mean;
    out["net"] = to_json(*net);
    out["worth_it"] = net->is_real() ? json(net->mean > 0) : json(nullptr);
    return out;
  }

  // "lowest" or "highest" when there might be better values beyond; else null.
  [[nodiscard]] json edge() const {
    if (!told_ || kind_ == Kind::Tier || kind_ == Kind::Choice) return nullptr;
    if (chosen_ == 0 && !(kind_ == Kind::Spares && points_[0].value == 0)) return "lowest";
    return chosen_ + 1 == points_.size() ? json("highest") : json(nullptr);
  }

  [[nodiscard]] std::string value_text(std::size_t point) const {
    const json& value = points_[point].written;
    const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    if (kind_ != Kind::Interval) return text;
    return value == 0 ? fmt::format("0 (the optimum by formula, {:.0f} s)", points_[point].value) : text;
  }

  [[nodiscard]] std::string text() const {
    const std::string with = others_.empty() ? "" : " (with " + others_ + ")";
    if (!told_) return fmt::format("{}: {}{}: {}", policy_, key_, with, nothing_told_text()) + formula_text();
    std::string out = fmt::format("{}: {} {}{}: effective training time {}%", policy_, key_, value_text(chosen_), with,
                                  points_text(effective(cells(chosen_))));
    if (job_nodes_ > 0)
      out += fmt::format(", {}% of all nodes held, spares too", points_text(score(chosen_)));
    else
      out += others_text();
    out += ".";
    if (kind_ == Kind::Spares) out += spares_text();
    if (chosen_ != best_)
      out += fmt::format(" It is the {} that {} seeds do not tell from the best, {}.",
                         kind_ == Kind::Tier ? "shallowest" : "fewest", cells(chosen_).size(), value_text(best_));
    return out + formula_text() + edge_text();
  }

  [[nodiscard]] std::string nothing_told_text() const {
    std::size_t worst = best_ == 0 ? 1 : 0;
    std::string values;
    for (std::size_t p = 0; p < points_.size(); ++p) {
      if (p != best_ && score(p) < score(worst)) worst = p;
      values += (p == 0 ? "" : p + 1 == points_.size() ? " and " : ", ") + value_text(p);
    }
    const auto behind = ahead(worst, best_);
    const auto needed = behind ? behind->pairs_needed() : std::nullopt;
    return fmt::format("{} seed{} cannot tell {} apart{}.", cells(best_).size(), cells(best_).size() == 1 ? "" : "s",
                       values, needed ? fmt::format("; about {} would", format_count(*needed)) : "");
  }

  // Against the neighbours; where there is no order, against all. The chosen one may be cheaper than the best.
  [[nodiscard]] std::string others_text() const {
    const bool neighbours = kind_ == Kind::Number || kind_ == Kind::Interval || kind_ == Kind::Spares;
    std::string out;
    for (std::size_t p = 0; p < points_.size(); ++p) {
      if (p == chosen_ || (neighbours && p + 1 != chosen_ && p != chosen_ + 1)) continue;
      const auto cost = difference(cells(p), cells(chosen_), effective_training_time);
      if (!cost) continue;
      if (cost->mean < 0 && cost->is_real())
        out += fmt::format("; {} gains {} +- {} points", value_text(p), points_text(-cost->mean),
                           points_text(cost->half_width));
      else
        out += fmt::format("; {} {}", value_text(p), cost_text(*cost));
    }
    return out;
  }

  [[nodiscard]] std::string formula_text() const {
    const auto optimum_s = formula_s();
    const bool swept = std::any_of(points_.begin(), points_.end(), [](const Point& p) { return p.written == 0; });
    if (!optimum_s || swept) return "";
    return fmt::format(
        " The optimum by formula is {:.0f} s, for the failures that struck (one every {}) and {} a save.", *optimum_s,
        format_duration(seconds_between_failures()), format_duration(stall()));
  }

  [[nodiscard]] std::string edge_text() const {
    const json at = edge();
    if (at.is_null()) return "";
    if (kind_ == Kind::Spares && at == "lowest") return " It is the lowest value tried: fewer may do.";
    return fmt::format(" It is the {} value tried: {} ones may be better.", at.get<std::string>(),
                       at == "lowest" ? "lower" : "higher");
  }

  [[nodiscard]] std::string spares_text() const {
    auto fewest = static_cast<std::int64_t>(points_[chosen_].value);
    double pages = 0;
    for (const store::SweepCell& cell : cells(chosen_)) {
      fewest = std::min(fewest, cell.spares_fewest);
      pages += static_cast<double>(cell.pages);
    }
    std::string out = fewest > 0 ? fmt::format(" At the worst moment {} of them were free", fewest)
                                 : std::string(" At the worst moment none was free");
    if (pages > 0)
      out += fmt::format("; a human was paged {:.2g} times a run", pages / static_cast<double>(cells(chosen_).size()));
    return out + ".";
  }

  const SweepTable& table_;
  std::string policy_, key_;
  std::vector<Point> points_;  // in the order of their values
  std::string others_;         // the other keys, as they are at these points
  Kind kind_ = Kind::Choice;
  std::int64_t job_nodes_ = 0;  // of spares only; 0: not known, in sweeps of older versions
  std::size_t best_ = 0, chosen_ = 0;
  bool told_ = false;  // whether these seeds tell any other value from the best
};

std::string without(const json& changes, const std::string& key) {
  std::string out;
  for (const auto& [name, value] : changes.items())
    if (name != key) out += fmt::format("{}{}={}", out.empty() ? "" : ", ", name, value.dump());
  return out;
}

// Advice about a policy, from its variations that have cells.
json about_policy(const SweepTable& table, const std::vector<std::size_t>& variations) {
  json out = json::array();
  const store::SweepVariation& best = table.sweep.variations[best_of(table, variations)];
  const json at_best = json::parse(best.changes_json);
  for (const auto& [key, value] : at_best.items()) {
    std::vector<Point> points;
    for (const std::size_t v : variations) {
      const json changes = json::parse(table.sweep.variations[v].changes_json);
      if (changes.contains(key) && without(changes, key) == without(at_best, key))
        points.push_back({v, 0, changes[key]});
    }
    if (points.size() > 1) out.push_back(Axis(table, best.policy, key, points, without(at_best, key)).entry());
  }
  return out;
}

// The best variations of two policies, against each other.
json between(const SweepTable& table, std::size_t winner, std::size_t other) {
  const auto gain = difference(table.cells[other], table.cells[winner], effective_training_time);
  if (!gain) return nullptr;
  const std::string& name = table.sweep.variations[winner].name;
  const std::string& other_name = table.sweep.variations[other].name;
  json out{{"policy", name}, {"over", other_name}, {"gain", to_json(*gain)}};
  if (gain->is_real()) {
    out["text"] = fmt::format("{} is better than {} by {} +- {} points of effective training time: real.", name,
                              other_name, points_text(gain->mean), points_text(gain->half_width));
    return out;
  }
  const auto needed = gain->pairs_needed();
  out["text"] =
      fmt::format("{} and {}: no difference can be told from {} seed{}{}.", name, other_name, gain->pairs,
                  gain->pairs == 1 ? "" : "s", needed ? fmt::format("; about {} would", format_count(*needed)) : "");
  return out;
}

}  // namespace

std::size_t best_of(const SweepTable& table, const std::vector<std::size_t>& candidates) {
  return *std::max_element(candidates.begin(), candidates.end(), [&](std::size_t a, std::size_t b) {
    return effective(table.cells[a]) < effective(table.cells[b]);
  });
}

json advice(const SweepTable& table) {
  std::vector<std::string> policies;
  std::map<std::string, std::vector<std::size_t>> variations;
  for (std::size_t v = 0; v < table.cells.size(); ++v) {
    if (table.cells[v].empty()) continue;
    const std::string& policy = table.sweep.variations[v].policy;
    if (variations[policy].empty()) policies.push_back(policy);
    variations[policy].push_back(v);
  }
  json out = json::array();
  std::vector<std::size_t> champions;
  for (const std::string& policy : policies) {
    champions.push_back(best_of(table, variations[policy]));
    for (json& entry : about_policy(table, variations[policy])) out.push_back(std::move(entry));
  }
  if (champions.size() < 2) return out;
  const std::size_t winner = best_of(table, champions);
  for (const std::size_t other : champions) {
    if (other == winner) continue;
    if (json entry = between(table, winner, other); !entry.is_null()) out.push_back(std::move(entry));
  }
  return out;
}

}  // namespace trainyard::cli
