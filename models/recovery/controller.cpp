// The recovery controller.
//
// INVARIANTS. Each has its test case, of the same number, in tests/recovery.
//
//  I1  One epoch at a time. Every action carries the current epoch; epochs only grow, by one at
//      each Fence; no rank is started, connected, restored or resumed under an epoch whose
//      Fence has not acted.
//  I2  One owner per slot. A node holds at most one slot, and no node that holds one is a
//      spare; a slot changes hands only between a Fence that has acted and StartProcesses.
//  I3  A fenced rank cannot commit. From the moment a Fence is emitted, steps and checkpoints
//      reported under older epochs change nothing.
//  I4  Exactly once. The committed history is steps 1..durable_step in order; it never
//      shrinks, and training always goes on at the step after it.
//  I5  No checkpoint before its quorum. durable_step moves only on CheckpointDurable with the
//      key of the checkpoint in progress; LoadState and Resume always name durable_step.
//  I6  Ejections are bounded: at most max_ejections_per_domain in any window of
//      ejection_window_ns in one failure domain. Beyond it a human is paged and nobody ejected.
//  I7  An answer counts once. Answers and timers whose key is not outstanding (stale, repeated,
//      of another incarnation), and symptoms that are repeated or older than their node's
//      last proof of life, change no state and cause no action.
//  I8  Never stuck. In every state of a recovery an armed timer will move it on, save
//      WaitingForSpare, which has paged and which any spare moves on. Once faults stop and
//      actions are answered, training resumes.
//  I9  Pure. The same events at the same times give the same actions.
//
// STATES. A recovery runs down the right-hand column; a new failure sends it back to Deciding.
//
//    Idle --launched--> Running ------symptom-----> Deciding <---- new symptom, deadline,
//                          ^                           | window      refusal in any state
//                          |                           v  over       below
//                          |                        Fencing
//                          |                           | acted: eject, place
//                          |        +------------------+----------------+
//                          |        v                  v                v
//                          |  WaitingForHuman      Allocating <-- WaitingForSpare
//                          |   (ejection bound,        | all      (none left)
//                          |    no progress) ---->     v confirmed
//                          |                        Starting
//                          |                           v
//                          |                        Connecting
//                          |                           v
//                          |                        Loading
//                          |                           v
//                          +-------- acted --------- WarmingUp
//
//    state            entered by                left by                     function
//    Running          Resume acted, Launched    symptom                     begin_running
//    Deciding         symptom, failed action    its timer                   begin_deciding
//    Fencing          decision                  Fence acted                 begin_fencing
//    WaitingForHuman  bound, too many attempts  its timer, HumanCleared     wait_for_human
//    WaitingForSpare  empty slot, no spare      SpareReady, NodeRepaired    wait_for_spare
//    Allocating       place(), promotions out   all promotions acted        place
//    Starting         place(), slots confirmed  StartProcesses acted        begin_phase
//    Connecting       StartProcesses acted      BuildCommunicators acted    begin_phase
//    Loading          BuildCommunicators acted  LoadState acted             begin_phase
//    WarmingUp        LoadState acted           Resume acted                begin_phase
//
// Checkpoints go on beside this, in Running only: timer -> TakeCheckpoint -> acted (snapshot
// taken, training goes on, next timer armed) -> CheckpointDurable. One at a time.

#include "models/recovery/controller.h"

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "models/base/check.h"
#include "models/base/units.h"

