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
#include <variant>

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

/// Steps first..last were done by the ranks of `epoch`. One event per step and one event for
/// a range have equal effect.
struct StepsDone {
  std::int64_t epoch = 0;
  std::int64_t first = 0;
  std::int64_t last = 0;
};

/// The checkpoint that TakeCheckpoint `key` asked for holds all steps up to `step`, and its
/// quorum has written it.
struct CheckpointDurable {
  ActionKey key;
  std::int64_t step = 0;
};

/// A node that was never ejected offers itself as a spare.
struct SpareReady {
  NodeId node = 0;
};

/// An ejected node is back from repair. `key` is the Eject that sent it there, so that a late
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

using Event = std::variant<Launched, HeartbeatLost, CommunicatorError, XidReported, StepsDone, CheckpointDurable,
                           SpareReady, NodeRepaired, TimerFired, Answered, HumanCleared>;

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

/// The node takes over the logical ranks of `slot`.
struct PromoteSpare {
  NodeId node = 0;
  std::int64_t slot = 0;
};

struct StartProcesses {};
struct BuildCommunicators {};

/// Load the checkpoint that holds all steps up to `step`; 0 is the initial state.
struct LoadState {
  std::int64_t step = 0;
};

/// Train from `step` (the number of steps already done). Acted once warm and at speed.
struct Resume {
  std::int64_t step = 0;
};

/// At the next step boundary take a snapshot (Acted), then make it durable (CheckpointDurable).
struct TakeCheckpoint {};

enum class PageReason : std::uint8_t { SparesExhausted, EjectionBound, NoProgress };
const char* to_string(PageReason reason);

struct PageHuman {
  PageReason reason = PageReason::SparesExhausted;
  /// The failure domain concerned, for EjectionBound.
  std::optional<std::int64_t> domain;
};

/// The recovery is over; keep this account of it.
struct FileLedger {
  RecoveryLedger ledger;
};

using ActionBody = std::variant<SetTimer, Fence, Eject, PromoteSpare, StartProcesses, BuildCommunicators, LoadState,
                                Resume, TakeCheckpoint, PageHuman, FileLedger>;

struct Action {
  ActionKey key;
  ActionBody body;
};

/// One line each, stable: logs, golden files and replay checks compare these.
std::string describe(const Event& event);
std::string describe(const Action& action);

}  // namespace trainyard::recovery
