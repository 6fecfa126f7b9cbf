// The agent of one node: does what the launcher asks, once, in the right epoch, while its lease
// lasts. A pure state machine like the controller; the world carries out its work and its mail.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <variant>
#include <vector>

#include "models/recovery/protocol.h"

namespace trainyard::recovery {

struct AgentConfig {
  NodeId node = 0;
  /// Higher than at the agent's last start on this node.
  std::int64_t boot = 1;
  std::int64_t lease_ns = 0;
};

/// The world shall do this on the node and call work_done() with its key.
struct Work {
  Request request;
};
/// The ranks are to be killed, now.
struct KillRanks {
  std::int64_t epoch = 0;
};
using AgentOutput = std::variant<Work, KillRanks, Reply, ShardWritten, HashReport>;

class Agent {
 public:
  /// Has no lease yet, and does nothing with ranks before it has one: a request may be older than this agent.
  explicit Agent(AgentConfig config) : config_(config) {}
  /// Ranks of epoch 1 train already: the job's launch.
  void launched(std::int64_t now_ns, std::int64_t slot);

  std::vector<AgentOutput> receive(std::int64_t now_ns, const Request& request);
  std::vector<AgentOutput> receive(std::int64_t now_ns, const Lease& lease);
  /// `reply` has what the work found; its key and outcome are those of the request.
  std::vector<AgentOutput> work_done(std::int64_t now_ns, const Request& request, Reply reply);
  /// The shard of a snapshot has come to this tier.
  std::vector<AgentOutput> shard_written(const ActionKey& checkpoint, Tier tier, std::int64_t step);
  /// The parameters of a snapshot are hashed.
  std::vector<AgentOutput> hashed(const ActionKey& checkpoint, std::uint64_t hash);
  /// Lets the lease run out if it is over.
  std::vector<AgentOutput> tick(std::int64_t now_ns);

  /// What happened to the ranks by themselves.
  void ranks_died() { ranks_ = RanksState::None; }
  void communicator_broke();

  [[nodiscard]] Heartbeat heartbeat(std::int64_t now_ns, std::int64_t step, bool waits) const;
  /// False once a fence has made the work void.
  [[nodiscard]] bool works_on(const ActionKey& key) const { return working_.contains(key); }
  [[nodiscard]] RanksState ranks() const { return ranks_; }
  /// Of the ranks.
  [[nodiscard]] std::int64_t epoch() const { return epoch_; }
  [[nodiscard]] std::int64_t slot() const { return slot_; }

 private:
  [[nodiscard]] bool may_begin(const Request& request) const;
  void kill_ranks(std::vector<AgentOutput>& out);
  Reply remember(Reply reply);
  std::vector<AgentOutput> say(const ActionKey& checkpoint, AgentOutput what);

  AgentConfig config_;
  std::int64_t lease_until_ns_ = 0;
  /// The fencing token: the highest that any request has carried.
  std::int64_t incarnation_ = 0;
  std::int64_t epoch_ = 0;
  std::int64_t slot_ = -1;
  RanksState ranks_ = RanksState::None;
  std::set<ActionKey> working_;
  std::map<ActionKey, Reply> replies_;                  // the last ones, for requests that come again
  std::map<ActionKey, std::vector<AgentOutput>> said_;  // of checkpoints, for the same
};

}  // namespace trainyard::recovery
