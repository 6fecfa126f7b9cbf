// Replays a trace of faults, exactly.
#include <algorithm>

#include "models/base/check.h"
#include "models/base/units.h"
#include "models/faults/fault_source.h"

namespace trainyard::faults {

namespace {

constexpr double kSecondsPerDay = 86400;

class TraceSource : public FaultSource {
 public:
  TraceSource(const FaultTrace& trace, const FleetShape& shape, std::uint64_t seed)
      : shape_(shape), details_(seed, "fault.trace.details"), in_repair_(static_cast<std::size_t>(shape.held_nodes)) {
    for (const FaultTrace::Entry& entry : trace.faults) {
      TY_CHECK(entry.class_index < trace.classes.size(), "the trace is valid");
      Fault fault{.at_ns = to_ns(entry.start_day * kSecondsPerDay),
                  .cause = entry.class_index,
                  .mode = trace.classes[entry.class_index].mode,
                  .node = entry.node};
      fault.repair_ns = to_ns(entry.end_day * kSecondsPerDay) - fault.at_ns;
      if (entry.node < shape.held_nodes && fault.at_ns < shape.duration_ns) faults_.push_back(fault);
    }
    const auto before = [](const Fault& a, const Fault& b) { return a.at_ns < b.at_ns; };
    std::stable_sort(faults_.begin(), faults_.end(), before);
  }

  std::optional<std::int64_t> next_ns() override {
    if (next_ == faults_.size()) return std::nullopt;
    return faults_[next_].at_ns;
  }

  std::optional<Fault> take() override {
    TY_CHECK(next_ < faults_.size(), "take() needs a fault that is due");
    Fault fault = faults_[next_++];
    draw_details(fault, shape_.gpus_per_node, details_);
    // What the trace says stands: the node was out until it was back, whatever its mode does elsewhere.
    fault.duration_ns.reset();
    if (in_repair_[static_cast<std::size_t>(fault.node)]) return std::nullopt;
    return fault;
  }

  void node_changed(const NodeChange& change) override {
    TY_CHECK(change.node >= 0 && change.node < shape_.held_nodes, "the node is held");
    in_repair_[static_cast<std::size_t>(change.node)] = change.use == NodeUse::InRepair;
  }

  std::uint64_t next_draw() override {
    RandomStream ahead = details_;
    return ahead.next_u64();
  }

 private:
  FleetShape shape_;
  RandomStream details_;
  std::vector<Fault> faults_;
  std::size_t next_ = 0;
  std::vector<bool> in_repair_;
};

}  // namespace

std::unique_ptr<FaultSource> make_trace_source(const FaultTrace& trace, const FleetShape& shape, std::uint64_t seed) {
  return std::make_unique<TraceSource>(trace, shape, seed);
}

}  // namespace trainyard::faults
