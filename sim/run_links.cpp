// The world of one run, continued: its links. A link that is down does its node no harm. Collectives stall, and once
// queue pairs have retried in vain the communicator is dead; when the link is back, so is the node, ejected or not.
#include <algorithm>

#include "models/base/check.h"
#include "models/base/units.h"
#include "sim/run_world.h"

namespace trainyard {

using recovery::Action;

void RunWorld::link_down(NodeId node, const Outage& outage) {
  const auto its = links_down_.find(node);
  if (link_is_down(node)) {
    const std::optional<std::int64_t>& up_ns = its->second.up_ns;
    if (!up_ns || (outage.up_ns && *outage.up_ns <= *up_ns)) return;  // it is down for longer already
    its->second.up_ns = outage.up_ns;                                 // whoever is about to complain of it still does
    its->second.silent &= outage.silent;
  } else {
    trace_.add(now_ns_, RunEventKind::FaultBegins, node, "link_down");
    links_down_.insert_or_assign(node, outage);
  }
  const std::int64_t id = links_down_.at(node).id;
  if (outage.up_ns) agenda_.at(*outage.up_ns, [this, node, id] { link_up(node, id); });
  if (controller_.slot_of(node) && mode_ != JobMode::Dead)
    agenda_.at(next_collective_ns(), [this, node, id] { link_bites(node, id); });
}

bool RunWorld::link_is_down(NodeId node) const {
  const auto its = links_down_.find(node);
  return its != links_down_.end() && its->second.up_ns.value_or(now_ns_ + 1) > now_ns_;
}

/// The first collective since the link went down.
void RunWorld::link_bites(NodeId node, std::int64_t id) {
  const auto its = links_down_.find(node);
  if (its == links_down_.end() || its->second.id != id || !link_is_down(node)) return;
  const bool waits = mode_ == JobMode::Dead || mode_ == JobMode::Held;
  if (!controller_.slot_of(node) || waits) return;  // shows when communicators are built
  if (mode_ == JobMode::Snapshot)                   // no collective before the snapshot is over
    return agenda_.at(snapshot_end_ns_ + 1, [this, node, id] { link_bites(node, id); });
  Outage& outage = its->second;
  if (outage.up_ns && *outage.up_ns - now_ns_ <= patience_ns(outage)) return link_stall(*outage.up_ns - now_ns_);
  count_outage(node, outage);
  kill_job();
  if (input_.policy.evidence == Evidence::All && outage.fault)
    schedule_evidence(node, faults::Fault(*outage.fault), now_ns_);
  else
    schedule_complaint(node, true);
}

/// Of two ports of a NIC one is down: the rest of its rate goes on. While the other is down too, so is the link.
void RunWorld::port_down(const NicsOfLeaf& nics, const Outage& outage, bool of_leaf) {
  std::vector<InjectedFault> halves;
  for (const NodeId node : nics.nodes) {
    for (const std::int64_t device : nics.devices) {
      if (const std::optional<std::int64_t> other_ns = other_port_up_ns(node, device)) {
        Outage both = outage;
        both.up_ns = std::min(outage.up_ns.value_or(*other_ns), *other_ns);
        if (*both.up_ns > duration_ns_) both.up_ns.reset();
        link_down(node, both);
      }
      InjectedFault half;
      half.kind = InjectedKind::NicSlow;
      half.mode = of_leaf ? FaultMode::SwitchCrash : FaultMode::LinkDown;
      half.node = node;
      half.device = device;
      half.factor = 2;
      half.at_s = static_cast<double>(now_ns_) / kNsPerS;
      if (outage.up_ns) half.duration_s = static_cast<double>(*outage.up_ns - now_ns_) / kNsPerS;
      halves.push_back(half);
    }
  }
  begin_slow(halves, outage.up_ns);
}

/// When the port of the NIC is back that went first; beyond the end of the run: never. None: both ports are up.
std::optional<std::int64_t> RunWorld::other_port_up_ns(NodeId node, std::int64_t device) const {
  const std::int64_t gpus_per_nic = input_.cluster.gpus_per_node / input_.cluster.nics_per_node;
  std::optional<std::int64_t> up_ns;
  for (const auto& [id, part] : slow_) {
    const bool a_port = part.mode == FaultMode::LinkDown || part.mode == FaultMode::SwitchCrash;
    if (!a_port || part.node != node || part.device / gpus_per_nic != device / gpus_per_nic) continue;
    const std::int64_t its_ns = part.duration_s ? to_ns(part.at_s + *part.duration_s) : duration_ns_ + 1;
    up_ns = std::max(up_ns.value_or(0), its_ns);
  }
  return up_ns;
}

/// How long those who need the link wait for it before they give up.
std::int64_t RunWorld::patience_ns(const Outage& outage) const {
  return to_ns(outage.silent ? input_.policy.timeouts.collective_s : input_.policy.timeouts.link_s);
}

/// Retries come at even times, unless the NIC adapts them.
void RunWorld::link_stall(std::int64_t down_ns) {
  const RdmaSpec& rdma = input_.cluster.rdma;
  const std::int64_t try_ns = to_ns(input_.policy.timeouts.link_s) / input_.policy.timeouts.ib_retry_cnt;
  const std::int64_t retry_ns = std::max<std::int64_t>(1, rdma.adaptive_retransmission ? to_ns(rdma.rtt_s) : try_ns);
  const std::int64_t retries = (down_ns + retry_ns - 1) / retry_ns;
  stalled_until_ns_ = std::max(stalled_until_ns_, now_ns_ + retries * retry_ns);
  mode_ = JobMode::Stalled;
  ++boundary_;
  agenda_.at(stalled_until_ns_, [this, life = life_] {
    if (life == life_ && mode_ == JobMode::Stalled && now_ns_ >= stalled_until_ns_) set_training();
  });
}

void RunWorld::link_up(NodeId node, std::int64_t id) {
  const auto its = links_down_.find(node);
  if (its == links_down_.end() || its->second.id != id || link_is_down(node)) return;
  trace_.add(now_ns_, RunEventKind::FaultEnds, node, "link_down");
  if (!blocked_phase_) return;
  const Action action = *std::exchange(blocked_phase_, std::nullopt);
  phase_over(action);
}

/// A phase of the recovery needs it.
void RunWorld::link_blocks(NodeId node) {
  Outage& outage = links_down_.at(node);
  count_outage(node, outage);
  if (!outage.symptom_on_its_way) schedule_complaint(node, false);
}

/// Queue pairs retry, then peers complain: in any case where that has `stopped` the job, else if the link is down
/// still.
void RunWorld::schedule_complaint(NodeId node, bool stopped) {
  Outage& outage = links_down_.at(node);
  outage.symptom_on_its_way = true;
  const std::int64_t id = outage.id, epoch = controller_.epoch(), last_seen_ns = now_ns_;
  agenda_.at(now_ns_ + patience_ns(outage), [this, node, id, epoch, last_seen_ns, stopped] {
    const auto its = links_down_.find(node);
    if (its == links_down_.end() || its->second.id != id) return;
    its->second.symptom_on_its_way = false;
    if (!in_shop_.contains(node) && (stopped || link_is_down(node))) peers_complain(node, epoch, last_seen_ns);
  });
}

/// One failure, however many links went down with it.
void RunWorld::count_outage(NodeId node, const Outage& outage) {
  if (outages_counted_.insert(outage.id).second) count_failure(outage.cause, node);
}

/// Of the action's phase: owners whose links are down.
std::vector<RunWorld::NodeId> RunWorld::unreachable_for(const Action& action) const {
  std::vector<NodeId> nodes;
  if (!needs_network(action)) return nodes;
  for (const auto& [node, outage] : links_down_)
    if (link_is_down(node) && controller_.slot_of(node)) nodes.push_back(node);
  return nodes;
}

/// Until the job trains again, an outage explains why its node was ejected.
void RunWorld::forget_ended_outages() {
  std::erase_if(links_down_, [this](const auto& its) { return !link_is_down(its.first); });
}

}  // namespace trainyard
