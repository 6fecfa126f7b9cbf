// The night's world. Sections: the queue and the mail; launcher and journal; what the watcher sees;
// agents and their work; training and checkpoints; mischief; calm.
#include "sim/fuzz/night_world.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <queue>
#include <set>
#include <tuple>

#include <fmt/format.h>
#include <xxhash.h>

#include "models/base/check.h"
#include "models/base/random.h"
#include "models/base/units.h"
#include "models/recovery/agent.h"

namespace trainyard::fuzz {
namespace {

using namespace recovery;  // NOLINT(google-build-using-namespace): this file is that folder's world

constexpr std::size_t kMailKept = 300;
constexpr std::int64_t kPoll_ns = 2'000'000'000;
/// Events at one moment; a real night has hundreds when old mail comes again.
constexpr std::int64_t kMostAtOnce = 20'000;

/// Training is deterministic: after step k every rank has value chain(k).
std::uint64_t trained(std::uint64_t value, std::int64_t step) {
  return mix64(value ^ static_cast<std::uint64_t>(step));
}

/// One shard of a copy, with what it holds.
struct Shard {
  StateCopy copy;
  std::int64_t shard = 0;
  std::uint64_t value = 0;
};

struct Node {
  bool powered = true;
  bool in_repair = false;
  bool untested = false;  // back from repair, not tested since
  bool bad = false;       // the repair did not find it
  Temperature temperature = Temperature::Warm;
  std::int64_t boot = 1, boot_ns = 0;
  std::optional<Agent> agent;
  std::int64_t frozen_until_ns = 0, cut_until_ns = 0, link_up_ns = 0, disk_full_until_ns = 0, slow_until_ns = 0;
  double slow = 1;
  std::int64_t refusals = 0, deaf = 0;
  // The ranks' state.
  std::int64_t step = 0;
  std::uint64_t value = 0;
  std::optional<Request> snapshot, connect;
  std::vector<Shard> memory, disk;
};

class World {
 public:
  World(const Night& night, const PlayOptions& options)
      : night_(night),
        k_(night.knobs),
        config_(launcher_config(night.knobs)),
        options_(options),
        mail_draws_(night.seed, "fuzz.mail"),
        work_draws_(night.seed, "fuzz.work"),
        symptom_draws_(night.seed, "fuzz.symptoms"),
        shadow_(config_.controller),
        single_(config_.controller),
        hash_(XXH64_createState()) {
    XXH64_reset(hash_, 0);
    result_.transitions.resize(transition_table().size());
  }
  ~World() { XXH64_freeState(hash_); }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  NightResult run() {
    set_the_stage();
    while (!queue_.empty() && !over_) {
      at_once_ = queue_.top().at_ns == now_ns_ ? at_once_ + 1 : 0;
      if (at_once_ > kMostAtOnce) violate("the launcher spins: time stands still");
      now_ns_ = queue_.top().at_ns;
      const Task task = std::move(const_cast<Entry&>(queue_.top()).task);  // the order does not look at it
      queue_.pop();
      task();
    }
    result_.action_hash = XXH64_digest(hash_);
    return result_;
  }

 private:
  using Task = std::function<void()>;
  struct Entry {
    std::int64_t at_ns, order;
    Task task;
    bool operator<(const Entry& other) const { return std::tie(at_ns, order) > std::tie(other.at_ns, other.order); }
  };

  // ---- The queue and the mail ---------------------------------------------------------------

  void at(std::int64_t at_ns, Task task) { queue_.push({std::max(at_ns, now_ns_), order_++, std::move(task)}); }
  void in(double seconds, Task task) { at(now_ns_ + to_ns(seconds), std::move(task)); }
  [[nodiscard]] double now_s() const { return static_cast<double>(now_ns_) / kNsPerS; }

  void say(const std::string& line) {
    if (options_.log) options_.log(now_s(), line);
  }
  template <class... Args>
  void tell_log(fmt::format_string<Args...> text, Args&&... args) {
    if (options_.log) options_.log(now_s(), fmt::format(text, std::forward<Args>(args)...));
  }

  void violate(const std::string& what) {
    if (over_) return;
    result_.violation = what;
    result_.violation_at_s = now_s();
    over_ = true;
    say("VIOLATION " + what);
  }

  /// Some time later `arrive` happens, or not, or twice.
  void mail(Task arrive) {
    ++result_.messages;
    if (mail_draws_.uniform() < loss_) return;
    const bool twice = mail_draws_.uniform() < repeat_;
    for (int copies = twice ? 2 : 1; copies > 0; --copies)
      in(mail_draws_.lognormal(std::log(k_.delay_s), k_.delay_sigma), arrive);
    post_.push_back(std::move(arrive));
    if (post_.size() > kMailKept) post_.pop_front();
  }
  void mail_to_launcher(NodeId from, Task arrive) {
    if (node(from).cut_until_ns > now_ns_) return;
    mail([this, arrive = std::move(arrive)] {
      if (launcher_) arrive();
    });
  }

  Node& node(NodeId id) { return nodes_[static_cast<std::size_t>(id)]; }
  [[nodiscard]] std::int64_t local_ns(const Node& n) const { return now_ns_ - n.boot_ns; }

  // ---- Launcher and journal -----------------------------------------------------------------

