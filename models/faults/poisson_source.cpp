// Causes as Poisson processes on the wall clock, each with streams of its own for arrivals, victims and details.
#include <cmath>
#include <utility>

#include "models/base/check.h"
#include "models/base/units.h"
#include "models/faults/fault_source.h"

namespace trainyard::faults {

namespace {

constexpr NodeId kNobody = -2;

class PoissonSource : public FaultSource {
 public:
  PoissonSource(const std::vector<FaultCause>& causes, const FleetShape& shape, std::uint64_t seed) : shape_(shape) {
    for (NodeId node = 0; node < shape.job_nodes; ++node) owners_.push_back(node);
    for (std::size_t i = 0; i < causes.size(); ++i) {
      Process process{.scope = causes[i].scope,
                      .mode = causes[i].effective_mode(),
                      .arrivals = RandomStream(seed, "run.fault.arrivals", i),
                      .victims = RandomStream(seed, "run.fault.victims", i),
                      .details = RandomStream(seed, "run.fault.details", i)};
      const std::int64_t nodes = strikes_spares(process) ? shape.held_nodes : shape.job_nodes;
      const double per_s = causes[i].rate_per_gpu_hour * static_cast<double>(nodes * shape.gpus_per_node) / 3600;
      process.mean_s = per_s > 0 ? 1 / per_s : INFINITY;
      arm(process, 0);
      processes_.push_back(process);
    }
  }

  std::optional<std::int64_t> next_ns() override {
    const Process* first = earliest();
    return first ? first->next_ns : std::nullopt;
  }

  std::optional<Fault> take() override {
    Process* first = earliest();
    TY_CHECK(first != nullptr, "take() needs a fault that is due");
    Fault fault{
        .at_ns = *first->next_ns, .cause = static_cast<std::size_t>(first - processes_.data()), .mode = first->mode};
    arm(*first, fault.at_ns);
    draw_details(fault, shape_.gpus_per_node, first->details);
    if (first->scope == FaultScope::Job) return fault;
    const bool any_held = strikes_spares(*first);
    const std::uint64_t draw =
        first->victims.below(static_cast<std::uint64_t>(any_held ? shape_.held_nodes : shape_.job_nodes));
    // Nodes move between job, spares and repair; a fault of the fabric strikes where a rank is.
    fault.node = any_held ? static_cast<NodeId>(draw) : owners_[draw];
    if (fault.node == kNobody || in_repair(fault.node)) return std::nullopt;
    return fault;
  }

  void node_changed(const NodeChange& change) override {
    TY_CHECK(change.node >= 0 && change.node < shape_.held_nodes, "the node is held");
    for (NodeId& owner : owners_)
      if (owner == change.node) owner = kNobody;
    if (change.use == NodeUse::Job) owners_.at(static_cast<std::size_t>(change.slot)) = change.node;
    if (in_repair_.empty()) in_repair_.resize(static_cast<std::size_t>(shape_.held_nodes), false);
    in_repair_[static_cast<std::size_t>(change.node)] = change.use == NodeUse::InRepair;
  }

  std::uint64_t next_draw() override {
    std::uint64_t mixed = 0;
    for (Process process : processes_)
      mixed = mix64(mix64(mixed ^ process.arrivals.next_u64()) ^ process.victims.next_u64());
    return mixed;
  }

 private:
  struct Process {
    FaultScope scope = FaultScope::Gpu;
    FaultMode mode = FaultMode::HostCrash;
    RandomStream arrivals, victims, details;
    double mean_s = INFINITY;
    std::optional<std::int64_t> next_ns = {};
  };

  static bool strikes_spares(const Process& process) {
    return process.scope == FaultScope::Gpu || process.scope == FaultScope::Node;
  }

  [[nodiscard]] bool in_repair(NodeId node) const {
    return !in_repair_.empty() && in_repair_[static_cast<std::size_t>(node)];
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
  std::vector<NodeId> owners_;  // of the job's slots
  std::vector<bool> in_repair_;
};

}  // namespace

std::unique_ptr<FaultSource> make_poisson_source(const std::vector<FaultCause>& causes, const FleetShape& shape,
                                                 std::uint64_t seed) {
  return std::make_unique<PoissonSource>(causes, shape, seed);
}

}  // namespace trainyard::faults
