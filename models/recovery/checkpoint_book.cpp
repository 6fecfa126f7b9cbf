#include "models/recovery/checkpoint_book.h"

#include <algorithm>

#include "models/base/check.h"
#include "models/base/units.h"
#include "models/recovery/goodput.h"

namespace trainyard::recovery {
namespace {

// A prior of two failures at the expected rate: the estimate moves with the first night, and
// one bad hour does not make the job save all the time.
constexpr double kPriorFailures = 2;
// How many voted steps are remembered: each tier keeps two checkpoints, and drains lag behind.
constexpr std::size_t kVotesKept = 16;
constexpr double kShortestInterval_s = 1;

}  // namespace

const char* to_string(Cadence cadence) {
  switch (cadence) {
    case Cadence::Fixed: return "fixed";
    case Cadence::YoungDaly: return "young_daly";
    case Cadence::Adaptive: return "adaptive";
  }
  return "?";
}

void CheckpointBook::launched(std::int64_t step) { accepted_.fill(step); }

std::int64_t CheckpointBook::interval_ns(std::int64_t training_ns, std::int64_t failures) const {
  if (config_.cadence == Cadence::Fixed) return config_.interval_ns;
  double mtbf_s = config_.expected_mtbf_s;
  if (config_.cadence == Cadence::Adaptive) {
    const double seen_s = static_cast<double>(training_ns) / kNsPerS;
    mtbf_s = (kPriorFailures * mtbf_s + seen_s) / (kPriorFailures + static_cast<double>(failures));
  }
  return to_ns(std::max(kShortestInterval_s, optimal_checkpoint_interval_s(mtbf_s, config_.stall_s)));
}

Tier CheckpointBook::next_tier() const {
  const bool permanent_due = since_permanent_ + 1 >= config_.permanent_every && !busy(Tier::Remote);
  return permanent_due ? Tier::Remote : config_.usual_tier;
}

bool CheckpointBook::busy(Tier tier) const {
  return std::any_of(pending_.begin(), pending_.end(), [tier](const auto& entry) { return entry.second.tier == tier; });
}

void CheckpointBook::begin(const ActionKey& key, Tier tier) {
  pending_[key].tier = tier;
  since_permanent_ = tier == Tier::Remote ? 0 : since_permanent_ + 1;
}

std::optional<ActionKey> CheckpointBook::awaiting_snapshot() const {
  for (auto entry = pending_.rbegin(); entry != pending_.rend(); ++entry)
    if (!entry->second.snapshot) return entry->first;
  return std::nullopt;
}

void CheckpointBook::snapshot_taken(const ActionKey& key) {
  const auto pending = pending_.find(key);
  if (pending != pending_.end()) pending->second.snapshot = true;
}

CheckpointBook::Accepted CheckpointBook::durable(const CheckpointDurable& event) {
  const auto found = pending_.find(event.key);
  if (found == pending_.end() || event.step < durable_step() || event.tier == Tier::Device) return {};
  Pending& pending = found->second;
  if (pending.step >= 0 && pending.step != event.step) return {};  // one checkpoint holds one step
  pending.step = event.step;
  pending.snapshot = true;
  if (std::find(pending.written.begin(), pending.written.end(), event.tier) == pending.written.end())
    pending.written.push_back(event.tier);
  return accept(event.key);
}

CheckpointBook::Accepted CheckpointBook::agreed(const ActionKey& key) {
  const auto found = pending_.find(key);
  if (found == pending_.end()) return {};
  found->second.voted = true;
  return accept(key);
}

CheckpointBook::Accepted CheckpointBook::accept(const ActionKey& key) {
  Pending& pending = pending_.at(key);
  if (pending.written.empty() || (config_.hash_vote && !pending.voted)) return {};
  Accepted accepted{pending.step, {}};
  std::swap(accepted.tiers, pending.written);
  for (const Tier tier : accepted.tiers) {
    std::int64_t& newest = accepted_[static_cast<std::size_t>(tier)];
    newest = std::max(newest, accepted.step);
    distrusted_.erase({tier, accepted.step});
  }
  if (config_.hash_vote && std::find(voted_.begin(), voted_.end(), accepted.step) == voted_.end()) {
    voted_.push_back(accepted.step);
    if (voted_.size() > kVotesKept) voted_.pop_front();
  }
  // Reaching the tier that was asked for ends it; those above were on the way.
  const Tier asked = pending.tier;
  if (std::find(accepted.tiers.begin(), accepted.tiers.end(), asked) != accepted.tiers.end()) pending_.erase(key);
  return accepted;
}

void CheckpointBook::offer(Tier tier, std::int64_t step) {
  if (step < durable_step() || distrusted_.contains({tier, step})) return;
  if (tier == Tier::Device ? devices_distrusted_ : false) return;
  const bool voted = std::find(voted_.begin(), voted_.end(), step) != voted_.end();
  // Live parameters are what the next vote judges; copies must have passed one.
  if (config_.hash_vote && tier != Tier::Device && !voted && step != durable_step()) return;
  offers_.emplace(tier, step);
}

std::pair<Tier, std::int64_t> CheckpointBook::best() const {
  std::pair<Tier, std::int64_t> best{Tier::Remote, durable_step()};
  for (const auto& [tier, step] : offers_)
    if (step > best.second || (step == best.second && tier < best.first)) best = {tier, step};
  return best;
}

void CheckpointBook::distrust(Tier tier, std::int64_t step) {
  if (tier == Tier::Remote && step <= durable_step()) return;  // there is nothing behind it
  distrusted_.emplace(tier, step);
  offers_.erase({tier, step});
}

}  // namespace trainyard::recovery
