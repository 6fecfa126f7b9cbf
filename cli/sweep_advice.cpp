#include "cli/sweep_advice.h"

#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "models/base/units.h"

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

// Advice about one key of one policy.
class Axis {
 public:
  Axis(const SweepTable& table, std::string policy, std::string key, std::vector<Point> points, std::string others)
      : table_(table),
        policy_(std::move(policy)),
        key_(std::move(key)),
        points_(std::move(points)),
        others_(std::move(others)) {
    std::stable_sort(points_.begin(), points_.end(), [](const Point& a, const Point& b) { return a.value < b.value; });
    std::vector<std::size_t> candidates;
    for (const Point& point : points_) candidates.push_back(point.variation);
    const std::size_t best = best_of(table_, candidates);
    while (points_[best_].variation != best) ++best_;
    chosen_ = best_;
    // Spares are paid for whether they are used or not: the fewest that are as good.
    for (std::size_t p = 0; key_ == "spare_nodes" && p < best_; ++p) {
      const auto cost = cost_of(p);
      if (!cost || cost->is_real() || cost->pairs < 2) continue;
      chosen_ = p;
      break;
    }
  }

  [[nodiscard]] json entry() const {
    json out{{"policy", policy_}, {"key", key_}, {"value", points_[chosen_].written}, {"best", points_[best_].written}};
    out["at_edge"] = edge();
    out["points"] = json::array();
    for (std::size_t p = 0; p < points_.size(); ++p) {
      json point{{"value", points_[p].written},
                 {"effective_training_time", effective(cells(p))},
                 {"checkpoint_interval_s", cells(p).front().checkpoint_interval_s}};
      if (const auto cost = cost_of(p); cost && p != best_) point["behind_best"] = to_json(*cost);
      out["points"].push_back(point);
    }
    out["text"] = text();
    return out;
  }

 private:
  [[nodiscard]] const Cells& cells(std::size_t point) const { return table_.cells[points_[point].variation]; }
  [[nodiscard]] std::optional<PairedDifference> cost_of(std::size_t point) const {
    return difference(cells(point), cells(best_), effective_training_time);
  }

  // "lowest" or "highest" when there might be better values beyond; else null.
  [[nodiscard]] json edge() const {
    if (chosen_ == 0 && !(key_ == "spare_nodes" && points_[0].value == 0)) return "lowest";
    return chosen_ + 1 == points_.size() ? json("highest") : json(nullptr);
  }

  [[nodiscard]] std::string value_text(std::size_t point) const {
    const json& value = points_[point].written;
    const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    if (key_ != "checkpoint_interval_s") return text;
    return value == 0 ? fmt::format("0 (the optimum by formula, {:.0f} s)", points_[point].value) : text;
  }

  [[nodiscard]] std::string text() const {
    std::string out =
        fmt::format("{}: {} {}{}: effective training time {}%", policy_, key_, value_text(chosen_),
                    others_.empty() ? "" : " (with " + others_ + ")", points_text(effective(cells(chosen_))));
    for (const std::size_t p : {chosen_ - 1, chosen_ + 1}) {  // the first wraps around below the lowest
      if (p >= points_.size()) continue;
      // Against the chosen one, which may be cheaper than the best.
      const auto cost = difference(cells(p), cells(chosen_), effective_training_time);
      if (cost && cost->mean < 0 && cost->is_real())
        out += fmt::format("; {} gains {} +- {} points", value_text(p), points_text(-cost->mean),
                           points_text(cost->half_width));
      else if (cost)
        out += fmt::format("; {} {}", value_text(p), cost_text(*cost));
    }
    out += ".";
    if (key_ == "spare_nodes") out += spares_text();
    return out + edge_text();
  }

  [[nodiscard]] std::string edge_text() const {
    const json at = edge();
    if (at.is_null()) return "";
    if (key_ == "spare_nodes" && at == "lowest") return " It is the lowest value tried: fewer may do.";
    return fmt::format(" It is the {} value tried: {} ones may be better.", at.get<std::string>(),
                       at == "lowest" ? "lower" : "higher");
  }

  [[nodiscard]] std::string spares_text() const {
    std::int64_t fewest = points_[chosen_].written.is_number() ? static_cast<std::int64_t>(points_[chosen_].value) : 0;
    for (const store::SweepCell& cell : cells(chosen_)) fewest = std::min(fewest, cell.spares_fewest);
    double pages = 0;
    for (const store::SweepCell& cell : cells(chosen_)) pages += static_cast<double>(cell.pages);
    std::string out = fewest > 0 ? fmt::format(" At the worst moment {} of them were free", fewest)
                                 : std::string(" At the worst moment none was free");
    if (pages > 0)
      out += fmt::format("; a human was paged {:.2g} times a run", pages / static_cast<double>(cells(chosen_).size()));
    return out + ".";
  }

  const SweepTable& table_;
  std::string policy_, key_;
  std::vector<Point> points_;  // by value
  std::string others_;         // the other keys, as they are at these points
  std::size_t best_ = 0, chosen_ = 0;
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
    bool ordered = true;
    for (const std::size_t v : variations) {
      const json changes = json::parse(table.sweep.variations[v].changes_json);
      if (!changes.contains(key) || without(changes, key) != without(at_best, key)) continue;
      const json& written = changes[key];
      // An interval of 0 is the formula's: it stands where that lies.
      const double used_s = table.cells[v].front().checkpoint_interval_s;
      ordered &= written.is_number();
      points.push_back({v,
                        key == "checkpoint_interval_s" ? used_s
                        : written.is_number()          ? written.get<double>()
                                                       : 0,
                        written});
    }
    if (points.size() > 1 && ordered)
      out.push_back(Axis(table, best.policy, key, points, without(at_best, key)).entry());
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
