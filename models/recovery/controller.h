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

#include "models/recovery/ledger.h"
#include "models/recovery/messages.h"
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
};

struct ControllerConfig {
  std::int64_t incarnation = 1;
  /// owners[slot] is the node that holds the slot's logical ranks.
  std::vector<NodeId> owners;
  std::vector<NodeId> spares;
  /// Node n lies in failure domain n / nodes_per_domain (a leaf switch).
  std::int64_t nodes_per_domain = 1;
  /// Time given to gather symptoms before suspects are named.
  std::int64_t diagnosis_ns = 0;
  /// From the end of one snapshot, or from Resume, to the next; 0: no checkpoints.
  std::int64_t checkpoint_interval_ns = 0;
  std::int64_t max_ejections_per_domain = 8;
  std::int64_t ejection_window_ns = 3'600'000'000'000;
  /// Recoveries in a row that blame no node and reach no checkpoint, before a human is paged.
  std::int64_t max_barren_attempts = 5;
  /// After a page that no window will lift by itself: try again after this long.
  std::int64_t page_retry_ns = 3'600'000'000'000;
  Deadlines deadlines;
};

/// The controller's knobs of a policy, for a job on nodes 0..job_nodes-1 with the policy's
/// spares behind them. Deadlines are twice what the policy expects of the world plus the
/// detection timeout plus a minute: longer than any layer below them, so that symptoms come first.
ControllerConfig controller_config(const PolicySpec& policy, std::int64_t job_nodes, std::int64_t nodes_per_domain,
                                   double checkpoint_interval_s);

enum class State : std::uint8_t {
  Idle,
  Running,
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
const char* to_string(State state);
/// The ledger's phase that time in this state is booked to; none in Idle and Running.
std::optional<Phase> phase_of(State state);

class Controller {
 public:
  static constexpr NodeId kNobody = -1;

  explicit Controller(ControllerConfig config);

  /// The one entry. `now_ns` must not run backwards. Every event is acceptable in every
  /// state: one that is stale, repeated or senseless changes nothing.
  std::vector<Action> step(std::int64_t now_ns, const Event& event);

  [[nodiscard]] State state() const { return state_; }
  [[nodiscard]] std::int64_t epoch() const { return epoch_; }
  [[nodiscard]] const std::vector<NodeId>& owners() const { return owners_; }
  /// The slot that the node holds, if any.
  [[nodiscard]] std::optional<std::int64_t> slot_of(NodeId node) const;
  [[nodiscard]] const std::set<NodeId>& spares() const { return spares_; }
  /// All steps up to this one survive whatever happens.
  [[nodiscard]] std::int64_t durable_step() const { return durable_step_; }
  /// All steps up to this one are done by ranks that may commit; not all need be durable.
  [[nodiscard]] std::int64_t steps_done() const { return steps_done_; }

  /// Checks the invariants that can be seen from one state; empty, or what is violated. Costs
  /// a pass over all nodes: for tests.
  [[nodiscard]] std::string violated_invariant() const;

 private:
  void handle(const Launched& event);
  void handle(const HeartbeatLost& event);
  void handle(const CommunicatorError& event);
  void handle(const XidReported& event);
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

  void begin_deciding();
  void begin_fencing();
  void place();
  bool eject_suspects();
  void fill_empty_slots();
  void wait_for_human(PageReason reason, std::optional<std::int64_t> domain, std::int64_t retry_at_ns);
  void wait_for_spare();
  void begin_phase(State state, ActionBody request, std::int64_t deadline_ns);
  void phase_done();
  void begin_running();

  void eject(NodeId node);
  void eject_doomed_spares();
  void promote(NodeId node, std::int64_t slot);
  void add_spare(NodeId node);

  void arm_checkpoint_timer();
  void take_checkpoint();
  void checkpoint_answered(const Answered& answer);
  void drop_checkpoint();

  ActionKey emit(ActionBody body);
  void enter(State state);
  void page(PageReason reason, std::optional<std::int64_t> domain);
  [[nodiscard]] std::int64_t domain_of(NodeId node) const { return node / config_.nodes_per_domain; }
  /// When the bound lets the domain lose one more node; <= now: at once.
  std::int64_t ejection_allowed_at_ns(std::int64_t domain);
  /// Processes of the current epoch may exist.
  [[nodiscard]] bool ranks_may_exist() const;

  ControllerConfig config_;
  State state_ = State::Idle;
  std::int64_t now_ns_ = 0;
  std::int64_t epoch_ = 0;
  std::int64_t next_id_ = 1;

  // Who is where.
  std::vector<NodeId> owners_;
  std::map<NodeId, std::int64_t> slot_of_;
  std::set<std::int64_t> empty_slots_;
  /// Promoted, not yet confirmed: asked again after every fence.
  std::set<std::int64_t> unconfirmed_slots_;
  std::set<NodeId> spares_;
  /// Spares that failed, to be ejected when their domain's bound allows.
  std::set<NodeId> doomed_spares_;
  std::map<NodeId, ActionKey> ejected_;
  std::map<std::int64_t, std::deque<std::int64_t>> ejection_times_ns_;

  // What is being asked.
  std::map<ActionKey, NodeId> outstanding_;  // the node asked, kNobody for all of them
  ActionKey phase_timer_;
  ActionKey doomed_timer_;
  std::set<std::pair<PageReason, std::int64_t>> paged_;  // in this recovery

  // Whom to blame.
  Suspicion suspicion_;
  std::set<NodeId> suspects_;  // owners named by a verdict, to be ejected after the fence
  std::int64_t barren_attempts_ = 0;
  /// Every owner answered after this time; older symptoms are stale.
  std::int64_t alive_since_ns_ = 0;
  std::int64_t running_since_ns_ = 0;

  // What has been trained.
  std::int64_t steps_done_ = 0;
  std::int64_t durable_step_ = 0;
  bool ranks_training_ = false;
  std::optional<ActionKey> checkpoint_;
  bool checkpoint_due_ = false;
  ActionKey checkpoint_timer_;
  ActionKey checkpoint_deadline_;

  LedgerBook ledger_;
  std::vector<Action> actions_;
};

}  // namespace trainyard::recovery
