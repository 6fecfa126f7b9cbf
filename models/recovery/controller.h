// The recovery controller: a pure state machine, step(now, event) -> actions.
//
// No clock, no threads, no I/O, no random numbers; it cannot ask whether it is simulated. The
// same events at the same times give the same actions, always. Invariants, diagram and
// transition table open controller.cpp.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "models/recovery/checkpoint_book.h"
#include "models/recovery/ledger.h"
#include "models/recovery/messages.h"
#include "models/recovery/roster.h"
#include "models/recovery/suspicion.h"
#include "models/spec/policy_spec.h"

namespace trainyard::recovery {

/// How long the controller waits for an answer before it starts the recovery over.
struct Deadlines {
  std::int64_t fence_ns = 0;
  std::int64_t allocate_ns = 0;
  std::int64_t process_start_ns = 0;
  std::int64_t communicators_ns = 0;
  std::int64_t load_state_ns = 0;
  std::int64_t first_step_ns = 0;
  /// From TakeCheckpoint to CheckpointDurable; then the checkpoint is given up.
  std::int64_t checkpoint_ns = 0;
  /// Heating a spare, or testing a repaired node: then it is asked for again.
  std::int64_t upkeep_ns = 600'000'000'000;
};

/// What is done about a node that slows the job down.
struct StragglerPolicy {
  /// Replaced when the job's steps take at least this many times as long as they should; 0: tolerated.
  double replace_at_slowdown = 0;
  /// ... for this long without a break.
  std::int64_t patience_ns = 0;
};

struct ControllerConfig {
  std::int64_t incarnation = 1;
  RosterConfig roster;
  CheckpointConfig checkpoints;
  StragglerPolicy stragglers;
  /// Hot spares to keep, by heating others; the rest stay as they are.
  std::int64_t hot_spares = 0;
  /// While the job is shrunk: how long a whole replica of hot spares waits before it joins.
  std::int64_t regrow_patience_ns = 0;
  /// How long before a node's maintenance the job is moved off it.
  std::int64_t maintenance_lead_ns = 600'000'000'000;
  /// A node whose ranks exit this often within the window is blamed itself.
  std::int64_t exits_before_blame = 2;
  std::int64_t exit_window_ns = 3'600'000'000'000;
  /// Repaired nodes are tested before they may hold ranks again.
  bool readmission_test = true;
  /// Time given to gather symptoms before suspects are named.
  std::int64_t diagnosis_ns = 0;
  /// Recoveries in a row that blame no node and reach no checkpoint, before a human is paged.
  std::int64_t max_barren_attempts = 5;
  /// After a page that no window will lift by itself: try again, or page again, after this long.
  std::int64_t page_retry_ns = 3'600'000'000'000;
  Deadlines deadlines;
};

/// What the controller must know of the job that it cares for.
struct JobShape {
  /// The job starts on nodes 0..nodes-1; the policy's spares follow.
  std::int64_t nodes = 1;
  std::int64_t nodes_per_domain = 1;
  /// Data-parallel replicas that hold whole nodes each; 1: the job cannot shrink.
  std::int64_t replicas = 1;
  /// By slot, a replica's slots one after the other: the node that holds it at first. Empty: slot i has node i.
  std::vector<NodeId> owners = {};
  /// What loading may take beside the policy's load_state_s: the bytes.
  double load_s = 0;
  /// By node, where it stands; empty: the places are the numbers.
  std::vector<std::int64_t> places = {};
};

/// The controller's knobs of a policy. Deadlines are twice what the policy expects of the world plus the
/// detection timeout plus a minute: longer than any layer below them, so that symptoms come first.
/// `checkpoint_interval_s` is what the policy's cadence starts from, `expected_mtbf_s` what an adaptive one expects.
ControllerConfig controller_config(const PolicySpec& policy, const JobShape& job, double checkpoint_interval_s,
                                   double expected_mtbf_s);

enum class State : std::uint8_t {
  Idle,
  Running,
  Draining,
  Holding,
  Deciding,
  Fencing,
  WaitingForHuman,
  WaitingForSpare,
  Allocating,
  Starting,
  Connecting,
  Loading,
  WarmingUp,
};
inline constexpr int kStateCount = static_cast<int>(State::WarmingUp) + 1;
const char* to_string(State state);
/// The ledger's phase that time in this state is booked to; none while the job trains or is idle.
std::optional<Phase> phase_of(State state);

/// A row of the transition table: in `from`, an event of this kind may lead to `to`.
struct Transition {
  State from;
  const char* event;  // kind_of(event)
  State to;
};
/// All that can happen between two different states.
const std::vector<Transition>& transition_table();

class Controller {
 public:
  explicit Controller(ControllerConfig config);

