// The recovery controller.
//
// INVARIANTS. Each has its test case, of the same number, in tests/recovery, and all are checked
// after every event of every night of `trainyard sim fuzz`.
//
//  I1  One epoch at a time. Every action carries the current epoch; epochs only grow, by one at
//      each Fence; no rank is started, connected, restored or resumed under an epoch whose
//      Fence has not acted.
//  I2  One owner per slot. A node holds at most one slot, and no node that holds one is a
//      spare or away; a slot changes hands only between a Fence that has acted and StartProcesses.
//  I3  A fenced rank cannot commit. From the moment a Fence is emitted, steps and checkpoints
//      reported under older epochs change nothing.
//  I4  Exactly once. The committed history is steps 1..durable_step in order; it never
//      shrinks, and training always goes on at the step after the copy that was restored.
//  I5  No checkpoint before its quorum. durable_step moves only on CheckpointDurable for
//      permanent storage with the key of a checkpoint in progress; LoadState and Resume name
//      durable_step, or a copy with more steps that connected ranks have found.
//  I6  Ejections are bounded: at most max_ejections_per_domain in any window of
//      ejection_window_ns in one failure domain. Beyond it a human is paged and nobody ejected.
//  I7  An answer counts once. Answers and timers whose key is not outstanding (stale, repeated,
//      of another incarnation), and symptoms that are repeated or older than their node's
//      last proof of life, change no state and cause no action.
//  I8  Never stuck. In every state of a recovery an armed timer will move it on, save
//      WaitingForSpare, which has paged and which any spare moves on. Once faults stop and
//      actions are answered, training resumes.
//  I9  Pure. The same events at the same times give the same actions.
// I10  What replicas disagree on is not kept. With hash_vote, nothing counts as durable, and no
//      copy is restored, at a step at which replicas' hashes have not agreed.
// I11  Shrinking has a floor and an order. At least min_replicas take part; a replica takes part
//      whole or not at all; StartProcesses names exactly those that do.
// I12  Nobody comes back unseen. A node that was ejected holds ranks again only after
//      NodeRepaired for that very ejection and, with readmission_test, a TestNode that has
//      acted; a retired node never does.
//
// STATES. A recovery runs down the right-hand column; a new failure sends it back to Deciding.
//
//    Idle --launched--> Running ------symptom-----> Deciding <---- new symptom, deadline,
//                        | ^  ^                        | window      refusal in any state
//               planned  | |  | refused                v  over       below
//                        v |  |       snapshot      Fencing <-----------------+
//                       Draining -----------> Holding  | ----copy is safe-----+
//                          |                           | acted: eject, place
//                          |        +------------------+----------------+
//                          |        v                  v                v
//                          |  WaitingForHuman      Allocating <-- WaitingForSpare
//                          |   (ejection bound,        | all      (none left, and
//                          |    no progress) ---->     v confirmed no replica to spare)
//                          |                        Starting
//                          |                           v
//                          |                        Connecting
//                          |                           v
//                          |                        Loading
//                          |                           v
//                       Running <----- acted ------ WarmingUp
//
//    state            entered by                left by                     function
//    Running          Resume acted, Launched    symptom, plan               begin_running
//    Draining         upkeep: a node leaves,    TakeCheckpoint acted,       begin_draining
//                     a replica comes back      refused
//    Holding          snapshot taken            its copy is safe            begin_holding
//    Deciding         symptom, failed action    its timer                   begin_deciding
//    Fencing          decision, safe copy       Fence acted                 begin_fencing
//    WaitingForHuman  bound, too many attempts  its timer, HumanCleared     wait_for_human
//    WaitingForSpare  empty slot, no spare      a spare                     wait_for_spare
//    Allocating       place(), promotions out   all promotions acted        place
//    Starting         place(), slots confirmed  StartProcesses acted        begin_phase
//    Connecting       StartProcesses acted      BuildCommunicators acted    begin_phase
//    Loading          BuildCommunicators acted  LoadState acted             begin_loading
//    WarmingUp        LoadState acted           Resume acted                begin_phase
//
// transition_table() has every arrow with its events; the fuzzer fails on one that is not there.
//
// Beside this go on: checkpoints, in Running only: timer -> TakeCheckpoint -> acted (snapshot
// taken, training goes on, next timer armed) -> CheckpointDurable, at most one for each tier at
// a time. And upkeep, always: ejecting spares that failed, heating spares, testing repaired nodes.

#include "models/recovery/controller.h"

#include <algorithm>
#include <array>
#include <limits>

#include <fmt/format.h>

#include "models/base/check.h"
#include "models/base/units.h"

