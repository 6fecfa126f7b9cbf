// What stands in the way of a job before any of its ranks starts.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/plan_lock.h"
#include "exec/corpus.h"
#include "kernels/device.h"

namespace trainyard::cli {

struct Preflight {
  std::optional<LockedPlan> lock;  // what the plan was validated as; none when that was waived
  std::string lock_file;
  std::vector<std::string> notes;  // for the user: what has changed, what is short
};

/// The lock of a job against what it is now; `lock_file` empty: plan.lock.json beside the job.
Result<Preflight> check_lock(const std::string& job_file, std::string lock_file, const Scenario& scenario,
                             const StepProgram& program);

/// Whether the text can be trained on, and memory holds the ranks: each one's GPU its own, or this machine all of them.
Problems check_training(const std::string& job_file, const Scenario& scenario, const StepProgram& program,
                        const exec::Corpus& corpus, const std::vector<kernels::DeviceInfo>& gpus);

}  // namespace trainyard::cli