  /// The one entry. `now_ns` must not run backwards. Every event is acceptable in every
  /// state: one that is stale, repeated or senseless changes nothing.
  std::vector<Action> step(std::int64_t now_ns, const Event& event);

  [[nodiscard]] State state() const { return state_; }
  [[nodiscard]] std::int64_t epoch() const { return epoch_; }
  [[nodiscard]] std::int64_t incarnation() const { return config_.incarnation; }
  [[nodiscard]] const std::vector<NodeId>& owners() const { return roster_.owners(); }
  /// The slot that the node holds, if any.
  [[nodiscard]] std::optional<std::int64_t> slot_of(NodeId node) const { return roster_.slot_of(node); }
  [[nodiscard]] const std::map<NodeId, Temperature>& spares() const { return roster_.spares(); }
  [[nodiscard]] std::vector<std::int64_t> active_replicas() const { return roster_.active_replicas(); }
  /// All steps up to this one survive whatever happens.
  [[nodiscard]] std::int64_t durable_step() const { return book_.durable_step(); }
  /// All steps up to this one are done by ranks that may commit; not all need be durable.
  [[nodiscard]] std::int64_t steps_done() const { return steps_done_; }

  /// Of the recovery that goes on, if one does.
  [[nodiscard]] std::optional<RecoveryLedger> ledger_so_far(std::int64_t now_ns) const {
    return ledger_.is_open() ? std::optional(ledger_.so_far(now_ns)) : std::nullopt;
  }

  /// Ejected, and not yet heard of as repaired.
  [[nodiscard]] bool is_away(NodeId node) const { return roster_.is_away(node); }
  /// The checkpoint is in progress: nothing has made it void.
  [[nodiscard]] bool wants_checkpoint(const ActionKey& key) const { return book_.in_progress(key); }

  /// Checks the invariants that can be seen from one state; empty, or what is violated. Costs
  /// a pass over all nodes: for tests.
  [[nodiscard]] std::string violated_invariant() const;

 private:
  void handle(const Launched& event);
  void handle(const HeartbeatLost& event);
  void handle(const CommunicatorError& event);
  void handle(const XidReported& event);
  void handle(const RankExited& event);
  void handle(const Straggling& event);
  void handle(const StragglingOver& event);
  void handle(const MaintenanceDue& event);
  void handle(const HashesAgree& event);
  void handle(const HashesDiffer& event);
  void handle(const StateFound& event);
  void handle(const TookOver& event);
  void handle(const StepsDone& event);
  void handle(const CheckpointDurable& event);
  void handle(const SpareReady& event);
  void handle(const NodeRepaired& event);
  void handle(const TimerFired& event);
  void handle(const Answered& event);
  void handle(const HumanCleared& event);

  void node_symptom(NodeId node, std::int64_t last_seen_ns);
  void job_symptom(std::int64_t last_seen_ns);
  void restart_after_failure(std::optional<NodeId> culprit);

  void plan_restart();
  [[nodiscard]] bool regrowth_due() const;
  void begin_draining();
  void drain_answered(Outcome outcome);
  void begin_holding();
  void begin_deciding_from_drain();

