#include "cli/step_memo.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include <fmt/format.h>

#include "cli/job_identity.h"
#include "cli/terminal.h"
#include "models/base/stop.h"
#include "models/plan/replica_layout.h"

namespace trainyard::cli {

namespace {

// Checkpointed state: bf16 parameters would be 2 bytes; master weights and both moments make 12 more.
double checkpoint_bytes(const Job& job) { return 14.0 * static_cast<double>(parameter_count(job.scenario.model)); }

// Of all that the answers depend on.
Result<std::string> identity(const Job& job, const StepMemoOptions& options) {
  const Result<nlohmann::ordered_json> its = job_identity(job);
  if (!its) return its.problems();
  nlohmann::ordered_json inputs = its.value();
  inputs["unfold"] = options.unfold;
  inputs["merge"] = options.merge;
  return long_hash(inputs.dump());
}

}  // namespace

StepMemo::StepMemo(const Job& job, StepMemoOptions options, MemoUse& use)
    : job_(job), options_(std::move(options)), use_(use) {
  if (options_.store_file.empty() || job_.scenario.duration_s <= 0) return;
  const Result<std::string> its = identity(job_, options_);
  if (!its) return;
  Result<store::StepTimes> stored = store::StepTimes::open(options_.store_file, its.value());
  if (!stored) return;  // whoever enters the run in the store says why
  stored_.emplace(std::move(stored).value());
  memo_ = stored_->known();
}

StepOptions step_options(const Job& job) {
  StepOptions step;
  if (!job.scenario.policies.empty()) {
    const DetectionLadder& timeouts = job.scenario.policies.front().timeouts;
    step.queue_pair_timeout_s = timeouts.link_s;
    step.queue_pair_tries = static_cast<double>(timeouts.ib_retry_cnt);
  }
  return step;
}

StepOptions StepMemo::options() const {
  StepOptions step = step_options(job_);
  step.unfold = options_.unfold;
  step.merge = options_.merge;
  return step;
}

Result<StepResult> StepMemo::simulate(const std::vector<InjectedFault>& degradations, bool timeline) {
  StepOptions step = options();
  step.degradations = degradations;
  step.timeline = timeline;
  return simulate(job_.scenario.cluster, step);
}

Result<StepResult> StepMemo::healthy(bool timeline) {
  if (stored_ && !timeline) {
    if (std::optional<StepResult> known = step_result_from(stored_->healthy_step())) {
      use_.step_known = true;
      known->fold_wall_s = known->simulate_wall_s = 0;
      healthy_ = of(*known);
      return std::move(*known);
    }
  }
  Result<StepResult> step = simulate({}, timeline);
  if (!step) return step;
  healthy_ = of(step.value());
  if (stored_ && !timeline && !stop_requested()) stored_->add_healthy_step(to_bytes(step.value()));
  return step;
}

Result<StepResult> StepMemo::simulate(const ClusterSpec& cluster, StepOptions step) {
  Progress progress("simulating a step", 1, options_.progress);
  step.on_wait = [&progress] { progress.tick(); };
  Result<StepResult> result = simulate_step(job_.program, cluster, job_.cost(), step);
  progress.step();
  return result;
}

const StepStates& StepMemo::states() {
  const ClusterSpec& cluster = job_.scenario.cluster;
  if (!states_) {
    const double payload_rate = job_.cost().nic_payload_rate(cluster.nic_bytes_per_s);
    const bool exact =
        options_.exact_states || options_.unfold || job_.scenario.plan.ranks() <= StepStates::kExactRanks;
    states_.emplace(job_.scenario.plan, cluster, payload_rate, exact);
  }
  return *states_;
}

StepTime StepMemo::time_of(const JobState& state) {
  StepTime time = healthy_;
  time.step_s =
      states().step_s(states().reduced(state), [this](const StepQuestion& question) { return answer(question); });
  return time;
}

double StepMemo::answer(const StepQuestion& question) {
  const std::string key = question.key();
  const auto [entry, is_new] = memo_.try_emplace(key, healthy_.step_s);
  if (!is_new || key.empty()) {
    ++use_.hits;
    return entry->second;
  }
  ++use_.misses;
  entry->second = simulated(question);
  if (stored_ && !stop_requested()) stored_->add(entry->first, entry->second);
  return entry->second;
}

double StepMemo::simulated(const StepQuestion& question) {
  const auto start = std::chrono::steady_clock::now();
  ClusterSpec cluster = job_.scenario.cluster;
  if (question.without_tiers) cluster.tiers.clear();
  cluster.nic_bytes_per_s *= question.state.nic_share;
  StepOptions step = options();
  step.degradations = question.state.slow;
  step.moved = question.state.moved;
  step.spares_among = question.state.spares_among;
  const Result<StepResult> result = simulate(cluster, step);
  if (stop_requested()) return healthy_.step_s;  // the run that asks ends in the same way
  TY_CHECK(result.ok(), "a program that runs healthy runs degraded");
  use_.miss_wall_s += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result.value().time_s;
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
  ReplicaLayout layout = replica_layout(job.scenario.plan, job.scenario.cluster.gpus_per_node);
  input.replicas = layout.replicas;
  input.positions = std::move(layout.positions);
  input.replicas_hold_all = layout.hold_all;
  input.duration_s = job.scenario.duration_s;
  input.seed = job.scenario.seed;
  input.step_times = [&memo](const JobState& state) { return memo.time_of(state); };
  input.reduced = [&states = memo.states()](const JobState& state) { return states.reduced(state); };
  if (job.scenario.cluster.storage.remote_write_bytes_per_s > 0) input.checkpoint_bytes = checkpoint_bytes(job);
  return input;
}

}  // namespace trainyard::cli
