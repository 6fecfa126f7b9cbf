// The fleet model: nodes that fail at rates of their own, lemons among them; refailures after repair; bursts; seasons.
//
// A node's own faults and the bursts run on the wall clock, each on a stream of its own. What falls on a node in repair
// strikes nothing: for constant rates that is the same as a clock that stands still in repair, and it keeps two
// policies on the same faults. A node that is back from repair draws from another stream of its own whether and
// when it fails again.
#include <algorithm>
#include <cmath>
#include <queue>
#include <tuple>
#include <utility>

#include "models/base/check.h"
#include "models/base/units.h"
#include "models/faults/fault_source.h"

namespace trainyard::faults {

namespace {

constexpr double kDay_s = 86400;
constexpr double kHour_s = 3600;
/// Nothing drawn lasts longer: thirty years are far from what int64 nanoseconds hold.
constexpr double kLongest_s = 30 * 365.0 * kDay_s;

double weibull_s(double shape, double scale_s, RandomStream& draws) {
  return scale_s * std::pow(draws.exponential(1), 1 / shape);
}

class FleetSource : public FaultSource {
 public:
  FleetSource(const FleetModel& model, const FleetShape& shape, std::uint64_t seed)
      : model_(model),
        shape_(shape),
        seed_(seed),
        bursts_(seed, "fault.fleet.bursts"),
        last_burst_node_(std::min(model.bursts.max_nodes, shape.held_nodes)) {
    for (const FleetModel::Class& entry : model.classes) {
      weights_.push_back(entry.weight);
      burst_weights_.push_back(entry.burst_weight);
    }
    for (std::int64_t n = 2; n <= last_burst_node_; ++n)
      burst_sizes_.push_back(std::pow(static_cast<double>(n), -model.bursts.size_exponent));
    nodes_.reserve(static_cast<std::size_t>(shape.held_nodes));
    for (NodeId node = 0; node < shape.held_nodes; ++node) add_node(node);
    burst_rate_per_s_ = model.bursts.per_1000_node_days / 1000 * static_cast<double>(shape.held_nodes) / kDay_s;
    if (!burst_sizes_.empty()) arm_burst(0);
  }

  std::optional<std::int64_t> next_ns() override {
    while (!due_.empty()) {
      const Due& first = due_.top();
      if (first.kind == Kind::Burst) {
        const std::int64_t at_ns = first.at_ns;
        due_.pop();
        burst(at_ns);
      } else if (is_void(first)) {
        due_.pop();
      } else {
        return first.at_ns;
      }
    }
    return std::nullopt;
  }

  std::optional<Fault> take() override {
    TY_CHECK(next_ns().has_value(), "take() needs a fault that is due");
    const Due due = due_.top();
    due_.pop();
    Node& node = nodes_[static_cast<std::size_t>(due.node)];
    Struck struck{due.fault, due.group};
    if (due.kind == Kind::Own) struck = {own_fault(due), 0};
    if (due.kind == Kind::Again) struck = due.group == 0 ? Struck{refailure(due), 0} : refailure_together(due);
    if (node.in_repair) return std::nullopt;
    node.last_class = struck.fault.cause;
    node.group = struck.group;
    return struck.fault;
  }

  void node_changed(const NodeChange& change) override {
    TY_CHECK(change.node >= 0 && change.node < shape_.held_nodes, "the node is held");
    Node& node = nodes_[static_cast<std::size_t>(change.node)];
    const bool was_in_repair = std::exchange(node.in_repair, change.use == NodeUse::InRepair);
    if (was_in_repair == node.in_repair) return;
    ++node.life;  // a refailure that was awaited is void
    if (!node.in_repair) arm_refailure(change.node, change.at_ns);
  }

  std::uint64_t next_draw() override {
    RandomStream ahead = bursts_;
    std::uint64_t mixed = ahead.next_u64();
    for (Node node : nodes_) mixed = mix64(mix64(mixed ^ node.own.next_u64()) ^ node.after_repair.next_u64());
    return mixed;
  }

 private:
  enum class Kind : std::uint8_t {
    Own,      // of the node alone
    Again,    // after a repair
    Burst,    // the beginning of one: becomes its members when it is reached
    InBurst,  // one node of a burst
  };

  struct Due {
    std::int64_t at_ns = 0;
    Kind kind = Kind::Own;
    NodeId node = 0;
    std::int64_t life = 0;    // of Again: void if the node has been in repair since
    std::uint64_t group = 0;  // of Again and InBurst: who is repaired and fails again together; 0: alone
    Fault fault = {};         // of InBurst

    [[nodiscard]] auto key() const { return std::tuple(at_ns, kind, node, life); }
    bool operator>(const Due& other) const { return key() > other.key(); }
  };