  void begin_deciding();
  void begin_fencing();
  void place();
  bool eject_suspects();
  void fill_empty_slots();
  void fill_from(Temperature at_least);
  void wait_for_human(PageReason reason, std::optional<std::int64_t> domain, std::int64_t retry_at_ns);
  void wait_for_spare();
  void begin_phase(State state, ActionBody request, std::int64_t deadline_ns);
  void begin_starting();
  void begin_loading();
  void phase_done();
  void phase_timer_fired();
  void begin_running();

  void eject_owner(NodeId node);
  void promote(NodeId node, std::int64_t slot);
  void admit_spare(NodeId node, Temperature temperature);
  void test(NodeId node, bool thorough);
  void test_answered(NodeId node, Outcome outcome);

  [[nodiscard]] bool training() const { return state_ == State::Running || state_ == State::Draining; }
  void arm_checkpoint_timer();
  void take_checkpoint();
  void checkpoint_answered(const Answered& answer);
  void resume_checkpoints();
  void checkpoint_accepted(const ActionKey& key, const CheckpointBook::Accepted& accepted);

  // Upkeep: what is due some time, whatever the job does meanwhile.
  void upkeep();
  bool upkeep_answered(const Answered& answer);
  void doom_spares_due_for_maintenance();
  void eject_doomed_spares();
  void heat_spares();
  void repeat_tests();
  void due_at(std::int64_t at_ns);

  ActionKey emit(ActionBody body);
  void enter(State state);
  void page(PageReason reason, std::optional<std::int64_t> subject);
  /// Processes of the current epoch may exist.
  [[nodiscard]] bool ranks_may_exist() const;

  ControllerConfig config_;
  State state_ = State::Idle;
  std::int64_t now_ns_ = 0;
  std::int64_t epoch_ = 0;
  std::int64_t next_id_ = 1;

  // Who is where.
  Roster roster_;
  /// Promoted, not yet confirmed: asked again after every fence.
  std::set<std::int64_t> unconfirmed_slots_;
  /// Spares that failed, to be ejected when their domain's bound allows.
  std::set<NodeId> doomed_spares_;
  struct Asked {
    ActionKey key;
    std::int64_t again_at_ns = 0;
    bool thorough = false;
  };
  std::map<NodeId, Asked> heating_;
  std::map<NodeId, Asked> testing_;

  // What is being asked.
  std::map<ActionKey, NodeId> outstanding_;  // the node asked, kNobody for all of them
  ActionKey phase_timer_;
  ActionKey upkeep_timer_;
  std::int64_t upkeep_at_ns_ = 0;
  std::map<std::pair<PageReason, std::int64_t>, std::int64_t> paged_ns_;  // in this recovery, and when

  // Whom to blame.
  Suspicion suspicion_;
  std::set<NodeId> suspects_;  // owners named by a verdict, to be ejected after the fence
  std::map<NodeId, std::deque<std::pair<std::int64_t, std::int64_t>>> exits_;  // when, and in which epoch
  std::int64_t barren_attempts_ = 0;
  /// Every owner answered after this time; older symptoms are stale.
  std::int64_t alive_since_ns_ = 0;
  std::int64_t running_since_ns_ = 0;

  // What is planned.
  std::map<NodeId, std::int64_t> straggling_since_ns_;
  std::map<NodeId, std::int64_t> maintenance_at_ns_;
  std::set<NodeId> leaving_;  // to be replaced at the planned restart
  std::optional<std::int64_t> regrow_since_ns_;
  ActionKey drain_;
  std::int64_t next_plan_ns_ = 0;

  // What has been trained.
  CheckpointBook book_;
  StateCopy loaded_;
  std::int64_t steps_done_ = 0;
  bool ranks_training_ = false;
  std::int64_t trained_ns_ = 0;
  std::int64_t training_since_ns_ = 0;
  std::int64_t failures_ = 0;
  bool checkpoint_due_ = false;
  ActionKey checkpoint_timer_;
  std::map<ActionKey, ActionKey> checkpoint_deadlines_;  // timer, checkpoint

  LedgerBook ledger_;
  std::vector<Action> actions_;
};

}  // namespace trainyard::recovery
