// Suspicion: from symptoms to the nodes to blame. Pure; forgets everything at clear().
//
// Direct evidence (silence, a hardware XID, a refusal) blames the node it speaks of. Failed
// communicators are weighed only where nothing direct is known, because one dead node makes
// hundreds of healthy ones complain: then the node that most reporters name is blamed, all of
// them where several are named equally often, and none when nobody is named.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "models/recovery/messages.h"

namespace trainyard::recovery {

/// What an XID asks for, condensed from NVIDIA's catalogue of immediate actions.
enum class XidMeaning : std::uint8_t {
  Harmless,    // IGNORE: no reason to stop
  RestartJob,  // RESTART_APP and the like: the process died, the GPU is sound
  BlameNode,   // reset, reboot, support: the node leaves the job
};
/// Source: NVIDIA XID catalogue, docs.nvidia.com/deploy/xid-errors, as of 2025-10-29. An XID
/// that the catalogue does not know blames the node.
XidMeaning xid_meaning(int xid);

/// Who voted against the most common hash; everybody where no hash is the most common alone.
std::vector<NodeId> outvoted(const std::vector<std::pair<NodeId, std::uint64_t>>& votes);

class Suspicion {
 public:
  /// Direct evidence against a node. Returns true if it was news.
  bool blame(NodeId node);
  /// A communicator failed; `event.suspect` may name the peer.
  void accuse(const CommunicatorError& event);
  void forget(NodeId node);
  void clear();

  /// The nodes to blame, ascending.
  [[nodiscard]] std::vector<NodeId> verdict() const;

 private:
  std::set<NodeId> blamed_;
  /// Whom each reporter names: a reporter has one vote, however often it repeats itself.
  std::map<NodeId, NodeId> accusations_;
};

}  // namespace trainyard::recovery
