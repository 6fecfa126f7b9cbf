// The roster: which node holds which slot, which are spares, which are away.
//
// A slot stands for a fixed set of logical ranks; slots r*S .. r*S+S-1 are one data-parallel
// replica. Logical ranks never move between slots; nodes do. The roster keeps these facts and
// their bounds; when anything moves is the controller's decision.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "models/recovery/messages.h"
#include "models/spec/node_places.h"

namespace trainyard::recovery {

inline constexpr NodeId kNobody = -1;

struct RosterConfig {
  /// owners[slot] is the node that holds the slot's logical ranks at launch, and its home.
  std::vector<NodeId> owners;
  std::map<NodeId, Temperature> spares;
  /// A node lies in failure domain place / nodes_per_domain (a leaf switch) ...
  std::int64_t nodes_per_domain = 1;
  /// ... where its place is its number, but for those that this tells, by number (models/spec/node_places.h).
  std::vector<std::int64_t> places = {};
  /// Slots of one data-parallel replica; 0: the job cannot shrink. Divides the slots.
  std::int64_t slots_per_replica = 0;
  std::int64_t min_replicas = 1;
  std::int64_t max_ejections_per_domain = 8;
  std::int64_t ejection_window_ns = 3'600'000'000'000;
  /// A node ejected this often within the window is a lemon: tested thoroughly when it comes back (0: none is) ...
  std::int64_t lemon_ejections = 3;
  std::int64_t lemon_window_ns = 30 * 86'400'000'000'000;
  /// ... and, ejected this often, retired (0: none is).
  std::int64_t retire_ejections = 6;
};

class Roster {
 public:
  explicit Roster(RosterConfig config);

  [[nodiscard]] const std::vector<NodeId>& owners() const { return owners_; }
  [[nodiscard]] bool holds(NodeId node) const { return slot_of_.contains(node); }
  [[nodiscard]] std::optional<std::int64_t> slot_of(NodeId node) const;
  [[nodiscard]] std::int64_t domain_of(NodeId node) const {
    return place_of(config_.places, node) / config_.nodes_per_domain;
  }

  // ---- Spares ----
  [[nodiscard]] const std::map<NodeId, Temperature>& spares() const { return spares_; }
  /// False when the node is a spare already, or holds a slot.
  bool add_spare(NodeId node, Temperature temperature);
  bool remove_spare(NodeId node) { return spares_.erase(node) > 0; }
  void set_temperature(NodeId node, Temperature temperature);
  [[nodiscard]] std::int64_t count_spares(Temperature at_least) const;

  // ---- Slots ----
  [[nodiscard]] const std::set<std::int64_t>& empty_slots() const { return empty_slots_; }
  /// The slot loses its owner, who is nowhere then.
  void vacate(NodeId node);
  /// Fills an empty slot with the best spare: the hottest; then none of a domain that lost several nodes within
  /// minutes, for it may be the switch that is sick; then one of the domain that is the slot's home, so that its
  /// traffic stays on the leaf; then the lowest number. None if there is none this hot.
  std::optional<NodeId> fill(std::int64_t slot, Temperature at_least, std::int64_t now_ns);

  // ---- Replicas ----
  [[nodiscard]] bool elastic() const { return config_.slots_per_replica > 0; }
  [[nodiscard]] std::int64_t replicas() const;
  [[nodiscard]] const std::set<std::int64_t>& inactive_replicas() const { return inactive_; }
  [[nodiscard]] std::vector<std::int64_t> active_replicas() const;
  [[nodiscard]] bool can_shrink() const;
  /// The replica that misses most owners, the highest of several, leaves the job; its owners become hot spares, its
  /// slots are nobody's and no longer empty. Some slot of an active replica is empty.
  void drop_replica();
  /// The lowest inactive replica comes back, its slots empty.
  void restore_replica();

  // ---- Away ----
  /// When the bound lets the domain lose one more node; <= now: at once.
  std::int64_t ejection_allowed_at_ns(NodeId node, std::int64_t now_ns);
  /// Counts the ejection of a node that holds no slot any more, under this key.
  void sent_away(NodeId node, const ActionKey& key, std::int64_t now_ns);
  /// A node that came back and failed its test goes away again: its domain's bound is not concerned.
  void sent_back(NodeId node, const ActionKey& key, std::int64_t now_ns);
  [[nodiscard]] bool is_away(NodeId node) const { return away_.contains(node); }
  /// The key must be that of the ejection. False: stale, or retired.
  bool returned(NodeId node, const ActionKey& key);
  /// The node never comes back.
  void retire(NodeId node) { away_[node] = ActionKey{}; }
  enum class Standing : std::uint8_t { Good, Lemon, Retired };
  Standing standing(NodeId node, std::int64_t now_ns);

  /// What contradicts itself; empty if nothing does.
  [[nodiscard]] std::string contradiction() const;

 private:
  [[nodiscard]] std::int64_t replica_of(std::int64_t slot) const { return slot / config_.slots_per_replica; }
  /// Domains that lost several nodes within minutes.
  std::vector<std::int64_t> sick_domains(std::int64_t now_ns);

  RosterConfig config_;
  std::vector<NodeId> owners_;
  std::map<NodeId, std::int64_t> slot_of_;
  std::set<std::int64_t> empty_slots_;  // of active replicas
  std::set<std::int64_t> inactive_;
  std::map<NodeId, Temperature> spares_;
  std::map<NodeId, ActionKey> away_;
  std::map<std::int64_t, std::deque<std::int64_t>> ejections_ns_;   // by domain
  std::deque<std::pair<std::int64_t, std::int64_t>> just_ejected_;  // when, and of which domain; the last minutes'
  std::map<NodeId, std::deque<std::int64_t>> ejections_of_node_ns_;
};

}  // namespace trainyard::recovery
