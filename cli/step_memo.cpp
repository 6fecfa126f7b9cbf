#include "cli/step_memo.h"

#include <algorithm>
#include <chrono>

#include <fmt/format.h>

#include "cli/terminal.h"
#include "models/base/stop.h"

namespace trainyard::cli {

namespace {

// Checkpointed state: bf16 parameters would be 2 bytes; master weights and both moments make 12 more.
double checkpoint_bytes(const Job& job) { return 14.0 * static_cast<double>(parameter_count(job.scenario.model)); }

}  // namespace

Result<StepResult> StepMemo::simulate(const std::vector<InjectedFault>& degradations, bool timeline) {
  StepOptions step;
  step.degradations = degradations;
  step.unfold = options_.unfold;
  step.merge = options_.merge;
  step.timeline = timeline;
  Progress progress("simulating a step", 1, options_.progress);
  step.on_wait = [&progress] { progress.tick(); };
  Result<StepResult> result = simulate_step(job_.program, job_.scenario.cluster, job_.cost(), step);
  progress.step();
  return result;
}

StepTime StepMemo::time_of(const std::vector<InjectedFault>& active) {
  std::string key;
  for (const InjectedFault& fault : active)
    key += fmt::format("{}/{}/{}/{:a};", static_cast<int>(fault.kind), fault.node, fault.device, fault.factor);
  const auto [entry, is_new] = memo_.try_emplace(key);
  if (!is_new) {
    ++use_.hits;
    return entry->second;
  }
  ++use_.misses;
  if (active.empty()) {
    entry->second = healthy_;
    return entry->second;
  }
  const auto start = std::chrono::steady_clock::now();
  std::vector<InjectedFault> lasting = active;
  for (InjectedFault& fault : lasting) {
    fault.at_s = 0;
    fault.duration_s.reset();
  }
  const Result<StepResult> result = simulate(lasting, false);
  if (stop_requested()) return healthy_;  // the run that asks ends in the same way
  TY_CHECK(result.ok(), "a program that runs healthy runs degraded");
  entry->second = of(result.value());
  use_.miss_wall_s += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return entry->second;
}

StepTime StepMemo::of(const StepResult& step) const {
  std::int64_t collectives = 0;
  for (const Item& item : job_.program.stages[0].items) {
    if (item.block < 0) continue;
    for (const Op& op : job_.program.block(item).ops) collectives += is_communication(op.kind) ? 1 : 0;
  }
  return {step.time_s, std::max<std::int64_t>(collectives, 1)};
}

RunInput run_input(const Job& job, const PolicySpec& policy, StepMemo& memo) {
  RunInput input;
  input.cluster = job.scenario.cluster;
  input.faults = job.scenario.faults;
  input.policy = policy;
  input.job_nodes = job.nodes();
  input.duration_s = job.scenario.duration_s;
  input.seed = job.scenario.seed;
  input.step_times = [&memo](const std::vector<InjectedFault>& active) { return memo.time_of(active); };
  if (job.scenario.cluster.storage.remote_write_bytes_per_s > 0) input.checkpoint_bytes = checkpoint_bytes(job);
  return input;
}

}  // namespace trainyard::cli