  void set_the_stage() {
    loss_ = k_.loss;
    repeat_ = k_.repeat;
    nodes_.resize(static_cast<std::size_t>(k_.slots + k_.spares()));
    for (NodeId id = 0; id < static_cast<NodeId>(nodes_.size()); ++id) {
      node(id).temperature = id < k_.slots ? Temperature::Hot : config_.controller.roster.spares.at(id);
      start_agent(id);
      if (id >= k_.slots) continue;
      node(id).agent->launched(0, id);
      node(id).value = chain(0);
      group_.push_back(id);
    }
    group_epoch_ = 1;
    manifests_[0] = chain(0);
    for (const Mischief& m : night_.mischief)
      if (m.at_s < k_.mischief_ends_s) at(to_ns(m.at_s), [this, &m] { strike(m); });
    at(to_ns(k_.mischief_ends_s), [this] { calm(); });
    in(k_.step_s, [this] { train(); });
    launcher_.emplace(config_, journal_, now_ns_);
    launcher_->launch(now_ns_, 0);
    carry_out();
  }

  void start_launcher() {
    if (launcher_) return;
    ++result_.takeovers;
    tell_log("launcher takes over from {} journal entries", journal_.size());
    launcher_.emplace(config_, journal_, now_ns_);
    carry_out();
  }

  template <class Do>
  void with_launcher(Do act) {
    if (!launcher_ || over_) return;
    act(*launcher_);
    carry_out();
  }

  void carry_out() {
    for (const LauncherOutput& output : launcher_->take_outputs()) {
      if (crash_armed_ && crash_after_-- == 0) {
        crash_armed_ = false;
        say("launcher dies");
        launcher_.reset();
        in(crash_for_s_, [this] { start_launcher(); });
        return;
      }
      std::visit([this](const auto& its) { carry_out(its); }, output);
      if (over_) return;
    }
    const std::int64_t due_ns = std::max(launcher_->due_ns(), now_ns_);
    if (due_ns >= tick_ns_ && tick_ns_ > now_ns_) return;
    tick_ns_ = due_ns;
    at(due_ns, [this, due_ns] {
      if (tick_ns_ != due_ns) return;
      tick_ns_ = 0;
      with_launcher([this](Launcher& l) { l.tick(now_ns_); });
    });
  }

  void carry_out(const Append& append) {
    journal_.push_back(append.entry);
    watch(append.entry);
  }

  void carry_out(const SendRequest& send) {
    Node& to = node(send.to);
    if (to.cut_until_ns > now_ns_) return;
    mail([this, id = send.to, request = send.request] {
      Node& n = node(id);
      if (!n.agent) return;
      if (n.deaf > 0 && n.deaf-- > 0) return;
      outputs(id, n.agent->receive(local_ns(n), request));
    });
  }

  void carry_out(const SendLease& send) {
    if (node(send.to).cut_until_ns > now_ns_) return;
    mail([this, send] {
      Node& n = node(send.to);
      if (n.agent) outputs(send.to, n.agent->receive(local_ns(n), send.lease));
    });
  }

  void carry_out(const FenceStore& fence) {
    mail([this, fence] {
      if (store_down_until_ns_ > now_ns_) return;
      const bool newer = fence.key.epoch >= store_epoch_;
      store_epoch_ = std::max(store_epoch_, fence.key.epoch);
      store_answers({fence.key, newer});
    });
  }

  void carry_out(const PromoteCheckpoint& promote) {
    mail([this, promote] {
      if (store_down_until_ns_ > now_ns_) return;
      if (promote.checkpoint.epoch < store_epoch_) return store_answers({promote.checkpoint, false});
      promote_in_store(promote);
      store_answers({promote.checkpoint, true});
    });
  }

  void store_answers(const StoreReply& reply) {
    mail([this, reply] { with_launcher([&](Launcher& l) { l.receive(now_ns_, reply); }); });
  }

  void carry_out(const Announce& announce) {
    const ActionBody& body = announce.action.body;
    if (const auto* eject = std::get_if<Eject>(&body)) repair(eject->node, announce.action.key);
    if (const auto* back = std::get_if<ReturnToRepair>(&body)) repair(back->node, announce.action.key);
    if (const auto* page = std::get_if<PageHuman>(&body)) call_human(page->reason);
    if (std::holds_alternative<FileLedger>(body)) ++result_.recoveries;
  }

  // ---- What the watcher sees ------------------------------------------------------------------

  /// Steps a second controller through the journal, event by event: what it does is what the
  /// launcher's did, which is the replay check; and a third one hears of steps one at a time.
  void watch(const JournalEntry& entry) {
    const State before = shadow_.state();
    const std::vector<Action> actions = shadow_.step(entry.now_ns, entry.event);
    tell_log("{} -> {} : {}", to_string(before), to_string(shadow_.state()), describe(entry.event));
    watch_ranges(entry, actions);
    watch_event(entry.event);
    for (const Action& action : actions) {
      const std::string text = describe(action);
      XXH64_update(hash_, text.data(), text.size());
      if (!std::holds_alternative<SetTimer>(action.body)) say("    " + text);
      watch_action(action);
    }
    if (before != shadow_.state()) count_transition(before, entry.event, shadow_.state());
    if (std::string violated = shadow_.violated_invariant(); !violated.empty()) violate(violated);
    if (before == State::Fencing && shadow_.state() != State::Fencing && shadow_.state() != State::Deciding)
      watch_fence();
    if (shadow_.durable_step() < durable_step_) violate("I4: durable steps were forgotten");
    durable_step_ = shadow_.durable_step();
    if (!manifests_.contains(durable_step_))
      violate(fmt::format("I5: step {} counts as durable and was never promoted", durable_step_));
  }

