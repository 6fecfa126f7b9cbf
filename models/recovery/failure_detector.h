// Who has gone silent. Pure: told of every sign of life, as single ones or as ranges ("alive
// until t"), to equal effect.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "models/recovery/messages.h"

namespace trainyard::recovery {

class FailureDetector {
 public:
  explicit FailureDetector(std::int64_t timeout_ns) : timeout_ns_(timeout_ns) {}

  /// From now on the node's silence counts.
  void watch(NodeId node, std::int64_t now_ns) { nodes_.try_emplace(node, Watched{now_ns, false}); }
  void forget(NodeId node) { nodes_.erase(node); }
  /// The node gave signs of life until `until_ns`. Unwatched nodes do not matter.
  void heard(NodeId node, std::int64_t until_ns);
  /// Everybody is given the benefit of the doubt: heard at `now_ns`.
  void restart(std::int64_t now_ns);
  [[nodiscard]] std::optional<std::int64_t> last_heard_ns(NodeId node) const;

  /// Nodes that have been silent for the timeout; each is named once until it is heard again.
  std::vector<HeartbeatLost> lost(std::int64_t now_ns);
  /// When lost() may next have something to say.
  [[nodiscard]] std::optional<std::int64_t> due_ns() const;

 private:
  struct Watched {
    std::int64_t last_heard_ns = 0;
    bool reported = false;
  };
  std::int64_t timeout_ns_;
  std::map<NodeId, Watched> nodes_;
};

}  // namespace trainyard::recovery
