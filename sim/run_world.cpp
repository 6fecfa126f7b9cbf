// The world of one run. Sections: time and its bands; the fault injector; symptoms; the job; the controller and what
// carries out its actions. Links are in run_links.cpp, checkpoints in run_checkpoints.cpp.
#include "sim/run_world.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>
#include <type_traits>
#include <utility>

#include <fmt/format.h>

#include "models/base/check.h"
#include "models/base/units.h"
#include "models/faults/fault_mode.h"
#include "models/recovery/goodput.h"
#include "models/spec/node_places.h"

namespace trainyard {

namespace sg4 = simgrid::s4u;
using recovery::Action;
using recovery::ActionKey;
using recovery::Answered;
using recovery::Controller;
using recovery::kNobody;
using recovery::Outcome;
using recovery::State;

namespace {

// XIDs with which GPUs die in the field, all of which NVIDIA answers with a reset or worse:
// double-bit ECC, off the bus, uncontained ECC, GSP timeout, unrecovered ECC.
constexpr std::array kFatalXids = {48, 79, 95, 119, 140};

// A job that is down at the end after so many attempts, or for so many times as long as a recovery takes, is not one
// that a late failure caught in the middle.
constexpr std::int64_t kVainAttempts = 5;
constexpr double kLongRecovery = 2;

// How long slowness is watched before it is called so.
constexpr std::int64_t kStragglerWindowNs = 60'000'000'000;

Band band_of(recovery::Phase phase) {
  switch (phase) {
    case recovery::Phase::Detect: return Band::Detect;
    case recovery::Phase::Decide: return Band::Decide;
    case recovery::Phase::Drain: return Band::Drain;
    case recovery::Phase::Fence: return Band::Fence;
    case recovery::Phase::Allocate: return Band::Allocate;
    case recovery::Phase::WaitForSpare: return Band::WaitForSpare;
    case recovery::Phase::WaitForHuman: return Band::WaitForHuman;
    case recovery::Phase::ProcessStart: return Band::ProcessStart;
    case recovery::Phase::Communicators: return Band::Communicators;
    case recovery::Phase::LoadState: return Band::LoadState;
    case recovery::Phase::FirstStep: return Band::FirstStep;
  }
  return Band::Detect;
}

/// By node, where spares stand among the job's; empty: all stand where their numbers say.
std::vector<std::int64_t> places_of(const RunInput& input) {
  if (input.policy.spares.placement == SparePlacement::Together) return {};
  return places_with_spares_per_leaf(input.job_nodes, input.policy.spare_nodes, nodes_per_leaf(input.cluster));
}

/// Seconds for the bytes of a checkpoint, from the slowest tier.
double slowest_load_s(const RunInput& input) {
  const auto nodes = static_cast<double>(input.job_nodes);
  const StorageSpec& storage = input.cluster.storage;
  const double nics = input.cluster.nic_bytes_per_s * static_cast<double>(input.cluster.nics_per_node);
  double slowest_s = 0;
  for (const double bytes_per_s : {storage.remote_read_bytes_per_s, nodes * storage.nvme_read_bytes_per_s,
                                   nodes / static_cast<double>(input.replicas) * nics})
    if (bytes_per_s > 0) slowest_s = std::max(slowest_s, input.checkpoint_bytes / bytes_per_s);
  return slowest_s;
}

/// The node that an event speaks of, for the trace.
std::int64_t node_of(const recovery::Event& event) {
  if (const auto* e = std::get_if<recovery::HeartbeatLost>(&event)) return e->node;
  if (const auto* e = std::get_if<recovery::XidReported>(&event)) return e->node;
  if (const auto* e = std::get_if<recovery::CommunicatorError>(&event)) return e->suspect.value_or(-1);
  if (const auto* e = std::get_if<recovery::Straggling>(&event)) return e->node;
  return -1;
}

bool is_symptom(const recovery::Event& event) {
  return std::holds_alternative<recovery::HeartbeatLost>(event) ||
         std::holds_alternative<recovery::XidReported>(event) ||
         std::holds_alternative<recovery::CommunicatorError>(event) ||
         std::holds_alternative<recovery::Straggling>(event);
}

}  // namespace

RunWorld::RunWorld(const RunInput& input, sg4::Host* host)
    : input_(input),
      duration_ns_(to_ns(input.duration_s)),
      held_nodes_(input.job_nodes + input.policy.spare_nodes),
      places_(places_of(input)),
      controller_config_(recovery::controller_config(
          input.policy,
          {input.job_nodes, nodes_per_leaf(input.cluster), input.replicas, input.positions, slowest_load_s(input),
           places_},
          checkpoint_interval_s(input),
          mean_time_between_failures_s(failures_per_gpu_hour(input), input.job_nodes * input.cluster.gpus_per_node))),
      controller_(controller_config_),
      agenda_("world", host,
              {[this](std::int64_t at_ns) { advance(at_ns); }, [this] { control(); },
               [this] { return begun_ && storage_.idle(); }, duration_ns_}),
      storage_(host, input.cluster, input.job_nodes, input.policy.checkpoints.drain_share,
               {[this](std::int64_t at_ns) { advance(at_ns); },
                [this](std::int64_t at_ns, StorageTraffic::Task task) { agenda_.at(at_ns, std::move(task)); }}),
      symptom_draws_(input.seed, "run.symptoms"),
      repair_draws_(input.seed, "run.repair"),
      copies_(std::min(nodes_per_leaf(input.cluster), std::max<std::int64_t>(1, input.job_nodes / 2))),
      active_replicas_(static_cast<std::size_t>(input.replicas)),
      replicas_in_step_(active_replicas_) {
  const faults::FleetShape shape{input_.job_nodes, held_nodes_, input_.cluster.gpus_per_node, duration_ns_};
  source_ = faults::make_fault_source(input_.faults, shape, input_.seed);
  for (const std::string& name : faults::cause_names(input_.faults)) result_.by_cause.push_back({name, 0, 0});
  if (!input_.faults.injected.empty()) result_.by_cause.push_back({"injected", 0, 0});
  for (const auto& [node, temperature] : controller_.spares())
    if (temperature != recovery::Temperature::Hot) temperature_.emplace(node, temperature);
  slots_.resize(static_cast<std::size_t>(input_.job_nodes));
  for (std::int64_t slot = 0; slot < input_.job_nodes; ++slot)
    slots_[static_cast<std::size_t>(position_of(slot))] = slot;
  // Of the job whose spares stand elsewhere: a layout that makes steps longer costs effective time, as it should.
  healthy_step_s_ = input_.step_times({}).step_s;
  state_ = job_state();
  step_time_ = input_.step_times(state_);
  copies_slow_steps_ = storage_.alone_s(StorageTraffic::Way::ToPeers, input_.checkpoint_bytes) >= healthy_step_s_;
  if (input_.keep_log) log_.emplace(controller_config_);
  result_.seed = input_.seed;
  result_.policy = input_.policy.name;
  result_.duration_ns = duration_ns_;
  result_.healthy_step_s = healthy_step_s_;
  result_.checkpoint_interval_s = checkpoint_interval_s(input_);
  result_.mean_time_between_failures_s =
      mean_time_between_failures_s(failures_per_gpu_hour(input_), input_.job_nodes * input_.cluster.gpus_per_node);
  result_.spares.configured = input_.policy.spare_nodes;
  result_.spares.fewest = input_.policy.spare_nodes;
  result_.replicas = input_.replicas;
  result_.fewest_replicas = input_.replicas;
  result_.spares.counts.push_back({0, input_.policy.spare_nodes});

  sg4::Actor::create("run", host, [this] {
    trace_.add(0, RunEventKind::Launched, -1, input_.policy.name);
    tell(recovery::Launched{0});
    control();  // before anything breaks: what is told of breaks belongs to the launched epoch
    arm_source();
    for (std::size_t i = 0; i < input_.faults.injected.size(); ++i) arm_injected(i);
    control();
    begun_ = true;
    sg4::this_actor::sleep_for(input_.duration_s);
    advance(duration_ns_);
  });
}

RunResult RunWorld::run() {
  sg4::Engine::get_instance()->run();
  return finish();
}

// ---- Time and its bands -------------------------------------------------------------------

/// Books the time since the last call to what the job was doing in it.
void RunWorld::advance(std::int64_t now_ns) {
  now_ns = std::min(now_ns, duration_ns_);
  if (now_ns <= now_ns_) return;
  const std::int64_t duration_ns = now_ns - now_ns_;
  // What ranks do while a recovery of them has begun counts for nothing: they are about to be stopped.
  const bool doomed = controller_.state() == State::Deciding || controller_.state() == State::Fencing;
  switch (doomed ? JobMode::Dead : mode_) {
    case JobMode::Training: train(duration_ns); break;
    case JobMode::Snapshot: book(Band::CheckpointStall, duration_ns); break;
    case JobMode::Stalled: book(Band::DegradedSlowdown, duration_ns); break;
    case JobMode::Held:
    case JobMode::Dead: book(band_of_dead_time(), duration_ns); break;
  }
  const auto spares = static_cast<std::int64_t>(controller_.spares().size());
  spare_ns_ += spares * duration_ns;
  if (spares > 0) some_spare_ns_ += duration_ns;
  now_ns_ = now_ns;
}

void RunWorld::train(std::int64_t duration_ns) {
  const double useful = std::min(1.0, healthy_step_s_ / step_time_.step_s);
  const std::int64_t useful_ns = std::llround(static_cast<double>(duration_ns) * useful);
  work_.train(useful_ns);
  if (std::any_of(corrupt_.begin(), corrupt_.end(), [&](const auto& its) { return controller_.slot_of(its.first); }))
    result_.corrupted_training_ns += duration_ns;
  book(Band::DegradedSlowdown, duration_ns - useful_ns);
  progress_steps_ += static_cast<double>(duration_ns) / kNsPerS / step_time_.step_s;
  last_trained_ns_ = now_ns_ + duration_ns;
}

Band RunWorld::band_of_dead_time() const {
  const std::optional<recovery::Phase> phase = recovery::phase_of(controller_.state());
  return phase ? band_of(*phase) : Band::Detect;
}

RunResult RunWorld::finish() {
  if (mode_ == JobMode::Dead) {
    const std::int64_t lost_ns = work_.restore(best_step_left());
    book(Band::LostWork, lost_ns);
    lost_since_running_s_ += static_cast<double>(lost_ns) / kNsPerS;
  }
  if (const auto ledger = controller_.ledger_so_far(duration_ns_))
    result_.unfinished.push_back({*ledger, causes_since_running_, lost_since_running_s_});
  book(Band::Productive, work_.unsafe_ns());
  std::int64_t sum_ns = 0;
  for (const std::int64_t band_ns : result_.band_ns) sum_ns += band_ns;
  TY_CHECK(sum_ns == duration_ns_, "the bands sum to the wall time");
  result_.effective_training_time = result_.band_s(Band::Productive) / input_.duration_s;
  result_.steps_committed = controller_.durable_step();
  result_.steps_done =
      mode_ == JobMode::Dead ? best_step_left() : static_cast<std::int64_t>(std::floor(progress_steps_ + kStepEpsilon));
  if (mode_ == JobMode::Dead && band_of_dead_time() == Band::WaitForSpare) result_.waiting_for = "a spare";
  if (mode_ == JobMode::Dead && band_of_dead_time() == Band::WaitForHuman) result_.waiting_for = "a human";
  const std::int64_t down_ns = duration_ns_ - last_trained_ns_;
  const bool vain = attempts_ >= kVainAttempts || down_ns > to_ns(kLongRecovery * input_.policy.recovery_s());
  if (mode_ == JobMode::Dead && result_.waiting_for.empty() && vain)
    result_.waiting_for = fmt::format("a recovery that succeeds, after {} attempts", attempts_);
  result_.spares.mean = static_cast<double>(spare_ns_) / static_cast<double>(duration_ns_);
  result_.spares.availability = static_cast<double>(some_spare_ns_) / static_cast<double>(duration_ns_);
  trace_.add(duration_ns_, RunEventKind::Ended, -1, "");
  result_.trace_hash = trace_.hash();
  result_.events = trace_.take_events();
  if (log_) result_.log = log_->take();
  result_.next_draw = source_->next_draw();
  result_.next_draw = mix64(mix64(result_.next_draw ^ symptom_draws_.next_u64()) ^ repair_draws_.next_u64());
  return std::move(result_);
}

// ---- The fault injector -------------------------------------------------------------------

/// To be called whenever the source may have changed its mind: after each fault and each change of a node.
void RunWorld::arm_source() {
  const std::optional<std::int64_t> next_ns = source_->next_ns();
  if (!next_ns || *next_ns > duration_ns_) return;
  agenda_.at(std::max(*next_ns, now_ns_), [this, turn = ++source_turn_] {
    if (turn == source_turn_) pull_faults();
  });
}

void RunWorld::pull_faults() {
  for (auto at_ns = source_->next_ns(); at_ns && *at_ns <= now_ns_; at_ns = source_->next_ns())
    if (const std::optional<faults::Fault> fault = source_->take()) strike(*fault, {});
  arm_source();
}

void RunWorld::node_is(NodeId node, faults::NodeUse use, std::int64_t slot) {
  if (node >= held_nodes_) return;
  source_->node_changed({now_ns_, node, use, slot});
  arm_source();
}

void RunWorld::strike(const faults::Fault& fault, Damage damage) {
  const faults::ModeRow& row = faults::row_of(fault.mode);
  const std::vector<FaultCause>& causes = input_.faults.causes;
  damage.scope = fault.cause < causes.size() ? causes[fault.cause].scope : scope_of(fault.mode);
  damage.symptom_after_ns = to_ns(input_.policy.detection_timeout_s);
  if (fault.repair_ns) damage.repaired_at_ns = now_ns_ + *fault.repair_ns;
  damage.fault = fault;
  const bool stops_job = fault.cause < causes.size() && causes[fault.cause].stops_job;
  if (fault.mode == FaultMode::StorageOutage && !stops_job)
    return strike_storage(now_ns_ + fault.duration_ns.value_or(0));
  if (fault.mode == FaultMode::BootstrapFailure && !stops_job)
    return strike_bootstrap(now_ns_ + fault.duration_ns.value_or(0));
  if (fault.mode == FaultMode::UserError) return make_user_error(fault);
  if (fault.node == faults::kWholeJob) return strike_job(fault);
  if (row.effect == faults::Effect::CorruptsSilently && !stops_job) return corrupt(fault.node);
  if (row.effect == faults::Effect::Slows && !stops_job) {
    InjectedFault part;
    part.kind = kind_of(fault.mode);
    part.node = fault.node;
    part.device = fault.device;
    part.factor = fault.loss > 0 ? slowdown_by_loss(input_.cluster, fault.loss) : fault.factor;
    part.loss = fault.loss;
    part.direction = fault.direction;
    std::optional<std::int64_t> ends_at_ns;
    if (fault.duration_ns) ends_at_ns = now_ns_ + *fault.duration_ns;
    return begin_slow({part}, ends_at_ns);
  }
  if (input_.cluster.dual_tor && (fault.mode == FaultMode::LinkDown || fault.mode == FaultMode::LinkFlap) &&
      !stops_job) {
    return port_down({{fault.node}, {fault.device}}, {++outages_, fault.cause, now_ns_ + out_for_ns(fault), fault},
                     false);
  }
  // A link that comes back by itself may be no more than a stall.
  if (row.effect == faults::Effect::Stalls && row.scope == faults::ModeScope::Network && fault.duration_ns)
    return link_down(fault.node, {++outages_, fault.cause, now_ns_ + *fault.duration_ns, std::nullopt});
  if (row.scope == faults::ModeScope::Leaf) return strike_leaf(fault, damage);
  strike_node(fault.node, fault.cause, damage);
}

/// The links of all nodes below the switch at once; the nodes are sound. One failure, counted once it bites.
void RunWorld::strike_leaf(faults::Fault fault, const Damage& damage) {
  std::optional<std::int64_t> up_ns = damage.ends_at_ns;
  if (!damage.injected) up_ns = now_ns_ + out_for_ns(fault);
  const bool silent = faults::row_of(fault.mode).effect == faults::Effect::Hangs;
  const std::int64_t id = ++outages_, watchdog_ns = to_ns(input_.cluster.rdma.pfc_watchdog_s);
  const auto strike = [&](const NicsOfLeaf& nics, std::optional<std::int64_t> until_ns, bool of_leaf) {
    if (until_ns) fault.duration_ns = *until_ns - now_ns_;
    const Outage outage{.id = id, .cause = fault.cause, .up_ns = until_ns, .fault = fault, .silent = silent};
    if (input_.cluster.dual_tor && !silent) return port_down(nics, outage, of_leaf);
    for (const NodeId node : nics.nodes) link_down(node, outage);
  };
  NicsOfLeaf below = nics_of_leaf(input_.cluster, places_, held_nodes_, fault.node, fault.device);
  const bool watched =
      fault.mode == FaultMode::PfcStorm && watchdog_ns > 0 && (!up_ns || *up_ns > now_ns_ + watchdog_ns);
  if (!watched) return strike(below, up_ns, true);
  // The switch listens no longer to the NIC that pauses it, and drops what is for it: that one stays cut off.
  strike({{fault.node}, {fault.device}}, up_ns, false);
  std::erase(below.nodes, fault.node);
  strike(below, now_ns_ + watchdog_ns, true);
}

/// As its source says, or as long as its mend takes.
std::int64_t RunWorld::out_for_ns(const faults::Fault& fault) {
  if (fault.repair_ns) return *fault.repair_ns;
  return fault.duration_ns ? *fault.duration_ns : drawn_ns(faults::row_of(fault.mode).mends);
}

/// Never beyond twice the run.
std::int64_t RunWorld::drawn_ns(const faults::LognormalSeconds& its) {
  return to_ns(std::min(repair_draws_.lognormal(std::log(its.median_s), its.sigma), 2 * input_.duration_s));
}

/// A software failure: no node is to blame.
void RunWorld::strike_job(const faults::Fault& fault) {
  count_failure(fault.cause, -1);
  crash_processes(fault);
}

void RunWorld::crash_processes(const faults::Fault& fault) {
  const State state = controller_.state();
  const bool coming_up =
      state == State::Starting || state == State::Connecting || state == State::Loading || state == State::WarmingUp;
  if (mode_ == JobMode::Dead && !coming_up) return;  // nothing runs that could fail
  const std::int64_t noticed_ns = mode_ == JobMode::Dead ? now_ns_ : next_collective_ns();
  devices_lost_ = true;
  if (mode_ == JobMode::Dead)
    processes_crashed_ = true;
  else
    kill_job();
  const NodeId reporter = some_owner();
  if (reporter == kNobody) return;
  if (input_.policy.evidence == Evidence::All) return schedule_evidence(reporter, fault, noticed_ns);
  const recovery::CommunicatorError error{controller_.epoch(), reporter, std::nullopt, now_ns_};
  agenda_.at(noticed_ns + to_ns(input_.policy.detection_timeout_s), [this, error] { tell(error); });
}

/// Nobody can read or write the remote store for a while.
void RunWorld::strike_storage(std::int64_t until_ns) {
  trace_.add(now_ns_, RunEventKind::FaultBegins, -1, "storage_outage");
  storage_down_until_ns_ = std::max(storage_down_until_ns_, until_ns);
  storage_.remote_down(true);
  if (until_ns > duration_ns_) return;
  agenda_.at(until_ns, [this] {
    if (now_ns_ < storage_down_until_ns_) return;  // another outage goes on
    trace_.add(now_ns_, RunEventKind::FaultEnds, -1, "storage_outage");
    storage_.remote_down(false);
  });
}

/// Ranks cannot find each other for a while: who trains does not notice, communicators that are built wait.
void RunWorld::strike_bootstrap(std::int64_t until_ns) {
  trace_.add(now_ns_, RunEventKind::FaultBegins, -1, "bootstrap_failure");
  bootstrap_down_until_ns_ = std::max(bootstrap_down_until_ns_, until_ns);
  if (until_ns > duration_ns_) return;
  agenda_.at(until_ns, [this] {
    if (now_ns_ >= bootstrap_down_until_ns_) trace_.add(now_ns_, RunEventKind::FaultEnds, -1, "bootstrap_failure");
  });
}

/// The job crashes, and again after each restart until a human has found the mistake.
void RunWorld::make_user_error(const faults::Fault& fault) {
  const std::int64_t lasts_ns =
      fault.duration_ns ? *fault.duration_ns : drawn_ns(faults::row_of(FaultMode::UserError).mends);
  user_error_ = fault;
  user_error_until_ns_ = std::max(user_error_until_ns_, now_ns_ + std::min(lasts_ns, duration_ns_));
  agenda_.at(user_error_until_ns_, [this] {
    if (now_ns_ >= user_error_until_ns_ && controller_.state() == State::WaitingForHuman)
      tell(recovery::HumanCleared{});
  });
  strike_job(fault);
}

/// The node goes on, with wrong numbers. Some of them end up in its parameters alone, where a vote of replicas finds
/// them; others go through the gradients into everybody's.
void RunWorld::corrupt(NodeId node) {
  if (node == kNobody || out_of_order(node) || corrupt_.contains(node)) return;
  ++result_.corruptions;
  trace_.add(now_ns_, RunEventKind::FaultBegins, node, "silent_data_corruption");
  const double shows = faults::row_of(FaultMode::SilentDataCorruption).shows.hash_mismatch;
  corrupt_.emplace(node, symptom_draws_.uniform() < shows);
}

void RunWorld::strike_node(NodeId node, std::size_t cause, Damage damage) {
  if (node == kNobody || out_of_order(node)) return;  // nothing left to break
  count_failure(cause, node);
  const std::int64_t symptom_after_ns = damage.symptom_after_ns;
  // A broken cable hurts only who uses it: with no ranks up, it shows when communicators are built.
  const bool shows_by_itself = damage.scope != FaultScope::Network;
  damaged_.insert_or_assign(node, damage);
  if (damage.scope != FaultScope::Network) device_lost(node);
  if (damage.scope == FaultScope::Node) copies_.memory_lost(node);
  const bool in_job = controller_.slot_of(node).has_value();
  if (in_job && mode_ != JobMode::Dead) {
    const std::int64_t noticed_ns = next_collective_ns();
    const std::int64_t struck_ns = now_ns_;
    kill_job();
    if (input_.policy.evidence == Evidence::All && damage.fault)
      schedule_evidence(node, *damage.fault, noticed_ns);
    else
      schedule_symptom(node, noticed_ns + symptom_after_ns, struck_ns);
  } else if (shows_by_itself && input_.policy.evidence == Evidence::All && damage.fault) {
    schedule_evidence(node, *damage.fault, now_ns_);
  } else if (shows_by_itself) {
    schedule_symptom(node, now_ns_ + symptom_after_ns, now_ns_);
  }
}

/// Once training goes on, the mistake is made again.
void RunWorld::repeat_user_error() {
  constexpr std::int64_t kUntilItShowsNs = 30'000'000'000;
  if (now_ns_ >= user_error_until_ns_) return;
  agenda_.at(now_ns_ + kUntilItShowsNs, [this, life = life_] {
    if (life != life_ || now_ns_ >= user_error_until_ns_) return;
    causes_since_running_.push_back(result_.by_cause[user_error_.cause].name);
    crash_processes(user_error_);
  });
}

/// In the shop, or damaged already.
bool RunWorld::out_of_order(NodeId node) const { return in_shop_.contains(node) || damaged_.contains(node); }

void RunWorld::count_failure(std::size_t cause, NodeId node) {
  CauseCount& count = result_.by_cause[cause];
  if (node >= 0 && !controller_.slot_of(node)) {
    ++count.spare_failures;
    ++result_.spare_failures;
    trace_.add(now_ns_, RunEventKind::SpareFailure, node, count.name);
    return;
  }
  ++count.failures;
  ++result_.failures;
  causes_since_running_.push_back(count.name);
  trace_.add(now_ns_, RunEventKind::Failure, node, count.name);
}

void RunWorld::arm_injected(std::size_t index) {
  const InjectedFault& fault = input_.faults.injected[index];
  if (fault.mode == FaultMode::HostMaintenance) announce_maintenance(index);
  if (fault.at_s < input_.duration_s) agenda_.at(to_ns(fault.at_s), [this, index] { begin_injected(index); });
}

/// Maintenance that is injected is planned: a day ahead it is known.
void RunWorld::announce_maintenance(std::size_t index) {
  constexpr double kNotice_s = 86400;
  const InjectedFault& fault = input_.faults.injected[index];
  if (fault.at_s >= input_.duration_s) return;
  agenda_.at(to_ns(std::max(0.0, fault.at_s - kNotice_s)), [this, &fault] {
    const double back_s = fault.at_s + fault.duration_s.value_or(input_.duration_s);
    maintenance_until_ns_[fault.node].insert(to_ns(std::min(back_s, 2 * input_.duration_s)));
    tell(recovery::MaintenanceDue{fault.node, to_ns(fault.at_s)});
  });
}

void RunWorld::begin_injected(std::size_t index) {
  const InjectedFault& fault = input_.faults.injected[index];
  std::optional<std::int64_t> ends_at_ns;
  if (fault.duration_s && *fault.duration_s < input_.duration_s) ends_at_ns = now_ns_ + to_ns(*fault.duration_s);
  if (!fault.duration_s && fault.mode && faults::row_of(*fault.mode).mend == faults::Mend::Itself)
    ends_at_ns = now_ns_ + drawn_ns(faults::row_of(*fault.mode).lasts);
  switch (fault.kind) {
    case InjectedKind::GpuSlow:
    case InjectedKind::NicSlow: return begin_slow(by_part({fault}, input_.cluster, {}, 0), ends_at_ns);
    case InjectedKind::LinkDown: {
      if (fault.mode && faults::row_of(*fault.mode).scope == faults::ModeScope::Leaf) break;
      const Outage outage{++outages_, result_.by_cause.size() - 1, ends_at_ns, std::nullopt};
      const bool one_port = !fault.mode || fault.mode == FaultMode::LinkDown || fault.mode == FaultMode::LinkFlap;
      if (input_.cluster.dual_tor && one_port) return port_down({{fault.node}, {fault.device}}, outage, false);
      return link_down(fault.node, outage);
    }
    case InjectedKind::NodeCrash: break;
  }
  Damage damage;
  damage.injected = true;
  damage.ends_at_ns = ends_at_ns;
  damage.symptom_after_ns = to_ns(input_.policy.detection_timeout_s);
  if (!fault.mode) return strike_node(fault.node, result_.by_cause.size() - 1, damage);
  faults::Fault its{.at_ns = now_ns_, .cause = result_.by_cause.size() - 1, .mode = *fault.mode};
  its.node = scope_of(its.mode) == FaultScope::Job ? faults::kWholeJob : fault.node;
  its.device = fault.device;
  if (ends_at_ns || its.mode == FaultMode::StorageOutage || its.mode == FaultMode::BootstrapFailure)
    its.duration_ns = ends_at_ns.value_or(duration_ns_ + 1) - now_ns_;
  strike(its, damage);
}

void RunWorld::begin_slow(const std::vector<InjectedFault>& parts, std::optional<std::int64_t> ends_at_ns) {
  std::vector<std::int64_t> begun;
  for (const InjectedFault& part : parts) {
    if (in_shop_.contains(part.node) && part.mode != FaultMode::SwitchCrash) continue;
    trace_.add(now_ns_, RunEventKind::FaultBegins, part.node,
               part.kind == InjectedKind::GpuSlow ? "gpu_slow" : "nic_slow");
    begun.push_back(slow_begun_++);
    slow_.emplace(begun.back(), part);
  }
  if (ends_at_ns && *ends_at_ns <= duration_ns_) agenda_.at(*ends_at_ns, [this, begun] { end_slow(begun); });
  state_changed();
  for (const std::int64_t id : begun) watch_straggler(id);
}

void RunWorld::end_slow(const std::vector<std::int64_t>& ids) {
  std::vector<NodeId> nodes;
  for (const std::int64_t id : ids) {
    const auto slow = slow_.find(id);
    if (slow == slow_.end()) continue;
    nodes.push_back(slow->second.node);
    slow_.erase(slow);
    trace_.add(now_ns_, RunEventKind::FaultEnds, nodes.back(), "");
  }
  if (nodes.empty()) return;
  state_changed();
  if (input_.policy.stragglers.replace_at_slowdown <= 0) return;
  for (const NodeId node : nodes) tell(recovery::StragglingOver{node});
}

/// Once it has slowed the job for a minute, telemetry names it; in each epoch anew.
void RunWorld::watch_straggler(std::int64_t id) {
  if (input_.policy.stragglers.replace_at_slowdown <= 0) return;
  agenda_.at(now_ns_ + kStragglerWindowNs, [this, id, epoch = controller_.epoch()] {
    const auto slow = slow_.find(id);
    if (slow == slow_.end() || epoch != controller_.epoch() || !controller_.slot_of(slow->second.node)) return;
    if (mode_ == JobMode::Snapshot || mode_ == JobMode::Stalled) return watch_straggler(id);  // nothing to be seen now
    if (mode_ != JobMode::Training) return;
    tell(recovery::Straggling{epoch, slow->second.node, step_time_.step_s / healthy_step_s_});
  });
}

// ---- Symptoms -----------------------------------------------------------------------------

void RunWorld::schedule_symptom(NodeId node, std::int64_t due_ns, std::int64_t last_seen_ns) {
  damaged_.at(node).symptom_on_its_way = true;
  agenda_.at(due_ns,
             [this, node, epoch = controller_.epoch(), last_seen_ns] { show_symptom(node, epoch, last_seen_ns); });
}

/// All that can be seen of a fault, late, twice, of the wrong node or not at all.
void RunWorld::schedule_evidence(NodeId node, const faults::Fault& fault, std::int64_t noticed_ns) {
  faults::SymptomContext context;
  context.job_nodes = input_.job_nodes;
  context.gpus_per_node = input_.cluster.gpus_per_node;
  context.in_job = controller_.slot_of(node).has_value();
  context.heartbeat_timeout_s = input_.policy.detection_timeout_s;
  context.collective_timeout_s = input_.policy.timeouts.collective_s;
  context.queue_pair_timeout_s = input_.policy.timeouts.link_s;
  const std::int64_t epoch = controller_.epoch(), struck_ns = now_ns_;
  bool evident = !context.in_job;  // a spare may fail and nobody know
  for (const faults::Symptom& symptom : faults::symptoms_of(fault, context, symptom_draws_)) {
    evident |= symptom.kind == faults::SymptomKind::CollectiveTimeout;
    agenda_.at(noticed_ns + to_ns(symptom.delay_s),
               [this, symptom, node, epoch, struck_ns] { show(symptom, node, epoch, struck_ns); });
  }
  // A mode that by itself would stop nobody has stopped the job here: in the end somebody has waited too long.
  if (evident) return;
  const recovery::CommunicatorError waited{epoch, node, std::nullopt, struck_ns};
  agenda_.at(noticed_ns + to_ns(context.collective_timeout_s), [this, waited] { tell(waited); });
}

/// Slots are counted from the struck node's; by now it may have lost its own.
void RunWorld::show(const faults::Symptom& symptom, NodeId node, std::int64_t epoch, std::int64_t last_seen_ns) {
  const bool in_job = controller_.slot_of(node).has_value();
  if (!in_job && (symptom.slot != 0 || in_shop_.contains(node))) return;
  const NodeId from = symptom.slot == 0 ? node : neighbour(node, symptom.slot);
  if (from == kNobody) return;
  switch (symptom.kind) {
    case faults::SymptomKind::HeartbeatLost: return tell(recovery::HeartbeatLost{from, last_seen_ns});
    case faults::SymptomKind::Xid: return tell(recovery::XidReported{from, symptom.device, symptom.xid, last_seen_ns});
    case faults::SymptomKind::CommunicatorError:
    case faults::SymptomKind::CollectiveTimeout: {
      std::optional<NodeId> suspect;
      if (symptom.suspect_slot && in_job) suspect = neighbour(node, *symptom.suspect_slot);
      if (suspect == kNobody) suspect.reset();
      return tell(recovery::CommunicatorError{epoch, from, suspect, last_seen_ns});
    }
    case faults::SymptomKind::Straggling:    // watched over time: watch_straggler()
    case faults::SymptomKind::HashMismatch:  // voted on: vote()
    case faults::SymptomKind::LinkDown:      // not evidence by itself
    case faults::SymptomKind::LinkUp: return;
  }
}

/// What the controller gets to see of a damaged node; `epoch` is that of the ranks that met it.
void RunWorld::show_symptom(NodeId node, std::int64_t epoch, std::int64_t last_seen_ns) {
  const auto damaged = damaged_.find(node);
  if (damaged == damaged_.end() || in_shop_.contains(node)) return;  // dealt with meanwhile
  damaged->second.symptom_on_its_way = false;
  const bool has_peers = controller_.slot_of(node).has_value() && input_.job_nodes > 1;
  switch (damaged->second.scope) {
    case FaultScope::Gpu: {
      const auto gpus = static_cast<std::uint64_t>(input_.cluster.gpus_per_node);
      const auto gpu = static_cast<std::int64_t>(symptom_draws_.below(gpus));
      tell(recovery::XidReported{node, gpu, kFatalXids[symptom_draws_.below(kFatalXids.size())], last_seen_ns});
      if (has_peers) tell(recovery::CommunicatorError{epoch, neighbour(node, 1), std::nullopt, last_seen_ns});
      return;
    }
    case FaultScope::Network: return peers_complain(node, epoch, last_seen_ns);
    case FaultScope::Node:
    case FaultScope::Job: break;
  }
  tell(recovery::HeartbeatLost{node, last_seen_ns});
}

/// Those who were connected to it cannot reach it.
void RunWorld::peers_complain(NodeId node, std::int64_t epoch, std::int64_t last_seen_ns) {
  if (!controller_.slot_of(node) || input_.job_nodes == 1) return tell(recovery::HeartbeatLost{node, last_seen_ns});
  for (const std::int64_t side : {1, -1})
    tell(recovery::CommunicatorError{epoch, neighbour(node, side), node, last_seen_ns});
}

RunWorld::NodeId RunWorld::some_owner() {
  const std::vector<NodeId>& owners = controller_.owners();
  std::size_t slot = symptom_draws_.below(owners.size());
  for (std::size_t tried = 1; owners[slot] == kNobody && tried < owners.size(); ++tried)
    slot = (slot + 1) % owners.size();  // its replica takes no part
  return owners[slot];
}

RunWorld::NodeId RunWorld::neighbour(NodeId node, std::int64_t distance) const {
  const std::vector<NodeId>& owners = controller_.owners();
  const auto slots = static_cast<std::int64_t>(owners.size());
  std::int64_t slot = (*controller_.slot_of(node) + distance % slots + slots) % slots;
  while (owners[static_cast<std::size_t>(slot)] == kNobody)  // its replica takes no part
    slot = (slot + (distance < 0 ? slots - 1 : 1)) % slots;
  return owners[static_cast<std::size_t>(slot)];
}

// ---- The job ------------------------------------------------------------

/// When the ranks next wait for one another. Faults come at times of their own, so where in
/// the step that is follows from the progress made.
std::int64_t RunWorld::next_collective_ns() const {
  if (mode_ == JobMode::Snapshot) return snapshot_end_ns_;
  if (mode_ != JobMode::Training) return now_ns_;
  const double collectives = progress_steps_ * static_cast<double>(step_time_.collectives_per_step);
  const double left = std::floor(collectives) + 1 - collectives;
  return now_ns_ + to_ns(left * step_time_.step_s / static_cast<double>(step_time_.collectives_per_step));
}

/// No rank makes progress from now on. A snapshot that is still being written is lost: it is written from the memory of
/// nodes of which one just failed. What else is lost shows when it is known which copy is restored.
void RunWorld::kill_job() {
  steps_when_killed_ = progress_steps_;
  const bool was_dead = mode_ == JobMode::Dead;
  mode_ = JobMode::Dead;
  ++life_;
  ++boundary_;
  checkpoint_.reset();
  writing_.clear();
  storage_.abandon();
  if (std::exchange(copies_to_peers_, 0) > 0 && copies_slow_steps_) state_changed();
  if (!was_dead) watch_training();
}

/// The watch over all others: no step done for so long, and nobody has said why. It must not forestall those that can.
void RunWorld::watch_training() {
  const double patience_s = std::max(input_.policy.timeouts.training_s, 2 * input_.policy.detection_timeout_s);
  dead_since_ns_ = now_ns_;
  agenda_.at(now_ns_ + to_ns(patience_s), [this, life = life_] {
    if (life != life_ || mode_ != JobMode::Dead || !ranks_are_thought_to_train()) return;
    if (const NodeId reporter = some_owner(); reporter != kNobody)
      tell(recovery::CommunicatorError{controller_.epoch(), reporter, std::nullopt, dead_since_ns_});
  });
}

void RunWorld::set_training() {
  mode_ = JobMode::Training;
  if (checkpoint_) arm_step_boundary();
}

/// What the job's step takes depends on: slow parts that it holds, and nodes away from home.
JobState RunWorld::job_state() {
  JobState state;
  for (const auto& [id, part] : slow_) {
    InjectedFault fault = part;
    const std::optional<std::int64_t> slot = controller_.slot_of(fault.node);
    if (!slot) continue;
    fault.node = position_of(*slot);
    fault.at_s = 0;
    fault.duration_s.reset();
    fault.mode.reset();
    state.slow.push_back(fault);
  }
  const auto less = [](const InjectedFault& a, const InjectedFault& b) { return key_of(a) < key_of(b); };
  std::sort(state.slow.begin(), state.slow.end(), less);
  find_moved();
  state.moved = moved_;
  if (!places_.empty()) state.spares_among = input_.policy.spare_nodes;
  if (copies_slow_steps_ && copies_to_peers_ > 0) state.nic_share = 1 - input_.policy.checkpoints.drain_share;
  return input_.reduced ? input_.reduced(state) : state;
}

void RunWorld::find_moved() {
  const std::vector<NodeId>& owners = controller_.owners();
  if (owners == owners_) return;
  owners_ = owners;
  moved_.clear();
  for (std::size_t position = 0; position < slots_.size(); ++position) {
    const NodeId owner = owners[static_cast<std::size_t>(slots_[position])];
    if (owner != static_cast<NodeId>(position) && owner != kNobody)
      moved_.push_back({static_cast<std::int64_t>(position), place_of(places_, owner)});
  }
}

/// Asks for the step time anew if the job's state is another one.
void RunWorld::state_changed() {
  JobState state = job_state();
  const auto same = [](const InjectedFault& a, const InjectedFault& b) { return key_of(a) == key_of(b); };
  const bool slow_alike =
      std::equal(state.slow.begin(), state.slow.end(), state_.slow.begin(), state_.slow.end(), same);
  if (slow_alike && state.moved == state_.moved && state.nic_share == state_.nic_share &&
      replicas_in_step_ == active_replicas_)
    return;
  state_ = std::move(state);
  step_time_ = input_.step_times(state_);
  // The global batch stays as it is: those who are left take over the micro-batches of those who are not.
  replicas_in_step_ = active_replicas_;
  step_time_.step_s *= static_cast<double>(input_.replicas) / static_cast<double>(active_replicas_);
  TY_CHECK(std::isfinite(step_time_.step_s) && step_time_.step_s > 0, "a step takes time");
  if (mode_ == JobMode::Training && checkpoint_) arm_step_boundary();
}

void RunWorld::arm_step_boundary() {
  const double step = std::ceil(progress_steps_ - kStepEpsilon);
  const double wait_s = std::max(0.0, (step - progress_steps_) * step_time_.step_s);
  agenda_.at(now_ns_ + to_ns(wait_s), [this, boundary = ++boundary_, step] {
    if (boundary == boundary_) begin_snapshot(static_cast<std::int64_t>(step));
  });
}

// ---- The controller and what carries out its actions ----------------------------------------

bool RunWorld::ranks_are_thought_to_train() const {
  return controller_.state() == State::Running || controller_.state() == State::Draining;
}

/// Whoever tells of the first symptom knows since when the job has stood still.
void RunWorld::tell(recovery::Event event) {
  const auto since = [this](auto& body) {
    if constexpr (requires { body.last_seen_ns; }) body.last_seen_ns = std::min(body.last_seen_ns, dead_since_ns_);
  };
  if (mode_ == JobMode::Dead && ranks_are_thought_to_train()) std::visit(since, event);
  inbox_.push_back(std::move(event));
}

/// Once something has happened, the controller hears of it, and of what its own actions lead to at once.
void RunWorld::control() {
  while (!inbox_.empty()) {
    const recovery::Event event = inbox_.front();
    inbox_.pop_front();
    if (is_symptom(event)) trace_.add(now_ns_, RunEventKind::Symptom, node_of(event), describe(event));
    const State before = controller_.state();
    const std::vector<Action> actions = controller_.step(now_ns_, event);
    if (log_) log_->add(now_ns_, event, actions);
    if (controller_.state() != before)
      trace_.add(now_ns_, RunEventKind::ControllerState, -1, to_string(controller_.state()));
    for (const Action& action : actions) carry_out(action);
    const auto free = static_cast<std::int64_t>(controller_.spares().size());
    result_.spares.fewest = std::min(result_.spares.fewest, free);
    if (result_.spares.counts.back().free != free) result_.spares.counts.push_back({now_ns_, free});
  }
}

void RunWorld::carry_out(const Action& action) {
  std::visit([&](const auto& body) { perform(body, action.key); }, action.body);
  const bool loads = std::holds_alternative<recovery::LoadState>(action.body);
  if (const std::optional<double> seconds = phase_s(action))
    agenda_.at(now_ns_ + to_ns(*seconds), [this, action, loads] { loads ? load(action) : phase_over(action); });
}

/// How long the world takes for a phase of the recovery; none for actions that are no phase.
std::optional<double> RunWorld::phase_s(const Action& action) const {
  const PolicySpec& policy = input_.policy;
  return std::visit(
      [&](const auto& body) -> std::optional<double> {
        using Body = std::decay_t<decltype(body)>;
        if constexpr (std::is_same_v<Body, recovery::Fence>) return policy.fence_s;
        if constexpr (std::is_same_v<Body, recovery::PromoteSpare>) return policy.allocate_s + extra_s(body.node);
        if constexpr (std::is_same_v<Body, recovery::StartProcesses>) return policy.process_start_s;
        if constexpr (std::is_same_v<Body, recovery::BuildCommunicators>) return policy.communicators_s;
        if constexpr (std::is_same_v<Body, recovery::LoadState>) return policy.load_state_s;
        if constexpr (std::is_same_v<Body, recovery::Resume>) return policy.first_step_s;
        return std::nullopt;
      },
      action.body);
}

/// The time for a phase has passed: it has acted, unless something is broken that it needs.
/// Then nobody answers, and those who wait complain in their own time.
void RunWorld::phase_over(const Action& action) {
  if (action.key.epoch < fenced_epoch_) return tell(Answered{action.key, Outcome::Refused, std::nullopt});
  const bool needs_processes = !std::holds_alternative<recovery::Fence>(action.body) &&
                               !std::holds_alternative<recovery::PromoteSpare>(action.body);
  if (needs_processes && processes_crashed_) return;
  if (std::holds_alternative<recovery::BuildCommunicators>(action.body) && now_ns_ < bootstrap_down_until_ns_) {
    constexpr std::int64_t kRetryNs = 20'000'000'000;  // of NCCL's bootstrap sockets
    return agenda_.at(now_ns_ + kRetryNs, [this, action] { phase_over(action); });
  }
  const std::vector<NodeId> broken = blockers(action), unreachable = unreachable_for(action);
  if (broken.empty() && unreachable.empty()) return phase_acted(action);
  blocked_phase_ = action;
  for (const NodeId node : broken) {
    const Damage& damage = damaged_.at(node);
    if (!damage.symptom_on_its_way) schedule_symptom(node, now_ns_ + damage.symptom_after_ns, now_ns_);
  }
  for (const NodeId node : unreachable) link_blocks(node);
}

bool RunWorld::needs_network(const Action& action) {
  return !std::holds_alternative<recovery::Fence>(action.body) &&
         !std::holds_alternative<recovery::PromoteSpare>(action.body) &&
         !std::holds_alternative<recovery::StartProcesses>(action.body);
}

std::vector<RunWorld::NodeId> RunWorld::blockers(const Action& action) const {
  std::vector<NodeId> nodes;
  const auto* promote = std::get_if<recovery::PromoteSpare>(&action.body);
  if (std::holds_alternative<recovery::Fence>(action.body)) return nodes;
  for (const auto& [node, damage] : damaged_) {
    if (damage.scope == FaultScope::Network && !needs_network(action)) continue;
    if (promote ? promote->node == node : controller_.slot_of(node).has_value()) nodes.push_back(node);
  }
  return nodes;
}

void RunWorld::phase_acted(const Action& action) {
  if (std::holds_alternative<recovery::BuildCommunicators>(action.body)) find_copies(action.key.epoch);
  if (const auto* resume = std::get_if<recovery::Resume>(&action.body)) {
    restored(resume->step);
    progress_steps_ = static_cast<double>(resume->step);
    attempts_ = 0;
    forget_ended_outages();
    set_training();
    for (const auto& [id, part] : slow_) watch_straggler(id);
    repeat_user_error();
  }
  tell(Answered{action.key, Outcome::Acted, std::nullopt});
}

void RunWorld::perform(const recovery::SetTimer& timer, const ActionKey& key) {
  if (timer.at_ns > duration_ns_) return;
  agenda_.at(timer.at_ns, [this, key] { tell(recovery::TimerFired{key}); });
}

void RunWorld::perform(const recovery::Fence&, const ActionKey& key) {
  fenced_epoch_ = key.epoch;
  ++attempts_;
  blocked_phase_.reset();
  if (mode_ != JobMode::Dead) return kill_job();
  storage_.abandon();  // loads of the epoch before
}

void RunWorld::perform(const recovery::StartProcesses& start, const ActionKey&) {
  processes_crashed_ = false;
  if (!input_.policy.elastic.enabled || active_replicas_ == start.replicas.size()) return;
  active_replicas_ = start.replicas.size();
  result_.fewest_replicas = std::min(result_.fewest_replicas, static_cast<std::int64_t>(active_replicas_));
  trace_.add(now_ns_, RunEventKind::Replicas, -1, std::to_string(active_replicas_));
  state_changed();
}

void RunWorld::perform(const recovery::LoadState& load, const ActionKey&) { loading_ = load.copy; }

void RunWorld::perform(const recovery::PromoteSpare& promote, const ActionKey&) {
  trace_.add(now_ns_, RunEventKind::Promote, promote.node, "");
  node_is(promote.node, faults::NodeUse::Job, position_of(promote.slot));
  device_lost(promote.node);
  state_changed();
}

void RunWorld::perform(const recovery::Eject& eject, const ActionKey& key) { to_shop(eject.node, key); }

/// Something broke on a node while it was tested: it goes back.
void RunWorld::perform(const recovery::ReturnToRepair& back, const ActionKey& key) { to_shop(back.node, key); }

/// When the node that goes to repair now is back; beyond the end of the run for one that is not in it.
std::int64_t RunWorld::repaired_at_ns(NodeId node) {
  const std::int64_t never_ns = duration_ns_ + 1;
  const auto damaged = damaged_.find(node);
  if (damaged != damaged_.end() && damaged->second.injected)
    return std::max(now_ns_, damaged->second.ends_at_ns.value_or(never_ns));
  if (damaged != damaged_.end() && damaged->second.repaired_at_ns)
    return std::max(now_ns_, *damaged->second.repaired_at_ns);
  if (const auto link = links_down_.find(node); damaged == damaged_.end() && link != links_down_.end())
    return std::max(now_ns_, link->second.up_ns.value_or(never_ns));  // it is sound
  const auto planned = maintenance_until_ns_.find(node);
  if (damaged == damaged_.end() && planned != maintenance_until_ns_.end())
    if (const auto next = planned->second.upper_bound(now_ns_); next != planned->second.end()) return *next;
  const double repair_s = repair_draws_.lognormal(std::log(input_.policy.repair_median_s), input_.policy.repair_sigma);
  return repair_s > input_.duration_s ? never_ns : now_ns_ + to_ns(repair_s);
}

void RunWorld::to_shop(NodeId node, const ActionKey& key) {
  trace_.add(now_ns_, RunEventKind::Eject, node, "");
  in_shop_.insert(node);
  copies_.node_gone(node);
  result_.corruptions_found += corrupt_.erase(node) > 0 && disagreed_from_ ? 1 : 0;
  // No repair of a node mends its switch.
  std::erase_if(
      slow_, [&](const auto& slow) { return slow.second.node == node && slow.second.mode != FaultMode::SwitchCrash; });
  node_is(node, faults::NodeUse::InRepair);
  state_changed();
  const std::int64_t back_ns = repaired_at_ns(node);
  if (back_ns > duration_ns_) return;
  agenda_.at(back_ns, [this, node, key] {
    in_shop_.erase(node);
    damaged_.erase(node);
    node_is(node, faults::NodeUse::Spare);
    temperature_[node] = recovery::Temperature::Warm;
    trace_.add(now_ns_, RunEventKind::Repaired, node, "");
    tell(recovery::NodeRepaired{key, node});
  });
}

void RunWorld::perform(const recovery::HeatSpare& heat, const ActionKey& key) {
  agenda_.at(now_ns_ + to_ns(extra_s(heat.node)), [this, heat, key] {
    temperature_.erase(heat.node);
    tell(Answered{key, Outcome::Acted, std::nullopt});
  });
}

/// On top of the time for a spare that is hot.
double RunWorld::extra_s(NodeId node) const {
  const auto its = temperature_.find(node);
  if (its == temperature_.end()) return 0;
  return its->second == recovery::Temperature::Cold ? input_.policy.spares.cold_extra_s
                                                    : input_.policy.spares.warm_extra_s;
}

void RunWorld::perform(const recovery::TestNode& test, const ActionKey& key) {
  const ReadmissionPolicy& readmission = input_.policy.readmission;
  const double seconds = test.thorough ? readmission.thorough_test_s : readmission.test_s;
  if (seconds > input_.duration_s) return;
  agenda_.at(now_ns_ + to_ns(seconds), [this, key] { tell(Answered{key, Outcome::Acted, std::nullopt}); });
}

void RunWorld::perform(const recovery::TakeCheckpoint& take, const ActionKey& key) {
  if (mode_ == JobMode::Dead) return;
  if (checkpoint_) tell(Answered{checkpoint_->key, Outcome::Refused, std::nullopt});  // the newer one has it all
  checkpoint_ = AskedCheckpoint{key, take};
  if (mode_ == JobMode::Training) arm_step_boundary();
}

void RunWorld::perform(const recovery::PageHuman& page, const ActionKey&) {
  ++result_.pages;
  trace_.add(now_ns_, RunEventKind::Page, -1, to_string(page.reason));
}

void RunWorld::perform(const recovery::FileLedger& file, const ActionKey&) {
  result_.recoveries.push_back(
      {file.ledger, std::exchange(causes_since_running_, {}), std::exchange(lost_since_running_s_, 0)});
}

}  // namespace trainyard
