// A sweep's cells as a table, and what is made of it: a report as JSON, the same for people, and CSV.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "models/base/statistics.h"
#include "store/sweep_records.h"

namespace trainyard::cli {

/// Cells of some or all variations of a sweep.
struct SweepTable {
  store::SweepRow sweep;
  /// Of each of sweep.variations its cells, by seed.
  std::vector<std::vector<store::SweepCell>> cells;
};

SweepTable make_table(store::SweepRow sweep, const std::vector<store::SweepCell>& cells);

/// A figure of a cell; not a number where the cell has none.
using Figure = std::function<double(const store::SweepCell& cell)>;
double effective_training_time(const store::SweepCell& cell);
double median_recovery_s(const store::SweepCell& cell);

/// The variations' difference b - a over the seeds that both have; unset where there are none.
std::optional<PairedDifference> difference(const std::vector<store::SweepCell>& a,
                                           const std::vector<store::SweepCell>& b, const Figure& figure);
/// {"mean", "half_width", ...}: infinite values are null.
nlohmann::ordered_json to_json(const PairedDifference& difference);
nlohmann::ordered_json finite(double value);

/// Keys are never renamed: see scenarios/KEYS.md for their meanings.
nlohmann::ordered_json sweep_report(const SweepTable& table);
std::string sweep_text(const nlohmann::ordered_json& report);

/// One row a cell.
void write_csv(const SweepTable& table, std::ostream& out);

}  // namespace trainyard::cli