  struct Node {
    RandomStream own, after_repair;
    double rate_per_s = 0;
    std::size_t last_class = 0;
    std::uint64_t group = 0;  // of its last fault
    bool in_repair = false;
    std::int64_t life = 0;
  };

  struct Struck {
    Fault fault;
    std::uint64_t group = 0;
  };

  void add_node(NodeId node);
  void push(Due due) {
    if (due.at_ns < shape_.duration_ns) due_.push(std::move(due));
  }
  [[nodiscard]] bool is_void(const Due& due) const {
    return due.kind == Kind::Again && due.life != nodes_[static_cast<std::size_t>(due.node)].life;
  }
  std::optional<double> wait_s(double from_s, double rate_per_s, RandomStream& draws);
  double season_factor(std::size_t season);
  void arm_own(NodeId node, std::int64_t now_ns);
  void arm_refailure(NodeId node, std::int64_t now_ns);
  void arm_burst(std::int64_t now_ns);
  void burst(std::int64_t at_ns);
  Fault own_fault(const Due& due);
  Fault refailure(const Due& due);
  Struck refailure_together(const Due& due);
  Fault fault_of(std::int64_t at_ns, NodeId node, std::size_t cause, RandomStream& draws) const;
  [[nodiscard]] std::int64_t repair_ns(const FleetModel::Class& entry, RandomStream& draws) const;

