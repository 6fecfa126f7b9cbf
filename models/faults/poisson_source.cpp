// Causes as Poisson processes on the wall clock, each with streams of its own for arrivals, victims and details. What
// strikes spares is a process apart, so that the job's nodes meet the same faults whatever the number of spares.
#include <cmath>
#include <string>
#include <utility>

#include "models/base/check.h"
#include "models/base/units.h"
#include "models/faults/fault_source.h"

namespace trainyard::faults {

namespace {

constexpr NodeId kNobody = -2;
constexpr std::int64_t kNoSlot = -1;

class PoissonSource : public FaultSource {
 public:
  PoissonSource(const std::vector<FaultCause>& causes, const FleetShape& shape, std::uint64_t seed) : shape_(shape) {
    for (NodeId node = 0; node < shape.job_nodes; ++node) {
      owners_.push_back(node);
      slots_.push_back(node);
    }
    slots_.resize(static_cast<std::size_t>(shape.held_nodes), kNoSlot);
    in_repair_.resize(static_cast<std::size_t>(shape.held_nodes), false);
    for (std::size_t i = 0; i < causes.size(); ++i) add(causes[i], i, {0, shape.job_nodes}, seed, "run.fault");
    for (std::size_t i = 0; i < causes.size(); ++i) {
      if (causes[i].scope == FaultScope::Gpu || causes[i].scope == FaultScope::Node)
        add(causes[i], i, {shape.job_nodes, shape.held_nodes}, seed, "run.fault.spares");
    }
  }

  std::optional<std::int64_t> next_ns() override {
    const Process* first = earliest();
    return first ? first->next_ns : std::nullopt;
  }

  std::optional<Fault> take() override {
    Process* first = earliest();
    TY_CHECK(first != nullptr, "take() needs a fault that is due");
    Fault fault{.at_ns = *first->next_ns, .cause = first->cause, .mode = first->mode};
    arm(*first, fault.at_ns);
    draw_details(fault, shape_.gpus_per_node, first->details);
    if (first->scope == FaultScope::Job) return fault;
    const NodeId struck =
        first->nodes.first + static_cast<NodeId>(first->victims.below(static_cast<std::uint64_t>(size(*first))));
    // Nodes move between job, spares and repair; a fault of the fabric strikes where a rank is.
    const bool of_nodes = first->scope == FaultScope::Gpu || first->scope == FaultScope::Node;
    fault.node = of_nodes ? struck : owners_[static_cast<std::size_t>(struck)];
    if (fault.node == kNobody || in_repair_[static_cast<std::size_t>(fault.node)]) return std::nullopt;
    return fault;
  }

  void node_changed(const NodeChange& change) override {
    TY_CHECK(change.node >= 0 && change.node < shape_.held_nodes, "the node is held");
    const auto node = static_cast<std::size_t>(change.node);
    if (std::int64_t& slot = slots_[node]; slot != kNoSlot) {
      if (owners_[static_cast<std::size_t>(slot)] == change.node) owners_[static_cast<std::size_t>(slot)] = kNobody;
      slot = kNoSlot;
    }
    if (change.use == NodeUse::Job) {
      owners_.at(static_cast<std::size_t>(change.slot)) = change.node;
      slots_[node] = change.slot;
    }
    in_repair_[node] = change.use == NodeUse::InRepair;
  }

  std::uint64_t next_draw() override {
    std::uint64_t mixed = 0;
    for (Process process : processes_)
      mixed = mix64(mix64(mixed ^ process.arrivals.next_u64()) ^ process.victims.next_u64());
    return mixed;
  }

 private:
  struct Process {
    std::size_t cause = 0;
    std::pair<NodeId, NodeId> nodes;  // from the first, to before the second; of slots for faults of the fabric
    FaultScope scope = FaultScope::Gpu;
    FaultMode mode = FaultMode::HostCrash;
    RandomStream arrivals, victims, details;
    double mean_s = INFINITY;
    std::optional<std::int64_t> next_ns = {};
  };

  static std::int64_t size(const Process& process) { return process.nodes.second - process.nodes.first; }

  void add(const FaultCause& cause, std::size_t index, std::pair<NodeId, NodeId> nodes, std::uint64_t seed,
           const std::string& streams) {
    Process process{.cause = index,
                    .nodes = nodes,
                    .scope = cause.scope,
                    .mode = cause.effective_mode(),
                    .arrivals = RandomStream(seed, streams + ".arrivals", index),
                    .victims = RandomStream(seed, streams + ".victims", index),
                    .details = RandomStream(seed, streams + ".details", index)};
    const double per_s = cause.rate_per_gpu_hour * static_cast<double>(size(process) * shape_.gpus_per_node) / 3600;
    process.mean_s = per_s > 0 ? 1 / per_s : INFINITY;
    arm(process, 0);
    processes_.push_back(process);
  }

  void arm(Process& process, std::int64_t now_ns) const {
    process.next_ns.reset();
    if (!std::isfinite(process.mean_s)) return;
    const double wait_s = process.arrivals.exponential(process.mean_s);
    // Past the end, and perhaps past what int64 holds.
    if (wait_s > static_cast<double>(shape_.duration_ns) / kNsPerS) return;
    process.next_ns = now_ns + to_ns(wait_s);
  }

  Process* earliest() {
    Process* first = nullptr;
    for (Process& process : processes_)
      if (process.next_ns && (first == nullptr || *process.next_ns < *first->next_ns)) first = &process;
    return first && *first->next_ns < shape_.duration_ns ? first : nullptr;
  }

  FleetShape shape_;
  std::vector<Process> processes_;
  std::vector<NodeId> owners_;       // of the job's slots
  std::vector<std::int64_t> slots_;  // by node
  std::vector<bool> in_repair_;
};

}  // namespace

std::unique_ptr<FaultSource> make_poisson_source(const std::vector<FaultCause>& causes, const FleetShape& shape,
                                                 std::uint64_t seed) {
  return std::make_unique<PoissonSource>(causes, shape, seed);
}

}  // namespace trainyard::faults
