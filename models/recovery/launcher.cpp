#include "models/recovery/launcher.h"

#include <algorithm>
#include <limits>

#include "models/base/check.h"

namespace trainyard::recovery {
namespace {

template <class... T>
bool is_any(const ActionBody& body) {
  return (std::holds_alternative<T>(body) || ...);
}

/// Upkeep outlives epochs; everything else of an epoch is over with it.
bool outlives_its_epoch(const Action& action) { return is_any<HeatSpare, TestNode>(action.body); }

}  // namespace

Launcher::Launcher(LauncherConfig config, const std::vector<JournalEntry>& journal, std::int64_t now_ns)
    : config_(std::move(config)),
      controller_(config_.controller),
      took_over_ns_(now_ns),
      detector_(config_.detection_ns) {
  for (const auto& [node, temperature] : controller_.spares()) detector_.watch(node, now_ns);
  for (const NodeId node : controller_.owners()) detector_.watch(node, now_ns);
  replaying_ = true;
  for (const JournalEntry& entry : journal) digest(entry.now_ns, entry.event);
  replaying_ = false;
  detector_.restart(now_ns);
  progress_ns_ = now_ns;
  if (journal.empty()) return;
  deliver(now_ns, TookOver{controller_.incarnation() + 1});
  for (auto& [key, its] : std::map<ActionKey, Open>(open_)) open(now_ns, its.action, its.waiting);
  for (const auto& [node, action] : sent_away_) outputs_.emplace_back(Announce{action});
  for (const auto& [reason, action] : pages_) outputs_.emplace_back(Announce{action});
}

void Launcher::launch(std::int64_t now_ns, std::int64_t step) {
  deliver(now_ns, Launched{step});
  progress_ns_ = now_ns;
}

std::set<NodeId> Launcher::owners() const {
  std::set<NodeId> nodes(controller_.owners().begin(), controller_.owners().end());
  nodes.erase(kNobody);
  return nodes;
}

// ---- Events in, actions out -----------------------------------------------------------------

void Launcher::deliver(std::int64_t now_ns, const Event& event) {
  outputs_.emplace_back(Append{{now_ns, event}});
  digest(now_ns, event);
}

void Launcher::digest(std::int64_t now_ns, const Event& event) {
  note(event);
  const std::int64_t epoch = controller_.epoch();
  const std::vector<Action> actions = controller_.step(now_ns, event);
  if (controller_.epoch() != epoch) {
    std::erase_if(open_, [](const auto& entry) { return !outlives_its_epoch(entry.second.action); });
    draining_.clear();
    last_.clear();
    if (epoch == 0) members_ = owners();  // the launch: ranks run from the start
  }
  for (const Action& action : actions) dispatch(now_ns, action);
  if (controller_.state() != State::WaitingForHuman && controller_.state() != State::WaitingForSpare) pages_.clear();
  if (const auto* spare = std::get_if<SpareReady>(&event)) detector_.watch(spare->node, now_ns);
  if (const auto* repaired = std::get_if<NodeRepaired>(&event)) detector_.watch(repaired->node, now_ns);
}

/// What is settled with this event need not be asked for again.
void Launcher::note(const Event& event) {
  if (const auto* answered = std::get_if<Answered>(&event)) {
    const auto found = open_.find(answered->key);
    if (found == open_.end()) return;
    const Action& action = found->second.action;
    if (answered->outcome == Outcome::Acted) {
      if (std::holds_alternative<Fence>(action.body)) members_.clear();
    } else if (std::holds_alternative<TakeCheckpoint>(action.body))
      draining_.erase(answered->key);
    open_.erase(found);
  } else if (const auto* agree = std::get_if<HashesAgree>(&event)) {
    const auto found = draining_.find(agree->key);
    if (found == draining_.end()) return;
    found->second.voted = true;
    forget_if_settled(agree->key);
  } else if (const auto* fired = std::get_if<TimerFired>(&event)) {
    std::erase_if(timers_, [&](const auto& timer) { return timer.second == fired->key; });
  } else if (const auto* repaired = std::get_if<NodeRepaired>(&event)) {
    const auto sent = sent_away_.find(repaired->node);
    if (sent != sent_away_.end() && sent->second.key == repaired->key) sent_away_.erase(sent);
  } else if (const auto* durable = std::get_if<CheckpointDurable>(&event)) {
    const auto found = draining_.find(durable->key);
    if (found == draining_.end()) return;
    found->second.reported.insert(durable->tier);
    forget_if_settled(durable->key);
  }
}

/// A checkpoint is settled when it is as deep as it must go and voted on.
void Launcher::forget_if_settled(const ActionKey& key) {
  const Draining& its = draining_.at(key);
  const bool deep = its.reported.contains(std::get<TakeCheckpoint>(its.action.body).tier);
  if (deep && (its.voted || !config_.controller.checkpoints.hash_vote)) draining_.erase(key);
}

void Launcher::dispatch(std::int64_t now_ns, const Action& action) {
  const ActionBody& body = action.body;
  if (const auto* timer = std::get_if<SetTimer>(&body)) {
    timers_.emplace(timer->at_ns, action.key);
  } else if (std::holds_alternative<Fence>(body)) {
    open(now_ns, action, members_);
  } else if (const auto* promote = std::get_if<PromoteSpare>(&body)) {
    open(now_ns, action, {promote->node});
  } else if (const auto* heat = std::get_if<HeatSpare>(&body)) {
    open(now_ns, action, {heat->node});
  } else if (const auto* test = std::get_if<TestNode>(&body)) {
    detector_.watch(test->node, now_ns);
    open(now_ns, action, {test->node});
  } else if (is_any<StartProcesses, BuildCommunicators, LoadState, Resume, TakeCheckpoint>(body)) {
    const std::set<NodeId> nodes = owners();
    if (std::holds_alternative<StartProcesses>(body)) members_.insert(nodes.begin(), nodes.end());
    if (std::holds_alternative<TakeCheckpoint>(body)) {
      Draining& its = draining_[action.key];
      its.action = action;
      its.again_at_ns = now_ns + config_.retry_ns;
    }
    open(now_ns, action, nodes);
  } else {
    if (const auto* eject = std::get_if<Eject>(&body)) send_away(eject->node, action);
    if (const auto* back = std::get_if<ReturnToRepair>(&body)) send_away(back->node, action);
    if (const auto* page = std::get_if<PageHuman>(&body)) pages_[page->reason] = action;
    if (!replaying_) outputs_.emplace_back(Announce{action});
  }
}

void Launcher::send_away(NodeId node, const Action& action) {
  detector_.forget(node);
  sent_away_[node] = action;
}

void Launcher::open(std::int64_t now_ns, const Action& action, std::set<NodeId> nodes) {
  Open& its = open_[action.key];
  its.action = action;
  its.waiting = std::move(nodes);
  its.store_waits = std::holds_alternative<Fence>(action.body);
  // A fence is never given up here: it has acted when leases are over, at the latest.
  its.give_up_at_ns = its.store_waits ? std::numeric_limits<std::int64_t>::max() : now_ns + config_.answer_ns;
  if (!replaying_) ask(now_ns, its);
}

void Launcher::ask(std::int64_t now_ns, Open& its) {
  its.again_at_ns = now_ns + config_.retry_ns;
  if (its.store_waits) outputs_.emplace_back(FenceStore{its.action.key});
  for (const NodeId node : its.waiting) outputs_.emplace_back(SendRequest{node, request_for(its.action, node)});
}

Request Launcher::request_for(const Action& action, NodeId node) const {
  Request request;
  request.key = action.key;
  request.slot = controller_.slot_of(node).value_or(-1);
  if (std::holds_alternative<PromoteSpare>(action.body)) request.kind = RequestKind::Promote;
  if (std::holds_alternative<StartProcesses>(action.body)) request.kind = RequestKind::StartRanks;
  if (std::holds_alternative<HeatSpare>(action.body)) request.kind = RequestKind::Heat;
  if (std::holds_alternative<BuildCommunicators>(action.body)) {
    request.kind = RequestKind::Connect;
    const std::set<NodeId> members = owners();
    request.members.assign(members.begin(), members.end());
  }
  if (const auto* load = std::get_if<LoadState>(&action.body)) {
    request.kind = RequestKind::Load;
    request.copy = load->copy;
  }
  if (const auto* resume = std::get_if<Resume>(&action.body)) {
    request.kind = RequestKind::Resume;
    request.step = resume->step;
  }
  if (const auto* take = std::get_if<TakeCheckpoint>(&action.body)) {
    request.kind = RequestKind::Snapshot;
    request.tier = take->tier;
    request.hold = take->hold;
  }
  if (const auto* test = std::get_if<TestNode>(&action.body)) {
    request.kind = RequestKind::Test;
    request.thorough = test->thorough;
  }
  return request;
}

// ---- Answers ------------------------------------------------------------------------------

void Launcher::receive(std::int64_t now_ns, const Reply& reply) {
  detector_.heard(reply.from, now_ns);
  auto& newest = newest_[reply.from];
  newest = std::max(newest, std::pair{reply.boot, reply.sent_ns});
  answered_by(now_ns, reply.key, reply);
}

void Launcher::answered_by(std::int64_t now_ns, const ActionKey& key, const Reply& reply) {
  const auto found = open_.find(key);
  if (found == open_.end() || found->second.waiting.erase(reply.from) == 0) return;
  if (reply.outcome != Outcome::Acted) return deliver(now_ns, Answered{key, reply.outcome, reply.culprit});
  found->second.replies.push_back(reply);
  finish_if_done(now_ns, key);
}

void Launcher::finish_if_done(std::int64_t now_ns, const ActionKey& key) {
  const auto found = open_.find(key);
  if (found == open_.end() || !found->second.waiting.empty() || found->second.store_waits) return;
  const Action action = found->second.action;
  // What was found comes first: if this launcher dies in between, the next one asks again.
  if (std::holds_alternative<BuildCommunicators>(action.body))
    report_copies(now_ns, std::vector<Reply>(found->second.replies));
  deliver(now_ns, Answered{key, Outcome::Acted, std::nullopt});
  if (!std::holds_alternative<Resume>(action.body)) return;
  progress_ns_ = now_ns;
  slowest_step_ = -1;
}

void Launcher::receive(std::int64_t now_ns, const StoreReply& reply) {
  const auto found = open_.find(reply.key);
  if (found != open_.end() && found->second.store_waits) {
    if (!reply.acted) return deliver(now_ns, Answered{reply.key, Outcome::Refused, std::nullopt});
    found->second.store_waits = false;
    return finish_if_done(now_ns, reply.key);
  }
  const auto draining = draining_.find(reply.key);
  if (draining == draining_.end() || !reply.acted) return;
  deliver(now_ns, CheckpointDurable{reply.key, draining->second.step, Tier::Remote});
}

/// Which whole copies the owners hold between them; which to restore is the controller's choice.
void Launcher::report_copies(std::int64_t now_ns, const std::vector<Reply>& replies) {
  std::map<StateCopy, std::set<std::int64_t>> shards;
  for (const Reply& reply : replies)
    for (const ShardHeld& held : reply.copies) shards[held.copy].insert(held.shard);
  for (const auto& [copy, present] : shards)
    if (static_cast<std::int64_t>(present.size()) == config_.shards)
      deliver(now_ns, StateFound{controller_.epoch(), copy});
}

// ---- Checkpoints ----------------------------------------------------------------------------

/// Replicas hold the same shards: holders of one shard must agree on its hash.
void Launcher::receive(std::int64_t now_ns, const HashReport& report) {
  detector_.heard(report.from, now_ns);
  const ActionKey& key = report.key;
  const auto found = draining_.find(key);
  if (found == draining_.end() || found->second.voted || !controller_.wants_checkpoint(key)) return;
  found->second.hashes[report.from] = report.hash;
  if (found->second.hashes.size() != owners().size()) return;
  std::map<std::int64_t, std::vector<std::pair<NodeId, std::uint64_t>>> votes;
  for (const auto& [node, hash] : found->second.hashes)
    if (const auto slot = controller_.slot_of(node)) votes[*slot % config_.shards].emplace_back(node, hash);
  for (const auto& [shard, its] : votes) {
    const bool agree = std::all_of(its.begin(), its.end(),
                                   [hash = its.front().second](const auto& vote) { return vote.second == hash; });
    if (!agree) return deliver(now_ns, HashesDiffer{key, its});
  }
  deliver(now_ns, HashesAgree{key});
  if (const auto agreed = draining_.find(key); agreed != draining_.end()) promote(agreed->second);
}

void Launcher::receive(std::int64_t now_ns, const ShardWritten& written) {
  detector_.heard(written.from, now_ns);
  const auto slot = controller_.slot_of(written.from);
  const auto found = draining_.find(written.key);
  if (found == draining_.end() || !slot) return;
  Draining& its = found->second;
  if (its.step >= 0 && its.step != written.step) return;
  its.step = written.step;
  its.shards[written.tier].insert(*slot % config_.shards);
  if (static_cast<std::int64_t>(its.shards[written.tier].size()) < config_.shards) return;
  if (written.tier == Tier::Remote) {
    promote(its);
    return;
  }
  if (its.reported.insert(written.tier).second) deliver(now_ns, CheckpointDurable{written.key, its.step, written.tier});
}

/// The store is asked to promote a checkpoint once all its shards are there and replicas agree.
bool Launcher::promote(Draining& its) {
  const bool complete = static_cast<std::int64_t>(its.shards[Tier::Remote].size()) == config_.shards;
  if (!complete || (config_.controller.checkpoints.hash_vote && !its.voted)) return false;
  if (controller_.wants_checkpoint(its.action.key)) outputs_.emplace_back(PromoteCheckpoint{its.action.key, its.step});
  return true;
}

/// Until a checkpoint is as deep as it must go, whoever may have something to say is asked again.
void Launcher::ask_for_rest(std::int64_t now_ns, Draining& its) {
  its.again_at_ns = now_ns + config_.retry_ns;
  const ActionKey key = its.action.key;
  if (promote(its) || open_.contains(key) || !controller_.wants_checkpoint(key)) return;
  for (const NodeId node : owners()) outputs_.emplace_back(SendRequest{node, request_for(its.action, node)});
}

// ---- Signs of life --------------------------------------------------------------------------

void Launcher::receive(std::int64_t now_ns, const Heartbeat& heartbeat) {
  detector_.heard(heartbeat.from, now_ns);
  outputs_.emplace_back(
      SendLease{heartbeat.from, {controller_.incarnation(), controller_.epoch(), heartbeat.boot, heartbeat.sent_ns}});
  auto& newest = newest_[heartbeat.from];
  const std::pair clock{heartbeat.boot, heartbeat.sent_ns};
  if (clock < newest) return;  // overtaken
  newest = clock;
  if (!controller_.slot_of(heartbeat.from)) return;
  const State state = controller_.state();
  const bool may_train = state == State::Running || state == State::Draining || state == State::Holding;
  const bool must_exist =
      may_train || state == State::Connecting || state == State::Loading || state == State::WarmingUp;
  // Epoch 0: the agent has started anew since it was last asked for anything.
  const bool current = heartbeat.epoch == controller_.epoch();
  if (must_exist && (current || heartbeat.epoch == 0) && heartbeat.ranks == RanksState::None)
    return deliver(now_ns, RankExited{controller_.epoch(), heartbeat.from, now_ns});
  if (!current) return;
  last_[heartbeat.from] = heartbeat;
  if (may_train && heartbeat.ranks == RanksState::Failed)
    return deliver(now_ns, CommunicatorError{heartbeat.epoch, heartbeat.from, std::nullopt, now_ns});
  const bool trains = heartbeat.ranks == RanksState::Training || heartbeat.ranks == RanksState::Held;
  if (trains && heartbeat.step > controller_.steps_done()) report_steps(now_ns);
}

/// A step is done when every owner has done it.
void Launcher::report_steps(std::int64_t now_ns) {
  std::int64_t slowest = std::numeric_limits<std::int64_t>::max();
  for (const NodeId node : controller_.owners()) {
    if (node == kNobody) continue;
    const auto last = last_.find(node);
    if (last == last_.end() || (last->second.ranks != RanksState::Training && last->second.ranks != RanksState::Held))
      return;
    slowest = std::min(slowest, last->second.step);
  }
  if (slowest > slowest_step_) progress_ns_ = now_ns;
  slowest_step_ = slowest;
  if (slowest > controller_.steps_done())
    deliver(now_ns, StepsDone{controller_.epoch(), controller_.steps_done() + 1, slowest});
}

void Launcher::receive(std::int64_t now_ns, const Report& report) {
  detector_.heard(report.from, now_ns);
  deliver(now_ns, report.symptom);
}

// ---- What is due ----------------------------------------------------------------------------

void Launcher::tick(std::int64_t now_ns) {
  fire_timers(now_ns);
  report_silence(now_ns);
  pass_expired_leases(now_ns);
  report_hang(now_ns);
  give_up_waiting(now_ns);
  ask_again(now_ns);
}

void Launcher::fire_timers(std::int64_t now_ns) {
  while (!timers_.empty() && timers_.begin()->first <= now_ns) {
    const ActionKey key = timers_.begin()->second;
    timers_.erase(timers_.begin());
    deliver(now_ns, TimerFired{key});
  }
}

void Launcher::report_silence(std::int64_t now_ns) {
  for (const HeartbeatLost& lost : detector_.lost(now_ns)) deliver(now_ns, lost);
}

/// A node that cannot be reached has stopped its ranks when its lease is over: the last one was
/// granted when it was last heard, by this launcher or by the one before it.
void Launcher::pass_expired_leases(std::int64_t now_ns) {
  for (const auto& [key, its] : std::map<ActionKey, Open>(open_)) {
    if (!std::holds_alternative<Fence>(its.action.body)) continue;
    for (const NodeId node : its.waiting) {
      const std::int64_t heard_ns = std::max(detector_.last_heard_ns(node).value_or(took_over_ns_), took_over_ns_);
      if (heard_ns + config_.lease_ns <= now_ns) answered_by(now_ns, key, {node, key, Outcome::Acted});
    }
  }
}

void Launcher::report_hang(std::int64_t now_ns) {
  if (controller_.state() != State::Running && controller_.state() != State::Draining) return;
  if (std::max(progress_ns_, hang_reported_ns_) + config_.training_ns > now_ns) return;
  hang_reported_ns_ = now_ns;
  // Who waits has come to the collective; who has not is whom all wait for, if there is only one.
  std::vector<NodeId> missing;
  NodeId reporter = kNobody;
  for (const auto& [node, last] : last_) {
    if (!controller_.slot_of(node)) continue;
    if (last.waits)
      reporter = node;
    else
      missing.push_back(node);
  }
  if (reporter == kNobody) reporter = *owners().begin();
  const std::optional<NodeId> suspect = missing.size() == 1 ? std::optional(missing.front()) : std::nullopt;
  deliver(now_ns, CommunicatorError{controller_.epoch(), reporter, suspect, progress_ns_});
}

/// Who lives and does not answer is named, if it is only one.
void Launcher::give_up_waiting(std::int64_t now_ns) {
  for (const auto& [key, its] : std::map<ActionKey, Open>(open_)) {
    if (its.give_up_at_ns > now_ns) continue;
    const std::optional<NodeId> culprit = its.waiting.size() == 1 ? std::optional(*its.waiting.begin()) : std::nullopt;
    deliver(now_ns, Answered{key, Outcome::Timeout, culprit});
  }
}

void Launcher::ask_again(std::int64_t now_ns) {
  for (auto& [key, its] : open_)
    if (its.again_at_ns <= now_ns) ask(now_ns, its);
  for (auto& [key, its] : draining_)
    if (its.again_at_ns <= now_ns) ask_for_rest(now_ns, its);
}

std::int64_t Launcher::due_ns() const {
  std::int64_t due_ns = std::numeric_limits<std::int64_t>::max();
  if (!timers_.empty()) due_ns = std::min(due_ns, timers_.begin()->first);
  if (const auto silence_ns = detector_.due_ns()) due_ns = std::min(due_ns, *silence_ns);
  for (const auto& [key, its] : open_) due_ns = std::min({due_ns, its.again_at_ns, its.give_up_at_ns});
  for (const auto& [key, its] : draining_) due_ns = std::min(due_ns, its.again_at_ns);
  if (controller_.state() == State::Running || controller_.state() == State::Draining)
    due_ns = std::min(due_ns, std::max(progress_ns_, hang_reported_ns_) + config_.training_ns);
  return due_ns;
}

}  // namespace trainyard::recovery
