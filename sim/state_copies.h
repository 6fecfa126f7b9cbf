// Copies of the training state, and what is left of them.
//
// A snapshot lies in the memory of the node that took it (Host), in the memory of a node in another failure domain
// (Peer), or on its own disk (Nvme). A node that is replaced takes its copies with it, one that crashes loses what is
// in memory. A copy can be restored while every slot still finds its shard. The last two of each tier are kept.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "models/recovery/messages.h"

namespace trainyard {

class StateCopies {
 public:
  using NodeId = recovery::NodeId;

  /// Shards of slot s are also kept by slot s + `peer_distance`.
  explicit StateCopies(std::int64_t peer_distance) : peer_distance_(peer_distance) {}

  /// The checkpoint's snapshot is in this tier, by slot in that of `owners`.
  void written(const recovery::ActionKey& checkpoint, std::int64_t step, recovery::Tier tier,
               const std::vector<NodeId>& owners);
  void memory_lost(NodeId node);
  /// Its memory and its disk.
  void node_gone(NodeId node);

  /// What ranks on these nodes find; none in permanent storage, which is always there.
  [[nodiscard]] std::vector<recovery::StateCopy> found(const std::vector<NodeId>& owners) const;

 private:
  struct Copy {
    recovery::StateCopy what;
    std::shared_ptr<const std::vector<NodeId>> owners;
    std::vector<bool> lost;  // by node: no longer holds its shards
  };
  static void lose(Copy& copy, NodeId node);
  [[nodiscard]] bool complete(const Copy& copy, const std::vector<NodeId>& owners) const;
  [[nodiscard]] bool peer_holds(const Copy& copy, std::size_t slot) const;

  std::int64_t peer_distance_;
  std::deque<Copy> copies_;
  std::shared_ptr<const std::vector<NodeId>> last_owners_;
};

}  // namespace trainyard
