#include "models/recovery/agent.h"

#include <algorithm>
#include <array>

#include "models/base/check.h"

namespace trainyard::recovery {
namespace {

// A launcher asks again for the newest actions only; anything older is of an epoch that is over.
constexpr std::size_t kRepliesKept = 64;

/// What the ranks must be for the work to make sense, and what they are when it has acted.
struct RankWork {
  RequestKind kind;
  RanksState before, after;
};
constexpr std::array kRankWork = {
    RankWork{RequestKind::StartRanks, RanksState::None, RanksState::Up},
    RankWork{RequestKind::Connect, RanksState::Up, RanksState::Connected},
    RankWork{RequestKind::Load, RanksState::Connected, RanksState::Loaded},
    RankWork{RequestKind::Resume, RanksState::Loaded, RanksState::Training},
    RankWork{RequestKind::Snapshot, RanksState::Training, RanksState::Training},
};

const RankWork* rank_work(RequestKind kind) {
  const auto found =
      std::find_if(kRankWork.begin(), kRankWork.end(), [kind](const RankWork& w) { return w.kind == kind; });
  return found == kRankWork.end() ? nullptr : &*found;
}

}  // namespace

const char* to_string(RequestKind kind) {
  switch (kind) {
    case RequestKind::StopRanks: return "stop_ranks";
    case RequestKind::Promote: return "promote";
    case RequestKind::StartRanks: return "start_ranks";
    case RequestKind::Connect: return "connect";
    case RequestKind::Load: return "load";
    case RequestKind::Resume: return "resume";
    case RequestKind::Snapshot: return "snapshot";
    case RequestKind::Heat: return "heat";
    case RequestKind::Test: return "test";
  }
  return "?";
}

const char* to_string(RanksState state) {
  switch (state) {
    case RanksState::None: return "none";
    case RanksState::Up: return "up";
    case RanksState::Connected: return "connected";
    case RanksState::Loaded: return "loaded";
    case RanksState::Training: return "training";
    case RanksState::Held: return "held";
    case RanksState::Failed: return "failed";
  }
  return "?";
}

void Agent::launched(std::int64_t now_ns, std::int64_t slot) {
  lease_until_ns_ = now_ns + config_.lease_ns;
  incarnation_ = 1;
  epoch_ = 1;
  slot_ = slot;
  ranks_ = RanksState::Training;
}

std::vector<AgentOutput> Agent::receive(std::int64_t now_ns, const Request& request) {
  std::vector<AgentOutput> out = tick(now_ns);
  const ActionKey& key = request.key;
  if (const auto done = replies_.find(key); done != replies_.end()) {
    out.emplace_back(done->second);
    if (const auto said = said_.find(key); said != said_.end())
      out.insert(out.end(), said->second.begin(), said->second.end());
    return out;
  }
  if (working_.contains(key)) return out;  // asked again: the reply is on its way
  if (key.incarnation < incarnation_ || key.epoch < epoch_) {
    out.emplace_back(Reply{config_.node, key, Outcome::Refused});
    return out;
  }
  if (rank_work(request.kind) != nullptr && now_ns >= lease_until_ns_) return out;
  incarnation_ = key.incarnation;
  // Only a fence raises the epoch of a node that has ranks: any other request of a newer one
  // means that its fence is still on the way, and must wait for it.
  if (key.epoch > epoch_ && ranks_ != RanksState::None && request.kind != RequestKind::StopRanks) return out;
  if (request.kind == RequestKind::StopRanks && key.epoch > epoch_) {
    kill_ranks(out);
    working_.clear();
  }
  epoch_ = std::max(epoch_, key.epoch);
  if (!may_begin(request)) {
    out.emplace_back(remember({config_.node, key, Outcome::Refused}));
    return out;
  }
  working_.insert(key);
  out.emplace_back(Work{request});
  return out;
}

bool Agent::may_begin(const Request& request) const {
  const RankWork* work = rank_work(request.kind);
  return work == nullptr || ranks_ == work->before;
}

std::vector<AgentOutput> Agent::receive(std::int64_t now_ns, const Lease& lease) {
  std::vector<AgentOutput> out = tick(now_ns);
  if (lease.incarnation < incarnation_ || lease.boot != config_.boot) return out;  // an older launcher's, or clock
  incarnation_ = lease.incarnation;
  if (ranks_ == RanksState::None && working_.empty()) epoch_ = std::max(epoch_, lease.epoch);
  lease_until_ns_ = std::max(lease_until_ns_, lease.heartbeat_sent_ns + config_.lease_ns);
  return out;
}

std::vector<AgentOutput> Agent::work_done(std::int64_t now_ns, const Request& request, Reply reply) {
  std::vector<AgentOutput> out = tick(now_ns);
  if (working_.erase(request.key) == 0 || request.key.epoch < epoch_) return out;  // fenced meanwhile
  reply.from = config_.node;
  reply.key = request.key;
  reply.boot = config_.boot;
  reply.sent_ns = now_ns;
  if (const RankWork* work = rank_work(request.kind); work != nullptr) {
    if (ranks_ != work->before) {
      reply.outcome = Outcome::Refused;
    } else if (reply.outcome == Outcome::Acted) {
      ranks_ = request.kind == RequestKind::Snapshot && request.hold ? RanksState::Held : work->after;
    }
  }
  if (reply.outcome == Outcome::Acted &&
      (request.kind == RequestKind::Promote || request.kind == RequestKind::StartRanks))
    slot_ = request.slot;
  out.emplace_back(remember(std::move(reply)));
  return out;
}

std::vector<AgentOutput> Agent::shard_written(const ActionKey& checkpoint, Tier tier, std::int64_t step) {
  return say(checkpoint, ShardWritten{config_.node, checkpoint, tier, step});
}

std::vector<AgentOutput> Agent::hashed(const ActionKey& checkpoint, std::uint64_t hash) {
  return say(checkpoint, HashReport{config_.node, checkpoint, hash});
}

std::vector<AgentOutput> Agent::say(const ActionKey& checkpoint, AgentOutput what) {
  said_[checkpoint].push_back(what);
  if (said_.size() > kRepliesKept) said_.erase(said_.begin());
  return {std::move(what)};
}

std::vector<AgentOutput> Agent::tick(std::int64_t now_ns) {
  std::vector<AgentOutput> out;
  if (now_ns >= lease_until_ns_) kill_ranks(out);
  return out;
}

void Agent::kill_ranks(std::vector<AgentOutput>& out) {
  if (ranks_ == RanksState::None) return;
  ranks_ = RanksState::None;
  out.emplace_back(KillRanks{epoch_});
}

void Agent::communicator_broke() {
  if (ranks_ != RanksState::None && ranks_ != RanksState::Up) ranks_ = RanksState::Failed;
}

Heartbeat Agent::heartbeat(std::int64_t now_ns, std::int64_t step, bool waits) const {
  return {config_.node, config_.boot, now_ns, epoch_, ranks_, step, waits};
}

Reply Agent::remember(Reply reply) {
  replies_[reply.key] = reply;
  if (replies_.size() > kRepliesKept) replies_.erase(replies_.begin());
  return reply;
}

}  // namespace trainyard::recovery