  void watch_ranges(const JournalEntry& entry, const std::vector<Action>& actions) {
    std::vector<Action> singly;
    const auto step = [&](const Event& event) {
      for (Action& action : single_.step(entry.now_ns, event)) singly.push_back(std::move(action));
    };
    if (const auto* done = std::get_if<StepsDone>(&entry.event)) {
      for (std::int64_t i = done->first; i <= done->last; ++i) step(StepsDone{done->epoch, i, i});
    } else {
      step(entry.event);
    }
    const auto same = [](const Action& a, const Action& b) {
      return a.key == b.key && a.body.index() == b.body.index();
    };
    if (!std::equal(actions.begin(), actions.end(), singly.begin(), singly.end(), same) ||
        single_.state() != shadow_.state())
      violate("ranges and single events lead to different actions");
  }

  void count_transition(State from, const Event& event, State to) {
    const std::vector<Transition>& table = transition_table();
    for (std::size_t i = 0; i < table.size(); ++i) {
      if (table[i].from != from || table[i].to != to || std::string_view(table[i].event) != kind_of(event)) continue;
      ++result_.transitions[i];
      return;
    }
    violate(fmt::format("not in the transition table: {} --{}--> {}", to_string(from), kind_of(event), to_string(to)));
  }

  void watch_event(const Event& event) {
    const auto* found = std::get_if<StateFound>(&event);
    if (found == nullptr || found->copy.tier == Tier::Remote) return;
    if (static_cast<std::int64_t>(ever_written_[found->copy].size()) < k_.shards())
      violate(fmt::format("I5: a copy of step {} that was never whole counts as found", found->copy.step));
  }

  void watch_action(const Action& action) {
    if (const auto* page = std::get_if<PageHuman>(&action.body))
      if (page->reason == PageReason::NodeRetired) retired_.insert(*page->subject);
    if (const auto* eject = std::get_if<Eject>(&action.body)) {
      std::deque<std::int64_t>& times_ns = ejections_ns_[domain_of(eject->node)];
      while (!times_ns.empty() && times_ns.front() + to_ns(k_.ejection_window_s) <= now_ns_) times_ns.pop_front();
      times_ns.push_back(now_ns_);
      if (static_cast<std::int64_t>(times_ns.size()) > k_.max_ejections_per_domain)
        violate(fmt::format("I6: {} ejections in one domain", times_ns.size()));
    }
    if (const auto* start = std::get_if<StartProcesses>(&action.body))
      if (static_cast<std::int64_t>(start->replicas.size()) < k_.min_replicas) violate("I11: too few replicas start");
  }

  /// A fence has acted: no rank of an older epoch runs anywhere.
  void watch_fence() {
    fenced_epoch_ = shadow_.epoch();
    for (NodeId id = 0; id < static_cast<NodeId>(nodes_.size()); ++id) {
      Node& n = node(id);
      if (!n.agent) continue;
      outputs(id, n.agent->tick(local_ns(n)));
      if (n.agent->ranks() != RanksState::None && n.agent->epoch() < fenced_epoch_)
        violate(fmt::format("I1: ranks of epoch {} run on node {} after epoch {} was fenced", n.agent->epoch(), id,
                            fenced_epoch_));
    }
  }

  std::uint64_t chain(std::int64_t step) {
    if (chain_.empty()) chain_.push_back(mix64(1));
    while (static_cast<std::int64_t>(chain_.size()) <= step)
      chain_.push_back(trained(chain_.back(), static_cast<std::int64_t>(chain_.size())));
    return chain_[static_cast<std::size_t>(step)];
  }

  void promote_in_store(const PromoteCheckpoint& promote) {
    const auto shards = store_shards_.find(promote.checkpoint);
    if (shards == store_shards_.end() || static_cast<std::int64_t>(shards->second.size()) < k_.shards())
      return violate("I5: a checkpoint was promoted before its quorum");
    if (promote.checkpoint.epoch < fenced_epoch_) violate("I3: a fenced epoch committed");
    for (const auto& [shard, its] : shards->second) {
      if (its.copy.step != promote.step) violate("I5: a checkpoint holds shards of different steps");
      if (its.value != chain(promote.step) && !tainted_)
        violate(fmt::format("I4, I10: shard {} of step {} is not what training gives", shard, promote.step));
    }
    if (manifests_.emplace(promote.step, shards->second.begin()->second.value).second) ++result_.checkpoints;
    if (calm_ && promote.step > calm_step_ && result_.calm_recovery_s == 0)
      result_.calm_recovery_s = now_s() - k_.mischief_ends_s;
    newest_ = {Tier::Remote, promote.step, promote.checkpoint};
    tell_log("store promotes step {}", promote.step);
  }

  // ---- Agents and their work ------------------------------------------------------------------

