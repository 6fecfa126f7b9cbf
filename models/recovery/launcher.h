// The launcher: hosts the controller, gives its actions to agents and store, and gathers what
// they answer into its events. Pure, like the controller: the world carries its mail, keeps its
// journal and calls it when something is due.
//
// It survives its own death. Every event is in the journal before the controller sees it, and
// actions follow from events; so a new launcher replays the journal into a new controller, asks
// again for whatever had not been answered, and hears from heartbeats how the world is. Replay
// rebuilds belief, not the world. There is one launcher at a time: whoever starts it sees to that.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <variant>
#include <vector>

#include "models/recovery/controller.h"
#include "models/recovery/failure_detector.h"
#include "models/recovery/protocol.h"

namespace trainyard::recovery {

struct LauncherConfig {
  ControllerConfig controller;
  /// Silence after which a node is reported; heartbeats come several times as often.
  std::int64_t detection_ns = 0;
  /// No step for this long while the job should train: whoever has not come to the collective hangs.
  std::int64_t training_ns = 0;
  std::int64_t lease_ns = 0;
  /// Between two askings for the same thing.
  std::int64_t retry_ns = 0;
  /// For an answer; then it is a timeout. Less than the controller's deadlines, which name nobody.
  std::int64_t answer_ns = 0;
  /// Slots whose shards make up one whole copy of the state: those of a replica, or all.
  std::int64_t shards = 1;
};

struct JournalEntry {
  std::int64_t now_ns = 0;
  Event event;
};

/// To be in the journal, durably, before any output that follows it is carried out.
struct Append {
  JournalEntry entry;
};
struct SendRequest {
  NodeId to = 0;
  Request request;
};
struct SendLease {
  NodeId to = 0;
  Lease lease;
};
/// An action that concerns neither agents nor the store: Eject, ReturnToRepair, PageHuman, FileLedger.
struct Announce {
  Action action;
};
using LauncherOutput = std::variant<Append, SendRequest, SendLease, FenceStore, PromoteCheckpoint, Announce>;

class Launcher {
 public:
  /// Takes over from a journal, empty for a job that has never run. `now_ns` is not before the journal's last entry.
  Launcher(LauncherConfig config, const std::vector<JournalEntry>& journal, std::int64_t now_ns);

  /// The job's first launch, at `step`.
  void launch(std::int64_t now_ns, std::int64_t step);
  void receive(std::int64_t now_ns, const Heartbeat& heartbeat);
  void receive(std::int64_t now_ns, const Reply& reply);
  void receive(std::int64_t now_ns, const ShardWritten& written);
  void receive(std::int64_t now_ns, const HashReport& report);
  void receive(std::int64_t now_ns, const Report& report);
  void receive(std::int64_t now_ns, const StoreReply& reply);
  /// From outside the job: repaired nodes, new spares, maintenance, humans.
  void tell(std::int64_t now_ns, const Event& event) { deliver(now_ns, event); }
  /// Does what is due. To be called at due_ns() at the latest.
  void tick(std::int64_t now_ns);
  [[nodiscard]] std::int64_t due_ns() const;

  std::vector<LauncherOutput> take_outputs() { return std::exchange(outputs_, {}); }
  [[nodiscard]] const Controller& controller() const { return controller_; }

 private:
  /// An action on its way: who has not answered yet.
  struct Open {
    Action action;
    std::set<NodeId> waiting;
    bool store_waits = false;
    std::vector<Reply> replies;
    std::int64_t again_at_ns = 0, give_up_at_ns = 0;
  };
  /// A checkpoint on its way: who has taken the snapshot, which shards are written where.
  struct Draining {
    Action action;
    std::int64_t step = -1;
    std::map<NodeId, std::uint64_t> hashes;
    bool voted = false;
    std::map<Tier, std::set<std::int64_t>> shards;
    std::set<Tier> reported;
    std::int64_t again_at_ns = 0;
  };

  void deliver(std::int64_t now_ns, const Event& event);
  void digest(std::int64_t now_ns, const Event& event);
  void note(const Event& event);
  void forget_if_settled(const ActionKey& key);
  void dispatch(std::int64_t now_ns, const Action& action);
  void send_away(NodeId node, const Action& action);
  void open(std::int64_t now_ns, const Action& action, std::set<NodeId> nodes);
  void ask(std::int64_t now_ns, Open& its);
  [[nodiscard]] Request request_for(const Action& action, NodeId node) const;
  [[nodiscard]] std::set<NodeId> owners() const;

  void answered_by(std::int64_t now_ns, const ActionKey& key, const Reply& reply);
  void finish_if_done(std::int64_t now_ns, const ActionKey& key);
  void report_copies(std::int64_t now_ns, const std::vector<Reply>& replies);
  bool promote(Draining& its);
  void ask_for_rest(std::int64_t now_ns, Draining& its);

  void fire_timers(std::int64_t now_ns);
  void report_silence(std::int64_t now_ns);
  void give_up_waiting(std::int64_t now_ns);
  void ask_again(std::int64_t now_ns);
  void pass_expired_leases(std::int64_t now_ns);
  void report_hang(std::int64_t now_ns);
  void report_steps(std::int64_t now_ns);

  LauncherConfig config_;
  Controller controller_;
  bool replaying_ = false;
  std::int64_t took_over_ns_ = 0;
  std::set<std::pair<std::int64_t, ActionKey>> timers_;
  std::map<ActionKey, Open> open_;
  std::map<ActionKey, Draining> draining_;
  std::map<NodeId, Action> sent_away_;  // announced, and announced again by each launcher until the node is back
  std::map<PageReason, Action> pages_;  // the last ones, while somebody is waited for
  /// Nodes on which ranks may run: all that were asked to start them and have not been fenced since.
  std::set<NodeId> members_;
  FailureDetector detector_;
  std::map<NodeId, Heartbeat> last_;                                // of the owners, in this epoch
  std::map<NodeId, std::pair<std::int64_t, std::int64_t>> newest_;  // boot and clock of the newest heartbeat
  std::int64_t progress_ns_ = 0;                                    // when the slowest owner's step last grew
  std::int64_t slowest_step_ = 0;
  std::int64_t hang_reported_ns_ = 0;
  std::vector<LauncherOutput> outputs_;
};

}  // namespace trainyard::recovery
