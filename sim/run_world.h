// The world of one run: everything that the controller can only see symptoms of.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <simgrid/s4u.hpp>

#include "models/base/random.h"
#include "models/faults/fault_mode.h"
#include "models/faults/fault_source.h"
#include "models/faults/symptoms.h"
#include "models/recovery/controller.h"
#include "models/recovery/replay.h"
#include "sim/nic_faults.h"
#include "sim/run_agenda.h"
#include "sim/run_result.h"
#include "sim/run_simulator.h"
#include "sim/run_trace.h"
#include "sim/state_copies.h"
#include "sim/storage_traffic.h"
#include "sim/work_book.h"

namespace trainyard {

/// Rounding in a step count that has been advanced by many divisions.
inline constexpr double kStepEpsilon = 1e-9;

class RunWorld {
 public:
  /// The input is valid. SimGrid has a host and is not running.
  RunWorld(const RunInput& input, simgrid::s4u::Host* host);

  /// Runs SimGrid's engine to the end of the run. Once per process.
  RunResult run();

 private:
  using NodeId = recovery::NodeId;

  /// What the job's ranks are doing.
  enum class JobMode : std::uint8_t {
    Training,
    Snapshot,  // standing still for a checkpoint
    Stalled,   // waiting for a link
    Held,      // after the snapshot of a planned restart
    Dead,      // no rank makes progress
  };

  /// What is wrong with a node.
  struct Damage {
    FaultScope scope = FaultScope::Node;
    /// An injected fault knows when it ends, or that it never does; others are repaired after a
    /// drawn time.
    bool injected = false;
    std::optional<std::int64_t> ends_at_ns;
    /// Given by the source of the fault: when the node is sound again. Else a repair time is drawn.
    std::optional<std::int64_t> repaired_at_ns;
    std::optional<faults::Fault> fault;  // what the source gave
    /// From when somebody waits for the node to when they complain.
    std::int64_t symptom_after_ns = 0;
    bool symptom_on_its_way = false;
  };

  /// A link that is down, alone or with all below a switch; its node is sound.
  struct Outage {
    std::int64_t id = 0;  // the same for all links that went down together
    std::size_t cause = 0;
    std::optional<std::int64_t> up_ns;  // unset: never
    std::optional<faults::Fault> fault;
    bool symptom_on_its_way = false;
    /// No queue pair gives up: those who wait find out by themselves.
    bool silent = false;
  };

  struct AskedCheckpoint {
    recovery::ActionKey key;
    recovery::TakeCheckpoint what;
  };

  // Time.
  void advance(std::int64_t now_ns);
  void book(Band band, std::int64_t duration_ns) { result_.band_ns[static_cast<std::size_t>(band)] += duration_ns; }
  void train(std::int64_t duration_ns);
  [[nodiscard]] Band band_of_dead_time() const;

  // The fault injector.
  void arm_source();
  void pull_faults();
  /// With what is known of the damage already; the rest follows from the fault.
  void strike(const faults::Fault& fault, Damage damage);
  void strike_leaf(faults::Fault fault, const Damage& damage);
  std::int64_t out_for_ns(const faults::Fault& fault);
  std::int64_t drawn_ns(const faults::LognormalSeconds& its);
  void strike_job(const faults::Fault& fault);
  void crash_processes(const faults::Fault& fault);
  void repeat_user_error();
  void strike_storage(std::int64_t until_ns);
  void strike_bootstrap(std::int64_t until_ns);
  void make_user_error(const faults::Fault& fault);
  void corrupt(NodeId node);
  void announce_maintenance(std::size_t index);
  void strike_node(NodeId node, std::size_t cause, Damage damage);
  void count_failure(std::size_t cause, NodeId node);
  void arm_injected(std::size_t index);
  void begin_injected(std::size_t index);
  void begin_slow(const std::vector<InjectedFault>& parts, std::optional<std::int64_t> ends_at_ns);
  void end_slow(const std::vector<std::int64_t>& ids);
  void watch_straggler(std::int64_t id);

