// What launcher and agents say to one another. The launcher hosts the controller; an agent runs
// on each node and owns its ranks.
//
// The network may lose, repeat, delay and reorder all of it. What makes that harmless:
// - every request carries its action's key; agents do a key once and repeat their reply;
// - agents refuse older epochs and older incarnations (the fencing token);
// - heartbeats tell state, not changes, so that the next one mends a lost one;
// - an agent whose lease runs out stops its ranks: the launcher need not reach it to be sure.
#pragma once

#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "models/recovery/messages.h"

namespace trainyard::recovery {

// ---- From the launcher ----------------------------------------------------------------------

enum class RequestKind : std::uint8_t {
  StopRanks,  // of every epoch below the key's
  Promote,    // become the owner of a slot: whatever is not up yet comes up
  StartRanks,
  Connect,
  Load,
  Resume,
  Snapshot,
  Heat,
  Test,
};
const char* to_string(RequestKind kind);

struct Request {
  ActionKey key;
  RequestKind kind = RequestKind::StopRanks;
  std::int64_t slot = -1;            // Promote, StartRanks
  Tier tier = Tier::Remote;          // Snapshot
  StateCopy copy = {};               // Load
  std::int64_t step = 0;             // Resume
  bool hold = false;                 // Snapshot
  bool thorough = false;             // Test
  std::vector<NodeId> members = {};  // Connect: every owner
};

/// The answer to a heartbeat: the agent may keep its ranks until `heartbeat_sent_ns` + lease.
struct Lease {
  std::int64_t incarnation = 0;
  /// The job's: an agent that has just started learns what is old.
  std::int64_t epoch = 0;
  /// As the heartbeat had them.
  std::int64_t boot = 0;
  std::int64_t heartbeat_sent_ns = 0;
};

// ---- From an agent --------------------------------------------------------------------------

enum class RanksState : std::uint8_t {
  None,  // never started, stopped, or dead
  Up,
  Connected,
  Loaded,
  Training,
  Held,    // after a snapshot that asked for it
  Failed,  // a communicator broke: they wait for a fence
};
const char* to_string(RanksState state);

struct Heartbeat {
  NodeId from = 0;
  std::int64_t boot = 0;     // grows each time the agent starts
  std::int64_t sent_ns = 0;  // the agent's own clock since then
  std::int64_t epoch = 0;    // of its ranks, or the highest it has been fenced to
  RanksState ranks = RanksState::None;
  std::int64_t step = 0;
  /// The ranks have come to the next collective and wait there. Who has not is whom all wait for.
  bool waits = false;
};

/// A copy of this node's shard, or of a peer's that it keeps.
struct ShardHeld {
  std::int64_t shard = 0;
  StateCopy copy;
};

struct Reply {
  NodeId from = 0;
  ActionKey key;
  Outcome outcome = Outcome::Acted;
  std::optional<NodeId> culprit = {};
  std::int64_t boot = 0, sent_ns = 0;  // as in a heartbeat: heartbeats sent before are overtaken
  std::vector<ShardHeld> copies = {};  // Connect
  std::int64_t step = 0;               // Snapshot: after which step
};

/// The node's shard of checkpoint `key` is written in this tier. Said again when the snapshot is asked for again.
struct ShardWritten {
  NodeId from = 0;
  ActionKey key;
  Tier tier = Tier::Remote;
  std::int64_t step = 0;
};

/// The hash of the node's parameters in the snapshot of checkpoint `key`. Said again likewise.
struct HashReport {
  NodeId from = 0;
  ActionKey key;
  std::uint64_t hash = 0;
};

/// A symptom, as the ranks, the driver or the node's monitor saw it.
struct Report {
  NodeId from = 0;
  Event symptom;
};

// ---- The store that the cluster shares ------------------------------------------------------

/// From now on the store takes nothing of an epoch below the key's.
struct FenceStore {
  ActionKey key;
};
/// All shards are written: checkpoint `checkpoint` becomes the newest.
struct PromoteCheckpoint {
  ActionKey checkpoint;
  std::int64_t step = 0;
};
struct StoreReply {
  ActionKey key;
  bool acted = true;
};

}  // namespace trainyard::recovery
