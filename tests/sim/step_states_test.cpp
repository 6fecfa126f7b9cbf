// States put together from simple questions, against the exact simulation of the same states.
#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "models/base/random.h"
#include "models/spec/node_places.h"
#include "models/spec/scenario.h"
#include "sim/step_simulator.h"
#include "sim/step_states.h"

using namespace trainyard;

namespace {

const std::string kScenarios = std::string(TRAINYARD_SOURCE_DIR) + "/scenarios/";

/// A published job, made smaller along data parallelism.
struct Job {
  Scenario scenario;
  StepProgram program;
  CostModel cost;

  double seconds(const JobState& state, bool without_tiers) const {
    ClusterSpec cluster = scenario.cluster;
    if (without_tiers) cluster.tiers.clear();
    cluster.nic_bytes_per_s *= state.nic_share;
    StepOptions options;
    options.degradations = state.slow;
    options.moved = state.moved;
    const Result<StepResult> step = simulate_step(program, cluster, cost, options);
    REQUIRE(step.ok());
    return step.value().time_s;
  }
};

Job small(const std::string& file, std::int64_t dp) {
  Scenario scenario = load_scenario(kScenarios + file).value();
  scenario.plan.global_batch = scenario.plan.global_batch / scenario.plan.dp * dp;
  scenario.plan.dp = dp;
  StepProgram program = lower(scenario.model, scenario.plan);
  const CostModel cost(load_hardware_profile(kScenarios + "profiles/h100-sxm.json").value(),
                       load_stack_profile(kScenarios + "profiles/stack-megatron-core.json").value(), scenario.plan);
  return {std::move(scenario), std::move(program), cost};
}

JobState some_state(const Job& job, std::int64_t parts, RandomStream& random) {
  JobState state;
  const auto ranks = static_cast<std::uint64_t>(job.scenario.plan.ranks());
  for (std::int64_t i = 0; i < parts; ++i) {
    const auto rank = static_cast<std::int64_t>(random.below(ranks));
    InjectedFault fault;
    fault.kind = random.below(2) == 0 ? InjectedKind::GpuSlow : InjectedKind::NicSlow;
    fault.node = rank / job.scenario.cluster.gpus_per_node;
    fault.device = rank % job.scenario.cluster.gpus_per_node;
    fault.factor = 1 + random.uniform() * (fault.kind == InjectedKind::GpuSlow ? 1 : 3);
    state.slow.push_back(fault);
  }
  return state;
}

/// Relative, of states of one to six slow parts.
std::vector<double> errors(const Job& job, int states_tried) {
  const double payload = job.cost.nic_payload_rate(job.scenario.cluster.nic_bytes_per_s);
  const StepStates states(job.scenario.plan, job.scenario.cluster, payload, false);
  std::map<std::string, double> known;
  const auto ask = [&](const StepQuestion& question) {
    const auto [entry, is_new] = known.try_emplace(question.key());
    if (is_new) entry->second = job.seconds(question.state, question.without_tiers);
    return entry->second;
  };
  RandomStream random(7, "states");
  std::vector<double> errors;
  for (int i = 0; i < states_tried; ++i) {
    const JobState state = some_state(job, 1 + static_cast<std::int64_t>(random.below(6)), random);
    const double exact_s = job.seconds(state, false);
    errors.push_back(states.step_s(states.reduced(state), ask) / exact_s - 1);
  }
  std::sort(errors.begin(), errors.end(), [](double a, double b) { return std::abs(a) < std::abs(b); });
  return errors;
}

void check_errors(const std::string& name, const std::vector<double>& errors, double median, double worst) {
  WARN(name << ": median error " << errors[errors.size() / 2] << ", worst " << errors.back() << " of " << errors.size()
            << " states");
  CHECK(std::abs(errors[errors.size() / 2]) < median);
  CHECK(std::abs(errors.back()) < worst);
}

}  // namespace

TEST_CASE("States of a dense pipeline, put together, take what they take", "[.slow]") {
  check_errors("Llama 3 405B", errors(small("published/llama3-405b-table4-row1.json", 2), 6), 0.01, 0.05);
}