  // Links: run_links.cpp.
  void link_down(NodeId node, const Outage& outage);
  void port_down(const NicsOfLeaf& nics, const Outage& outage, bool of_leaf);
  [[nodiscard]] std::optional<std::int64_t> other_port_up_ns(NodeId node, std::int64_t device) const;
  [[nodiscard]] std::int64_t patience_ns(const Outage& outage) const;
  [[nodiscard]] bool link_is_down(NodeId node) const;
  void link_bites(NodeId node, std::int64_t id);
  void link_stall(std::int64_t down_ns);
  void link_up(NodeId node, std::int64_t id);
  void link_blocks(NodeId node);
  void schedule_complaint(NodeId node, bool stopped);
  void count_outage(NodeId node, const Outage& outage);
  [[nodiscard]] std::vector<NodeId> unreachable_for(const recovery::Action& action) const;
  void forget_ended_outages();

  // Symptoms.
  void node_is(NodeId node, faults::NodeUse use, std::int64_t slot = 0);
  void schedule_symptom(NodeId node, std::int64_t due_ns, std::int64_t last_seen_ns);
  void schedule_evidence(NodeId node, const faults::Fault& fault, std::int64_t noticed_ns);
  void show(const faults::Symptom& symptom, NodeId node, std::int64_t epoch, std::int64_t last_seen_ns);
  void show_symptom(NodeId node, std::int64_t epoch, std::int64_t last_seen_ns);
  void peers_complain(NodeId node, std::int64_t epoch, std::int64_t last_seen_ns);
  NodeId some_owner();
  [[nodiscard]] bool out_of_order(NodeId node) const;
  [[nodiscard]] NodeId neighbour(NodeId node, std::int64_t distance) const;

  // The job.
  [[nodiscard]] std::int64_t next_collective_ns() const;
  void kill_job();
  void watch_training();
  void set_training();
  void state_changed();
  [[nodiscard]] JobState job_state();
  void find_moved();
  void arm_step_boundary();
  void begin_snapshot(std::int64_t step);
  void end_snapshot(const AskedCheckpoint& taken, std::int64_t step);
  void move(StorageTraffic::Way way, double bytes, std::function<void()> done);
  void write_copies(const recovery::ActionKey& key, std::deque<recovery::Tier> tiers);
  void copy_to_peers(std::function<void()> done);
  void report_copies(const recovery::ActionKey& key);
  void vote(const recovery::ActionKey& key);
  void checkpoint_durable(std::int64_t step);
  void load(const recovery::Action& action);
  void find_copies(std::int64_t epoch);
  [[nodiscard]] bool live_replica() const;
  void device_lost(NodeId node);
  void restored(std::int64_t step);
  [[nodiscard]] std::int64_t best_step_left() const;
  [[nodiscard]] std::int64_t position_of(std::int64_t slot) const {
    return input_.positions.empty() ? slot : input_.positions[static_cast<std::size_t>(slot)];
  }

  // The controller, and what carries out its actions.
  void control();
  [[nodiscard]] bool ranks_are_thought_to_train() const;
  void tell(recovery::Event event);
  void carry_out(const recovery::Action& action);
  [[nodiscard]] double extra_s(NodeId node) const;
  [[nodiscard]] std::optional<double> phase_s(const recovery::Action& action) const;
  void phase_over(const recovery::Action& action);
  [[nodiscard]] static bool needs_network(const recovery::Action& action);
  [[nodiscard]] std::vector<NodeId> blockers(const recovery::Action& action) const;
  void phase_acted(const recovery::Action& action);
  [[nodiscard]] std::int64_t repaired_at_ns(NodeId node);
  void to_shop(NodeId node, const recovery::ActionKey& key);
  void perform(const recovery::SetTimer& timer, const recovery::ActionKey& key);
  void perform(const recovery::Eject& eject, const recovery::ActionKey& key);
  void perform(const recovery::PageHuman& page, const recovery::ActionKey& key);
  void perform(const recovery::FileLedger& file, const recovery::ActionKey& key);
  void perform(const recovery::HeatSpare& heat, const recovery::ActionKey& key);
  void perform(const recovery::ReturnToRepair& back, const recovery::ActionKey& key);
  void perform(const recovery::TestNode& test, const recovery::ActionKey& key);
  void perform(const recovery::TakeCheckpoint& take, const recovery::ActionKey& key);
  void perform(const recovery::Fence& fence, const recovery::ActionKey& key);
  void perform(const recovery::PromoteSpare& promote, const recovery::ActionKey& key);
  void perform(const recovery::StartProcesses& start, const recovery::ActionKey& key);
  void perform(const recovery::BuildCommunicators&, const recovery::ActionKey&) {}
  void perform(const recovery::LoadState& load, const recovery::ActionKey& key);
  void perform(const recovery::Resume&, const recovery::ActionKey&) {}