  void start_agent(NodeId id) {
    Node& n = node(id);
    n.boot_ns = now_ns_;
    n.agent.emplace(AgentConfig{id, n.boot, config_.lease_ns});
    n.snapshot.reset();
    n.connect.reset();
    const std::int64_t phase_ns = to_ns(k_.heartbeat_s * work_draws_.uniform());
    at(now_ns_ + phase_ns, [this, id, boot = n.boot] { beat(id, boot); });
  }

  void stop_agent(NodeId id) {
    Node& n = node(id);
    n.agent.reset();
    ++n.boot;
    n.snapshot.reset();
    n.connect.reset();
  }

  void beat(NodeId id, std::int64_t boot) {
    Node& n = node(id);
    if (!n.agent || n.boot != boot) return;
    outputs(id, n.agent->tick(local_ns(n)));
    const Heartbeat heartbeat = n.agent->heartbeat(local_ns(n), n.step, stuck_since_ns_ >= 0 && can_train(id));
    mail_to_launcher(id, [this, heartbeat] { with_launcher([&](Launcher& l) { l.receive(now_ns_, heartbeat); }); });
    in(k_.heartbeat_s, [this, id, boot] { beat(id, boot); });
  }

  void outputs(NodeId id, const std::vector<AgentOutput>& list) {
    for (const AgentOutput& output : list) std::visit([&](const auto& its) { carry_out(id, its); }, output);
  }

  template <class Message>
  void carry_out(NodeId id, const Message& message) {
    mail_to_launcher(id, [this, message] { with_launcher([&](Launcher& l) { l.receive(now_ns_, message); }); });
  }

  void carry_out(NodeId id, const KillRanks&) {
    node(id).snapshot.reset();
    node(id).connect.reset();
  }

  void carry_out(NodeId id, const Work& work) {
    const double seconds = duration_s(id, work.request) * work_draws_.lognormal(0, 0.2);
    in(seconds, [this, id, boot = node(id).boot, request = work.request] { work_over(id, boot, request); });
  }

  double duration_s(NodeId id, const Request& request) {
    switch (request.kind) {
      case RequestKind::StopRanks: return k_.stop_s;
      case RequestKind::Promote: return k_.promote_s + heating_s(id);
      case RequestKind::StartRanks: return k_.start_s;
      case RequestKind::Connect: return k_.connect_s;
      case RequestKind::Load: return k_.load_s;
      case RequestKind::Resume: return k_.warm_up_s;
      case RequestKind::Snapshot: return 0;
      case RequestKind::Heat: return heating_s(id);
      case RequestKind::Test: return k_.test_s * (request.thorough ? 4 : 1);
    }
    return 0;
  }
  double heating_s(NodeId id) {
    switch (node(id).temperature) {
      case Temperature::Hot: return 0;
      case Temperature::Warm: return k_.warm_extra_s;
      case Temperature::Cold: return k_.cold_extra_s;
    }
    return 0;
  }

  void work_over(NodeId id, std::int64_t boot, const Request& request) {
    Node& n = node(id);
    if (!n.agent || n.boot != boot || !n.agent->works_on(request.key)) return;
    const bool of_ranks = request.kind != RequestKind::StopRanks && request.kind != RequestKind::Test;
    if (of_ranks && n.frozen_until_ns > now_ns_)
      return at(n.frozen_until_ns, [this, id, boot, request] { work_over(id, boot, request); });
    if (n.refusals > 0 && request.kind != RequestKind::StopRanks) {
      --n.refusals;
      return done(id, request, {id, request.key, Outcome::Refused, id});
    }
    Reply reply{id, request.key};
    switch (request.kind) {
      case RequestKind::StopRanks: break;
      case RequestKind::Heat:
      case RequestKind::Promote: n.temperature = Temperature::Hot; break;
      case RequestKind::StartRanks:
        if (n.in_repair || (n.untested && k_.readmission_test))
          violate(fmt::format("I12: ranks start on node {}, which nobody has tested since its repair", id));
        n.step = -1;
        break;
      case RequestKind::Test:
        if (n.bad) reply.outcome = Outcome::Refused;
        if (!n.bad) n.untested = false;
        break;
      case RequestKind::Connect: n.connect = request; return connect(request);
      case RequestKind::Snapshot: n.snapshot = request; return;
      case RequestKind::Load:
        if (!load(id, request)) reply.outcome = Outcome::Refused;
        break;
      case RequestKind::Resume:
        if (n.step != request.step)
          violate(fmt::format("I4: node {} resumes at step {} with the state of step {}", id, request.step, n.step));
        break;
    }
    done(id, request, reply);
  }

  void done(NodeId id, const Request& request, const Reply& reply) {
    Node& n = node(id);
    outputs(id, n.agent->work_done(local_ns(n), request, reply));
  }

  [[nodiscard]] bool reachable(NodeId id) {
    const Node& n = node(id);
    return n.powered && n.agent && n.link_up_ns <= now_ns_;
  }