namespace trainyard::recovery {
namespace {

// A thorough test takes hours where a quick one takes minutes.
constexpr std::int64_t kThoroughTestFactor = 20;

RosterConfig roster_config(const PolicySpec& policy, const JobShape& job) {
  RosterConfig config;
  config.owners = job.owners;
  if (config.owners.empty())
    for (NodeId node = 0; node < job.nodes; ++node) config.owners.push_back(node);
  const std::int64_t hot = policy.spares.hot < 0 ? policy.spare_nodes - policy.spares.cold : policy.spares.hot;
  for (std::int64_t i = 0; i < policy.spare_nodes; ++i) {
    const bool cold = i >= policy.spare_nodes - policy.spares.cold;
    config.spares.emplace(job.nodes + i, i < hot ? Temperature::Hot : cold ? Temperature::Cold : Temperature::Warm);
  }
  config.nodes_per_domain = job.nodes_per_domain;
  config.places = job.places;
  if (policy.elastic.enabled && job.replicas > 1) config.slots_per_replica = job.nodes / job.replicas;
  config.min_replicas = policy.elastic.min_replicas;
  config.max_ejections_per_domain = policy.max_ejections_per_domain_per_hour;
  config.lemon_ejections = policy.readmission.lemon_ejections;
  config.retire_ejections = policy.readmission.retire_ejections;
  config.lemon_window_ns = to_ns(policy.readmission.window_days * 86400);
  return config;
}

CheckpointConfig checkpoint_config(const PolicySpec& policy, double interval_s, double expected_mtbf_s) {
  constexpr std::array kTiers = {Tier::Host, Tier::Peer, Tier::Nvme, Tier::Remote};  // as CheckpointTier has them
  CheckpointConfig config;
  config.cadence = policy.checkpoints.cadence == CheckpointCadence::Adaptive ? Cadence::Adaptive : Cadence::Fixed;
  config.interval_ns = to_ns(interval_s);
  config.stall_s = policy.checkpoint_stall_s;
  config.expected_mtbf_s = expected_mtbf_s;
  config.usual_tier = kTiers[static_cast<std::size_t>(policy.checkpoints.usual_tier)];
  config.permanent_every = policy.checkpoints.permanent_every;
  config.hash_vote = policy.checkpoints.hash_vote;
  return config;
}

Deadlines deadlines(const PolicySpec& policy, const JobShape& job, std::int64_t page_retry_ns) {
  const auto deadline_ns = [&](double expected_s) { return to_ns(2 * expected_s + policy.detection_timeout_s + 60); };
  Deadlines deadlines;
  deadlines.fence_ns = deadline_ns(policy.fence_s);
  deadlines.allocate_ns =
      deadline_ns(policy.allocate_s + std::max(policy.spares.warm_extra_s, policy.spares.cold_extra_s));
  deadlines.process_start_ns = deadline_ns(policy.process_start_s);
  deadlines.communicators_ns = deadline_ns(policy.communicators_s);
  deadlines.load_state_ns = deadline_ns(policy.load_state_s + job.load_s);
  deadlines.first_step_ns = deadline_ns(policy.first_step_s);
  // A drain may take as long as it likes below this; hours mean that storage is gone.
  deadlines.checkpoint_ns = deadline_ns(policy.checkpoint_stall_s) + page_retry_ns;
  deadlines.upkeep_ns = deadline_ns(std::max(policy.readmission.test_s, policy.spares.cold_extra_s));
  return deadlines;
}

}  // namespace

std::optional<Phase> phase_of(State state) {
  switch (state) {
    case State::Idle:
    case State::Running:
    case State::Draining: return std::nullopt;
    case State::Holding: return Phase::Drain;
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
    case State::Draining: return "draining";
    case State::Holding: return "holding";
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

ControllerConfig controller_config(const PolicySpec& policy, const JobShape& job, double checkpoint_interval_s,
                                   double expected_mtbf_s) {
  ControllerConfig config;
  config.roster = roster_config(policy, job);
  config.checkpoints = checkpoint_config(policy, checkpoint_interval_s, expected_mtbf_s);
  config.stragglers = {policy.stragglers.replace_at_slowdown, to_ns(policy.stragglers.patience_s)};
  config.hot_spares = policy.spares.hot < 0 ? policy.spare_nodes : policy.spares.hot;
  config.regrow_patience_ns = to_ns(policy.elastic.regrow_patience_s);
  config.maintenance_lead_ns = to_ns(policy.maintenance_lead_s);
  config.exits_before_blame = policy.exits_before_blame;
  config.readmission_test = policy.readmission.test_s > 0;
  config.diagnosis_ns = to_ns(policy.diagnosis_s);
  config.deadlines = deadlines(policy, job, config.page_retry_ns);
  return config;
}

Controller::Controller(ControllerConfig config)
    : config_(std::move(config)), roster_(config_.roster), book_(config_.checkpoints) {}

std::vector<Action> Controller::step(std::int64_t now_ns, const Event& event) {
  TY_CHECK(now_ns >= now_ns_, "the controller's clock ran backwards");
  now_ns_ = now_ns;
  std::visit([this](const auto& e) { handle(e); }, event);
  return std::exchange(actions_, {});
}

// ---- Symptoms -----------------------------------------------------------------------------

void Controller::handle(const Launched& event) {
  if (state_ != State::Idle) return;
  epoch_ = 1;
  book_.launched(event.step);
  steps_done_ = event.step;
  alive_since_ns_ = now_ns_;
  begin_running();
}

void Controller::handle(const HeartbeatLost& event) { node_symptom(event.node, event.last_seen_ns); }

void Controller::handle(const XidReported& event) {
  switch (xid_meaning(event.xid)) {
    case XidMeaning::Harmless: return;
    case XidMeaning::BlameNode: node_symptom(event.node, event.last_seen_ns); return;
    case XidMeaning::RestartJob:
      if (roster_.holds(event.node) && event.last_seen_ns >= alive_since_ns_ && ranks_may_exist())
        job_symptom(event.last_seen_ns);
      return;
  }
}

void Controller::handle(const CommunicatorError& event) {
  // Ranks that are being torn down complain too: only the current epoch's complaints count.
  if (event.epoch != epoch_ || !ranks_may_exist()) return;
  if (event.suspect && roster_.holds(*event.suspect)) suspicion_.accuse(event);
  job_symptom(event.last_seen_ns);
}

void Controller::handle(const RankExited& event) {
  if (event.epoch != epoch_ || !ranks_may_exist() || !roster_.holds(event.node)) return;
  std::deque<std::pair<std::int64_t, std::int64_t>>& exits = exits_[event.node];  // when, and in which epoch
  while (!exits.empty() && exits.front().first + config_.exit_window_ns <= now_ns_) exits.pop_front();
  if (!exits.empty() && exits.back().second == epoch_) return;  // one exit, heard of again
  exits.emplace_back(now_ns_, epoch_);
  if (static_cast<std::int64_t>(exits.size()) >= config_.exits_before_blame) suspicion_.blame(event.node);
  job_symptom(event.last_seen_ns);
}

/// Silent corruption: the minority is blamed, or, where there is none, everybody who voted.
void Controller::handle(const HashesDiffer& event) {
  if (event.votes.size() < 2) return handle(HashesAgree{event.key});  // nobody differs from itself
  if (!book_.in_progress(event.key)) return;
  book_.drop(event.key);
  book_.distrust_devices(true);
  for (const NodeId node : outvoted(event.votes))
    if (roster_.holds(node)) suspicion_.blame(node);
  job_symptom(now_ns_);
}

void Controller::node_symptom(NodeId node, std::int64_t last_seen_ns) {
  if (roster_.remove_spare(node)) {
    heating_.erase(node);
    doomed_spares_.insert(node);
    return upkeep();
  }
  if (testing_.contains(node)) return test_answered(node, Outcome::Refused);
  if (state_ == State::Idle || !roster_.holds(node)) return;
  if (last_seen_ns < alive_since_ns_ || suspects_.contains(node)) return;
  if (suspicion_.blame(node)) job_symptom(last_seen_ns);
}

void Controller::job_symptom(std::int64_t last_seen_ns) {
  if (state_ == State::Deciding) return;  // the window is open: it gathers this one too
  if (training()) {
    ++failures_;
    ledger_.open(std::max(last_seen_ns, running_since_ns_), now_ns_, Phase::Decide);
  }
  begin_deciding();
}

void Controller::restart_after_failure(std::optional<NodeId> culprit) {
  if (culprit && roster_.holds(*culprit)) suspicion_.blame(*culprit);
  if (state_ == State::Loading && !culprit) book_.distrust(loaded_);
  begin_deciding();
}

bool Controller::ranks_may_exist() const {
  switch (state_) {
    case State::Running:
    case State::Draining:
    case State::Holding:
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

// ---- A planned restart ----------------------------------------------------------------------

/// Replaces nodes that slow the job down or are wanted for maintenance, and lets replicas come
/// back, one restart for all of them: whatever is due and can be done now.
void Controller::plan_restart() {
  if (state_ != State::Running || now_ns_ < next_plan_ns_) return;
  leaving_.clear();
  const auto propose = [this](NodeId node, std::int64_t due_ns) {
    const bool replaceable = roster_.count_spares(Temperature::Cold) > static_cast<std::int64_t>(leaving_.size());
    if (due_ns <= now_ns_ && roster_.holds(node) && roster_.ejection_allowed_at_ns(node, now_ns_) <= now_ns_ &&
        (replaceable || roster_.can_shrink()))
      leaving_.insert(node);
  };
  for (const auto& [node, at_ns] : maintenance_at_ns_) propose(node, at_ns - config_.maintenance_lead_ns);
  for (const auto& [node, since_ns] : straggling_since_ns_) propose(node, since_ns + config_.stragglers.patience_ns);
  // What was due and cannot be done now is looked at again when a spare comes, or later.
  next_plan_ns_ = now_ns_ + config_.page_retry_ns;
  if (!leaving_.empty() || regrowth_due()) begin_draining();
}

bool Controller::regrowth_due() const {
  return regrow_since_ns_ && *regrow_since_ns_ + config_.regrow_patience_ns <= now_ns_;
}

void Controller::begin_draining() {
  enter(State::Draining);
  // A copy in the leaving node's own memory or disk would leave with it.
  const Tier usual = config_.checkpoints.usual_tier;
  const Tier tier = usual == Tier::Peer ? usual : Tier::Remote;
  drain_ = emit(TakeCheckpoint{tier, true});
  book_.begin(drain_, tier);
  phase_timer_ = emit(SetTimer{now_ns_ + config_.deadlines.checkpoint_ns});
}

void Controller::drain_answered(Outcome outcome) {
  if (state_ != State::Draining) return;
  if (outcome == Outcome::Acted) {
    book_.snapshot_taken(drain_);
    return begin_holding();
  }
  if (outcome == Outcome::Timeout) return begin_deciding_from_drain();  // it may hold later: better restart now
  book_.drop(std::exchange(drain_, ActionKey{}));
  leaving_.clear();
  phase_timer_ = ActionKey{};
  next_plan_ns_ = now_ns_ + config_.page_retry_ns;
  enter(State::Running);
  resume_checkpoints();
  upkeep();
}

/// No step is trained from here to the restart: the recovery's account begins.
void Controller::begin_holding() {
  ledger_.open(now_ns_, now_ns_, Phase::Drain);
  enter(State::Holding);
}

// ---- The recovery -------------------------------------------------------------------------

void Controller::begin_deciding_from_drain() {
  if (training()) ledger_.open(now_ns_, now_ns_, Phase::Decide);
  begin_deciding();
}

void Controller::begin_deciding() {
  outstanding_.clear();
  enter(State::Deciding);
  phase_timer_ = emit(SetTimer{now_ns_ + config_.diagnosis_ns});
}

void Controller::begin_fencing() {
  const std::vector<NodeId> verdict = suspicion_.verdict();
  suspicion_.clear();
  suspects_.insert(verdict.begin(), verdict.end());
  for (const NodeId node : leaving_)
    if (roster_.holds(node) && roster_.ejection_allowed_at_ns(node, now_ns_) <= now_ns_) suspects_.insert(node);
  const bool planned = state_ == State::Holding || state_ == State::Draining;
  if (!planned) barren_attempts_ = suspects_.empty() ? barren_attempts_ + 1 : 0;
  leaving_.clear();
  drain_ = ActionKey{};
  book_.drop_all();
  book_.forget_offers();
  checkpoint_deadlines_.clear();
  checkpoint_due_ = false;
  ranks_training_ = false;
  steps_done_ = book_.durable_step();
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
    const std::int64_t allowed_at_ns = roster_.ejection_allowed_at_ns(node, now_ns_);
    if (allowed_at_ns <= now_ns_) {
      eject_owner(node);
      continue;
    }
    if (allowed_at_ns < retry_at_ns) held_domain = roster_.domain_of(node);
    retry_at_ns = std::min(retry_at_ns, allowed_at_ns);
  }
  if (held_domain) wait_for_human(PageReason::EjectionBound, held_domain, retry_at_ns);
  return !held_domain;
}

/// A job that can shrink waits for nobody: it takes hot spares, then goes on with fewer
/// replicas, and takes replicas back when hot spares fill them whole.
void Controller::fill_empty_slots() {
  fill_from(roster_.elastic() ? Temperature::Hot : Temperature::Cold);
  while (!roster_.empty_slots().empty() && roster_.can_shrink()) {
    roster_.drop_replica();
    std::erase_if(unconfirmed_slots_,
                  [this](std::int64_t slot) { return owners()[static_cast<std::size_t>(slot)] == kNobody; });
    fill_from(Temperature::Hot);
  }
  fill_from(Temperature::Cold);
  while (roster_.empty_slots().empty() && !roster_.inactive_replicas().empty() &&
         roster_.count_spares(Temperature::Hot) >= config_.roster.slots_per_replica) {
    roster_.restore_replica();
    fill_from(Temperature::Hot);
  }
  for (const std::int64_t slot : unconfirmed_slots_) promote(owners()[static_cast<std::size_t>(slot)], slot);
  if (!roster_.empty_slots().empty()) return wait_for_spare();
  if (unconfirmed_slots_.empty()) return begin_starting();
  enter(State::Allocating);
  phase_timer_ = emit(SetTimer{now_ns_ + config_.deadlines.allocate_ns});
}

void Controller::fill_from(Temperature at_least) {
  for (const std::int64_t slot : std::set<std::int64_t>(roster_.empty_slots())) {
    const std::optional<NodeId> node = roster_.fill(slot, at_least, now_ns_);
    if (!node) return;
    heating_.erase(*node);
    unconfirmed_slots_.insert(slot);
  }
}

void Controller::promote(NodeId node, std::int64_t slot) { outstanding_.emplace(emit(PromoteSpare{node, slot}), node); }

void Controller::wait_for_human(PageReason reason, std::optional<std::int64_t> domain, std::int64_t retry_at_ns) {
  enter(State::WaitingForHuman);
  page(reason, domain);
  phase_timer_ = emit(SetTimer{retry_at_ns});
}

void Controller::wait_for_spare() {
  enter(State::WaitingForSpare);
  phase_timer_ = ActionKey{};
  upkeep();
}

void Controller::begin_phase(State state, ActionBody request, std::int64_t deadline_ns) {
  outstanding_.clear();
  enter(state);
  outstanding_.emplace(emit(std::move(request)), kNobody);
  phase_timer_ = emit(SetTimer{now_ns_ + deadline_ns});
}

void Controller::begin_starting() {
  begin_phase(State::Starting, StartProcesses{roster_.active_replicas()}, config_.deadlines.process_start_ns);
}

void Controller::begin_loading() {
  loaded_ = book_.best();
  begin_phase(State::Loading, LoadState{loaded_}, config_.deadlines.load_state_ns);
}

void Controller::phase_done() {
  const Deadlines& deadlines = config_.deadlines;
  switch (state_) {
    case State::Fencing: return place();
    case State::Allocating: return begin_starting();
    case State::Starting:
      alive_since_ns_ = now_ns_;
      return begin_phase(State::Connecting, BuildCommunicators{}, deadlines.communicators_ns);
    case State::Connecting: return begin_loading();
    case State::Loading:
      ranks_training_ = true;
      steps_done_ = loaded_.step;
      return begin_phase(State::WarmingUp, Resume{loaded_.step}, deadlines.first_step_ns);
    case State::WarmingUp: {
      const RecoveryLedger ledger = ledger_.close(now_ns_, epoch_, loaded_.step);
      begin_running();
      emit(FileLedger{ledger});
      return;
    }
    case State::WaitingForSpare:  // the promotions so far are confirmed; slots are still empty
    case State::Idle:
    case State::Running:
    case State::Draining:
    case State::Holding:
    case State::Deciding:
    case State::WaitingForHuman: return;
  }
}

void Controller::begin_running() {
  TY_CHECK(roster_.empty_slots().empty() && unconfirmed_slots_.empty() && suspects_.empty(),
           "a running job is complete");
  enter(State::Running);
  outstanding_.clear();
  suspicion_.clear();
  paged_ns_.clear();
  straggling_since_ns_.clear();  // of another epoch: to be seen again
  phase_timer_ = ActionKey{};
  running_since_ns_ = now_ns_;
  next_plan_ns_ = now_ns_;
  ranks_training_ = true;
  arm_checkpoint_timer();
  upkeep();
}

void Controller::handle(const Answered& event) {
  if (event.key == drain_ && event.key.id != 0) return drain_answered(event.outcome);
  if (book_.in_progress(event.key)) return checkpoint_answered(event);
  if (upkeep_answered(event)) return;
  const auto asked = outstanding_.find(event.key);
  if (asked == outstanding_.end()) return;
  const NodeId node = asked->second;
  if (event.outcome != Outcome::Acted)
    return restart_after_failure(event.culprit ? event.culprit
                                               : (node == kNobody ? std::nullopt : std::optional<NodeId>(node)));
  outstanding_.erase(asked);
  if (node != kNobody) unconfirmed_slots_.erase(*slot_of(node));
  if (outstanding_.empty()) phase_done();
}

void Controller::handle(const TimerFired& event) {
  if (event.key.id == 0) return;
  if (event.key == phase_timer_) return phase_timer_fired();
  if (event.key == upkeep_timer_) {
    upkeep_timer_ = ActionKey{};
    plan_restart();
    return upkeep();
  }
  if (event.key == checkpoint_timer_) {
    checkpoint_timer_ = ActionKey{};
    if (state_ == State::Running) take_checkpoint();
    return;
  }
  const auto deadline = checkpoint_deadlines_.find(event.key);
  if (deadline == checkpoint_deadlines_.end()) return;
  const ActionKey late = deadline->second;
  checkpoint_deadlines_.erase(deadline);
  if (!book_.in_progress(late)) return;
  book_.drop(late);
  resume_checkpoints();
}

void Controller::phase_timer_fired() {
  phase_timer_ = ActionKey{};
  switch (state_) {
    case State::Deciding: return begin_fencing();
    case State::WaitingForHuman: return place();
    case State::Draining:
    case State::Holding: return begin_deciding_from_drain();
    default: return restart_after_failure(std::nullopt);  // a deadline passed: nobody in particular to blame
  }
}

void Controller::handle(const HumanCleared&) {
  if (state_ != State::WaitingForHuman) return;
  suspects_.clear();
  suspicion_.clear();
  barren_attempts_ = 0;
  place();
}

void Controller::handle(const StateFound& event) {
  if (event.epoch == epoch_ && state_ == State::Connecting) book_.offer(event.copy);
}

void Controller::handle(const TookOver& event) {
  config_.incarnation = std::max(config_.incarnation, event.incarnation);
}

// ---- Nodes --------------------------------------------------------------------------------

void Controller::eject_owner(NodeId node) {
  const std::int64_t slot = *slot_of(node);
  roster_.vacate(node);
  unconfirmed_slots_.erase(slot);
  suspects_.erase(node);
  maintenance_at_ns_.erase(node);
  ledger_.ejected(node);
  roster_.sent_away(node, emit(Eject{node, slot}), now_ns_);
}

void Controller::handle(const SpareReady& event) {
  if (!testing_.contains(event.node)) admit_spare(event.node, event.temperature);
}

void Controller::handle(const NodeRepaired& event) {
  if (!roster_.returned(event.node, event.key)) return;
  switch (roster_.standing(event.node, now_ns_)) {
    case Roster::Standing::Retired: roster_.retire(event.node); return page(PageReason::NodeRetired, event.node);
    case Roster::Standing::Lemon: return test(event.node, true);
    case Roster::Standing::Good: break;
  }
  if (config_.readmission_test) return test(event.node, false);
  admit_spare(event.node, Temperature::Warm);
}

void Controller::admit_spare(NodeId node, Temperature temperature) {
  if (doomed_spares_.contains(node) || !roster_.add_spare(node, temperature)) return;
  if (state_ == State::WaitingForSpare) return place();
  next_plan_ns_ = now_ns_;
  upkeep();
}

void Controller::test(NodeId node, bool thorough) {
  const std::int64_t patience_ns = config_.deadlines.upkeep_ns * (thorough ? kThoroughTestFactor : 1);
  testing_[node] = {emit(TestNode{node, thorough}), now_ns_ + patience_ns, thorough};
  due_at(now_ns_ + patience_ns);
}

void Controller::test_answered(NodeId node, Outcome outcome) {
  testing_.erase(node);
  if (outcome == Outcome::Acted) return admit_spare(node, Temperature::Warm);
  roster_.sent_back(node, emit(ReturnToRepair{node}), now_ns_);
}

void Controller::handle(const Straggling& event) {
  if (event.epoch != epoch_ || !training() || !roster_.holds(event.node)) return;
  const StragglerPolicy& policy = config_.stragglers;
  if (policy.replace_at_slowdown <= 0) return;
  if (event.slowdown < policy.replace_at_slowdown) {
    straggling_since_ns_.erase(event.node);
  } else if (straggling_since_ns_.emplace(event.node, now_ns_).second) {
    due_at(now_ns_ + policy.patience_ns);
  }
}

void Controller::handle(const StragglingOver& event) { straggling_since_ns_.erase(event.node); }

void Controller::handle(const MaintenanceDue& event) {
  if (!roster_.holds(event.node) && !spares().contains(event.node)) return;
  if (!maintenance_at_ns_.emplace(event.node, event.at_ns).second) return;
  due_at(event.at_ns - config_.maintenance_lead_ns);
}

// ---- Upkeep -------------------------------------------------------------------------------

/// Does what is due and arms the timer for what will be. Changes no state by itself.
void Controller::upkeep() {
  doom_spares_due_for_maintenance();
  eject_doomed_spares();
  heat_spares();
  repeat_tests();
  if (state_ == State::WaitingForSpare) {
    page(PageReason::SparesExhausted, std::nullopt);  // and again, until somebody brings one
    due_at(now_ns_ + config_.page_retry_ns);
  }
  if (state_ != State::Running) return;
  const bool whole = !roster_.inactive_replicas().empty() &&
                     roster_.count_spares(Temperature::Hot) >= config_.roster.slots_per_replica;
  if (!whole) regrow_since_ns_.reset();
  if (whole && !regrow_since_ns_) regrow_since_ns_ = now_ns_;
  const auto plan_at = [this](std::int64_t due_ns) { due_at(std::max(next_plan_ns_, due_ns)); };
  if (whole) plan_at(*regrow_since_ns_ + config_.regrow_patience_ns);
  for (const auto& [node, at_ns] : maintenance_at_ns_) plan_at(at_ns - config_.maintenance_lead_ns);
  for (const auto& [node, since_ns] : straggling_since_ns_) plan_at(since_ns + config_.stragglers.patience_ns);
}

bool Controller::upkeep_answered(const Answered& answer) {
  const auto asked = [&](const auto& entry) { return entry.second.key == answer.key; };
  const auto heated = std::find_if(heating_.begin(), heating_.end(), asked);
  if (heated != heating_.end()) {
    const NodeId node = heated->first;
    heating_.erase(heated);
    if (answer.outcome != Outcome::Acted) {
      node_symptom(node, now_ns_);
      return true;
    }
    roster_.set_temperature(node, Temperature::Hot);
    next_plan_ns_ = now_ns_;
    upkeep();
    return true;
  }
  const auto tested = std::find_if(testing_.begin(), testing_.end(), asked);
  if (tested == testing_.end()) return false;
  test_answered(tested->first, answer.outcome);
  return true;
}

/// Until then they are as good as others.
void Controller::doom_spares_due_for_maintenance() {
  for (const auto& [node, at_ns] : maintenance_at_ns_) {
    if (!spares().contains(node)) continue;
    if (at_ns - config_.maintenance_lead_ns > now_ns_) {
      due_at(at_ns - config_.maintenance_lead_ns);
      continue;
    }
    roster_.remove_spare(node);
    heating_.erase(node);
    doomed_spares_.insert(node);
  }
}

void Controller::eject_doomed_spares() {
  for (const NodeId node : std::vector<NodeId>(doomed_spares_.begin(), doomed_spares_.end())) {
    const std::int64_t allowed_at_ns = roster_.ejection_allowed_at_ns(node, now_ns_);
    if (allowed_at_ns > now_ns_) {
      due_at(allowed_at_ns);
      page(PageReason::EjectionBound, roster_.domain_of(node));
      continue;
    }
    doomed_spares_.erase(node);
    maintenance_at_ns_.erase(node);
    roster_.sent_away(node, emit(Eject{node, std::nullopt}), now_ns_);
  }
}

/// Keeps as many spares hot as the policy wants, and, while replicas are missing, a replica's worth.
void Controller::heat_spares() {
  std::erase_if(heating_, [this](const auto& entry) { return entry.second.again_at_ns <= now_ns_; });
  const bool shrunk = !roster_.inactive_replicas().empty();
  const std::int64_t wanted = std::max(config_.hot_spares, shrunk ? config_.roster.slots_per_replica : 0);
  std::int64_t missing = wanted - roster_.count_spares(Temperature::Hot) - static_cast<std::int64_t>(heating_.size());
  for (const Temperature temperature : {Temperature::Warm, Temperature::Cold}) {
    for (const auto& [node, its] : spares()) {
      if (missing <= 0) break;
      if (its != temperature || heating_.contains(node)) continue;
      heating_[node] = {emit(HeatSpare{node}), now_ns_ + config_.deadlines.upkeep_ns, false};
      --missing;
    }
  }
  for (const auto& [node, asked] : heating_) due_at(asked.again_at_ns);
}

void Controller::repeat_tests() {
  for (const auto& [node, asked] : std::map<NodeId, Asked>(testing_)) {
    if (asked.again_at_ns <= now_ns_)
      test(node, asked.thorough);
    else
      due_at(asked.again_at_ns);
  }
}

void Controller::due_at(std::int64_t at_ns) {
  at_ns = std::max(at_ns, now_ns_);
  if (upkeep_timer_.id != 0 && upkeep_at_ns_ <= at_ns) return;
  upkeep_at_ns_ = at_ns;
  upkeep_timer_ = emit(SetTimer{at_ns});
}

// ---- Training -----------------------------------------------------------------------------

void Controller::handle(const StepsDone& event) {
  if (event.epoch != epoch_ || !ranks_training_) return;
  if (event.first <= steps_done_ + 1 && event.last > steps_done_) steps_done_ = event.last;
}

void Controller::handle(const CheckpointDurable& event) { checkpoint_accepted(event.key, book_.durable(event)); }

void Controller::handle(const HashesAgree& event) {
  if (!book_.in_progress(event.key)) return;
  book_.distrust_devices(false);
  checkpoint_accepted(event.key, book_.agreed(event.key));
}

void Controller::checkpoint_accepted(const ActionKey& key, const CheckpointBook::Accepted& accepted) {
  if (accepted.tiers.empty()) return;
  steps_done_ = std::max(steps_done_, accepted.step);
  barren_attempts_ = 0;
  if (key != drain_) return resume_checkpoints();
  if (book_.in_progress(key)) return;              // not yet as deep as it must go
  if (state_ == State::Draining) begin_holding();  // the snapshot's own answer was overtaken
  if (state_ == State::Holding) begin_fencing();
}

void Controller::arm_checkpoint_timer() {
  checkpoint_timer_ = ActionKey{};
  const std::int64_t trained_ns = trained_ns_ + (training() ? now_ns_ - training_since_ns_ : 0);
  const std::int64_t interval_ns = book_.interval_ns(trained_ns, failures_);
  if (interval_ns > 0) checkpoint_timer_ = emit(SetTimer{now_ns_ + interval_ns});
}

void Controller::take_checkpoint() {
  const Tier tier = book_.next_tier();
  // Storage may be behind: then it is taken as soon as there is room.
  checkpoint_due_ = book_.awaiting_snapshot().has_value() || book_.busy(tier);
  if (checkpoint_due_) return;
  const ActionKey key = emit(TakeCheckpoint{tier, false});
  book_.begin(key, tier);
  checkpoint_deadlines_[emit(SetTimer{now_ns_ + config_.deadlines.checkpoint_ns})] = key;
}

void Controller::checkpoint_answered(const Answered& answer) {
  if (answer.outcome == Outcome::Acted)
    book_.snapshot_taken(answer.key);
  else
    book_.drop(answer.key);
  resume_checkpoints();
}

/// Takes the one that is due, or arms the timer for the next, whichever is missing.
void Controller::resume_checkpoints() {
  if (state_ != State::Running) return;
  if (checkpoint_due_)
    take_checkpoint();
  else if (checkpoint_timer_.id == 0 && !book_.awaiting_snapshot())
    arm_checkpoint_timer();
}

// ---- Plumbing -----------------------------------------------------------------------------

ActionKey Controller::emit(ActionBody body) {
  const ActionKey key{config_.incarnation, epoch_, next_id_++};
  actions_.push_back({key, std::move(body)});
  return key;
}

void Controller::enter(State state) {
  const bool was_training = training(), same = state_ == state;
  state_ = state;
  if (was_training && !training()) trained_ns_ += now_ns_ - training_since_ns_;
  if (!was_training && training()) training_since_ns_ = now_ns_;
  const std::optional<Phase> phase = phase_of(state);
  if (phase && !same && ledger_.is_open()) ledger_.enter(now_ns_, *phase);
}

void Controller::page(PageReason reason, std::optional<std::int64_t> subject) {
  const auto [entry, first] = paged_ns_.try_emplace({reason, subject.value_or(-1)}, now_ns_);
  if (!first && entry->second + config_.page_retry_ns > now_ns_) return;
  entry->second = now_ns_;
  emit(PageHuman{reason, subject});
}

std::string Controller::violated_invariant() const {
  if (std::string contradiction = roster_.contradiction(); !contradiction.empty()) return "I2, I11: " + contradiction;
  for (const NodeId node : doomed_spares_)
    if (roster_.holds(node) || spares().contains(node)) return fmt::format("I2: failed spare {} is in use", node);
  for (const auto& [node, asked] : testing_)
    if (roster_.holds(node) || spares().contains(node)) return fmt::format("I12: node {} is in use untested", node);
  if (steps_done_ < durable_step()) return "I4: durable steps are not done";
  const bool recovering = phase_of(state_).has_value();
  if (recovering != ledger_.is_open()) return "I8: a recovery without a ledger, or the reverse";
  const bool must_move = recovering || state_ == State::Draining;
  if (must_move && state_ != State::WaitingForSpare && phase_timer_ == ActionKey{})
    return fmt::format("I8: no timer moves {} on", to_string(state_));
  if (state_ == State::WaitingForSpare && !spares().empty()) return "I8: waiting beside a spare";
  return {};
}

// ---- The table ----------------------------------------------------------------------------

const std::vector<Transition>& transition_table() {
  using enum State;
  static const std::vector<Transition> table = [] {
    std::vector<Transition> rows{
        {Idle, "launched", Running},
        {Running, "timer_fired", Draining},
        {Draining, "answered", Holding},
        {Draining, "answered", Running},
        {Draining, "answered", Deciding},
        {Draining, "checkpoint_durable", Fencing},
        {Draining, "hashes_agree", Fencing},
        {Draining, "timer_fired", Deciding},
        {Holding, "checkpoint_durable", Fencing},
        {Holding, "hashes_agree", Fencing},
        {Holding, "timer_fired", Deciding},
        {Deciding, "timer_fired", Fencing},
        {WaitingForSpare, "spare_ready", Allocating},
        {WaitingForSpare, "node_repaired", Allocating},
        {WaitingForSpare, "answered", Allocating},
        {WaitingForSpare, "answered", Deciding},
        {Allocating, "answered", Starting},
        {Starting, "answered", Connecting},
        {Connecting, "answered", Loading},
        {Loading, "answered", WarmingUp},
        {WarmingUp, "answered", Running},
    };
    // Placement after a fence ends in one of these.
    for (const State to : {WaitingForHuman, WaitingForSpare, Allocating, Starting}) {
      rows.push_back({Fencing, "answered", to});
      if (to == WaitingForHuman) continue;
      rows.push_back({WaitingForHuman, "timer_fired", to});
      rows.push_back({WaitingForHuman, "human_cleared", to});
    }
    // Symptoms: of a node at any time; of the job while ranks may exist.
    for (const State from : {Running, Draining, Holding, Starting, Connecting, Loading, WarmingUp})
      for (const char* symptom : {"heartbeat_lost", "xid_reported", "communicator_error"})
        rows.push_back({from, symptom, Deciding});
    for (const State from : {Running, Draining, Holding, Connecting, Loading, WarmingUp})
      rows.push_back({from, "rank_exited", Deciding});
    for (const State from : {Fencing, WaitingForHuman, WaitingForSpare, Allocating})
      for (const char* symptom : {"heartbeat_lost", "xid_reported"}) rows.push_back({from, symptom, Deciding});
    for (const State from : {Running, Draining, Holding}) rows.push_back({from, "hashes_differ", Deciding});
    // A refusal, or a deadline.
    for (const State from : {Fencing, Allocating, Starting, Connecting, Loading, WarmingUp})
      for (const char* event : {"answered", "timer_fired"}) rows.push_back({from, event, Deciding});
    return rows;
  }();
  return table;
}

}  // namespace trainyard::recovery
