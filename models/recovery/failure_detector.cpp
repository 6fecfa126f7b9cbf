#include "models/recovery/failure_detector.h"

#include <algorithm>

namespace trainyard::recovery {

void FailureDetector::heard(NodeId node, std::int64_t until_ns) {
  const auto found = nodes_.find(node);
  if (found == nodes_.end()) return;
  if (until_ns > found->second.last_heard_ns) found->second = {until_ns, false};
}

void FailureDetector::restart(std::int64_t now_ns) {
  for (auto& [node, watched] : nodes_) watched = {now_ns, false};
}

std::optional<std::int64_t> FailureDetector::last_heard_ns(NodeId node) const {
  const auto found = nodes_.find(node);
  return found == nodes_.end() ? std::nullopt : std::optional(found->second.last_heard_ns);
}

std::vector<HeartbeatLost> FailureDetector::lost(std::int64_t now_ns) {
  std::vector<HeartbeatLost> silent;
  for (auto& [node, watched] : nodes_) {
    if (watched.reported || watched.last_heard_ns + timeout_ns_ > now_ns) continue;
    watched.reported = true;
    silent.push_back({node, watched.last_heard_ns});
  }
  return silent;
}

std::optional<std::int64_t> FailureDetector::due_ns() const {
  std::optional<std::int64_t> earliest;
  for (const auto& [node, watched] : nodes_) {
    if (watched.reported) continue;
    const std::int64_t due_ns = watched.last_heard_ns + timeout_ns_;
    if (!earliest || due_ns < *earliest) earliest = due_ns;
  }
  return earliest;
}

}  // namespace trainyard::recovery
