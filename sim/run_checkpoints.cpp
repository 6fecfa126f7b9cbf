// The world of one run, continued: its checkpoints. Snapshots and the copies that are written from them, votes, and
// what is found, loaded and lost when training goes on.
#include <algorithm>
#include <cmath>
#include <utility>

#include "models/base/check.h"
#include "models/base/units.h"
#include "sim/run_world.h"

namespace trainyard {

using recovery::ActionKey;
using recovery::Answered;
using recovery::kNobody;
using recovery::Outcome;
using recovery::Tier;

namespace {

/// Tiers other than the remote store are used by policies whose checkpoints usually go no deeper than one of them.
std::deque<Tier> tiers_to_write(CheckpointTier usual, Tier asked) {
  std::deque<Tier> tiers;
  if (usual != CheckpointTier::Remote) tiers.push_back(Tier::Host);
  if (usual == CheckpointTier::Peer || usual == CheckpointTier::Nvme) tiers.push_back(Tier::Peer);
  if (usual == CheckpointTier::Nvme) tiers.push_back(Tier::Nvme);
  if (asked == Tier::Remote) tiers.push_back(Tier::Remote);
  return tiers;
}

}  // namespace

// ---- Saving -------------------------------------------------------------------------------

/// Copies are written while the job stands still, and on after that.
void RunWorld::begin_snapshot(std::int64_t step) {
  const AskedCheckpoint taken = *std::exchange(checkpoint_, std::nullopt);
  progress_steps_ = static_cast<double>(step);
  mode_ = JobMode::Snapshot;
  snapshot_end_ns_ = now_ns_ + to_ns(input_.policy.checkpoint_stall_s);
  agenda_.at(snapshot_end_ns_, [this, life = life_, taken, step] {
    if (life == life_) end_snapshot(taken, step);
  });
  writing_[taken.key].step = step;
  write_copies(taken.key, tiers_to_write(input_.policy.checkpoints.usual_tier, taken.what.tier));
}

void RunWorld::move(StorageTraffic::Way way, double bytes, std::function<void()> done) {
  storage_.move(way, bytes, now_ns_, [this, done = std::move(done)] {
    done();
    control();
  });
}

/// One tier after the other.
void RunWorld::write_copies(const ActionKey& key, std::deque<Tier> tiers) {
  const Tier tier = tiers.front();
  tiers.pop_front();
  const auto done = [this, life = life_, key, tier, tiers] {
    if (life != life_) return;
    Writing& writing = writing_.at(key);
    writing.written.push_back(tier);
    writing.last = tiers.empty();
    if (writing.snapshot_over) report_copies(key);
    if (!tiers.empty()) write_copies(key, tiers);
  };
  switch (tier) {
    case Tier::Device:
    case Tier::Host: return done();
    case Tier::Peer: return copy_to_peers(done);
    case Tier::Nvme: return move(StorageTraffic::Way::ToNvme, input_.checkpoint_bytes, done);
    case Tier::Remote: return move(StorageTraffic::Way::ToRemote, input_.checkpoint_bytes, done);
  }
}

/// Training has the rest of the NICs meanwhile.
void RunWorld::copy_to_peers(std::function<void()> done) {
  ++copies_to_peers_;
  if (copies_slow_steps_) state_changed();
  move(StorageTraffic::Way::ToPeers, input_.checkpoint_bytes, [this, done = std::move(done)] {
    --copies_to_peers_;
    if (copies_slow_steps_) state_changed();
    done();
  });
}

void RunWorld::end_snapshot(const AskedCheckpoint& taken, std::int64_t step) {
  const ActionKey& key = taken.key;
  work_.snapshot(step);
  if (step > controller_.steps_done())
    tell(recovery::StepsDone{controller_.epoch(), controller_.steps_done() + 1, step});
  tell(Answered{key, Outcome::Acted, std::nullopt});
  if (input_.policy.checkpoints.hash_vote) vote(key);
  writing_.at(key).snapshot_over = true;
  report_copies(key);
  if (taken.what.hold)
    mode_ = JobMode::Held;
  else
    set_training();
}

void RunWorld::report_copies(const ActionKey& key) {
  Writing& writing = writing_.at(key);
  for (const Tier tier : std::exchange(writing.written, {})) {
    if (tier == Tier::Remote)
      checkpoint_durable(writing.step);
    else
      copies_.written(key, writing.step, tier, controller_.owners());
    tell(recovery::CheckpointDurable{key, writing.step, tier});
  }
  if (writing.last) writing_.erase(key);
}

/// Work is safe that replicas have agreed on, and the remote store holds.
void RunWorld::checkpoint_durable(std::int64_t step) {
  if (disagreed_from_ && step >= *disagreed_from_) return;
  book(Band::Productive, work_.safe(step));
  ++result_.checkpoints;
  trace_.add(now_ns_, RunEventKind::CheckpointDurable, -1, std::to_string(step));
}

/// Replicas compare the shard of which one of them may have another version.
void RunWorld::vote(const ActionKey& key) {
  const auto differs = std::find_if(corrupt_.begin(), corrupt_.end(), [&](const auto& its) {
    return its.second && controller_.slot_of(its.first).has_value();
  });
  if (differs == corrupt_.end() || active_replicas_ == 1) return tell(recovery::HashesAgree{key});
  disagreed_from_ = writing_.at(key).step;
  const std::int64_t slots = input_.job_nodes / input_.replicas;
  recovery::HashesDiffer votes{key, {}};
  for (std::int64_t slot = *controller_.slot_of(differs->first) % slots; slot < input_.job_nodes; slot += slots) {
    const recovery::NodeId voter = controller_.owners()[static_cast<std::size_t>(slot)];
    const auto corrupt = corrupt_.find(voter);
    const bool wrong = corrupt != corrupt_.end() && corrupt->second;
    if (voter != kNobody) votes.votes.emplace_back(voter, wrong ? 1 + static_cast<std::uint64_t>(voter) : 0);
  }
  causes_since_running_.emplace_back("silent data corruption, by vote");
  tell(votes);
}

// ---- Restoring ----------------------------------------------------------------------------

void RunWorld::device_lost(NodeId node) {
  const std::optional<std::int64_t> slot = controller_.slot_of(node);
  if (slot) replicas_lost_.insert(*slot / (input_.job_nodes / input_.replicas));
}

/// Some replica that takes part still has the state in its devices.
bool RunWorld::live_replica() const {
  if (!input_.policy.in_process_restart || !input_.replicas_hold_all || devices_lost_) return false;
  const std::int64_t slots = input_.job_nodes / input_.replicas;
  for (std::int64_t replica = 0; replica < input_.replicas; ++replica) {
    const bool takes_part = controller_.owners()[static_cast<std::size_t>(replica * slots)] != kNobody;
    if (takes_part && !replicas_lost_.contains(replica)) return true;
  }
  return false;
}

/// What connected ranks tell of the copies that they have.
void RunWorld::find_copies(std::int64_t epoch) {
  for (const recovery::StateCopy& copy : copies_.found(controller_.owners())) tell(recovery::StateFound{epoch, copy});
  const auto step = static_cast<std::int64_t>(std::floor(steps_when_killed_ + kStepEpsilon));
  if (live_replica()) tell(recovery::StateFound{epoch, {Tier::Device, step, {}}});
}

/// The fixed part of loading is over.
void RunWorld::load(const recovery::Action& action) {
  const recovery::StateCopy& copy = std::get<recovery::LoadState>(action.body).copy;
  const double bytes = copy.step > 0 ? input_.checkpoint_bytes : 0;
  const auto done = [this, action] { phase_over(action); };
  const auto over_nics = [&](double nodes) {
    const double nics = input_.cluster.nic_bytes_per_s * static_cast<double>(input_.cluster.nics_per_node);
    agenda_.at(now_ns_ + (nics > 0 ? to_ns(bytes / nodes / nics) : 0), done);
  };
  const auto nodes = static_cast<double>(input_.job_nodes);
  switch (copy.tier) {
    case Tier::Device: return over_nics(nodes / static_cast<double>(input_.replicas));
    case Tier::Host: return done();
    case Tier::Peer: return over_nics(nodes);
    case Tier::Nvme: return move(StorageTraffic::Way::FromNvme, bytes, done);
    case Tier::Remote: return move(StorageTraffic::Way::FromRemote, bytes, done);
  }
}

/// Training goes on from `step`: what was done after it is lost. Of the work since the last snapshot, devices that
/// were never reset hold all whole steps.
void RunWorld::restored(std::int64_t step) {
  std::int64_t kept_ns = 0;
  if (loading_.tier == Tier::Device) {
    const double lost_steps = std::max(0.0, steps_when_killed_ - static_cast<double>(step));
    kept_ns = std::max<std::int64_t>(0, work_.open_ns() - to_ns(lost_steps * healthy_step_s_));
  }
  const std::int64_t lost_ns = work_.restore(step, kept_ns);
  book(Band::LostWork, lost_ns);
  lost_since_running_s_ += static_cast<double>(lost_ns) / kNsPerS;
  replicas_lost_.clear();
  devices_lost_ = false;
  disagreed_from_.reset();
}

/// Of a job that is down: the most that could be restored.
std::int64_t RunWorld::best_step_left() const {
  std::int64_t step = controller_.durable_step();
  for (const recovery::StateCopy& copy : copies_.found(controller_.owners())) step = std::max(step, copy.step);
  return step;
}

}  // namespace trainyard
