// plan.lock.json: what validated plans were, and what was predicted of them. `plan validate` writes it beside the job,
// `exec run` holds jobs to it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/job.h"

namespace trainyard::cli {

/// XXH3 of each part, 64 bits in hexadecimal: model, plan and cluster as they were read, profiles as files, the program
/// as text.
struct PlanHashes {
  std::string model, plan, cluster, hardware, stack, program;
};
Result<PlanHashes> hash_plan(const Scenario& scenario, const StepProgram& program, const ProfileFiles& profiles);

/// A scenario that the plan came through.
struct LockedScenario {
  std::string file, trace_hash;
  std::int64_t seeds = 1;
  double step_time_s = 0;
  std::optional<double> effective_training_time, recovery_s;  // of scenarios with a run
};

struct LockedPlan {
  std::string commit, date;
  PlanHashes hashes;
  double step_time_s = 0, memory_peak_bytes = 0;
  std::vector<std::int64_t> arena_bytes;  // by stage
  std::vector<LockedScenario> scenarios;
};

/// plan.lock.json in the job's folder.
std::string lock_file_of(const std::string& job_file);
/// The entry of a job, by its file name; none when the lock has none, or there is no lock.
Result<std::optional<LockedPlan>> read_lock(const std::string& lock_file, const std::string& job_file);
/// Sets the entry of a job and keeps the others. The file is replaced whole or not at all.
Problems write_lock(const std::string& lock_file, const std::string& job_file, const LockedPlan& plan);

/// What makes the job another than the one that was validated.
Problems changed_since(const LockedPlan& lock, const PlanHashes& now, const std::string& job_file);
/// What has changed around it: cluster and profiles, by which times were predicted.
std::vector<std::string> drift_since(const LockedPlan& lock, const PlanHashes& now);

}  // namespace trainyard::cli