namespace trainyard::recovery {
std::optional<Phase> phase_of(State state) {
  switch (state) {
    case State::Idle:
    case State::Running: return std::nullopt;
    case State::Deciding: return Phase::Decide;
    case State::Fencing: return Phase::Fence;
    case State::WaitingForHuman: return Phase::WaitForHuman;
    case State::WaitingForSpare: return Phase::WaitForSpare;
    case State::Allocating: return Phase::Allocate;
    case State::Starting: return Phase::ProcessStart;
    case State::Connecting: return Phase::Communicators;
    case State::Loading: return Phase::LoadState;
    case State::WarmingUp: return Phase::FirstStep;
  }
  return std::nullopt;
}

const char* to_string(State state) {
  switch (state) {
    case State::Idle: return "idle";
    case State::Running: return "running";
    case State::Deciding: return "deciding";
    case State::Fencing: return "fencing";
    case State::WaitingForHuman: return "waiting_for_human";
    case State::WaitingForSpare: return "waiting_for_spare";
    case State::Allocating: return "allocating";
    case State::Starting: return "starting";
    case State::Connecting: return "connecting";
    case State::Loading: return "loading";
    case State::WarmingUp: return "warming_up";
  }
  return "?";
}

ControllerConfig controller_config(const PolicySpec& policy, std::int64_t job_nodes, std::int64_t nodes_per_domain,
                                   double checkpoint_interval_s) {
  ControllerConfig config;
  for (std::int64_t node = 0; node < job_nodes; ++node) config.owners.push_back(node);
  for (std::int64_t i = 0; i < policy.spare_nodes; ++i) config.spares.push_back(job_nodes + i);
  config.nodes_per_domain = nodes_per_domain;
  config.diagnosis_ns = to_ns(policy.diagnosis_s);
  config.checkpoint_interval_ns = to_ns(checkpoint_interval_s);
  config.max_ejections_per_domain = policy.max_ejections_per_domain_per_hour;
  const auto deadline_ns = [&](double expected_s) { return to_ns(2 * expected_s + policy.detection_timeout_s + 60); };
  config.deadlines.fence_ns = deadline_ns(policy.fence_s);
  config.deadlines.allocate_ns = deadline_ns(policy.allocate_s);
  config.deadlines.process_start_ns = deadline_ns(policy.process_start_s);
  config.deadlines.communicators_ns = deadline_ns(policy.communicators_s);
  config.deadlines.load_state_ns = deadline_ns(policy.load_state_s);
  config.deadlines.first_step_ns = deadline_ns(policy.first_step_s);
  // A drain may take as long as it likes below this; hours mean that storage is gone.
  config.deadlines.checkpoint_ns = deadline_ns(policy.checkpoint_stall_s) + config.page_retry_ns;
  return config;
}

Controller::Controller(ControllerConfig config) : config_(std::move(config)), owners_(config_.owners) {
  TY_CHECK(!owners_.empty(), "a job has nodes");
  TY_CHECK(config_.nodes_per_domain > 0, "a failure domain has nodes");
  for (std::size_t slot = 0; slot < owners_.size(); ++slot) {
    const bool fresh = slot_of_.emplace(owners_[slot], static_cast<std::int64_t>(slot)).second;
    TY_CHECK(fresh && owners_[slot] >= 0, "a node holds one slot");
  }
  for (const NodeId node : config_.spares) {
    TY_CHECK(!slot_of_.contains(node) && node >= 0, "an owner is not a spare");
    spares_.insert(node);
  }
}

std::vector<Action> Controller::step(std::int64_t now_ns, const Event& event) {
  TY_CHECK(now_ns >= now_ns_, "the controller's clock ran backwards");
  now_ns_ = now_ns;
  std::visit([this](const auto& e) { handle(e); }, event);
  return std::exchange(actions_, {});
}

std::optional<std::int64_t> Controller::slot_of(NodeId node) const {
  const auto found = slot_of_.find(node);
  return found == slot_of_.end() ? std::nullopt : std::optional(found->second);
}

// ---- Symptoms -----------------------------------------------------------------------------

void Controller::handle(const Launched& event) {
  if (state_ != State::Idle) return;
  epoch_ = 1;
  durable_step_ = event.step;
  alive_since_ns_ = now_ns_;
  begin_running();
}

void Controller::handle(const HeartbeatLost& event) { node_symptom(event.node, event.last_seen_ns); }

void Controller::handle(const XidReported& event) {
  switch (xid_meaning(event.xid)) {
    case XidMeaning::Harmless: return;
    case XidMeaning::BlameNode: node_symptom(event.node, event.last_seen_ns); return;
    case XidMeaning::RestartJob:
      if (slot_of_.contains(event.node) && event.last_seen_ns >= alive_since_ns_ && ranks_may_exist())
        job_symptom(event.last_seen_ns);
      return;
  }
}

void Controller::handle(const CommunicatorError& event) {
  // Ranks that are being torn down complain too: only the current epoch's complaints count.
  if (event.epoch != epoch_ || !ranks_may_exist()) return;
  if (event.suspect && slot_of_.contains(*event.suspect)) suspicion_.accuse(event);
  job_symptom(event.last_seen_ns);
}

void Controller::node_symptom(NodeId node, std::int64_t last_seen_ns) {
  if (spares_.erase(node) > 0) {
    doomed_spares_.insert(node);
    eject_doomed_spares();
    return;
  }
  if (state_ == State::Idle || !slot_of_.contains(node)) return;
  if (last_seen_ns < alive_since_ns_ || suspects_.contains(node)) return;
  if (suspicion_.blame(node)) job_symptom(last_seen_ns);
}

void Controller::job_symptom(std::int64_t last_seen_ns) {
  if (state_ == State::Deciding) return;  // the window is open: it gathers this one too
  if (state_ == State::Running) ledger_.open(std::max(last_seen_ns, running_since_ns_), now_ns_, Phase::Decide);
  begin_deciding();
}

void Controller::restart_after_failure(std::optional<NodeId> culprit) {
  if (culprit && slot_of_.contains(*culprit)) suspicion_.blame(*culprit);
  begin_deciding();
}

bool Controller::ranks_may_exist() const {
  switch (state_) {
    case State::Running:
    case State::Deciding:
    case State::Starting:
    case State::Connecting:
    case State::Loading:
    case State::WarmingUp: return true;
    case State::Idle:
    case State::Fencing:
    case State::WaitingForHuman:
    case State::WaitingForSpare:
    case State::Allocating: return false;
  }
  return false;
}

// ---- The recovery -------------------------------------------------------------------------

void Controller::begin_deciding() {
  outstanding_.clear();
  enter(State::Deciding);
  phase_timer_ = emit(SetTimer{now_ns_ + config_.diagnosis_ns});
}

void Controller::begin_fencing() {
  const std::vector<NodeId> verdict = suspicion_.verdict();
  suspicion_.clear();
  suspects_.insert(verdict.begin(), verdict.end());
  barren_attempts_ = suspects_.empty() ? barren_attempts_ + 1 : 0;
  drop_checkpoint();
  ranks_training_ = false;
  steps_done_ = durable_step_;
  ++epoch_;
  begin_phase(State::Fencing, Fence{}, config_.deadlines.fence_ns);
}

/// After the fence: sends suspects away and finds an owner for every slot.
void Controller::place() {
  outstanding_.clear();
  if (barren_attempts_ > config_.max_barren_attempts) {
    barren_attempts_ = 0;
    return wait_for_human(PageReason::NoProgress, std::nullopt, now_ns_ + config_.page_retry_ns);
  }
  if (!eject_suspects()) return;
  fill_empty_slots();
}

/// False when the ejection bound holds some back: then a human is awaited.
bool Controller::eject_suspects() {
  std::int64_t retry_at_ns = std::numeric_limits<std::int64_t>::max();
  std::optional<std::int64_t> held_domain;
  for (const NodeId node : std::vector<NodeId>(suspects_.begin(), suspects_.end())) {
    const std::int64_t allowed_at_ns = ejection_allowed_at_ns(domain_of(node));
    if (allowed_at_ns <= now_ns_) {
      eject(node);
      continue;
    }
    if (allowed_at_ns < retry_at_ns) held_domain = domain_of(node);
    retry_at_ns = std::min(retry_at_ns, allowed_at_ns);
  }
  if (held_domain) wait_for_human(PageReason::EjectionBound, held_domain, retry_at_ns);
  return !held_domain;
}

void Controller::fill_empty_slots() {
  for (const std::int64_t slot : unconfirmed_slots_) promote(owners_[static_cast<std::size_t>(slot)], slot);
  while (!empty_slots_.empty() && !spares_.empty()) {
    const std::int64_t slot = *empty_slots_.begin();
    const NodeId node = *spares_.begin();
    empty_slots_.erase(slot);
    spares_.erase(node);
    owners_[static_cast<std::size_t>(slot)] = node;
    slot_of_.emplace(node, slot);
    unconfirmed_slots_.insert(slot);
    promote(node, slot);
  }
  if (!empty_slots_.empty()) return wait_for_spare();
  if (unconfirmed_slots_.empty())
    return begin_phase(State::Starting, StartProcesses{}, config_.deadlines.process_start_ns);
  enter(State::Allocating);
  phase_timer_ = emit(SetTimer{now_ns_ + config_.deadlines.allocate_ns});
}

void Controller::promote(NodeId node, std::int64_t slot) { outstanding_.emplace(emit(PromoteSpare{node, slot}), node); }

void Controller::wait_for_human(PageReason reason, std::optional<std::int64_t> domain, std::int64_t retry_at_ns) {
  enter(State::WaitingForHuman);
  page(reason, domain);
  phase_timer_ = emit(SetTimer{retry_at_ns});
}

void Controller::wait_for_spare() {
  enter(State::WaitingForSpare);
  page(PageReason::SparesExhausted, std::nullopt);
  phase_timer_ = ActionKey{};
}

void Controller::begin_phase(State state, ActionBody request, std::int64_t deadline_ns) {
  outstanding_.clear();
  enter(state);
  outstanding_.emplace(emit(std::move(request)), kNobody);
  phase_timer_ = emit(SetTimer{now_ns_ + deadline_ns});
}

void Controller::phase_done() {
  const Deadlines& deadlines = config_.deadlines;
  switch (state_) {
    case State::Fencing: return place();
    case State::Allocating: return begin_phase(State::Starting, StartProcesses{}, deadlines.process_start_ns);
    case State::Starting:
      alive_since_ns_ = now_ns_;
      return begin_phase(State::Connecting, BuildCommunicators{}, deadlines.communicators_ns);
    case State::Connecting: return begin_phase(State::Loading, LoadState{durable_step_}, deadlines.load_state_ns);
    case State::Loading:
      ranks_training_ = true;
      return begin_phase(State::WarmingUp, Resume{durable_step_}, deadlines.first_step_ns);
    case State::WarmingUp: {
      const RecoveryLedger ledger = ledger_.close(now_ns_, epoch_, durable_step_);
      begin_running();
      emit(FileLedger{ledger});
      return;
    }
    case State::WaitingForSpare:  // the promotions so far are confirmed; slots are still empty
    case State::Idle:
    case State::Running:
    case State::Deciding:
    case State::WaitingForHuman: return;
  }
}

void Controller::begin_running() {
  TY_CHECK(empty_slots_.empty() && unconfirmed_slots_.empty() && suspects_.empty(), "a running job is complete");
  enter(State::Running);
  outstanding_.clear();
  suspicion_.clear();
  paged_.clear();
  phase_timer_ = ActionKey{};
  running_since_ns_ = now_ns_;
  ranks_training_ = true;
  steps_done_ = std::max(steps_done_, durable_step_);  // the first steps may be reported before Resume is answered
  arm_checkpoint_timer();
}

void Controller::handle(const Answered& event) {
  if (checkpoint_ && event.key == *checkpoint_) return checkpoint_answered(event);
  const auto asked = outstanding_.find(event.key);
  if (asked == outstanding_.end()) return;
  const NodeId node = asked->second;
  if (event.outcome != Outcome::Acted)
    return restart_after_failure(event.culprit ? event.culprit
                                               : (node == kNobody ? std::nullopt : std::optional<NodeId>(node)));
  outstanding_.erase(asked);
  if (node != kNobody) unconfirmed_slots_.erase(slot_of_.at(node));
  if (outstanding_.empty()) phase_done();
}

void Controller::handle(const TimerFired& event) {
  if (event.key == phase_timer_ && event.key.id != 0) {
    phase_timer_ = ActionKey{};
    if (state_ == State::Deciding) return begin_fencing();
    if (state_ == State::WaitingForHuman) return place();
    return restart_after_failure(std::nullopt);  // a deadline passed: nobody in particular to blame
  }
  if (event.key == doomed_timer_ && event.key.id != 0) {
    doomed_timer_ = ActionKey{};
    return eject_doomed_spares();
  }
  if (state_ != State::Running) return;
  if (event.key == checkpoint_timer_ && event.key.id != 0) {
    checkpoint_timer_ = ActionKey{};
    if (checkpoint_)
      checkpoint_due_ = true;  // storage is behind: take it as soon as the last one is durable
    else
      take_checkpoint();
  } else if (event.key == checkpoint_deadline_ && checkpoint_) {
    drop_checkpoint();
    arm_checkpoint_timer();
  }
}

void Controller::handle(const HumanCleared&) {
  if (state_ != State::WaitingForHuman) return;
  suspects_.clear();
  suspicion_.clear();
  barren_attempts_ = 0;
  place();
}

// ---- Nodes --------------------------------------------------------------------------------

void Controller::eject(NodeId node) {
  const std::int64_t slot = slot_of_.at(node);
  slot_of_.erase(node);
  owners_[static_cast<std::size_t>(slot)] = kNobody;
  empty_slots_.insert(slot);
  unconfirmed_slots_.erase(slot);
  suspects_.erase(node);
  ejection_times_ns_[domain_of(node)].push_back(now_ns_);
  ledger_.ejected(node);
  ejected_[node] = emit(Eject{node, slot});
}

void Controller::eject_doomed_spares() {
  std::int64_t retry_at_ns = std::numeric_limits<std::int64_t>::max();
  for (const NodeId node : std::vector<NodeId>(doomed_spares_.begin(), doomed_spares_.end())) {
    const std::int64_t allowed_at_ns = ejection_allowed_at_ns(domain_of(node));
    if (allowed_at_ns > now_ns_) {
      retry_at_ns = std::min(retry_at_ns, allowed_at_ns);
      page(PageReason::EjectionBound, domain_of(node));
      continue;
    }
    doomed_spares_.erase(node);
    ejection_times_ns_[domain_of(node)].push_back(now_ns_);
    ejected_[node] = emit(Eject{node, std::nullopt});
  }
  if (!doomed_spares_.empty()) doomed_timer_ = emit(SetTimer{retry_at_ns});
}

std::int64_t Controller::ejection_allowed_at_ns(std::int64_t domain) {
  std::deque<std::int64_t>& times_ns = ejection_times_ns_[domain];
  while (!times_ns.empty() && times_ns.front() + config_.ejection_window_ns <= now_ns_) times_ns.pop_front();
  const auto recent = static_cast<std::int64_t>(times_ns.size());
  if (recent < config_.max_ejections_per_domain) return now_ns_;
  return times_ns.empty() ? now_ns_ + config_.page_retry_ns : times_ns.front() + config_.ejection_window_ns;
}

void Controller::handle(const SpareReady& event) {
  if (!ejected_.contains(event.node)) add_spare(event.node);
}

void Controller::handle(const NodeRepaired& event) {
  const auto sent = ejected_.find(event.node);
  if (sent == ejected_.end() || sent->second != event.key) return;
  ejected_.erase(sent);
  add_spare(event.node);
}

void Controller::add_spare(NodeId node) {
  if (node < 0 || slot_of_.contains(node) || !spares_.insert(node).second) return;
  doomed_spares_.erase(node);
  if (state_ == State::WaitingForSpare) place();
}

// ---- Training -----------------------------------------------------------------------------

void Controller::handle(const StepsDone& event) {
  if (event.epoch != epoch_ || !ranks_training_) return;
  if (event.first <= steps_done_ + 1 && event.last > steps_done_) steps_done_ = event.last;
}

void Controller::handle(const CheckpointDurable& event) {
  if (!checkpoint_ || event.key != *checkpoint_ || event.step < durable_step_) return;
  durable_step_ = event.step;
  steps_done_ = std::max(steps_done_, durable_step_);
  barren_attempts_ = 0;
  const bool due = checkpoint_due_;
  // Durable may overtake the snapshot's own answer: then nothing has armed the next timer yet.
  const bool unarmed = checkpoint_timer_ == ActionKey{} && !due;
  drop_checkpoint();
  if (state_ != State::Running) return;
  if (due)
    take_checkpoint();
  else if (unarmed)
    arm_checkpoint_timer();
}

void Controller::arm_checkpoint_timer() {
  checkpoint_timer_ = ActionKey{};
  if (config_.checkpoint_interval_ns > 0) checkpoint_timer_ = emit(SetTimer{now_ns_ + config_.checkpoint_interval_ns});
}

void Controller::take_checkpoint() {
  checkpoint_ = emit(TakeCheckpoint{});
  checkpoint_deadline_ = emit(SetTimer{now_ns_ + config_.deadlines.checkpoint_ns});
}

void Controller::checkpoint_answered(const Answered& answer) {
  if (answer.outcome != Outcome::Acted) drop_checkpoint();
  if (state_ == State::Running && checkpoint_timer_ == ActionKey{} && !checkpoint_due_) arm_checkpoint_timer();
}

void Controller::drop_checkpoint() {
  checkpoint_.reset();
  checkpoint_due_ = false;
}

// ---- Plumbing -----------------------------------------------------------------------------

ActionKey Controller::emit(ActionBody body) {
  const ActionKey key{config_.incarnation, epoch_, next_id_++};
  actions_.push_back({key, std::move(body)});
  return key;
}

void Controller::enter(State state) {
  // Opening the ledger has entered Decide already; each later Decide is a new attempt.
  const bool opening = state_ == State::Running;
  const bool same = state_ == state;
  state_ = state;
  const std::optional<Phase> phase = phase_of(state);
  if (phase && !opening && !same && ledger_.is_open()) ledger_.enter(now_ns_, *phase);
}

void Controller::page(PageReason reason, std::optional<std::int64_t> domain) {
  if (paged_.emplace(reason, domain.value_or(-1)).second) emit(PageHuman{reason, domain});
}

std::string Controller::violated_invariant() const {
  std::set<NodeId> holders;
  for (std::size_t slot = 0; slot < owners_.size(); ++slot) {
    const NodeId node = owners_[slot];
    const bool empty = empty_slots_.contains(static_cast<std::int64_t>(slot));
    if ((node == kNobody) != empty) return fmt::format("I2: slot {} is neither held nor empty", slot);
    if (empty) continue;
    if (!holders.insert(node).second) return fmt::format("I2: node {} holds two slots", node);
    const auto found = slot_of_.find(node);
    if (found == slot_of_.end() || found->second != static_cast<std::int64_t>(slot))
      return fmt::format("I2: slot {} and node {} disagree", slot, node);
    if (spares_.contains(node) || doomed_spares_.contains(node) || ejected_.contains(node))
      return fmt::format("I2: node {} holds a slot and is elsewhere too", node);
  }
  if (holders.size() != slot_of_.size()) return "I2: a node without a slot claims one";
  if (steps_done_ < durable_step_) return "I4: durable steps are not done";
  const bool recovering = phase_of(state_).has_value();
  if (recovering != ledger_.is_open()) return "I8: a recovery without a ledger, or the reverse";
  if (recovering && state_ != State::WaitingForSpare && phase_timer_ == ActionKey{})
    return fmt::format("I8: no timer moves {} on", to_string(state_));
  if (state_ == State::WaitingForSpare && !spares_.empty()) return "I8: waiting beside a spare";
  return {};
}

}  // namespace trainyard::recovery
