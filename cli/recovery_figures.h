// The phase ledger per cause: how often a cause stopped the job, and how long it took until training went on, in all
// and phase by phase. Of one run or of the runs of many seeds together.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "sim/run_result.h"
#include "store/run_records.h"

namespace trainyard::cli {

/// As the store has it. The cause is that of the first failure; of a recovery without one "planned restart" where the
/// job stopped in order, else "no failure".
store::Recovery recovery_row(const RunRecovery& recovery);

/// Until training went on; of a recovery that had not ended, to the end of its last phase.
double total_s(const store::Recovery& recovery);
std::int64_t end_ns(const store::Recovery& recovery);

/// {"all": FIGURES, "by_cause": {cause: FIGURES}}, causes by the time that they took in all. FIGURES: "count" (a run),
/// "total_s", "lost_work_s" and of each of "phases" {"median_s", "mean_s", "p99_s"} over all recoveries, those without
/// the phase too: the means of the phases add up to that of the total. `runs` is how many runs they come from.
nlohmann::ordered_json recovery_figures(const std::vector<store::Recovery>& recoveries, std::size_t runs);

/// All of it for people. `phases`: the figure of each phase to show, "median", "mean" or "p99"; empty: of all causes
/// together only.
std::string recovery_figures_text(const nlohmann::ordered_json& figures, const std::string& phases);

/// One row for each cause ("all" first) and each of its phases.
void write_figures_csv(const nlohmann::ordered_json& figures, std::ostream& out);
/// One row a recovery, with a column for each phase.
void write_recoveries_csv(const std::vector<store::Recovery>& recoveries, std::ostream& out);

}  // namespace trainyard::cli
