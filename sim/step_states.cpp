#include "sim/step_states.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include <fmt/format.h>

#include "sim/fold.h"
#include "sim/platform.h"

namespace trainyard {

namespace {

/// Factors that are simulated are powers of these. Kernels take `factor` times as long from the first, so a step grows
/// with it evenly; a NIC is slow for a while before anybody waits for it.
double grid_of(InjectedKind kind) { return kind == InjectedKind::GpuSlow ? 1.5 : 1.25; }

/// A job of so many ranks is simulated in a fraction of a second, whatever its state.
constexpr std::int64_t kExactRanks = 1024;

}  // namespace

std::string StepQuestion::key() const {
  std::string key = without_tiers ? "no tiers;" : "";
  for (const InjectedFault& fault : state.slow)
    key += fmt::format("{}/{}/{}/{:a};", static_cast<int>(fault.kind), fault.node, fault.device, fault.factor);
  for (const MovedNode& moved : state.moved) key += fmt::format("{}>{};", moved.position, moved.node);
  return key;
}

StepStates::StepStates(const ParallelPlan& plan, const ClusterSpec& cluster, double payload_rate, bool exact)
    : mesh_(plan),
      cluster_(cluster),
      exact_(exact || plan.ranks() <= kExactRanks),
      tp_(plan.tp),
      cp_(plan.cp),
      nodes_((plan.ranks() + cluster.gpus_per_node - 1) / cluster.gpus_per_node),
      dp_together_(std::max<std::int64_t>(1, plan.ep / plan.cp)),
      passes_(static_cast<double>(plan.micro_batches() * plan.virtual_stages)) {
  const Platform platform(cluster, plan.ranks(), payload_rate);
  const double headroom = tier_headroom(plan, platform);
  if (headroom < 0) return;
  // A node away from home brings its own traffic to a tier link, and at worst that of all whom it talks to: two
  // neighbours for each sort of channel, and those who hold its experts.
  const auto peers = 2 * static_cast<double>(channel_sorts(plan).size()) + static_cast<double>(plan.ep);
  const double its_traffic = static_cast<double>(cluster.nics_per_node) * payload_rate * (1 + peers);
  const double most = std::numeric_limits<std::int32_t>::max();
  movable_nodes_ = static_cast<std::int64_t>(std::min(most, headroom / its_traffic));
}

double StepStates::step_s(const JobState& state, const Ask& ask) const {
  const bool moved = std::ssize(state.moved) > movable_nodes_;
  const Parts parts = parts_of(state, cluster_.gpus_per_node);
  if (exact_) {
    StepQuestion as_it_is;
    for (const auto& [where, factor] : parts)
      as_it_is.state.slow.push_back(fault_of(where.first, where.second, factor));
    if (moved) as_it_is.state.moved = state.moved;
    return ask(as_it_is);
  }
  double step_s = ask({}) * slowdown(parts, ask);
  const std::vector<MovedNode> away = moved ? farthest(state.moved) : std::vector<MovedNode>{};
  if (!away.empty()) step_s *= ask({{{}, away}, false}) / ask({});
  return step_s;
}

/// By rank; several of one kind on one rank multiply.
StepStates::Parts StepStates::parts_of(const JobState& state, std::int64_t gpus_per_node) {
  Parts parts;
  for (const InjectedFault& fault : state.slow)
    parts.try_emplace({fault.node * gpus_per_node + fault.device, fault.kind}, 1.0).first->second *= fault.factor;
  return parts;
}

double StepStates::slowdown(const Parts& parts, const Ask& ask) const {
  if (parts.empty()) return 1;
  Parts slowest;  // by stage
  for (const auto& [where, factor] : parts) {
    double& its = slowest[{mesh_.coordinates(where.first).pp, where.second}];
    its = std::max(its, factor);
  }
  const double healthy_s = ask({{}, true});
  std::map<std::int64_t, double> extra_s;  // by stage
  for (const auto& [where, factor] : slowest)
    extra_s[where.first] += stage_s(where.first, where.second, factor, ask) - healthy_s;
  double sum_s = 0, most_s = 0;
  for (const auto& [stage, s] : extra_s) {
    sum_s += s;
    most_s = std::max(most_s, s);
  }
  return (healthy_s + most_s + (sum_s - most_s) / passes_) / healthy_s;
}

double StepStates::stage_s(std::int64_t stage, InjectedKind kind, double factor, const Ask& ask) const {
  const double grid = grid_of(kind);
  const double below = std::pow(grid, std::floor(std::log(factor) / std::log(grid) + 1e-9)), above = below * grid;
  const auto at = [&](double its) { return its <= 1 ? ask({{}, true}) : ask(slow_stage(stage, kind, its)); };
  const double share = (factor - below) / (above - below);
  return share < 1e-6 ? at(below) : at(below) * (1 - share) + at(above) * share;
}

/// Every rank that goes at the pace of a slow one, in the first replica.
StepQuestion StepStates::slow_stage(std::int64_t stage, InjectedKind kind, double factor) const {
  StepQuestion question;
  question.without_tiers = true;
  Coordinates at;
  at.pp = stage;
  for (at.dp = 0; at.dp < dp_together_; ++at.dp)
    for (at.cp = 0; at.cp < cp_; ++at.cp)
      for (at.tp = 0; at.tp < tp_; ++at.tp) question.state.slow.push_back(fault_of(mesh_.rank(at), kind, factor));
  return question;
}

InjectedFault StepStates::fault_of(std::int64_t rank, InjectedKind kind, double factor) const {
  InjectedFault fault;
  fault.kind = kind;
  fault.node = rank / cluster_.gpus_per_node;
  fault.device = rank % cluster_.gpus_per_node;
  fault.factor = factor;
  return fault;
}

/// One for all, from the start of the job to beyond its end; none if all stand below the switches of their homes.
std::vector<MovedNode> StepStates::farthest(const std::vector<MovedNode>& moved) const {
  if (cluster_.tiers.empty()) return {};
  const std::int64_t leaf = cluster_.tiers.front().nodes_per_group;
  const auto is_away = [&](const MovedNode& its) { return its.position / leaf != its.node / leaf; };
  if (std::none_of(moved.begin(), moved.end(), is_away)) return {};
  return {{0, std::max(nodes_, leaf)}};
}

}  // namespace trainyard
