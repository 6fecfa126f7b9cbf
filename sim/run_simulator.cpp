#include "sim/run_simulator.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <simgrid/s4u.hpp>

#include "models/base/check.h"
#include "models/faults/fault_mode.h"
#include "models/recovery/goodput.h"
#include "sim/child_process.h"
#include "sim/run_world.h"
#include "sim/simgrid_engine.h"

namespace trainyard {
namespace {

/// Beyond this many of anything a run would take minutes and gigabytes: a slip in the input.
constexpr double kMaxExpectedEvents = 1e7;

double mtbf_s(const RunInput& input) {
  return mean_time_between_failures_s(failures_per_gpu_hour(input), input.job_nodes * input.cluster.gpus_per_node);
}

void check_sizes(const RunInput& input, const std::string& path, Problems& problems) {
  const std::int64_t held = input.job_nodes + input.policy.spare_nodes;
  if (input.job_nodes <= 0)
    problems.push_back({"", path + ".job_nodes", std::to_string(input.job_nodes), "the job needs at least one node",
                        "check the plan's mesh against the GPUs of a node"});
  else if (held > input.cluster.nodes)
    problems.push_back(
        {"", path + ".policy.spare_nodes", std::to_string(input.policy.spare_nodes),
         fmt::format("the job's {} nodes and its spares exceed the cluster's {} nodes", input.job_nodes,
                     input.cluster.nodes),
         fmt::format("have at most {} spares", std::max<std::int64_t>(0, input.cluster.nodes - input.job_nodes)),
         ProblemKind::Infeasible});
  if (!(input.duration_s > 0) || input.duration_s > 1e9)
    problems.push_back({"", path + ".duration_s", fmt::format("{}", input.duration_s),
                        "must be above 0 and at most 1e9 seconds", "give the length of the run in seconds"});
  for (std::size_t i = 0; i < input.faults.injected.size(); ++i) {
    const std::int64_t node = input.faults.injected[i].node;
    if (node < 0 || node >= held)
      problems.push_back({"", fmt::format("{}.faults.injected[{}].node", path, i), std::to_string(node),
                          fmt::format("the run holds nodes 0 to {}: the job's, then its spares", held - 1),
                          "strike one of them"});
  }
  if (input.checkpoint_bytes > 0 && !(input.cluster.storage.remote_write_bytes_per_s > 0))
    problems.push_back({"", path + ".cluster.storage.remote_write_bytes_per_s",
                        fmt::format("{}", input.cluster.storage.remote_write_bytes_per_s),
                        "checkpoints need storage to write to", "give the bandwidth of the remote store"});
}

/// What a policy wants of the job, and the job may not have.
void check_replicas(const RunInput& input, const std::string& path, Problems& problems) {
  const PolicySpec& policy = input.policy;
  const auto want = [&](bool wanted, std::int64_t least, const char* key, const char* why) {
    if (wanted && input.replicas < least)
      problems.push_back({"", path + ".policy." + key, fmt::format("{} data-parallel replicas", input.replicas),
                          fmt::format("needs {} replicas that hold whole nodes each: {}", least, why),
                          "remove it, or take a plan with more replicas", ProblemKind::Infeasible});
  };
  want(policy.elastic.enabled, 2, "elastic", "one goes on without the other");
  want(policy.checkpoints.hash_vote, 3, "checkpoints.hash_vote", "two cannot say which of them is wrong");
  if (policy.elastic.enabled && policy.elastic.min_replicas > input.replicas)
    problems.push_back({"", path + ".policy.elastic.min_replicas", std::to_string(policy.elastic.min_replicas),
                        fmt::format("the job has {} replicas", input.replicas), "lower it", ProblemKind::Infeasible});
}

void check_work(const RunInput& input, const std::string& path, Problems& problems) {
  // Whatever strikes is an event, whether it stops the job or not.
  const double gpus = static_cast<double>(input.job_nodes * input.cluster.gpus_per_node);
  const double rate = input.faults.total_rate_per_gpu_hour() + input.faults.generator.faults_per_node_day() / 24 /
                                                                   static_cast<double>(input.cluster.gpus_per_node);
  const double failures = input.duration_s / 3600 * rate * gpus;
  if (!(failures <= kMaxExpectedEvents))
    problems.push_back({"", path + ".faults.causes", fmt::format("{:.3g} failures expected", failures),
                        fmt::format("a run simulates at most {:.0g} failures", kMaxExpectedEvents),
                        "check the unit of the rates: per GPU-hour"});
  const double checkpoints = input.duration_s / (checkpoint_interval_s(input) + input.policy.checkpoint_stall_s);
  if (!(checkpoints <= kMaxExpectedEvents))
    problems.push_back({"", path + ".policy.checkpoint_interval_s", fmt::format("{}", checkpoint_interval_s(input)),
                        fmt::format("a run simulates at most {:.0g} checkpoints", kMaxExpectedEvents),
                        "checkpoint less often, or set 0 for the optimum"});
}

// Questions of a run to the process that started it: the step time of the job in this state.
Bytes to_bytes(const JobState& state) {
  auto slow = nlohmann::json::array(), moved = nlohmann::json::array();
  for (const InjectedFault& fault : state.slow)
    slow.push_back({static_cast<int>(fault.kind), fault.node, fault.device, fault.factor, fault.loss,
                    static_cast<int>(fault.direction)});
  for (const MovedNode& its : state.moved) moved.push_back({its.position, its.place});
  return nlohmann::json::to_cbor(nlohmann::json::array({slow, moved, state.nic_share, state.spares_among}));
}

JobState state_from(const Bytes& bytes) {
  const nlohmann::json question = nlohmann::json::from_cbor(bytes);
  JobState state;
  for (const auto& entry : question[0]) {
    InjectedFault fault;
    fault.kind = static_cast<InjectedKind>(entry[0].get<int>());
    fault.node = entry[1];
    fault.device = entry[2];
    fault.factor = entry[3];
    fault.loss = entry[4];
    fault.direction = static_cast<LinkDirection>(entry[5].get<int>());
    state.slow.push_back(fault);
  }
  for (const auto& entry : question[1]) state.moved.push_back({entry[0], entry[1]});
  state.nic_share = question[2];
  state.spares_among = question[3];
  return state;
}

Bytes to_bytes(const StepTime& time) {
  return nlohmann::json::to_cbor(nlohmann::json::array({time.step_s, time.collectives_per_step}));
}

StepTime step_time_from(const Bytes& bytes) {
  const nlohmann::json entry = nlohmann::json::from_cbor(bytes);
  return {entry[0], entry[1]};
}

/// Asks for each state once.
class AskedStepTimes {
 public:
  explicit AskedStepTimes(const Ask& ask) : ask_(ask) {}
  StepTime operator()(const JobState& state) {
    const Bytes question = to_bytes(state);
    const auto [entry, is_new] = known_.try_emplace(std::string(question.begin(), question.end()));
    if (is_new) entry->second = step_time_from(ask_(question));
    return entry->second;
  }

