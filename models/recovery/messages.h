// What goes into the controller (Event) and what comes out (Action).
//
// Events are symptoms and answers, never ground truth: nothing here can say that a fault was
// injected, or that the world is simulated. Both lists are closed variants, so that a new
// message is a compile error in every world until it is handled there.
//
// Times are the controller's own monotonic clock, int64 nanoseconds.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "models/recovery/ledger.h"

namespace trainyard::recovery {

/// A physical machine. Never reused for another machine.
using NodeId = std::int64_t;

/// Names one action for ever. `incarnation` counts controllers, `epoch` counts the job's
/// starts: it is the fencing token that owners of effects compare. `id` counts actions.
struct ActionKey {
  std::int64_t incarnation = 0;
  std::int64_t epoch = 0;
  std::int64_t id = 0;
  auto operator<=>(const ActionKey&) const = default;  // NOLINT(modernize-use-nullptr): clang-tidy 14 misreads it
};

/// Where a copy of the training state lies, from the quickest to the one that survives everything.
enum class Tier : std::uint8_t {
  Device,  // live parameters of a data-parallel replica that nothing happened to
  Host,    // memory of the node itself
  Peer,    // memory of a node in another failure domain
  Nvme,    // the node's own disk
  Remote,  // the store that the whole cluster shares: permanent
};
inline constexpr int kTierCount = static_cast<int>(Tier::Remote) + 1;
const char* to_string(Tier tier);

/// How much is ready on a spare.
enum class Temperature : std::uint8_t {
  Hot,   // in the job's rendezvous, processes and device contexts up
  Warm,  // booted and tested, no processes
  Cold,  // to be allocated and booted first
};
const char* to_string(Temperature temperature);

// ---- Events -------------------------------------------------------------------------------

/// The job runs for the first time, at `step`, whose state is durable.
struct Launched {
  std::int64_t step = 0;
};

/// Silence for the detection timeout. `last_seen_ns`: when the node last gave a sign of life.
struct HeartbeatLost {
  NodeId node = 0;
  std::int64_t last_seen_ns = 0;
};

/// A communicator of epoch `epoch` failed at `reporter`, which may be able to name the peer.
struct CommunicatorError {
  std::int64_t epoch = 0;
  NodeId reporter = 0;
  std::optional<NodeId> suspect;
  std::int64_t last_seen_ns = 0;
};

/// The driver of one GPU logged an XID.
struct XidReported {
  NodeId node = 0;
  std::int64_t gpu = 0;
  int xid = 0;
  std::int64_t last_seen_ns = 0;
};

/// The ranks of `epoch` on this node ended by themselves: a crash, or a lease that ran out.
struct RankExited {
  std::int64_t epoch = 0;
  NodeId node = 0;
  std::int64_t last_seen_ns = 0;
};

/// Peers wait for the node: the job's steps take `slowdown` times as long as they should.
struct Straggling {
  std::int64_t epoch = 0;
  NodeId node = 0;
  double slowdown = 1;
};
struct StragglingOver {
  NodeId node = 0;
};

/// The node is wanted for maintenance at `at_ns` on the controller's clock.
struct MaintenanceDue {
  NodeId node = 0;
  std::int64_t at_ns = 0;
};

/// Data-parallel replicas compared the hashes of their parameters at the snapshot that
/// TakeCheckpoint `key` asked for, and all agree.
struct HashesAgree {
  ActionKey key;
};
/// The same, and they differ. `votes`: the hash at each holder of the shard that differs.
struct HashesDiffer {
  ActionKey key;
  std::vector<std::pair<NodeId, std::uint64_t>> votes;
};

/// Ranks of `epoch`, once connected, found a whole copy of the state after `step` in this tier.
struct StateFound {
  std::int64_t epoch = 0;
  Tier tier = Tier::Remote;
  std::int64_t step = 0;
};

/// Another launcher goes on with this controller: keys of what it asks carry its number.
struct TookOver {
  std::int64_t incarnation = 0;
};

/// Steps first..last were done by the ranks of `epoch`. One event per step and one event for
/// a range have equal effect.
struct StepsDone {
  std::int64_t epoch = 0;
  std::int64_t first = 0;
  std::int64_t last = 0;
};

/// The checkpoint that TakeCheckpoint `key` asked for holds all steps up to `step`, and its
/// quorum in this tier has written it.
struct CheckpointDurable {
  ActionKey key;
  std::int64_t step = 0;
  Tier tier = Tier::Remote;
};

/// A node that was never ejected offers itself as a spare.
struct SpareReady {
  NodeId node = 0;
  Temperature temperature = Temperature::Hot;
};

/// An ejected node is back from repair. `key` is the Eject or ReturnToRepair that sent it there, so that a late
/// repeat cannot vouch for a node that was ejected again since.
struct NodeRepaired {
  ActionKey key;
  NodeId node = 0;
};

/// The SetTimer with this key came due.
struct TimerFired {
  ActionKey key;
};

enum class Outcome : std::uint8_t { Acted, Refused, Timeout };
const char* to_string(Outcome outcome);

/// What became of an action. `culprit` is the node that refused or did not answer, if known.
struct Answered {
  ActionKey key;
  Outcome outcome = Outcome::Acted;
  std::optional<NodeId> culprit;
};

/// A human says that what they were paged for is mended: suspicions are dropped and the job
/// restarts on the nodes that it has.
struct HumanCleared {};

using Event = std::variant<Launched, HeartbeatLost, CommunicatorError, XidReported, RankExited, Straggling,
                           StragglingOver, MaintenanceDue, HashesAgree, HashesDiffer, StateFound, TookOver, StepsDone,
                           CheckpointDurable, SpareReady, NodeRepaired, TimerFired, Answered, HumanCleared>;
inline constexpr std::size_t kEventKinds = std::variant_size_v<Event>;
/// "launched", "heartbeat_lost", ...: the first word of describe(event).
const char* kind_of(const Event& event);

// ---- Actions ------------------------------------------------------------------------------

/// Fire TimerFired with this action's key at `at_ns`.
struct SetTimer {
  std::int64_t at_ns = 0;
};

/// Abort the communicators of, and stop commits by, every rank of an epoch below this
/// action's. From when it has acted no older rank can commit.
struct Fence {};

/// The node leaves the job or the pool of spares and goes to repair. `slot` is the one it
/// held, none for a spare.
struct Eject {
  NodeId node = 0;
  std::optional<std::int64_t> slot;
};

/// The node came back from repair and failed its test: it goes there again.
struct ReturnToRepair {
  NodeId node = 0;
};

/// The node takes over the logical ranks of `slot`.
struct PromoteSpare {
  NodeId node = 0;
  std::int64_t slot = 0;
};

/// Processes come up on every owner. `replicas`: the data-parallel replicas that take part,
/// ascending; fewer than the job has while it is shrunk.
struct StartProcesses {
  std::vector<std::int64_t> replicas;
};
/// Connected, ranks report what copies of the state they find (StateFound), then it has acted.
struct BuildCommunicators {};

/// Load the copy in this tier that holds all steps up to `step`; 0 is the initial state.
struct LoadState {
  std::int64_t step = 0;
  Tier tier = Tier::Remote;
};

/// Train from `step` (the number of steps already done). Acted once warm and at speed.
struct Resume {
  std::int64_t step = 0;
};

/// At the next step boundary take a snapshot (Acted), then make it durable in every tier down
/// to this one (CheckpointDurable for each). `hold`: no step is trained after the snapshot,
/// because the job is about to be restarted; refused, training goes on.
struct TakeCheckpoint {
  Tier tier = Tier::Remote;
  bool hold = false;
};

/// Bring the spare's processes up, so that it can be promoted at once.
struct HeatSpare {
  NodeId node = 0;
};

/// Test a repaired node before it may hold ranks again; `thorough` for one that has failed often.
struct TestNode {
  NodeId node = 0;
  bool thorough = false;
};

enum class PageReason : std::uint8_t { SparesExhausted, EjectionBound, NoProgress, NodeRetired };
const char* to_string(PageReason reason);

struct PageHuman {
  PageReason reason = PageReason::SparesExhausted;
  /// The failure domain concerned for EjectionBound, the node for NodeRetired.
  std::optional<std::int64_t> subject;
};

/// The recovery is over; keep this account of it.
struct FileLedger {
  RecoveryLedger ledger;
};

using ActionBody =
    std::variant<SetTimer, Fence, Eject, ReturnToRepair, PromoteSpare, StartProcesses, BuildCommunicators, LoadState,
                 Resume, TakeCheckpoint, HeatSpare, TestNode, PageHuman, FileLedger>;

struct Action {
  ActionKey key;
  ActionBody body;
};

/// One line each, stable: logs, golden files and replay checks compare these.
std::string describe(const Event& event);
std::string describe(const Action& action);

}  // namespace trainyard::recovery
