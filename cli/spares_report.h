// Availability of spares over a run: how many could be promoted at once, and for how long.
#pragma once

#include <cstdint>
#include <ostream>
#include <vector>

#include <nlohmann/json.hpp>

#include "store/run_records.h"

namespace trainyard::cli {

/// How many spares were free over [0, duration_ns): a step series.
class SparesOverTime {
 public:
  /// `counts` are not empty; the first is of time 0, and its number is how many there are.
  SparesOverTime(std::vector<store::SpareCount> counts, std::int64_t duration_ns);

  [[nodiscard]] std::int64_t configured() const { return counts_.front().free; }
  /// The fewest at any moment, be it ever so short, and when that was first.
  [[nodiscard]] const store::SpareCount& fewest() const;
  [[nodiscard]] double mean() const;
  /// Share of the time with fewer than `k` free.
  [[nodiscard]] double share_below(std::int64_t k) const;
  /// The largest number that was free for at least `share` of the time.
  [[nodiscard]] std::int64_t free_for(double share) const;
  /// The fewest in each of `parts` equal parts of the time.
  [[nodiscard]] std::vector<double> fewest_in_parts(std::size_t parts) const;
  [[nodiscard]] const std::vector<store::SpareCount>& counts() const { return counts_; }
  [[nodiscard]] std::int64_t duration_ns() const { return duration_ns_; }

 private:
  [[nodiscard]] std::int64_t until_ns(std::size_t i) const;

  std::vector<store::SpareCount> counts_;
  std::int64_t duration_ns_;
};

/// Numbers of which a report says for how long fewer were free: 1, 2, 5, 10, ... up to `configured`.
std::vector<std::int64_t> round_numbers(std::int64_t configured);

/// "configured", "fewest", "mean", "share_with_none", "free_for" (share of the time: that many at least), "fewer_than"
/// (k: share of the time) for the round numbers and those of `more`, and "series" of [s, free].
nlohmann::ordered_json spares_report(const SparesOverTime& spares, const std::vector<std::int64_t>& more);
/// For people; `more` are those that were asked for.
std::string spares_text(const SparesOverTime& spares, const std::vector<std::int64_t>& more);
/// One row for each change.
void write_csv(const SparesOverTime& spares, std::ostream& out);

}  // namespace trainyard::cli