 private:
  const Ask& ask_;
  std::map<std::string, StepTime> known_;  // by question
};

simgrid::s4u::Host* platform_host() {
  namespace sg4 = simgrid::s4u;
  sg4::Engine* engine = simgrid_engine();
  if (engine->get_host_count() > 0) return engine->get_all_hosts().front();
  sg4::NetZone* zone = sg4::create_empty_zone("run");
  sg4::Host* host = zone->create_host("control", 1e9);
  zone->seal();
  return host;
}

}  // namespace

Problems validate(const RunInput& input, const std::string& path) {
  Problems problems;
  check_sizes(input, path, problems);
  check_replicas(input, path, problems);
  if (problems.empty()) check_work(input, path, problems);
  return problems;
}

namespace {

/// Of faults of a cause, the share that stops the job: what only slows it does not, nor what passes sooner than queue
/// pairs give up.
double share_that_stops(const FaultCause& cause, double link_s) {
  const FaultMode mode = cause.effective_mode();
  const faults::ModeRow& row = faults::row_of(mode);
  if (cause.stops_job) return 1;
  const bool waits = mode == FaultMode::StorageOutage || mode == FaultMode::BootstrapFailure;
  if (row.effect == faults::Effect::Slows || waits) return 0;
  if (row.effect != faults::Effect::Stalls || row.mend != faults::Mend::Itself) return 1;
  return std::erfc(std::log(link_s / row.lasts.median_s) / (row.lasts.sigma * std::sqrt(2.0))) / 2;  // of a lognormal
}

}  // namespace

double failures_per_gpu_hour(const RunInput& input) {
  double rate = 0;
  for (const FaultCause& cause : input.faults.causes)
    rate += cause.rate_per_gpu_hour * share_that_stops(cause, input.policy.timeouts.link_s);
  const double of_nodes = input.faults.generator.faults_per_node_day() / 24;
  return rate + of_nodes / static_cast<double>(input.cluster.gpus_per_node);
}

double checkpoint_interval_s(const RunInput& input) {
  if (input.policy.checkpoint_interval_s > 0) return input.policy.checkpoint_interval_s;
  return practical_checkpoint_interval_s(mtbf_s(input), input.policy.checkpoint_stall_s);
}

Result<std::vector<RunResult>> run_many(const std::vector<RunInput>& inputs, const RunPool& pool) {
  Problems problems;
  for (const RunInput& input : inputs) {
    const Problems found = validate(input);
    problems.insert(problems.end(), found.begin(), found.end());
  }
  if (!problems.empty()) return problems;
  std::vector<RunResult> results(pool.keep ? inputs.size() : 0);
  ChildWork work;
  work.count = inputs.size();
  work.processes = pool.processes;
  work.work = [&](std::size_t i, const Ask& ask) {
    RunInput input = inputs[i];
    input.step_times = AskedStepTimes(ask);
    RunWorld world(input, platform_host());
    return nlohmann::json::to_cbor(nlohmann::json(world.run()));
  };
  work.answer = [&](std::size_t i, const Bytes& question) {
    return to_bytes(inputs[i].step_times(state_from(question)));
  };
  work.on_result = [&](std::size_t i, const Bytes& bytes) {
    const nlohmann::json json = nlohmann::json::from_cbor(bytes, true, false);
    TY_CHECK(!json.is_discarded(), "a simulation process sends a whole result");
    RunResult result = json.get<RunResult>();
    if (pool.on_result) pool.on_result(i, result);
    if (pool.keep) results[i] = std::move(result);
  };
  work.on_wait = pool.on_wait;
  problems = in_children(work);
  if (!problems.empty()) return problems;
  return results;
}

Result<RunResult> simulate_run(const RunInput& input) {
  Result<std::vector<RunResult>> results = run_many({input});
  if (!results.ok()) return results.problems();
  return std::move(results).value().front();
}

std::vector<RunInput> with_seeds(const RunInput& input, std::int64_t count) {
  std::vector<RunInput> inputs;
  for (std::int64_t i = 0; i < count; ++i) {
    inputs.push_back(input);
    inputs.back().seed = input.seed + static_cast<std::uint64_t>(i);
  }
  return inputs;
}

}  // namespace trainyard
