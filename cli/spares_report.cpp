#include "cli/spares_report.h"

#include <algorithm>
#include <map>
#include <utility>

#include <fmt/format.h>

#include "cli/csv.h"
#include "cli/terminal.h"
#include "models/base/check.h"
#include "models/base/units.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

constexpr std::size_t kColumns = 64;
constexpr double kShares[] = {0.5, 0.9, 0.99};

std::string percent(double share) { return fmt::format("{:.4g}%", 100 * share); }

}  // namespace

SparesOverTime::SparesOverTime(std::vector<store::SpareCount> counts, std::int64_t duration_ns)
    : counts_(std::move(counts)), duration_ns_(duration_ns) {
  TY_CHECK(!counts_.empty() && duration_ns_ > 0, "spares are counted from the start of a run on");
}

std::int64_t SparesOverTime::until_ns(std::size_t i) const {
  return i + 1 < counts_.size() ? counts_[i + 1].time_ns : duration_ns_;
}

const store::SpareCount& SparesOverTime::fewest() const {
  return *std::min_element(counts_.begin(), counts_.end(),
                           [](const auto& a, const auto& b) { return a.free < b.free; });
}

double SparesOverTime::mean() const {
  double sum = 0;
  for (std::size_t i = 0; i < counts_.size(); ++i)
    sum += static_cast<double>(counts_[i].free) * static_cast<double>(until_ns(i) - counts_[i].time_ns);
  return sum / static_cast<double>(duration_ns_);
}

double SparesOverTime::share_below(std::int64_t k) const {
  std::int64_t below_ns = 0;
  for (std::size_t i = 0; i < counts_.size(); ++i)
    if (counts_[i].free < k) below_ns += until_ns(i) - counts_[i].time_ns;
  return static_cast<double>(below_ns) / static_cast<double>(duration_ns_);
}

std::int64_t SparesOverTime::free_for(double share) const {
  std::map<std::int64_t, std::int64_t> time_ns;  // by number
  for (std::size_t i = 0; i < counts_.size(); ++i) time_ns[counts_[i].free] += until_ns(i) - counts_[i].time_ns;
  std::int64_t at_least_ns = 0;
  for (auto its = time_ns.rbegin(); its != time_ns.rend(); ++its) {
    at_least_ns += its->second;
    if (static_cast<double>(at_least_ns) >= share * static_cast<double>(duration_ns_)) return its->first;
  }
  return 0;
}

std::vector<double> SparesOverTime::fewest_in_parts(std::size_t parts) const {
  std::vector<double> out;
  std::size_t i = 0;
  for (std::size_t part = 0; part < parts; ++part) {
    const double share = static_cast<double>(part + 1) / static_cast<double>(parts);
    const auto end_ns = static_cast<std::int64_t>(share * static_cast<double>(duration_ns_));
    double fewest = static_cast<double>(counts_[i].free);  // what it began with
    while (i + 1 < counts_.size() && counts_[i + 1].time_ns < end_ns)
      fewest = std::min(fewest, static_cast<double>(counts_[++i].free));
    out.push_back(fewest);
  }
  return out;
}

std::vector<std::int64_t> round_numbers(std::int64_t configured) {
  std::vector<std::int64_t> out;
  for (std::int64_t ten = 1; ten <= configured; ten *= 10)
    for (const std::int64_t k : {ten, 2 * ten, 5 * ten})
      if (k <= configured) out.push_back(k);
  return out;
}

json spares_report(const SparesOverTime& spares, const std::vector<std::int64_t>& more) {
  json out;
  out["configured"] = spares.configured();
  out["fewest"] = spares.fewest().free;
  out["fewest_at_s"] = static_cast<double>(spares.fewest().time_ns) / kNsPerS;
  out["mean"] = spares.mean();
  out["share_with_none"] = spares.share_below(1);
  for (const double share : kShares) out["free_for"][fmt::format("{}", share)] = spares.free_for(share);
  std::vector<std::int64_t> numbers = round_numbers(spares.configured());
  numbers.insert(numbers.end(), more.begin(), more.end());
  std::sort(numbers.begin(), numbers.end());
  out["fewer_than"] = json::object();
  for (const std::int64_t k : numbers) out["fewer_than"][std::to_string(k)] = spares.share_below(k);
  out["series"] = json::array();
  for (const store::SpareCount& count : spares.counts())
    out["series"].push_back({static_cast<double>(count.time_ns) / kNsPerS, count.free});
  return out;
}

std::string spares_text(const SparesOverTime& spares, const std::vector<std::int64_t>& more) {
  const store::SpareCount& fewest = spares.fewest();
  const double duration_s = static_cast<double>(spares.duration_ns()) / kNsPerS;
  std::string out = fmt::format("Spare nodes free, of {}, over {}\n", spares.configured(), format_duration(duration_s));
  std::vector<std::vector<std::string>> rows;
  rows.push_back({"fewest", std::to_string(fewest.free)});
  rows.push_back({"mean", fmt::format("{:.1f}", spares.mean())});
  for (const double share : kShares)
    rows.push_back({fmt::format("{} of the time at least", percent(share)), std::to_string(spares.free_for(share))});
  rows.push_back({"time with none", percent(spares.share_below(1))});
  for (const std::int64_t k : more)
    rows.push_back({fmt::format("time with fewer than {}", k), percent(spares.share_below(k))});
  out += table({}, rows);
  const std::vector<double> parts = spares.fewest_in_parts(kColumns);
  const double low = static_cast<double>(fewest.free), high = *std::max_element(parts.begin(), parts.end());
  const std::string end = format_duration(duration_s);
  out += fmt::format("\n  {}\n  0{:>{}}\n", sparkline(parts, low, high), end, kColumns - 1);
  out += fmt::format("  each column is the fewest of {}, from {} (lowest; first after {}) to {} (highest)\n",
                     format_duration(duration_s / kColumns), fewest.free,
                     format_duration(static_cast<double>(fewest.time_ns) / kNsPerS), high);
  return out;
}

void write_csv(const SparesOverTime& spares, std::ostream& out) {
  out << csv_row({"time_s", "free"});
  for (const store::SpareCount& count : spares.counts())
    out << csv_row({csv_number(static_cast<double>(count.time_ns) / kNsPerS), std::to_string(count.free)});
}

}  // namespace trainyard::cli
