#include "models/recovery/checkpoint_book.h"

#include <algorithm>
#include <cmath>

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

void CheckpointBook::launched(std::int64_t step) { durable_ = {Tier::Remote, step, {}}; }

std::int64_t CheckpointBook::interval_ns(std::int64_t training_ns, std::int64_t failures) const {
  if (config_.cadence == Cadence::Fixed) return config_.interval_ns;
  const double seen_s = static_cast<double>(training_ns) / kNsPerS;
  // Who expects no failures knows nothing about them.
  const bool expects = std::isfinite(config_.expected_mtbf_s);
  const double time_s = (expects ? kPriorFailures * config_.expected_mtbf_s : 0) + seen_s;
  const double count = (expects ? kPriorFailures : 0) + static_cast<double>(failures);
  const double mtbf_s = count > 0 ? time_s / count : INFINITY;
  if (mtbf_s < kShortestInterval_s) return to_ns(kShortestInterval_s);
  return to_ns(std::max(kShortestInterval_s, practical_checkpoint_interval_s(mtbf_s, config_.stall_s)));
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
  const auto written = [&](Tier tier) {
    return std::find(accepted.tiers.begin(), accepted.tiers.end(), tier) != accepted.tiers.end();
  };
  if (written(Tier::Remote)) durable_ = {Tier::Remote, accepted.step, key};
  if (config_.hash_vote && std::find(voted_.begin(), voted_.end(), key) == voted_.end()) {
    voted_.push_back(key);
    if (voted_.size() > kVotesKept) voted_.pop_front();
  }
  // Reaching the tier that was asked for ends it; those above were on the way.
  if (written(pending.tier)) pending_.erase(key);
  return accepted;
}

void CheckpointBook::offer(const StateCopy& copy) {
  if (copy.step < durable_step() || distrusted_.contains(copy)) return;
  if (copy.tier == Tier::Device) {
    // Live parameters are what the next vote judges.
    if (!devices_distrusted_) offers_.insert(copy);
    return;
  }
  const bool voted = std::find(voted_.begin(), voted_.end(), copy.checkpoint) != voted_.end();
  if (!config_.hash_vote || voted || copy.checkpoint == durable_.checkpoint) offers_.insert(copy);
}

StateCopy CheckpointBook::best() const {
  StateCopy best = durable_;
  for (const StateCopy& copy : offers_) {
    const bool quicker = copy.step == best.step && copy.tier < best.tier;
    if (copy.step > best.step || quicker) best = copy;
  }
  return best;
}

void CheckpointBook::distrust(const StateCopy& copy) {
  if (copy == durable_) return;  // there is nothing behind it
  distrusted_.insert(copy);
  offers_.erase(copy);
}

}  // namespace trainyard::recovery
