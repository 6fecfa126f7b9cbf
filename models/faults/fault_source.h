// Where faults come from: one interface that a world pulls them from, whatever generates them.
//
// A world asks when the next fault is due, waits until then, takes it, and says what becomes of its nodes. It never
// needs to know which generator it has:
//
//     for (auto at = source->next_ns(); at && *at <= now; at = source->next_ns())
//       if (const auto fault = source->take()) strike(*fault);
//
// Streams of random numbers belong to a cause (Poisson) or to a node (fleet), and run on the wall clock whatever the
// world does with its nodes. So two policies with one seed meet the same faults, but for those that depend on what
// the policy did: a repaired node's refailures, and faults that find their node in repair. Nor does the number of
// spares change what strikes the job's nodes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "models/base/random.h"
#include "models/spec/fault_spec.h"

namespace trainyard::faults {

using NodeId = std::int64_t;
/// The `node` of a fault that strikes the whole job.
inline constexpr NodeId kWholeJob = -1;

struct Fault {
  std::int64_t at_ns = 0;
  /// Index into cause_names() of the spec.
  std::size_t cause = 0;
  FaultMode mode = FaultMode::HostCrash;
  /// The struck node, of a leaf: one of its nodes; kWholeJob: no node is to blame.
  NodeId node = kWholeJob;
  /// GPU of the node; of a link or a NIC, a GPU that uses it.
  std::int64_t device = 0;
  /// How many times slower, of modes that slow; else 1.
  double factor = 1;
  /// Share of packets that is lost, and which way, of modes that lose some.
  double loss = 0;
  LinkDirection direction = LinkDirection::Both;
  /// After how long it passes by itself, of causes; unset: it waits to be mended.
  std::optional<std::int64_t> duration_ns = {};
  /// From `at_ns` until the node is sound again, if the source knows: fleet and trace do.
  std::optional<std::int64_t> repair_ns = {};
};

/// What a node is used for. A world starts with nodes 0 to job_nodes - 1 in the job, in slots of the same number, and
/// the rest as spares.
enum class NodeUse : std::uint8_t {
  Job,
  Spare,
  InRepair,  // nothing strikes it
};

struct NodeChange {
  std::int64_t at_ns = 0;
  NodeId node = 0;
  NodeUse use = NodeUse::Job;
  /// The slot that it takes, for NodeUse::Job.
  std::int64_t slot = 0;
};

class FaultSource {
 public:
  virtual ~FaultSource() = default;

  /// When the next fault is due, never before the last one taken; none: no more will come before the end of the run.
  /// Ask again after every change.
  [[nodiscard]] virtual std::optional<std::int64_t> next_ns() = 0;
  /// The fault that was due at next_ns(). None: what it would have struck is not there, as a node in repair.
  virtual std::optional<Fault> take() = 0;
  /// Told as it happens, in the order of time, at or before next_ns().
  virtual void node_changed(const NodeChange& change) = 0;
  /// Differs between two sources that have drawn differently: mixes the next draw of every stream that has been used.
  [[nodiscard]] virtual std::uint64_t next_draw() = 0;
};

/// The machines of a run, and its length.
struct FleetShape {
  std::int64_t job_nodes = 1;
  /// The job's and its spares.
  std::int64_t held_nodes = 1;
  std::int64_t gpus_per_node = 8;
  std::int64_t duration_ns = 0;
};

/// Names of what can strike: the causes of the spec, then the classes of its generator.
std::vector<std::string> cause_names(const FaultSpec& spec);

/// Everything of a valid spec that strikes at random or by trace (`injected` is the world's own business): its causes
/// as Poisson processes, and its generator besides.
std::unique_ptr<FaultSource> make_fault_source(const FaultSpec& spec, const FleetShape& shape, std::uint64_t seed);

/// Each cause a Poisson process on the wall clock. GPUs and nodes are struck among all that are held, links among those
/// of the job's slots.
std::unique_ptr<FaultSource> make_poisson_source(const std::vector<FaultCause>& causes, const FleetShape& shape,
                                                 std::uint64_t seed);
/// The fleet model; every held node counts as up unless it is in repair.
std::unique_ptr<FaultSource> make_fleet_source(const FleetModel& model, const FleetShape& shape, std::uint64_t seed);
/// Replays a trace. Faults of nodes that are not held, or that are in repair, are left out. The seed draws what the
/// trace does not tell: device and factor.
std::unique_ptr<FaultSource> make_trace_source(const FaultTrace& trace, const FleetShape& shape, std::uint64_t seed);

/// Draws what the mode leaves open: device, factor, and the duration of what passes by itself. Always the same number
/// of draws, so that one fault does not move the next.
void draw_details(Fault& fault, std::int64_t gpus_per_node, RandomStream& draws);

}  // namespace trainyard::faults