  /// All members connect together, or, when one cannot be reached, not at all.
  void connect(const Request& request) {
    bool all = true;
    std::optional<NodeId> missing;
    for (const NodeId member : request.members) {
      if (!reachable(member)) missing = member;
      const std::optional<Request>& its = node(member).connect;
      all = all && its && its->key == request.key && node(member).frozen_until_ns <= now_ns_;
    }
    if (missing) {
      in(k_.link_timeout_s, [this, request] { give_up_connecting(request); });
      return;
    }
    if (!all) return;
    group_ = request.members;
    group_epoch_ = request.key.epoch;
    stuck_since_ns_ = -1;
    for (const NodeId member : request.members) {
      Reply reply{member, request.key};
      reply.copies = inventory(member);
      node(member).connect.reset();
      done(member, request, reply);
    }
  }

  void give_up_connecting(const Request& request) {
    std::optional<NodeId> missing;
    for (const NodeId member : request.members)
      if (!reachable(member)) missing = member;
    for (const NodeId member : request.members) {
      Node& n = node(member);
      if (!n.agent || !n.connect || n.connect->key != request.key) continue;
      if (!missing) return connect(request);  // it is back
      n.connect.reset();
      return done(member, request, {member, request.key, Outcome::Refused, suspect(member, *missing)});
    }
  }

  /// Whom a rank names when its peer is gone: mostly the right one.
  std::optional<NodeId> suspect(NodeId reporter, NodeId victim) {
    const double draw = symptom_draws_.uniform();
    if (draw < 0.25) return std::nullopt;
    if (draw > 0.4) return victim;
    const NodeId other = group_[symptom_draws_.below(group_.size())];
    return other == reporter ? victim : other;
  }

  std::vector<ShardHeld> inventory(NodeId id) {
    std::vector<ShardHeld> held;
    for (const auto* copies : {&node(id).memory, &node(id).disk})
      for (const Shard& its : *copies) held.push_back({its.shard, its.copy});
    if (store_down_until_ns_ > now_ns_) return held;
    for (std::int64_t shard = 0; shard < k_.shards(); ++shard) held.push_back({shard, newest_});
    return held;
  }

  bool load(NodeId id, const Request& request) {
    Node& n = node(id);
    const std::int64_t shard = n.agent->slot() % k_.shards();
    if (request.copy.tier == Tier::Remote) {
      const auto manifest = manifests_.find(request.copy.step);
      if (store_down_until_ns_ > now_ns_ || manifest == manifests_.end()) return false;
      n.value = manifest->second;
      n.step = request.copy.step;
      return true;
    }
    for (const NodeId member : group_) {
      if (!reachable(member)) continue;
      for (const auto* shards : {&node(member).memory, &node(member).disk}) {
        for (const Shard& its : *shards) {
          if (its.copy != request.copy || its.shard != shard) continue;
          n.value = its.value;
          n.step = its.copy.step;
          return true;
        }
      }
    }
    return false;
  }

  // ---- Training and checkpoints ---------------------------------------------------------------

  bool can_train(NodeId id) {
    const Node& n = node(id);
    return reachable(id) && n.agent->ranks() == RanksState::Training && n.agent->epoch() == group_epoch_ &&
           n.frozen_until_ns <= now_ns_;
  }

  void train() {
    bool all = true, any = false, held = false, slow_to_come = false;
    for (const NodeId member : group_) {
      Node& n = node(member);
      if (n.agent) outputs(member, n.agent->tick(local_ns(n)));
      const bool can = can_train(member);
      all = all && can;
      any = any || can;
      if (!n.agent || n.agent->epoch() != group_epoch_) continue;
      const RanksState ranks = n.agent->ranks();
      held = held || ranks == RanksState::Held;
      slow_to_come = slow_to_come || ranks == RanksState::Loaded || ranks == RanksState::Connected;
    }
    if (over_) return;
    if (all && !group_.empty()) {
      stuck_since_ns_ = -1;
      step();
      double slowest = 1;
      for (const NodeId member : group_)
        if (node(member).slow_until_ns > now_ns_) slowest = std::max(slowest, node(member).slow);
      return in(k_.step_s * slowest, [this] { train(); });
    }
    if (any && !held && !slow_to_come) wait_for_peers();
    watch_standstill();
    at(now_ns_ + kPoll_ns, [this] { train(); });
  }

  /// A job that should train and does not is noticed by somebody, while there is a launcher to notice.
  void watch_standstill() {
    if (!launcher_ || shadow_.state() != State::Running) {
      standing_since_ns_ = now_ns_;
      return;
    }
    const double bound_s = k_.training_s + k_.detection_s + 2 * k_.collective_timeout_s + 120;
    if (static_cast<double>(now_ns_ - standing_since_ns_) / kNsPerS > bound_s)
      violate(fmt::format("I8: nobody notices that the job has stood still for {:.0f} s", bound_s));
  }

  void step() {
    standing_since_ns_ = now_ns_;
    if (group_epoch_ < fenced_epoch_) violate(fmt::format("I3: epoch {} trains after it was fenced", group_epoch_));
    std::map<std::int64_t, NodeId> slots;
    const Node& first = node(group_.front());
    for (const NodeId member : group_) {
      Node& n = node(member);
      if (n.step != first.step)
        violate(fmt::format("I4: nodes {} and {} train at different steps", group_.front(), member));
      if (const auto [slot, fresh] = slots.emplace(n.agent->slot(), member); !fresh)
        violate(fmt::format("I2: nodes {} and {} both train slot {}", slot->second, member, slot->first));
    }
    for (const NodeId member : group_) {
      Node& n = node(member);
      ++n.step;
      n.value = trained(n.value, n.step);
    }
    take_snapshots();
  }

