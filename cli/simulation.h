// A scenario simulated: its step, then its run under every policy, entered in the store as they come.
#pragma once

#include <cstdint>
#include <string>

#include "cli/job.h"
#include "cli/report.h"

namespace trainyard::cli {

struct SimulationOptions {
  std::int64_t seeds = 1;     // runs of each policy, from the scenario's seed on
  bool unfold = false;        // every rank on its own
  bool merge = true;          // ops that only follow each other as one
  bool exact_states = false;  // slow parts where they are, however large the job
  bool timeline = false;      // keep the step's
  int jobs = 0;               // simulations at a time; 0: one per processor
  std::string store_file;     // empty: nothing is stored
  std::string progress = "none";
};

Result<Simulated> simulate(const Job& job, const SimulationOptions& options);

/// Whether no communicator failed and, of one seed, no run was left waiting. Of many seeds some may end at a bad
/// moment: that is what they are for.
bool ended_well(const Simulated& simulated);

}  // namespace trainyard::cli