  RunResult finish();

  const RunInput& input_;
  const std::int64_t duration_ns_;
  const std::int64_t held_nodes_;
  RunResult result_;
  RunTrace trace_;
  std::int64_t now_ns_ = 0;
  std::int64_t spare_ns_ = 0;
  std::int64_t some_spare_ns_ = 0;

  std::vector<std::int64_t> places_;  // by node; empty: where their numbers say
  recovery::ControllerConfig controller_config_;
  recovery::Controller controller_;
  std::optional<recovery::LogWriter> log_;
  std::deque<recovery::Event> inbox_;

  Agenda agenda_;
  bool begun_ = false;  // all that is known from the start is on the agenda
  StorageTraffic storage_;

  std::unique_ptr<faults::FaultSource> source_;
  std::int64_t source_turn_ = 0;
  RandomStream symptom_draws_;
  RandomStream repair_draws_;

  std::map<NodeId, Damage> damaged_;
  std::map<NodeId, Outage> links_down_;  // those that are over stay until the job trains again
  std::int64_t outages_ = 0;
  std::set<std::int64_t> outages_counted_;
  std::set<NodeId> in_shop_;
  std::map<std::int64_t, InjectedFault> slow_;  // GpuSlow and NicSlow, in the order in which they began
  std::int64_t slow_begun_ = 0;
  std::map<NodeId, recovery::Temperature> temperature_;  // of spares that are not hot
  std::vector<std::string> causes_since_running_;
  double lost_since_running_s_ = 0;

  JobMode mode_ = JobMode::Training;
  double healthy_step_s_ = 0;
  StepTime step_time_;
  JobState state_;                   // that step_time_ holds for
  std::vector<std::int64_t> slots_;  // by position in the job
  std::vector<NodeId> owners_;       // that moved_ holds for
  std::vector<MovedNode> moved_;     // nodes that hold a position away from home
  double progress_steps_ = 0;
  WorkBook work_;
  std::int64_t snapshot_end_ns_ = 0;
  std::int64_t stalled_until_ns_ = 0;
  std::int64_t dead_since_ns_ = 0;
  std::int64_t last_trained_ns_ = 0;
  std::int64_t attempts_ = 0;  // to get going again, since the job last trained
  /// Counted up whenever the job dies: what was scheduled for an older life is void.
  std::int64_t life_ = 0;
  std::int64_t boundary_ = 0;                  // the same for the awaited step boundary
  std::optional<AskedCheckpoint> checkpoint_;  // waits for the next step boundary
  /// Replicas did not agree on the state of this step: no copy of it or after it counts.
  std::optional<std::int64_t> disagreed_from_;
  /// A checkpoint whose copies are being written.
  struct Writing {
    std::int64_t step = 0;
    std::vector<recovery::Tier> written;  // not reported yet: the snapshot is not over
    bool snapshot_over = false;
    bool last = false;  // of its tiers has been written
  };
  std::map<recovery::ActionKey, Writing> writing_;
  std::int64_t copies_to_peers_ = 0;  // on their way
  /// Such a copy takes a step and more. A shorter one is no state: it would cost less than its own length, once.
  bool copies_slow_steps_ = false;
  StateCopies copies_;
  /// Data-parallel replicas of which some rank has lost its device memory since the job last trained.
  std::set<std::int64_t> replicas_lost_;
  bool devices_lost_ = false;     // of all ranks
  double steps_when_killed_ = 0;  // in device memory: the whole ones of these
  recovery::StateCopy loading_;
  std::size_t active_replicas_ = 1;
  std::size_t replicas_in_step_ = 1;  // that step_time_ holds for
  /// Nodes that compute wrong numbers without a sign, and whether their parameters differ from their replicas'.
  std::map<NodeId, bool> corrupt_;
  std::map<NodeId, std::set<std::int64_t>> maintenance_until_ns_;  // all that was announced
  std::int64_t user_error_until_ns_ = 0;
  faults::Fault user_error_;
  std::int64_t storage_down_until_ns_ = 0;
  std::int64_t bootstrap_down_until_ns_ = 0;
  /// A software failure struck while processes came up: nothing of this epoch will finish.
  bool processes_crashed_ = false;
  std::optional<recovery::Action> blocked_phase_;
  /// The fencing token: actions of older epochs are refused.
  std::int64_t fenced_epoch_ = 0;
};

}  // namespace trainyard