TEST_CASE("States of experts, put together, take what they take", "[.slow]") {
  check_errors("Grok-1", errors(small("published/grok1-dgxc-512.json", 8), 6), 0.01, 0.05);
}

TEST_CASE("A slow GPU and a slow NIC add up where ranks meet in every layer, and nowhere else") {
  const Job job = small("published/grok1-dgxc-512.json", 8);
  const double payload = job.cost.nic_payload_rate(job.scenario.cluster.nic_bytes_per_s);
  const StepStates states(job.scenario.plan, job.scenario.cluster, payload, false);
  const auto ask = [](const StepQuestion& question) {
    if (question.state.slow.empty()) return 10.0;
    return question.state.slow.front().kind == InjectedKind::GpuSlow ? 15.0 : 12.0;
  };
  // 64 ranks a stage; experts over the first 32 of them, and over the others.
  const auto step_s = [&](std::int64_t gpu, std::int64_t nic) {
    InjectedFault slow_gpu, slow_nic;
    slow_gpu.kind = InjectedKind::GpuSlow;
    slow_gpu.node = gpu / 8;
    slow_gpu.factor = 1.5;
    slow_nic.kind = InjectedKind::NicSlow;
    slow_nic.node = nic / 8;
    slow_nic.factor = 1.25;
    return states.step_s(states.reduced({{slow_gpu, slow_nic}, {}}), ask);
  };
  CHECK(step_s(64, 88) == Approx(17));
  CHECK(step_s(64, 104) == Approx(15));
  CHECK(step_s(64, 136) == Approx(15).epsilon(0.001));  // another stage
}

TEST_CASE("A spare below the leaf of those it stands in for changes nothing, one elsewhere does") {
  Job job = small("published/grok1-dgxc-512.json", 8);
  job.scenario.cluster.tiers = {{"leaf", 8, 4}, {"row", 32, 1}};
  const double payload = job.cost.nic_payload_rate(job.scenario.cluster.nic_bytes_per_s);
  const StepStates states(job.scenario.plan, job.scenario.cluster, payload, false);
  const std::int64_t nodes = job.scenario.plan.ranks() / 8, spares = nodes / 4;
  const std::vector<std::int64_t> places = places_with_spares_per_leaf(nodes, spares, 8);
  JobState below, elsewhere;
  below.spares_among = elsewhere.spares_among = spares;
  const std::int64_t home = places[0] / 8;
  for (std::int64_t spare = nodes; spare < nodes + spares; ++spare) {
    const std::int64_t place = place_of(places, spare);
    (place / 8 == home ? below : elsewhere).moved.push_back({0, place});
  }
  REQUIRE(!below.moved.empty());
  CHECK(states.reduced(below).moved.empty());
  CHECK(states.reduced(elsewhere).moved.size() == 1);
  CHECK(states.reduced(below).spares_among == spares);
  // Switches that never fill up: it does not matter who stands where.
  for (FabricTier& tier : job.scenario.cluster.tiers) tier.oversubscription = 1;
  const StepStates alike(job.scenario.plan, job.scenario.cluster, payload, false);
  CHECK(alike.reduced(elsewhere).moved.empty());
  CHECK(alike.reduced(elsewhere).spares_among == 0);
}

TEST_CASE("A state reduced says the same, and no more than it must") {
  const Job job = small("published/grok1-dgxc-512.json", 8);
  const double payload = job.cost.nic_payload_rate(job.scenario.cluster.nic_bytes_per_s);
  const StepStates states(job.scenario.plan, job.scenario.cluster, payload, false);
  RandomStream random(8, "states");
  JobState state = some_state(job, 200, random);
  const JobState once = states.reduced(state), twice = states.reduced(once);
  CHECK(once.slow.size() <= 4 * static_cast<std::size_t>(job.scenario.plan.pp));  // two paces a stage
  REQUIRE(once.slow.size() == twice.slow.size());
  for (std::size_t i = 0; i < once.slow.size(); ++i) CHECK(once.slow[i].factor == twice.slow[i].factor);
  std::reverse(state.slow.begin(), state.slow.end());
  CHECK(states.reduced(state).slow.size() == once.slow.size());
  CHECK(states.reduced({}).slow.empty());
}