  FleetModel model_;
  FleetShape shape_;
  std::uint64_t seed_;
  RandomStream bursts_;
  std::int64_t last_burst_node_;
  double burst_rate_per_s_ = 0;
  std::vector<double> weights_, burst_weights_, burst_sizes_, seasons_;
  std::vector<Node> nodes_;
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due_;
};

void FleetSource::add_node(NodeId node) {
  const auto index = static_cast<std::uint64_t>(node);
  const bool lemon = RandomStream(seed_, "fault.fleet.lemons", index).uniform() < model_.lemons.share;
  nodes_.push_back({.own = RandomStream(seed_, "fault.fleet.own", index),
                    .after_repair = RandomStream(seed_, "fault.fleet.after_repair", index),
                    .rate_per_s = model_.rate_per_node_day * (lemon ? model_.lemons.factor : 1) / kDay_s});
  arm_own(node, 0);
}

double FleetSource::season_factor(std::size_t season) {
  while (seasons_.size() <= season) {
    const double z = RandomStream(seed_, "fault.fleet.seasons", seasons_.size()).normal();
    const double sigma = model_.seasons.sigma;
    seasons_.push_back(std::exp(sigma * z - sigma * sigma / 2));
  }
  return seasons_[season];
}

/// Seconds from `from_s` to the next arrival of a process whose rate the seasons multiply; none within the run.
std::optional<double> FleetSource::wait_s(double from_s, double rate_per_s, RandomStream& draws) {
  if (rate_per_s <= 0) return std::nullopt;
  const double end_s = static_cast<double>(shape_.duration_ns) / kNsPerS, season_s = model_.seasons.days * kDay_s;
  double left = draws.exponential(1);  // expected arrivals until the next one
  double now_s = from_s;
  for (auto season = static_cast<std::size_t>(from_s / season_s); now_s < end_s; ++season) {
    const double rate = rate_per_s * season_factor(season);
    const double until_s = season_s * static_cast<double>(season + 1);
    if (left < rate * (until_s - now_s)) return now_s + left / rate - from_s;
    left -= rate * (until_s - now_s);
    now_s = until_s;
  }
  return std::nullopt;
}

void FleetSource::arm_own(NodeId node, std::int64_t now_ns) {
  Node& state = nodes_[static_cast<std::size_t>(node)];
  const std::optional<double> wait = wait_s(static_cast<double>(now_ns) / kNsPerS, state.rate_per_s, state.own);
  if (wait) push({.at_ns = now_ns + to_ns(*wait), .kind = Kind::Own, .node = node});
}

/// A group draws from one stream of its own, by its number: all its nodes come to the same answer.
void FleetSource::arm_refailure(NodeId node, std::int64_t now_ns) {
  Node& state = nodes_[static_cast<std::size_t>(node)];
  RandomStream together(seed_, "fault.fleet.together", state.group);
  const bool alone = state.group == 0 || together.uniform() >= model_.bursts.shared_refailure_share;
  RandomStream& draws = alone ? state.after_repair : together;
  const FleetModel::Refailure& again = model_.refailure;
  const bool fails = draws.uniform() < again.probability;
  const double after_s = again.median_days * kDay_s * std::exp(again.sigma * draws.normal());
  if (!fails || after_s > kLongest_s) return;
  push({.at_ns = now_ns + to_ns(after_s),
        .kind = Kind::Again,
        .node = node,
        .life = state.life,
        .group = alone ? 0 : state.group});
}

void FleetSource::arm_burst(std::int64_t now_ns) {
  const std::optional<double> wait = wait_s(static_cast<double>(now_ns) / kNsPerS, burst_rate_per_s_, bursts_);
  if (wait) push({.at_ns = now_ns + to_ns(*wait), .kind = Kind::Burst, .node = 0});
}

/// Draws the nodes of a burst, all of one class, and awaits each.
void FleetSource::burst(std::int64_t at_ns) {
  const FleetModel::Bursts& model = model_.bursts;
  const std::size_t cause = bursts_.categorical(burst_weights_);
  const std::size_t size = 2 + bursts_.categorical(burst_sizes_);
  const std::uint64_t group = bursts_.next_u64() | 1;  // never 0
  std::vector<NodeId> struck;
  std::int64_t back_ns = 0;
  while (struck.size() < size) {
    const auto node = static_cast<NodeId>(bursts_.below(static_cast<std::uint64_t>(shape_.held_nodes)));
    if (std::find(struck.begin(), struck.end(), node) != struck.end()) continue;
    const bool first = struck.empty();
    const bool later = bursts_.uniform() >= model.simultaneous_share;
    const double after_s = bursts_.exponential(model.spread_hours * kHour_s);
    const bool shares_repair = bursts_.uniform() < model.shared_repair_share;
    const std::int64_t when_ns = at_ns + (first || !later ? 0 : to_ns(after_s));
    Fault fault = fault_of(when_ns, node, cause, bursts_);
    if (first) back_ns = when_ns + *fault.repair_ns;
    const bool with_first = first || (shares_repair && back_ns > when_ns);
    if (with_first) fault.repair_ns = back_ns - when_ns;
    push({.at_ns = when_ns, .kind = Kind::InBurst, .node = node, .group = with_first ? group : 0, .fault = fault});
    struck.push_back(node);
  }
  arm_burst(at_ns);
}

Fault FleetSource::own_fault(const Due& due) {
  RandomStream& draws = nodes_[static_cast<std::size_t>(due.node)].own;
  const std::size_t cause = draws.categorical(weights_);
  const Fault fault = fault_of(due.at_ns, due.node, cause, draws);
  arm_own(due.node, due.at_ns);
  return fault;
}

Fault FleetSource::refailure(const Due& due) {
  Node& node = nodes_[static_cast<std::size_t>(due.node)];
  const bool same = node.after_repair.uniform() < model_.refailure.same_class_share;
  const std::size_t other = node.after_repair.categorical(weights_);
  return fault_of(due.at_ns, due.node, same ? node.last_class : other, node.after_repair);
}

/// The repair is the group's for most, and then they stay a group, under another number.
FleetSource::Struck FleetSource::refailure_together(const Due& due) {
  Node& node = nodes_[static_cast<std::size_t>(due.node)];
  const std::size_t cause = node.last_class;
  Struck out{fault_of(due.at_ns, due.node, cause, node.after_repair), 0};
  if (node.after_repair.uniform() >= model_.bursts.shared_repair_share) return out;
  RandomStream together(seed_, "fault.fleet.together.repair", due.group);
  out.fault.repair_ns = repair_ns(model_.classes[cause], together);
  out.group = mix64(due.group) | 1;  // never 0
  return out;
}

Fault FleetSource::fault_of(std::int64_t at_ns, NodeId node, std::size_t cause, RandomStream& draws) const {
  const FleetModel::Class& entry = model_.classes[cause];
  Fault fault{.at_ns = at_ns, .cause = cause, .mode = entry.mode, .node = node};
  draw_details(fault, shape_.gpus_per_node, draws);
  // The model is of nodes that were out until they were back, also where the mode elsewhere passes by itself.
  fault.duration_ns.reset();
  fault.repair_ns = repair_ns(entry, draws);
  return fault;
}

/// Always three draws, whichever counts.
std::int64_t FleetSource::repair_ns(const FleetModel::Class& entry, RandomStream& draws) const {
  const bool quick = draws.uniform() < entry.quick_share;
  const double quick_s =
      model_.quick_repair.median_hours * kHour_s * std::exp(model_.quick_repair.sigma * draws.normal());
  const double slow_s = weibull_s(entry.repair_shape, entry.repair_scale_hours * kHour_s, draws);
  return to_ns(std::min(kLongest_s, quick ? quick_s : slow_s));
}

}  // namespace

std::unique_ptr<FaultSource> make_fleet_source(const FleetModel& model, const FleetShape& shape, std::uint64_t seed) {
  return std::make_unique<FleetSource>(model, shape, seed);
}

}  // namespace trainyard::faults