  /// At a step boundary, once every member has been asked.
  void take_snapshots() {
    const std::optional<Request> request = node(group_.front()).snapshot;
    if (!request) return;
    for (const NodeId member : group_)
      if (!node(member).snapshot || node(member).snapshot->key != request->key) return;
    for (const NodeId member : group_) {
      Node& n = node(member);
      const Shard copy{{Tier::Host, n.step, request->key}, n.agent->slot() % k_.shards(), n.value};
      Reply reply{member, request->key};
      reply.step = n.step;
      n.snapshot.reset();
      keep(n.memory, copy);
      done(member, *request, reply);
      written(member, request->key, copy);
      in(k_.hash_s * work_draws_.uniform(), [this, member, key = request->key, hash = n.value, boot = n.boot] {
        Node& its = node(member);
        if (its.agent && its.boot == boot) outputs(member, its.agent->hashed(key, hash));
      });
      if (request->tier == Tier::Peer || request->tier == Tier::Remote)
        write_later(member, request->key, copy, Tier::Peer, k_.write_peer_s);
      if (request->tier == Tier::Nvme) write_later(member, request->key, copy, Tier::Nvme, k_.write_nvme_s);
      if (request->tier == Tier::Remote) write_later(member, request->key, copy, Tier::Remote, k_.write_remote_s);
    }
  }

  void keep(std::vector<Shard>& copies, const Shard& its) {
    ever_written_[its.copy].insert(its.shard);
    copies.push_back(its);
    const auto same = [&](const Shard& other) { return other.copy.tier == its.copy.tier && other.shard == its.shard; };
    if (std::count_if(copies.begin(), copies.end(), same) > 2)
      copies.erase(std::find_if(copies.begin(), copies.end(), same));
  }

  void written(NodeId id, const ActionKey& key, const Shard& its) {
    Node& n = node(id);
    outputs(id, n.agent->shard_written(key, its.copy.tier, its.copy.step));
  }

  void write_later(NodeId id, const ActionKey& key, Shard copy, Tier tier, double seconds) {
    copy.copy.tier = tier;
    in(seconds * work_draws_.lognormal(0, 0.3), [this, id, key, copy, seconds, boot = node(id).boot] {
      Node& n = node(id);
      if (!n.agent || n.boot != boot || n.agent->epoch() != key.epoch) return;  // fenced: nobody wants it any more
      if (write(id, key, copy)) return written(id, key, copy);
      in(5, [this, id, key, copy, seconds, boot] {
        if (node(id).agent && node(id).boot == boot) write_later(id, key, copy, copy.copy.tier, seconds);
      });
    });
  }

  bool write(NodeId id, const ActionKey& key, const Shard& copy) {
    Node& n = node(id);
    if (copy.copy.tier == Tier::Peer) {
      const NodeId buddy = buddy_of(id);
      if (buddy == id || !reachable(id) || !reachable(buddy)) return false;
      keep(node(buddy).memory, copy);
      return true;
    }
    if (n.disk_full_until_ns > now_ns_) return false;
    if (copy.copy.tier == Tier::Nvme) {
      keep(n.disk, copy);
      return true;
    }
    if (store_down_until_ns_ > now_ns_ || key.epoch < store_epoch_) return false;
    store_shards_[key][copy.shard] = copy;
    return true;
  }

  std::int64_t domain_of(NodeId id) const { return place_of(places_, id) / k_.nodes_per_domain; }

  /// A member in another failure domain, if there is one.
  NodeId buddy_of(NodeId id) {
    const auto own = static_cast<std::size_t>(std::find(group_.begin(), group_.end(), id) - group_.begin());
    for (const bool elsewhere : {true, false}) {
      for (std::size_t i = 1; i < group_.size(); ++i) {
        const NodeId other = group_[(own + i) % group_.size()];
        if (other != id && (!elsewhere || domain_of(other) != domain_of(id))) return other;
      }
    }
    return id;
  }

  /// Some members train and some do not: after their timeouts the communicators break.
  void wait_for_peers() {
    if (stuck_since_ns_ < 0) stuck_since_ns_ = now_ns_;
    std::optional<NodeId> gone, frozen;
    for (const NodeId member : group_) {
      if (can_train(member)) continue;
      const Node& n = node(member);
      const bool hangs = reachable(member) && n.frozen_until_ns > now_ns_ && n.agent->ranks() == RanksState::Training;
      (hangs ? frozen : gone) = member;
    }
    const double waited_s = static_cast<double>(now_ns_ - stuck_since_ns_) / kNsPerS;
    if (waited_s < (gone ? k_.link_timeout_s : k_.collective_timeout_s)) return;
    const NodeId victim = gone ? *gone : *frozen;
    for (const NodeId member : group_) {
      Node& n = node(member);
      if (!n.agent || n.agent->epoch() != group_epoch_) continue;
      const bool saw_it = can_train(member);
      n.agent->communicator_broke();
      if (saw_it && member != victim)
        report(member, CommunicatorError{group_epoch_, member, suspect(member, victim), stuck_since_ns_});
    }
    stuck_since_ns_ = -1;
  }

