// The controller's book of checkpoints: when the next is due and how deep it goes, what is in
// progress, what has been accepted, and which copy to restore.
//
// A checkpoint counts in a tier when its quorum has written it there and, where replicas vote on
// the hashes of their parameters, when they agreed: silent corruption must never become durable.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "models/recovery/messages.h"

namespace trainyard::recovery {

enum class Cadence : std::uint8_t {
  Fixed,     // every interval_ns
  Adaptive,  // the exact optimum for the rate of failures seen so far
};

struct CheckpointConfig {
  Cadence cadence = Cadence::Fixed;
  /// From the end of one snapshot, or from Resume, to the next; 0 with Fixed: no checkpoints.
  std::int64_t interval_ns = 0;
  /// Time for which the job stands still for a snapshot.
  double stall_s = 5;
  /// Mean time between failures of the job, as the plan has it: what Adaptive starts from.
  double expected_mtbf_s = 0;
  /// Every checkpoint goes this deep, and every `permanent_every`-th goes on to Tier::Remote.
  Tier usual_tier = Tier::Remote;
  std::int64_t permanent_every = 1;
  bool hash_vote = false;
};

class CheckpointBook {
 public:
  explicit CheckpointBook(CheckpointConfig config) : config_(config) {}

  /// Training starts from `step`, which is in permanent storage.
  void launched(std::int64_t step);

  // ---- When, and how deep ----
  /// `training_ns`: how long the job has been up in all; `failures`: how often it failed in that time.
  [[nodiscard]] std::int64_t interval_ns(std::int64_t training_ns, std::int64_t failures) const;
  [[nodiscard]] Tier next_tier() const;
  /// A checkpoint bound for this tier is still on its way.
  [[nodiscard]] bool busy(Tier tier) const;

  // ---- In progress ----
  void begin(const ActionKey& key, Tier tier);
  [[nodiscard]] bool in_progress(const ActionKey& key) const { return pending_.contains(key); }
  /// The newest that has no snapshot yet.
  [[nodiscard]] std::optional<ActionKey> awaiting_snapshot() const;
  void snapshot_taken(const ActionKey& key);
  /// What was accepted by one report: the tiers in which `step` now counts.
  struct Accepted {
    std::int64_t step = 0;
    std::vector<Tier> tiers;
  };
  Accepted durable(const CheckpointDurable& event);
  Accepted agreed(const ActionKey& key);
  void drop(const ActionKey& key) { pending_.erase(key); }
  void drop_all() { pending_.clear(); }

  // ---- What there is ----
  /// All steps up to this one are in permanent storage.
  [[nodiscard]] std::int64_t durable_step() const { return durable_.step; }

  // ---- What to restore ----
  void forget_offers() { offers_.clear(); }
  void offer(const StateCopy& copy);
  /// The copy with the most steps, in the quickest of its tiers. Permanent storage always offers.
  [[nodiscard]] StateCopy best() const;
  /// Loading this copy failed: another is tried, unless there is none but permanent storage.
  void distrust(const StateCopy& copy);
  /// Live parameters cannot be trusted: replicas disagreed.
  void distrust_devices(bool distrust) { devices_distrusted_ = distrust; }

 private:
  struct Pending {
    Tier tier = Tier::Remote;
    bool snapshot = false;
    bool voted = false;
    std::int64_t step = -1;
    std::vector<Tier> written;  // reported before the vote
  };
  Accepted accept(const ActionKey& key);

  CheckpointConfig config_;
  std::map<ActionKey, Pending> pending_;
  std::int64_t since_permanent_ = 0;
  StateCopy durable_;
  std::deque<ActionKey> voted_;  // the last checkpoints whose hashes agreed
  std::set<StateCopy> offers_;
  std::set<StateCopy> distrusted_;
  bool devices_distrusted_ = false;
};

}  // namespace trainyard::recovery
