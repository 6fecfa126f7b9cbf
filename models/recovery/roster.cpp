#include "models/recovery/roster.h"

#include <algorithm>
#include <tuple>

#include <fmt/format.h>

#include "models/base/check.h"

namespace trainyard::recovery {

Roster::Roster(RosterConfig config) : config_(std::move(config)), owners_(config_.owners) {
  TY_CHECK(!owners_.empty(), "a job has nodes");
  TY_CHECK(config_.nodes_per_domain > 0, "a failure domain has nodes");
  TY_CHECK(!elastic() || static_cast<std::int64_t>(owners_.size()) % config_.slots_per_replica == 0,
           "replicas have equally many slots");
  for (std::size_t slot = 0; slot < owners_.size(); ++slot) {
    const bool fresh = slot_of_.emplace(owners_[slot], static_cast<std::int64_t>(slot)).second;
    TY_CHECK(fresh && owners_[slot] >= 0, "a node holds one slot");
  }
  for (const auto& [node, temperature] : config_.spares)
    TY_CHECK(add_spare(node, temperature), "an owner is not a spare");
}

std::optional<std::int64_t> Roster::slot_of(NodeId node) const {
  const auto found = slot_of_.find(node);
  return found == slot_of_.end() ? std::nullopt : std::optional(found->second);
}

// ---- Spares -------------------------------------------------------------------------------

bool Roster::add_spare(NodeId node, Temperature temperature) {
  return node >= 0 && !holds(node) && !is_away(node) && spares_.emplace(node, temperature).second;
}

void Roster::set_temperature(NodeId node, Temperature temperature) {
  const auto spare = spares_.find(node);
  if (spare != spares_.end()) spare->second = temperature;
}

std::int64_t Roster::count_spares(Temperature at_least) const {
  return std::count_if(spares_.begin(), spares_.end(),
                       [at_least](const auto& spare) { return spare.second <= at_least; });
}

// ---- Slots --------------------------------------------------------------------------------

void Roster::vacate(NodeId node) {
  const std::int64_t slot = slot_of_.at(node);
  slot_of_.erase(node);
  owners_[static_cast<std::size_t>(slot)] = kNobody;
  empty_slots_.insert(slot);
}

std::optional<NodeId> Roster::fill(std::int64_t slot, Temperature at_least, std::int64_t now_ns) {
  TY_CHECK(empty_slots_.contains(slot), "only an empty slot is filled");
  const std::int64_t home = domain_of(config_.owners[static_cast<std::size_t>(slot)]);
  const std::vector<std::int64_t> sick = sick_domains(now_ns);
  const auto rank = [&](const auto& spare) {
    const std::int64_t domain = domain_of(spare.first);
    const bool is_sick = std::find(sick.begin(), sick.end(), domain) != sick.end();
    return std::tuple(spare.second, is_sick, domain != home, spare.first);
  };
  const auto best =
      std::min_element(spares_.begin(), spares_.end(), [&](const auto& a, const auto& b) { return rank(a) < rank(b); });
  if (best == spares_.end() || best->second > at_least) return std::nullopt;
  const NodeId node = best->first;
  spares_.erase(best);
  empty_slots_.erase(slot);
  owners_[static_cast<std::size_t>(slot)] = node;
  slot_of_.emplace(node, slot);
  return node;
}

// ---- Replicas -----------------------------------------------------------------------------

std::int64_t Roster::replicas() const {
  return elastic() ? static_cast<std::int64_t>(owners_.size()) / config_.slots_per_replica : 1;
}

std::vector<std::int64_t> Roster::active_replicas() const {
  std::vector<std::int64_t> active;
  for (std::int64_t replica = 0; replica < replicas(); ++replica)
    if (!inactive_.contains(replica)) active.push_back(replica);
  return active;
}

bool Roster::can_shrink() const {
  return elastic() && replicas() - static_cast<std::int64_t>(inactive_.size()) > config_.min_replicas;
}

void Roster::drop_replica() {
  TY_CHECK(can_shrink() && !empty_slots_.empty(), "a replica is dropped because it misses owners");
  std::map<std::int64_t, std::int64_t> missing;
  for (const std::int64_t slot : empty_slots_) ++missing[replica_of(slot)];
  std::int64_t worst = missing.begin()->first;
  for (const auto& [replica, count] : missing)
    if (count >= missing[worst]) worst = replica;
  for (std::int64_t i = 0; i < config_.slots_per_replica; ++i) {
    const std::int64_t slot = worst * config_.slots_per_replica + i;
    const NodeId node = owners_[static_cast<std::size_t>(slot)];
    empty_slots_.erase(slot);
    owners_[static_cast<std::size_t>(slot)] = kNobody;
    if (node == kNobody) continue;
    slot_of_.erase(node);
    spares_.emplace(node, Temperature::Hot);
  }
  inactive_.insert(worst);
}

void Roster::restore_replica() {
  TY_CHECK(!inactive_.empty(), "no replica is missing");
  const std::int64_t replica = *inactive_.begin();
  inactive_.erase(inactive_.begin());
  for (std::int64_t i = 0; i < config_.slots_per_replica; ++i)
    empty_slots_.insert(replica * config_.slots_per_replica + i);
}

// ---- Away ---------------------------------------------------------------------------------

std::int64_t Roster::ejection_allowed_at_ns(NodeId node, std::int64_t now_ns) {
  std::deque<std::int64_t>& times_ns = ejections_ns_[domain_of(node)];
  while (!times_ns.empty() && times_ns.front() + config_.ejection_window_ns <= now_ns) times_ns.pop_front();
  const auto recent = static_cast<std::int64_t>(times_ns.size());
  return recent < config_.max_ejections_per_domain ? now_ns : times_ns.front() + config_.ejection_window_ns;
}

std::vector<std::int64_t> Roster::sick_domains(std::int64_t now_ns) {
  constexpr std::int64_t kTogetherNs = 600'000'000'000;
  while (!just_ejected_.empty() && just_ejected_.front().first + kTogetherNs <= now_ns) just_ejected_.pop_front();
  std::vector<std::int64_t> seen, sick;
  for (const auto& [at_ns, domain] : just_ejected_) {
    const bool again = std::find(seen.begin(), seen.end(), domain) != seen.end();
    (again ? sick : seen).push_back(domain);
  }
  return sick;
}

void Roster::sent_away(NodeId node, const ActionKey& key, std::int64_t now_ns) {
  ejections_ns_[domain_of(node)].push_back(now_ns);
  just_ejected_.emplace_back(now_ns, domain_of(node));
  sent_back(node, key, now_ns);
}

void Roster::sent_back(NodeId node, const ActionKey& key, std::int64_t now_ns) {
  TY_CHECK(!holds(node), "who goes away holds no slot");
  spares_.erase(node);
  away_[node] = key;
  ejections_of_node_ns_[node].push_back(now_ns);
}

bool Roster::returned(NodeId node, const ActionKey& key) {
  const auto sent = away_.find(node);
  if (sent == away_.end() || sent->second != key) return false;
  away_.erase(sent);
  return true;
}

Roster::Standing Roster::standing(NodeId node, std::int64_t now_ns) {
  std::deque<std::int64_t>& times_ns = ejections_of_node_ns_[node];
  while (!times_ns.empty() && times_ns.front() + config_.lemon_window_ns <= now_ns) times_ns.pop_front();
  const auto recent = static_cast<std::int64_t>(times_ns.size());
  if (config_.retire_ejections > 0 && recent >= config_.retire_ejections) return Standing::Retired;
  return config_.lemon_ejections > 0 && recent >= config_.lemon_ejections ? Standing::Lemon : Standing::Good;
}

std::string Roster::contradiction() const {
  std::set<NodeId> holders;
  for (std::size_t slot = 0; slot < owners_.size(); ++slot) {
    const NodeId node = owners_[slot];
    const auto number = static_cast<std::int64_t>(slot);
    const bool dropped = elastic() && inactive_.contains(replica_of(number));
    const bool empty = empty_slots_.contains(number);
    if (dropped && (empty || node != kNobody)) return fmt::format("slot {} of a dropped replica is in use", slot);
    if (!dropped && (node == kNobody) != empty) return fmt::format("slot {} is neither held nor empty", slot);
    if (node == kNobody) continue;
    if (!holders.insert(node).second) return fmt::format("node {} holds two slots", node);
    if (slot_of(node) != number) return fmt::format("slot {} and node {} disagree", slot, node);
    if (spares_.contains(node) || away_.contains(node))
      return fmt::format("node {} holds a slot and is elsewhere too", node);
  }
  if (holders.size() != slot_of_.size()) return "a node without a slot claims one";
  for (const auto& [node, temperature] : spares_)
    if (away_.contains(node)) return fmt::format("node {} is a spare and away", node);
  if (elastic() && replicas() - static_cast<std::int64_t>(inactive_.size()) < config_.min_replicas)
    return "fewer replicas than the least";
  return {};
}

}  // namespace trainyard::recovery
