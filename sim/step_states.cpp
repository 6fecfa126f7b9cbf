#include "sim/step_states.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "models/spec/node_places.h"
#include "sim/fold.h"
#include "sim/platform.h"

namespace trainyard {

namespace {

/// Factors that are simulated are powers of these. Kernels take `factor` times as long from the first, so a step grows
/// with it evenly; a NIC is slow for a while before anybody waits for it.
double grid_of(InjectedKind kind) { return kind == InjectedKind::GpuSlow ? 1.5 : 1.25; }

/// Of ranks of one stage that go at one pace.
using Slowest = std::map<InjectedKind, InjectedFault>;

bool as_slow(const Slowest& a, const Slowest& b) {
  return std::all_of(b.begin(), b.end(), [&a](const auto& part) {
    const auto found = a.find(part.first);
    return found != a.end() && found->second.factor >= part.second.factor && found->second.loss >= part.second.loss;
  });
}

/// Others of the stage are as slow in everything; of equals the first counts.
bool outdone(const Slowest& slowest, std::int64_t pace, const std::map<std::int64_t, Slowest>& paces) {
  return std::any_of(paces.begin(), paces.end(), [&](const auto& other) {
    return other.first != pace && as_slow(other.second, slowest) &&
           (other.first < pace || !as_slow(slowest, other.second));
  });
}

}  // namespace

std::string StepQuestion::key() const {
  std::string key = without_tiers ? "no tiers;" : "";
  for (const InjectedFault& fault : state.slow) {
    key += fmt::format("{}/{}/{}/{:a}", static_cast<int>(fault.kind), fault.node, fault.device, fault.factor);
    if (fault.loss > 0) key += fmt::format("/loses {:a}", fault.loss);
    if (fault.direction != LinkDirection::Both) key += fmt::format("/{}", to_string(fault.direction));
    key += ";";
  }
  if (state.nic_share != 1) key += fmt::format("nics at {:a};", state.nic_share);
  for (const MovedNode& moved : state.moved) key += fmt::format("{}>{};", moved.position, moved.place);
  if (state.spares_among != 0) key += fmt::format("{} spares among;", state.spares_among);
  return key;
}

StepStates::StepStates(const ParallelPlan& plan, const ClusterSpec& cluster, double payload_rate, bool exact)
    : mesh_(plan),
      cluster_(cluster),
      exact_(exact),
      tp_(plan.tp),
      cp_(plan.cp),
      nodes_((plan.ranks() + cluster.gpus_per_node - 1) / cluster.gpus_per_node),
      dp_together_(std::max<std::int64_t>(1, plan.ep / plan.cp)),
      passes_(static_cast<double>(plan.micro_batches() * plan.virtual_stages)) {
  const Platform platform(cluster, plan.ranks(), payload_rate);
  tiers_matter_ = platform.limiting_tiers() > 0;
  const double headroom = tier_headroom(plan, platform);
  if (headroom < 0 || platform.hashed()) return;  // who stands elsewhere is hashed to other links
  // A node away from home brings its own traffic to a tier link, and at worst that of all whom it talks to: two
  // neighbours for each sort of channel, and those who hold its experts.
  const auto peers = 2 * static_cast<double>(channel_sorts(plan).size()) + static_cast<double>(plan.ep);
  const double its_traffic = static_cast<double>(cluster.nics_per_node) * payload_rate * (1 + peers);
  const double most = std::numeric_limits<std::int32_t>::max();
  movable_nodes_ = static_cast<std::int64_t>(std::min(most, headroom / its_traffic));
}

JobState StepStates::reduced(const JobState& state) const {
  struct Part {
    double factor = 1, loss = 0;
  };
  std::map<std::tuple<std::int64_t, InjectedKind, LinkDirection>, Part> parts;  // by rank; several of one kind multiply
  for (const InjectedFault& part : state.slow) {
    Part& its = parts[{rank_of(part), part.kind, part.direction}];
    its.factor *= part.factor;
    its.loss += part.loss;
  }
  JobState out;
  out.nic_share = state.nic_share;
  if (tiers_matter_) out.spares_among = state.spares_among;
  const std::vector<MovedNode> moved = away(state);
  if (exact_) {
    for (const auto& [where, its] : parts) {
      const auto& [rank, kind, direction] = where;
      out.slow.push_back(fault_of(rank, kind, its.factor, its.loss));
      out.slow.back().direction = direction;
    }
    out.moved = moved;
    return out;
  }
  std::map<std::int64_t, std::map<std::int64_t, Slowest>> stages;  // by stage, then by those who go at one pace
  for (const auto& [where, part] : parts) {
    const auto& [rank, kind, direction] = where;  // one that is slow one way counts as one that is slow both ways
    if (part.factor <= 1) continue;
    InjectedFault& its = stages[stage_of(rank)][pace_of(rank)][kind];
    const double loss = std::max(its.loss, part.loss / (direction == LinkDirection::Both ? 1 : 2));
    if (part.factor > its.factor) its = fault_of(rank, kind, part.factor, loss);
    its.loss = loss;
  }
  for (const auto& [stage, paces] : stages)
    for (const auto& [pace, slowest] : paces)
      if (!outdone(slowest, pace, paces))
        for (const auto& [kind, part] : slowest) out.slow.push_back(part);
  // One for all, from the start of the job to beyond its end.
  if (!moved.empty()) out.moved = {{0, std::max(nodes_ + out.spares_among, nodes_per_leaf(cluster_))}};
  return out;
}

double StepStates::step_s(const JobState& reduced, const Ask& ask) const {
  if (exact_) return ask({reduced, false});
  const auto with = [&](std::vector<MovedNode> moved, double nic_share) {
    return ask({{{}, std::move(moved), reduced.spares_among, nic_share}, false});
  };
  const double healthy_s = with({}, 1);
  double step_s = healthy_s;
  if (!reduced.slow.empty()) step_s *= slowdown(reduced.slow, ask);
  if (!reduced.moved.empty()) step_s *= with(reduced.moved, 1) / healthy_s;
  if (reduced.nic_share != 1) step_s *= with({}, reduced.nic_share) / healthy_s;
  return step_s;
}

double StepStates::slowdown(const std::vector<InjectedFault>& slowest, const Ask& ask) const {
  const double healthy_s = ask({{}, true});
  std::map<std::int64_t, std::map<std::int64_t, double>> extra_s;  // by stage, then by those who go at one pace
  for (const InjectedFault& part : slowest) {
    const std::int64_t rank = rank_of(part), stage = stage_of(rank);
    extra_s[stage][pace_of(rank)] += stage_s(stage, part, ask) - healthy_s;
  }
  double sum_s = 0, most_s = 0;
  for (const auto& [stage, by_pace] : extra_s) {
    double stage_s = 0;
    for (const auto& [pace, s] : by_pace) stage_s = std::max(stage_s, s);
    sum_s += stage_s;
    most_s = std::max(most_s, stage_s);
  }
  return (healthy_s + most_s + (sum_s - most_s) / passes_) / healthy_s;
}

std::int64_t StepStates::stage_of(std::int64_t rank) const { return mesh_.coordinates(rank).pp; }

std::int64_t StepStates::pace_of(std::int64_t rank) const { return mesh_.coordinates(rank).dp / dp_together_; }

std::int64_t StepStates::rank_of(const InjectedFault& part) const {
  return part.node * cluster_.gpus_per_node + part.device;
}

double StepStates::stage_s(std::int64_t stage, const InjectedFault& part, const Ask& ask) const {
  const double grid = grid_of(part.kind);
  const double below = std::pow(grid, std::floor(std::log(part.factor) / std::log(grid) + 1e-9)), above = below * grid;
  const auto at = [&](double factor) {
    return factor <= 1 && part.loss == 0 ? ask({{}, true}) : ask(slow_stage(stage, part.kind, factor, part.loss));
  };
  const double share = (part.factor - below) / (above - below);
  return share < 1e-6 ? at(below) : at(below) * (1 - share) + at(above) * share;
}

/// Every rank that goes at the pace of a slow one, in the first replica. What one of them loses holds them all up.
StepQuestion StepStates::slow_stage(std::int64_t stage, InjectedKind kind, double factor, double loss) const {
  StepQuestion question;
  question.without_tiers = true;
  Coordinates at;
  at.pp = stage;
  for (at.dp = 0; at.dp < dp_together_; ++at.dp)
    for (at.cp = 0; at.cp < cp_; ++at.cp)
      for (at.tp = 0; at.tp < tp_; ++at.tp)
        question.state.slow.push_back(fault_of(mesh_.rank(at), kind, factor, std::exchange(loss, 0)));
  return question;
}

InjectedFault StepStates::fault_of(std::int64_t rank, InjectedKind kind, double factor, double loss) const {
  InjectedFault fault;
  fault.kind = kind;
  fault.node = rank / cluster_.gpus_per_node;
  fault.device = rank % cluster_.gpus_per_node;
  fault.factor = factor;
  fault.loss = loss;
  return fault;
}

/// Those of `state` that do not stand below the switch of their home, if that can make a difference.
std::vector<MovedNode> StepStates::away(const JobState& state) const {
  const bool few = state.spares_among == 0 && std::ssize(state.moved) <= movable_nodes_;
  if (few || !tiers_matter_) return {};
  const std::int64_t leaf = nodes_per_leaf(cluster_);
  std::vector<std::int64_t> homes;  // where their numbers say
  if (state.spares_among > 0) homes = places_with_spares_per_leaf(nodes_, state.spares_among, leaf);
  std::vector<MovedNode> away;
  for (const MovedNode& its : state.moved)
    if (place_of(homes, its.position) / leaf != its.place / leaf) away.push_back(its);
  return away;
}

}  // namespace trainyard
