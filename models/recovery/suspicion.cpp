#include "models/recovery/suspicion.h"

#include <algorithm>
#include <array>

namespace trainyard::recovery {
namespace {

constexpr std::array kHarmless = {14,  37,  38,  43,  44,  63,  66,  67,  92,  93, 106,
                                  107, 108, 121, 137, 141, 152, 153, 157, 160, 161};
// RESTART_APP, and 45 (a consequence of another error), 159 (CHECK_UVM).
constexpr std::array kRestartJob = {8,   11,  13,  25,  31,  32,  39,  40,  41,  45,  60,  68,  69,  70,  71,  72,  75,
                                    76,  77,  80,  82,  83,  84,  85,  86,  88,  89,  94,  96,  97,  98,  99,  100, 101,
                                    102, 103, 104, 105, 126, 127, 128, 129, 130, 131, 132, 133, 134, 135, 139, 159};
static_assert(std::is_sorted(kHarmless.begin(), kHarmless.end()));
static_assert(std::is_sorted(kRestartJob.begin(), kRestartJob.end()));

}  // namespace

XidMeaning xid_meaning(int xid) {
  if (std::binary_search(kHarmless.begin(), kHarmless.end(), xid)) return XidMeaning::Harmless;
  if (std::binary_search(kRestartJob.begin(), kRestartJob.end(), xid)) return XidMeaning::RestartJob;
  return XidMeaning::BlameNode;
}

std::vector<NodeId> outvoted(const std::vector<std::pair<NodeId, std::uint64_t>>& votes) {
  std::map<std::uint64_t, std::int64_t> count;
  std::int64_t most = 0;
  for (const auto& [node, hash] : votes) most = std::max(most, ++count[hash]);
  const auto leaders =
      std::count_if(count.begin(), count.end(), [&](const auto& entry) { return entry.second == most; });
  std::vector<NodeId> named;
  for (const auto& [node, hash] : votes)
    if (leaders > 1 || count[hash] != most) named.push_back(node);
  return named;
}

bool Suspicion::blame(NodeId node) { return blamed_.insert(node).second; }

void Suspicion::accuse(const CommunicatorError& event) {
  if (event.suspect && *event.suspect != event.reporter) accusations_[event.reporter] = *event.suspect;
}

void Suspicion::forget(NodeId node) {
  blamed_.erase(node);
  std::erase_if(accusations_, [node](const auto& vote) { return vote.first == node || vote.second == node; });
}

void Suspicion::clear() {
  blamed_.clear();
  accusations_.clear();
}

std::vector<NodeId> Suspicion::verdict() const {
  if (!blamed_.empty()) return {blamed_.begin(), blamed_.end()};
  std::map<NodeId, std::int64_t> votes;
  std::int64_t most = 0;
  for (const auto& [reporter, suspect] : accusations_) most = std::max(most, ++votes[suspect]);
  std::vector<NodeId> named;
  for (const auto& [node, count] : votes)
    if (count == most) named.push_back(node);
  return named;
}

}  // namespace trainyard::recovery