  void report(NodeId from, const Event& symptom) {
    mail_to_launcher(from, [this, report = Report{from, symptom}] {
      with_launcher([&](Launcher& l) { l.receive(now_ns_, report); });
    });
  }

  // ---- Repair, and humans -----------------------------------------------------------------------

  void power_off(NodeId id) {
    Node& n = node(id);
    n.powered = false;
    n.memory.clear();
    n.temperature = Temperature::Warm;
    stop_agent(id);
  }

  void power_on(NodeId id) {
    Node& n = node(id);
    if (n.powered) return;
    n.powered = true;
    start_agent(id);
  }

  void repair(NodeId id, const ActionKey& key) {
    if (!repairs_.insert(key).second) return;  // announced again by a later launcher
    tell_log("node {} goes to repair", id);
    power_off(id);
    Node& n = node(id);
    n.in_repair = true;
    n.untested = true;
    n.disk.clear();
    in(k_.repair_s * work_draws_.lognormal(0, 0.5), [this, id, key] {
      node(id).in_repair = false;
      node(id).bad = !calm_ && work_draws_.uniform() < k_.bad_repair;
      power_on(id);
      tell_repaired(id, key, 0);
    });
  }

  /// The shop says so until a launcher has heard it, and then once more.
  void tell_repaired(NodeId id, const ActionKey& key, int times) {
    if (node(id).in_repair) return;
    if (launcher_) ++times;
    with_launcher([&](Launcher& l) { l.tell(now_ns_, NodeRepaired{key, id}); });
    if (times < 2) in(40, [this, id, key, times] { tell_repaired(id, key, times); });
  }

  void call_human(PageReason reason) {
    in(k_.human_s, [this, reason] {
      if (!launcher_) return call_human(reason);
      const State state = launcher_->controller().state();
      if (state == State::WaitingForHuman && reason != PageReason::SparesExhausted)
        with_launcher([&](Launcher& l) { l.tell(now_ns_, HumanCleared{}); });
      if (state == State::WaitingForSpare && reason == PageReason::SparesExhausted) bring_nodes();
    });
  }

  /// New machines, as many as are missing.
  void bring_nodes() {
    for (auto missing = std::count(shadow_.owners().begin(), shadow_.owners().end(), kNobody); missing > 0; --missing) {
      nodes_.emplace_back();
      const auto id = static_cast<NodeId>(nodes_.size()) - 1;
      start_agent(id);
      with_launcher([&](Launcher& l) { l.tell(now_ns_, SpareReady{id, Temperature::Warm}); });
    }
    call_human(PageReason::SparesExhausted);  // looks again: some may have failed at once
  }

  // ---- Mischief -----------------------------------------------------------------------------------

  void strike(const Mischief& m) {
    ++result_.mischief;
    tell_log("MISCHIEF {} node {} other {} for {:g} s factor {:g} count {}", to_string(m.kind), m.node, m.other,
             m.for_s, m.factor, m.count);
    Node& n = node(m.node);
    const std::int64_t until_ns = now_ns_ + to_ns(m.for_s);
    const bool here = n.powered && n.agent.has_value();
    switch (m.kind) {
      case MischiefKind::NodeCrash: return crash(m.node, m.for_s);
      case MischiefKind::RankCrash:
        if (here) n.agent->ranks_died();
        return;
      case MischiefKind::Freeze: n.frozen_until_ns = std::max(n.frozen_until_ns, until_ns); return;
      case MischiefKind::AgentRestart:
        if (!here) return;
        stop_agent(m.node);
        return start_agent(m.node);
      case MischiefKind::CutOff: n.cut_until_ns = std::max(n.cut_until_ns, until_ns); return;
      case MischiefKind::LinkDown: n.link_up_ns = std::max(n.link_up_ns, until_ns); return;
      case MischiefKind::LeafFlap:
        for (NodeId id = 0; id < static_cast<NodeId>(nodes_.size()); ++id)
          if (domain_of(id) == domain_of(m.node)) node(id).link_up_ns = std::max(node(id).link_up_ns, until_ns);
        return;
      case MischiefKind::LauncherCrash:
        crash_armed_ = launcher_.has_value();
        crash_after_ = m.count;
        crash_for_s_ = m.for_s;
        return;
      case MischiefKind::StoreOutage: store_down_until_ns_ = std::max(store_down_until_ns_, until_ns); return;
      case MischiefKind::Corrupt: return corrupt(m.node);
      case MischiefKind::Slow: return slow_down(m.node, m.factor, until_ns);
      case MischiefKind::Xid: return report(m.node, XidReported{m.node, 0, static_cast<int>(m.count), now_ns_});
      case MischiefKind::FalseBlame:
        return report(m.other, CommunicatorError{shadow_.epoch(), m.other, m.node, now_ns_});
      case MischiefKind::Maintenance:
        with_launcher([&](Launcher& l) { l.tell(now_ns_, MaintenanceDue{m.node, until_ns}); });
        return in(m.for_s, [this, id = m.node] { crash(id, 300); });
      case MischiefKind::Stale:
        for (std::int64_t i = 0; i < m.count && !post_.empty(); ++i) post_[mail_draws_.below(post_.size())]();
        return;
      case MischiefKind::Refusal: n.refusals += m.count; return;
      case MischiefKind::Deafness: n.deaf += m.count; return;
      case MischiefKind::DiskFull: n.disk_full_until_ns = std::max(n.disk_full_until_ns, until_ns); return;
    }
  }

  void crash(NodeId id, double for_s) {
    if (!node(id).powered || calm_) return;
    power_off(id);
    in(for_s, [this, id] {
      if (!node(id).in_repair) power_on(id);
    });
  }

  void corrupt(NodeId id) {
    Node& n = node(id);
    if (!n.agent || n.agent->ranks() != RanksState::Training) return;
    // No two corruptions are alike, or replicas might agree on one.
    n.value = mix64(n.value ^ mix64(static_cast<std::uint64_t>(now_ns_ + id)));
    // Without a vote, or with a single voter, nobody can know.
    std::int64_t voters = 0;
    for (const NodeId member : group_)
      if (node(member).agent && node(member).agent->slot() % k_.shards() == n.agent->slot() % k_.shards()) ++voters;
    if (!k_.hash_vote || voters < 2) tainted_ = true;
  }

  void slow_down(NodeId id, double factor, std::int64_t until_ns) {
    Node& n = node(id);
    n.slow = factor;
    n.slow_until_ns = until_ns;
    watch_slow(id);
    at(until_ns, [this, id] { report(id, StragglingOver{id}); });
  }

  /// The monitor of a slow node's peers says so every minute.
  void watch_slow(NodeId id) {
    Node& n = node(id);
    if (n.slow_until_ns <= now_ns_) return;
    if (n.agent && n.agent->ranks() == RanksState::Training) report(id, Straggling{n.agent->epoch(), id, n.slow});
    in(60, [this, id] { watch_slow(id); });
  }

  // ---- Calm -----------------------------------------------------------------------------------------

  void calm() {
    say("CALM");
    calm_ = true;
    calm_step_ = newest_.step;
    loss_ = repeat_ = 0;
    crash_armed_ = false;
    store_down_until_ns_ = 0;
    for (NodeId id = 0; id < static_cast<NodeId>(nodes_.size()); ++id) {
      Node& n = node(id);
      n.frozen_until_ns = n.cut_until_ns = n.link_up_ns = n.disk_full_until_ns = n.slow_until_ns = 0;
      n.refusals = n.deaf = 0;
      n.bad = false;
      if (!n.in_repair) power_on(id);
    }
    in(1, [this] { start_launcher(); });
    in(60, [this] { look(); });
    in(k_.calm_s, [this] {
      if (const auto id = missing_node())
        violate(fmt::format("liveness: node {} was sent away and never went to repair", *id));
      violate(
          fmt::format("liveness: {:g} s after the mischief ended no new checkpoint is durable; the controller is {}",
                      k_.calm_s, to_string(shadow_.state())));
    });
  }

  /// Sent away, not in repair, and not told to stay away.
  std::optional<NodeId> missing_node() {
    for (NodeId id = 0; id < static_cast<NodeId>(nodes_.size()); ++id)
      if (shadow_.is_away(id) && !node(id).in_repair && !retired_.contains(id)) return id;
    return std::nullopt;
  }

  void look() {
    const bool trains =
        shadow_.state() == State::Running && result_.calm_recovery_s > 0 && shadow_.durable_step() > calm_step_;
    if (trains && !missing_node()) {
      over_ = true;
      return;
    }
    in(60, [this] { look(); });
  }

  const Night& night_;
  const NightKnobs& k_;
  const std::vector<std::int64_t> places_ = k_.places();
  const LauncherConfig config_;
  const PlayOptions& options_;
  NightResult result_;
  bool over_ = false;

  std::priority_queue<Entry> queue_;
  std::int64_t order_ = 0, now_ns_ = 0, at_once_ = 0;
  RandomStream mail_draws_, work_draws_, symptom_draws_;
  double loss_ = 0, repeat_ = 0;
  std::deque<Task> post_;

  std::vector<JournalEntry> journal_;
  std::optional<Launcher> launcher_;
  std::int64_t tick_ns_ = 0;
  bool crash_armed_ = false;
  std::int64_t crash_after_ = 0;
  double crash_for_s_ = 0;

  Controller shadow_, single_;
  XXH64_state_t* hash_;
  std::int64_t fenced_epoch_ = 1, durable_step_ = 0;
  std::map<std::int64_t, std::deque<std::int64_t>> ejections_ns_;

  std::vector<Node> nodes_;
  std::vector<NodeId> group_;  // that trains together
  std::int64_t group_epoch_ = 0, stuck_since_ns_ = -1;
  std::vector<std::uint64_t> chain_;
  bool tainted_ = false;
  std::set<ActionKey> repairs_;
  std::set<NodeId> retired_;
  std::map<StateCopy, std::set<std::int64_t>> ever_written_;
  std::int64_t standing_since_ns_ = 0;

  std::int64_t store_epoch_ = 0, store_down_until_ns_ = 0;
  std::map<ActionKey, std::map<std::int64_t, Shard>> store_shards_;
  std::map<std::int64_t, std::uint64_t> manifests_;
  StateCopy newest_;

  bool calm_ = false;
  std::int64_t calm_step_ = 0;
};

}  // namespace

NightResult play(const Night& night, const PlayOptions& options) { return World(night, options).run(); }

}  // namespace trainyard::fuzz
