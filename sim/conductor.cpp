#include "sim/conductor.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <xxhash.h>

#include "models/base/check.h"
#include "models/base/index.h"
#include "models/base/units.h"
#include "models/cost/rdma.h"
#include "sim/collective_flow.h"
#include "sim/flow_network.h"
#include "sim/fold.h"
#include "sim/private_runs.h"
#include "sim/step_parts.h"

namespace trainyard {

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

class Conductor {
 public:
  Conductor(const StepProgram& program, const ClusterSpec& cluster, const CostModel& cost, const StepOptions& options,
            const Fold& fold, const std::vector<double>& contention)
      : program_(program), cluster_(cluster), cost_(cost), options_(options), fold_(fold), network_(fold) {
    for (const StageProgram& stage : program.stages) flat_.push_back(flatten(program, stage));
    classes_.reserve(fold.ranks.size());
    for (const RankClass& rank : fold.ranks) classes_.emplace_back(flat_[index(rank.stage)]);
    for (std::size_t c = 0; c < contention.size(); ++c) classes_[c].contention = contention[c];
    find_sorts();
    find_slow_gpus();
    plan_link_changes();
    if (options.merge) make_private_runs();
    hash_ = XXH64_createState();
    XXH64_reset(hash_, 0);
  }
  ~Conductor() { XXH64_freeState(hash_); }
  Conductor(const Conductor&) = delete;
  Conductor& operator=(const Conductor&) = delete;

  Result<StepResult> run() {
    network_.run([this] { conduct(); });
    if (problem_) return *problem_;
    return finished();
  }

 private:
  // --- state

  struct Cursor {
    std::size_t head = 0;
    bool running = false;
    // What the head was last seen to wait for: an op, or an item; -1: nothing.
    std::int32_t unmet_op = -1, unmet_item = -1;
  };
  struct ClassState {
    explicit ClassState(const FlatStage& from)
        : flat(&from), done(from.ops.size(), 0), left(from.first.size() - 1), transfers_left(left.size()), times(from) {
      for (std::size_t i = 0; i + 1 < from.first.size(); ++i) left[i] = from.first[i + 1] - from.first[i];
    }
    const FlatStage* flat;
    std::array<Cursor, kStreamCount> cursor;
    std::vector<char> done;                                                    // by flat op
    std::vector<std::int32_t> left;                                            // by item: ops that have not completed
    std::vector<std::int32_t> transfers_left;                                  // by item
    std::array<std::array<std::int32_t, kStreamCount>, kGroupCount> joined{};  // collectives, by communicator
    std::array<double, kStreamCount> started_at{};
    double run_started_at = 0;
    double end_s = 0;
    std::array<double, kStreamCount> busy_s{};
    OpTimes times;
    // Of the GPU's slow windows: [begin, end) and factor.
    struct Window {
      double begin, end, factor;
    };
    std::vector<Window> slow;
    bool constant_speed = true;
    double contention = 1;
    std::vector<std::shared_ptr<const PrivateRuns>> runs;  // by block, where merging is possible
  };

  enum class EventKind : std::uint8_t { OpDone, RunDone, CollectiveDone, FlowStarts, LinkChange, QueuePairTimeout };
  struct Event {
    double time = 0;
    std::int64_t order = 0;  // total order
    EventKind kind = EventKind::OpDone;
    std::int32_t rank_class = -1;
    std::int32_t flat_op = -1;  // OpDone; RunDone: first op of the run
    std::int32_t tag = -1;      // collective, transfer or link change
    bool operator>(const Event& other) const { return time != other.time ? time > other.time : order > other.order; }
  };

  // A collective or transfer under way. Slots are used again: `tag` is a slot.
  struct Waiting {
    std::int32_t rank_class, flat_op;
  };
  struct Channel {
    std::int32_t channel_class = -1;
    const Op* op = nullptr;        // null: a transfer
    double bytes = 0;              // of a transfer
    std::vector<Waiting> waiting;  // members, or sender and receiver
    double started_at = 0;
    double flow_bytes = 0, flow_rate = 0;
    bool flowing = false;
  };
  struct LinkChange {
    double time = 0;
    std::int32_t link_class = 0;
    double capacity = 0;
    bool down = false;
  };

  using CollectiveKey = std::tuple<std::int32_t, std::int32_t, std::int32_t>;  // channel class, stream, how many before
  using TransferKey = std::tuple<std::int32_t, std::int32_t, std::int32_t>;  // channel class, model chunk, micro-batch

  // --- setting up

  void find_slow_gpus() {
    for (std::size_t c = 0; c < classes_.size(); ++c) {
      const std::int64_t rank = fold_.ranks[c].representative;
      for (const InjectedFault& fault : options_.degradations) {
        if (fault.kind != InjectedKind::GpuSlow || rank / cluster_.gpus_per_node != fault.node ||
            rank % cluster_.gpus_per_node != fault.device)
          continue;
        const double end = fault.duration_s ? fault.at_s + *fault.duration_s : kNever;
        classes_[c].slow.push_back({fault.at_s, end, fault.factor});
        classes_[c].constant_speed &= fault.at_s <= 0 && !fault.duration_s;
      }
    }
  }

  // Capacities over time of the links that a degradation strikes, and what is lost on them.
  void plan_link_changes() {
    lossy_.resize(fold_.links.size());
    for (std::size_t l = 0; l < fold_.links.size(); ++l) {
      const std::vector<const InjectedFault*> hit = faults_of_link(fold_.links[l].representative);
      std::vector<double> moments;
      for (const InjectedFault* fault : hit) {
        moments.push_back(fault->at_s);
        if (fault->duration_s) moments.push_back(fault->at_s + *fault->duration_s);
        // What is lost one way are data, and the acknowledgements of what comes the other way.
        const double loss = fault->loss * (fault->direction == LinkDirection::Both ? 2 : 1);
        if (loss > 0)
          lossy_[l].push_back({fault->at_s, fault->duration_s ? fault->at_s + *fault->duration_s : kNever, loss});
      }
      std::sort(moments.begin(), moments.end());
      moments.erase(std::unique(moments.begin(), moments.end()), moments.end());
      for (const double moment : moments) link_changes_.push_back(change_at(moment, l, hit));
    }
    down_since_.assign(fold_.links.size(), kNever);
    carried_.assign(fold_.links.size(), 0);
    flowing_s_.assign(fold_.channels.size(), 0);
  }

  std::vector<const InjectedFault*> faults_of_link(LinkId link) const {
    std::vector<const InjectedFault*> hit;
    if (link >= 2 * nics()) return hit;
    for (const InjectedFault& fault : options_.degradations) {
      if (fault.kind != InjectedKind::NicSlow && fault.kind != InjectedKind::LinkDown) continue;
      const std::int64_t nic =
          fault.node * cluster_.nics_per_node + fault.device * cluster_.nics_per_node / cluster_.gpus_per_node;
      if (link / 2 == nic) hit.push_back(&fault);
    }
    return hit;
  }

  // The state of a link from `moment` on, until the next change. A NIC of two ports loses one with each LinkDown.
  LinkChange change_at(double moment, std::size_t link, const std::vector<const InjectedFault*>& hit) const {
    const LinkClass& its = fold_.links[link];
    const LinkDirection direction = its.representative % 2 == 0 ? LinkDirection::Out : LinkDirection::In;
    const int ports = cluster_.dual_tor ? 2 : 1;
    double capacity = its.capacity_bytes_per_s;
    int ports_down = 0;
    for (const InjectedFault* fault : hit) {
      if (fault->at_s > moment || (fault->duration_s && moment >= fault->at_s + *fault->duration_s)) continue;
      if (fault->kind == InjectedKind::LinkDown) ++ports_down;
      const bool this_way = fault->direction == LinkDirection::Both || fault->direction == direction;
      if (fault->kind == InjectedKind::NicSlow && this_way) capacity /= fault->factor;
    }
    const bool down = ports_down >= ports;
    return {moment, static_cast<std::int32_t>(link), down ? 0 : capacity * (ports - ports_down) / ports, down};
  }

  std::int64_t nics() const {
    return (program_.plan.ranks() + cluster_.gpus_per_node - 1) / cluster_.gpus_per_node * cluster_.nics_per_node;
  }

  // Runs of a block's private ops can be replayed for a class whose NVLink neighbours are all of its own class and
  // whose speed does not change. Classes of one factor share them.
  void make_private_runs() {
    std::map<std::pair<std::int32_t, double>, std::shared_ptr<const PrivateRuns>> made;
    for (std::size_t c = 0; c < classes_.size(); ++c) {
      ClassState& state = classes_[c];
      state.runs.resize(program_.blocks.size());
      if (!state.constant_speed) continue;
      const double factor = state.contention * (state.slow.empty() ? 1 : slow_factor(state));
      const std::array<bool, kGroupCount> alone = private_groups(c);
      for (const Item& item : state.flat->stage->items) {
        if (item.block < 0 || state.runs[index(item.block)]) continue;
        std::int64_t key = item.block;
        for (std::size_t g = 0; g < kGroupCount; ++g) key = key * 2 + (alone[g] ? 1 : 0);
        auto& runs = made[{static_cast<std::int32_t>(key), factor}];
        if (!runs) {
          runs = std::make_shared<const PrivateRuns>(program_.blocks[index(item.block)], alone, [&](const Op& op) {
            return is_communication(op.kind) ? inside_node_seconds(op, group_ranks(c, op.group))
                                             : cost_.op_seconds(op) * factor;
          });
        }
        state.runs[index(item.block)] = runs;
      }
    }
  }

  static double slow_factor(const ClassState& state) {
    double factor = 1;
    for (const auto& window : state.slow) factor *= window.factor;
    return factor;
  }

  // Groups whose members share a node and are all of class c: their collectives are as private as a kernel.
  std::array<bool, kGroupCount> private_groups(std::size_t c) const {
    std::array<bool, kGroupCount> alone{};
    for (std::size_t s = 0; s < fold_.sorts.size(); ++s) {
      if (fold_.sorts[s].kind == ChannelKind::Transfer) continue;
      const std::int32_t channel = fold_.ranks[c].channel[s];
      if (channel < 0) continue;
      const ChannelClass& its = fold_.channels[index(channel)];
      alone[static_cast<std::size_t>(fold_.sorts[s].group)] = its.inside_node && its.rank_classes.size() == 1;
    }
    return alone;
  }

  std::int64_t group_ranks(std::size_t c, Group group) const {
    const std::int32_t channel = channel_of(c, group);
    return channel < 0 ? 1 : fold_.channels[index(channel)].ranks;
  }

  std::int32_t channel_of(std::size_t c, Group group) const {
    const std::int32_t sort = sort_of_group_[static_cast<std::size_t>(group)];
    return sort < 0 ? -1 : fold_.ranks[c].channel[index(sort)];
  }

  void find_sorts() {
    sort_of_group_.fill(-1);
    for (std::size_t s = 0; s < fold_.sorts.size(); ++s) {
      const ChannelSort& sort = fold_.sorts[s];
      (sort.kind == ChannelKind::Transfer ? sort_of_transfers_[sort.backward ? 1 : 0]
                                          : sort_of_group_[static_cast<std::size_t>(sort.group)]) =
          static_cast<std::int32_t>(s);
    }
  }

  // --- the loop

  void push(double time, EventKind kind, std::size_t rank_class, std::int32_t flat_op) {
    events_.push({time, next_order_++, kind, static_cast<std::int32_t>(rank_class), flat_op, -1});
  }
  void push(double time, EventKind kind, std::int64_t tag) {
    events_.push({time, next_order_++, kind, -1, -1, static_cast<std::int32_t>(tag)});
  }

  void conduct() {
    for (std::size_t i = 0; i < link_changes_.size(); ++i) {
      if (link_changes_[i].time <= 0) {
        apply(link_changes_[i]);
      } else {
        push(link_changes_[i].time, EventKind::LinkChange, static_cast<std::int64_t>(i));
      }
    }
    for (std::size_t c = 0; c < classes_.size(); ++c) advance(c);
    while (!over_ && unfinished_classes() > 0) {
      const double next = events_.empty() ? kNever : events_.top().time;
      // SimGrid is asked only when a flow may have ended: asking costs more than an event of our own.
      if (network_.in_flight() > 0 && next >= network_.earliest_end()) {
        if (const auto tag = network_.wait(next, now_)) {
          channel_done(*tag);
          continue;
        }
      } else if (network_.in_flight() == 0 && events_.empty()) {
        return deadlock();
      }
      if (next == kNever) continue;
      const Event event = events_.top();
      events_.pop();
      now_ = event.time;
      ++event_count_;
      handle(event);
    }
  }

  std::size_t unfinished_classes() const { return classes_.size() - finished_classes_; }

  void handle(const Event& event) {
    switch (event.kind) {
      case EventKind::OpDone: complete(index(event.rank_class), event.flat_op); return advance(index(event.rank_class));
      case EventKind::RunDone: return run_done(index(event.rank_class), event.flat_op);
      case EventKind::CollectiveDone: return channel_done(event.tag);
      case EventKind::FlowStarts: {
        network_.sleep_until(now_);
        Channel& channel = channels_[index(event.tag)];
        channel.flowing = true;
        const auto flows = static_cast<double>(fold_.flows_per_channel);
        network_.start(channel.channel_class, channel.flow_bytes / flows, channel.flow_rate / flows, event.tag);
        for (const Crossing& crossing : fold_.channels[index(channel.channel_class)].crossings)
          carried_[index(crossing.link_class)] += channel.flow_bytes / flows * static_cast<double>(crossing.weight);
        return watch_queue_pairs(event.tag);
      }
      case EventKind::LinkChange: network_.sleep_until(now_); return apply(link_changes_[index(event.tag)]);
      case EventKind::QueuePairTimeout: return queue_pair_timeout(event.tag);
    }
  }

  // --- links that fail

  void apply(const LinkChange& change) {
    network_.set_capacity(change.link_class, change.capacity);
    down_since_[index(change.link_class)] = change.down ? now_ : kNever;
    if (!change.down) return;
    for (std::size_t tag = 0; tag < channels_.size(); ++tag) {
      if (channels_[tag].flowing) watch_queue_pairs(static_cast<std::int64_t>(tag));
    }
  }

  double stalled_since(const Channel& channel) const {
    double since = kNever;
    for (const Crossing& crossing : fold_.channels[index(channel.channel_class)].crossings) {
      since = std::min(since, down_since_[index(crossing.link_class)]);
    }
    return since;
  }

  void watch_queue_pairs(std::int64_t tag) {
    if (stalled_since(channels_[index(tag)]) == kNever) return;
    push(now_ + options_.queue_pair_timeout_s, EventKind::QueuePairTimeout, tag);
  }

  // Retries are spent if the flow is still there and its link has been down all along.
  void queue_pair_timeout(std::int64_t tag) {
    const Channel& channel = channels_[index(tag)];
    const double since = now_ - options_.queue_pair_timeout_s + 1e-9;
    if (!channel.flowing || channel.started_at > since || stalled_since(channel) > since) return;
    error_ = fmt::format("a queue pair gave up after {:.1f} s without its link: {} over {}",
                         options_.queue_pair_timeout_s, channel.op != nullptr ? channel.op->label : "pipeline transfer",
                         to_string(fold_.sorts[index(fold_.channels[index(channel.channel_class)].sort)].group));
    over_ = true;
  }

  // --- ops

  // Whether the op at the head of a stream can start. What it waits for is asked first the next time.
  static bool ready(const ClassState& state, std::int32_t flat_op, Cursor& cursor) {
    if (cursor.unmet_op >= 0 && !state.done[index(cursor.unmet_op)]) return false;
    if (cursor.unmet_item >= 0 && state.left[index(cursor.unmet_item)] > 0) return false;
    cursor.unmet_op = cursor.unmet_item = -1;
    const FlatOp& flat = state.flat->ops[index(flat_op)];
    const Item& item = state.flat->stage->items[index(flat.item)];
    // An item's waits hold for each of its ops; once one op of it has started they are met for good.
    const std::int32_t first = state.flat->first[index(flat.item)];
    for (const Wait& wait : item.waits) {
      if (wait.op < 0) {
        if (state.left[index(wait.item)] > 0) cursor.unmet_item = wait.item;
      } else if (const std::int32_t op = state.flat->first[index(wait.item)] + wait.op; !state.done[index(op)]) {
        cursor.unmet_op = op;
      }
      if (cursor.unmet_op >= 0 || cursor.unmet_item >= 0) return false;
    }
    if (flat.op == nullptr) return true;
    for (const OpId dep : flat.op->deps) {
      if (state.done[index(first + dep)]) continue;
      cursor.unmet_op = first + dep;
      return false;
    }
    return true;
  }

  // Starts whatever can start on class c now. What starts makes nothing else ready, so each stream is looked at once.
  void advance(std::size_t c) {
    ClassState& state = classes_[c];
    for (std::size_t s = 0; s < kStreamCount; ++s) {
      Cursor& cursor = state.cursor[s];
      const auto& queue = state.flat->queue[s];
      if (cursor.running || cursor.head == queue.size() || !ready(state, queue[cursor.head], cursor)) continue;
      const std::int32_t flat_op = queue[cursor.head];
      if (start_run(c, flat_op)) continue;
      cursor.running = true;
      start(c, s, flat_op);
    }
  }

  // The step interpreter proper: what each kind of op does to time. OpKind's order; exec has the same switch.
  void start(std::size_t c, std::size_t stream, std::int32_t flat_op) {
    ClassState& state = classes_[c];
    const Op* op = state.flat->ops[index(flat_op)].op;
    state.started_at[stream] = now_;
    if (op == nullptr) return post_transfers(c, flat_op);
    switch (op->kind) {
      case OpKind::Embedding:
      case OpKind::EmbeddingGrad:
      case OpKind::PositionAdd:
      case OpKind::PositionGrad:
      case OpKind::Norm:
      case OpKind::NormGrad:
      case OpKind::Matmul:
      case OpKind::BiasAdd:
      case OpKind::BiasGrad:
      case OpKind::Activation:
      case OpKind::ActivationGrad:
      case OpKind::Add:
      case OpKind::Dropout:
      case OpKind::SplitQkv:
      case OpKind::MergeQkvGrad:
      case OpKind::Attention:
      case OpKind::AttentionMerge:
      case OpKind::AttentionGrad:
      case OpKind::Router:
      case OpKind::RouterGrad:
      case OpKind::Permute:
      case OpKind::PermuteGrad:
      case OpKind::Unpermute:
      case OpKind::UnpermuteGrad:
      case OpKind::SortByExpert:
      case OpKind::GroupedMatmul:
      case OpKind::GroupedMatmulWgrad:
      case OpKind::XentMax:
      case OpKind::XentSum:
      case OpKind::XentLoss:
      case OpKind::XentGrad: return run_kernel(c, flat_op, *op);
      case OpKind::AllReduce:
      case OpKind::AllGather:
      case OpKind::ReduceScatter:
      case OpKind::AllToAllCounts:
      case OpKind::AllToAllV:
      case OpKind::RingShift: return join_collective(c, flat_op, *op);
      case OpKind::SendRecv: TY_CHECK(false, "transfers come in batches, not as ops");
      case OpKind::Zero:
      case OpKind::Copy:
      case OpKind::Accumulate:
      case OpKind::SquaredNorm:
      case OpKind::AdamW:
      case OpKind::HostSync:
      case OpKind::Join: return run_kernel(c, flat_op, *op);
    }
  }

  void run_kernel(std::size_t c, std::int32_t flat_op, const Op& op) {
    const double end = slowed_end(classes_[c], now_, classes_[c].contention * kernel_seconds(op));
    push(end, EventKind::OpDone, c, flat_op);
  }

  double kernel_seconds(const Op& op) {
    const auto [entry, is_new] = kernel_cache_.try_emplace(&op, 0.0);
    if (is_new) entry->second = cost_.op_seconds(op);
    return entry->second;
  }

  // When `seconds` of healthy work end on a GPU that is slow in windows of time.
  static double slowed_end(const ClassState& state, double from, double seconds) {
    if (state.slow.empty()) return from + seconds;
    if (state.constant_speed) return from + seconds * slow_factor(state);
    double time = from, left = seconds;
    while (true) {
      double factor = 1, until = kNever;
      for (const auto& window : state.slow) {
        if (time < window.begin) until = std::min(until, window.begin);
        if (time >= window.begin && time < window.end) {
          factor *= window.factor;
          until = std::min(until, window.end);
        }
      }
      if (time + left * factor <= until) return time + left * factor;
      left -= (until - time) / factor;
      time = until;
    }
  }

  // --- collectives

  void join_collective(std::size_t c, std::int32_t flat_op, const Op& op) {
    const std::int32_t channel_class = channel_of(c, op.group);
    if (channel_class < 0) {  // a group of one rank
      push(now_, EventKind::OpDone, c, flat_op);
      return;
    }
    // The k-th collective of a communicator is the same op on all its members.
    const std::int32_t k =
        classes_[c].joined[static_cast<std::size_t>(op.group)][static_cast<std::size_t>(op.stream)]++;
    const CollectiveKey key{channel_class, static_cast<std::int32_t>(op.stream), k};
    const auto [entry, is_new] = open_collectives_.try_emplace(key, -1);
    if (is_new) entry->second = open_channel(channel_class, &op);
    const std::int64_t tag = entry->second;
    Channel& channel = channels_[index(tag)];
    TY_CHECK(channel.op->kind == op.kind && channel.op->label == op.label,
             "members of a communicator launch the same collectives in the same order");
    channel.waiting.push_back({static_cast<std::int32_t>(c), flat_op});
    if (channel.waiting.size() < fold_.channels[index(channel_class)].rank_classes.size()) return;
    open_collectives_.erase(entry);
    begin(tag, channel, op);
  }

  // The last member has arrived.
  void begin(std::int64_t tag, Channel& channel, const Op& op) {
    const ChannelClass& its = fold_.channels[index(channel.channel_class)];
    channel.started_at = now_;
    if (its.inside_node) {
      push(now_ + inside_node_seconds(op, its.ranks), EventKind::CollectiveDone, tag);
      return;
    }
    if (op.kind == OpKind::RingShift) return begin_flow(tag, channel, op.payload_bytes);
    const Collective kind = collective_of(op.kind);
    const CollectiveFlow flow = collective_flow(cost_, cluster_, its, kind, op.payload_bytes);
    channel.flow_bytes = flow.bytes;
    channel.flow_rate = flow.max_bytes_per_s;
    push(now_ + flow.latency_s + tail_stall_s(its), EventKind::FlowStarts, tag);
  }

  // On average, over all flows of a channel through links that lose packets now.
  double tail_stall_s(const ChannelClass& channel) const {
    double lost = 0;
    for (const Crossing& crossing : channel.crossings) {
      for (const Lossy& its : lossy_[index(crossing.link_class)])
        if (its.begin <= now_ && now_ < its.end) lost += its.loss * static_cast<double>(crossing.flows);
    }
    if (lost == 0) return 0;
    return trainyard::tail_stall_s(cluster_.rdma, lost, options_.queue_pair_timeout_s / options_.queue_pair_tries);
  }

  double inside_node_seconds(const Op& op, std::int64_t ranks) const {
    if (op.kind == OpKind::RingShift) return cost_.nvlink_p2p_seconds(op.payload_bytes);
    return cost_.nvlink_collective_seconds(collective_of(op.kind), ranks, op.payload_bytes);
  }

  // From rank to rank, over all that its links give.
  void begin_flow(std::int64_t tag, Channel& channel, double bytes) {
    channel.flow_bytes = bytes;
    const double latency_s = cost_.fabric_p2p_latency_s() + tail_stall_s(fold_.channels[index(channel.channel_class)]);
    push(now_ + latency_s, EventKind::FlowStarts, tag);
  }

  std::int64_t open_channel(std::int32_t channel_class, const Op* op) {
    if (free_channels_.empty()) {
      free_channels_.push_back(static_cast<std::int64_t>(channels_.size()));
      channels_.emplace_back();
    }
    const std::int64_t tag = free_channels_.back();
    free_channels_.pop_back();
    Channel& channel = channels_[index(tag)];
    channel.channel_class = channel_class;
    channel.op = op;
    channel.flow_bytes = channel.flow_rate = 0;
    return tag;
  }

  void channel_done(std::int64_t tag) {
    Channel& channel = channels_[index(tag)];
    if (channel.flowing) flowing_s_[index(channel.channel_class)] += now_ - channel.started_at;
    for (const Waiting& member : channel.waiting) {
      ClassState& state = classes_[index(member.rank_class)];
      if (channel.op == nullptr) {
        const std::int32_t item = state.flat->ops[index(member.flat_op)].item;
        state.times.moved(item, channel.started_at, now_);
        if (--state.transfers_left[index(item)] > 0) continue;
      }
      complete(index(member.rank_class), member.flat_op);
    }
    channel.flowing = false;
    free_channels_.push_back(tag);
    // Members complete together before anyone moves on: a class may be a member twice. Moving on opens channels.
    released_.clear();
    released_.swap(channel.waiting);
    std::int32_t previous = -1;
    for (const Waiting& member : released_) {
      if (member.rank_class != previous) advance(index(member.rank_class));
      previous = member.rank_class;
    }
  }

  // --- transfers

  void post_transfers(std::size_t c, std::int32_t flat_op) {
    ClassState& state = classes_[c];
    const std::int32_t item_index = state.flat->ops[index(flat_op)].item;
    const Item& item = state.flat->stage->items[index(item_index)];
    state.transfers_left[index(item_index)] = static_cast<std::int32_t>(item.transfers.size());
    for (const Transfer& move : item.transfers) {
      const auto sort = index(sort_of_transfers_[move.backward ? 1 : 0]);
      const RankClass& rank = fold_.ranks[c];
      const std::int32_t channel_class = move.send ? rank.channel[sort] : rank.channel_as_receiver[sort];
      const TransferKey key{channel_class, move.model_chunk, move.micro_batch};
      const auto [entry, is_new] = open_transfers_.try_emplace(key, -1);
      if (is_new) entry->second = open_channel(channel_class, nullptr);
      const std::int64_t tag = entry->second;
      Channel& channel = channels_[index(tag)];
      channel.bytes = static_cast<double>(move.bytes);
      channel.waiting.push_back({static_cast<std::int32_t>(c), flat_op});
      if (channel.waiting.size() < 2) continue;
      open_transfers_.erase(entry);
      begin_transfer(tag, channel);
    }
  }

  void begin_transfer(std::int64_t tag, Channel& channel) {
    channel.started_at = now_;
    if (fold_.channels[index(channel.channel_class)].inside_node) {
      push(now_ + cost_.nvlink_p2p_seconds(channel.bytes), EventKind::CollectiveDone, tag);
      return;
    }
    begin_flow(tag, channel, channel.bytes);
  }

  // --- completion

  void complete(std::size_t c, std::int32_t flat_op) {
    ClassState& state = classes_[c];
    const FlatOp& flat = state.flat->ops[index(flat_op)];
    const std::size_t stream = static_cast<std::size_t>(flat.stream);
    record(c, flat_op, state.started_at[stream], now_);
    state.done[index(flat_op)] = 1;
    --state.left[index(flat.item)];
    state.cursor[stream].running = false;
    if (++state.cursor[stream].head == state.flat->queue[stream].size()) finish_stream(state);
  }

  void finish_stream(ClassState& state) {
    for (std::size_t s = 0; s < kStreamCount; ++s) {
      if (state.cursor[s].head < state.flat->queue[s].size()) return;
    }
    ++finished_classes_;
    state.end_s = now_;
  }

  void record(std::size_t c, std::int32_t flat_op, double start_s, double end_s) {
    ClassState& state = classes_[c];
    const FlatOp& flat = state.flat->ops[index(flat_op)];
    ++op_count_;
    state.busy_s[static_cast<std::size_t>(flat.stream)] += end_s - start_s;
    state.times.ops[index(flat_op)] = {start_s, end_s};
    const std::int64_t words[] = {static_cast<std::int64_t>(c), flat_op, to_ns(start_s), to_ns(end_s)};
    XXH64_update(hash_, words, sizeof words);
    if (options_.timeline) {
      slices_.push_back({static_cast<std::int32_t>(c), flat.stream, flat.item,
                         flat.op == nullptr ? -1 : flat_op - state.flat->first[index(flat.item)], words[2], words[3]});
    }
  }

  // --- merged runs

  // Starts a run of private ops as one event, when `flat_op` is its first and nothing else of the class is under way on
  // the streams it uses. Otherwise its ops go one by one, to the same effect.
  bool start_run(std::size_t c, std::int32_t flat_op) {
    ClassState& state = classes_[c];
    const FlatOp& flat = state.flat->ops[index(flat_op)];
    if (!options_.merge || flat.op == nullptr) return false;
    const Item& item = state.flat->stage->items[index(flat.item)];
    const PrivateRuns* runs = state.runs[index(item.block)].get();
    if (runs == nullptr) return false;
    const std::int32_t first = state.flat->first[index(flat.item)];
    const PrivateRun* run = runs->starting_at(flat_op - first);
    if (run == nullptr) return false;
    for (const std::size_t s : run->streams) {
      const Cursor& cursor = state.cursor[s];
      if (cursor.running || state.flat->queue[s][cursor.head] != first + run->first_on_stream[s]) return false;
    }
    for (const OpId dep : run->outside_deps) {
      if (!state.done[index(first + dep)]) return false;
    }
    for (const std::size_t s : run->streams) state.cursor[s].running = true;
    push(now_ + run->seconds, EventKind::RunDone, c, flat_op);
    state.run_started_at = now_;
    return true;
  }

  void run_done(std::size_t c, std::int32_t flat_op) {
    ClassState& state = classes_[c];
    const FlatOp& flat = state.flat->ops[index(flat_op)];
    const std::int32_t first = state.flat->first[index(flat.item)];
    const PrivateRun& run =
        *state.runs[index(state.flat->stage->items[index(flat.item)].block)]->starting_at(flat_op - first);
    const double begin = state.run_started_at;
    for (const PrivateRun::Member& member : run.members) {
      const std::int32_t id = first + member.op;
      record(c, id, begin + member.start_s, begin + member.end_s);
      state.done[index(id)] = 1;
    }
    state.left[index(flat.item)] -= static_cast<std::int32_t>(run.members.size());
    for (const std::size_t s : run.streams) {
      state.cursor[s].running = false;
      state.cursor[s].head += run.count_on_stream[s];
    }
    const bool emptied = std::any_of(run.streams.begin(), run.streams.end(), [&](std::size_t s) {
      return state.cursor[s].head == state.flat->queue[s].size();
    });
    if (emptied) finish_stream(state);
    advance(c);
  }

  // --- ends

  void deadlock() {
    std::string text;
    for (std::size_t c = 0; c < classes_.size(); ++c) {
      const ClassState& state = classes_[c];
      for (std::size_t s = 0; s < kStreamCount; ++s) {
        if (!state.cursor[s].running) continue;
        const FlatOp& flat = state.flat->ops[index(state.flat->queue[s][state.cursor[s].head])];
        text +=
            fmt::format("{}rank {} (stage {}) {} at item {}", text.empty() ? "" : "; ", fold_.ranks[c].representative,
                        fold_.ranks[c].stage, flat.op != nullptr ? flat.op->label : "transfers", flat.item);
      }
    }
    problem_ = Problem{"",
                       "",
                       "",
                       "the step deadlocks: nothing moves, and these wait for partners: " + text,
                       "see `program check`",
                       ProblemKind::Infeasible};
  }

  StepResult finished() {
    StepResult result;
    result.communicator_error = error_;
    for (const ClassState& state : classes_) result.time_s = std::max(result.time_s, state.end_s);
    if (!error_.empty()) result.time_s = now_;
    const std::vector<std::int32_t> link_of_channel = slowest_link_of_channels();
    double ranks = 0;
    for (const RankClass& rank : fold_.ranks) ranks += static_cast<double>(rank.count);
    for (std::size_t c = 0; c < classes_.size(); ++c) {
      const ClassState& state = classes_[c];
      const RankClass& rank = fold_.ranks[c];
      const auto parts = step_parts(*state.flat, state.times, result.time_s, cost_.stack().kernel_gap_s);
      result.classes.push_back({rank.representative, rank.count, rank.stage, state.end_s, state.busy_s, parts,
                                slowest_links(rank, link_of_channel)});
      for (std::size_t p = 0; p < kStepPartCount; ++p)
        result.part_s[p] += parts[p] * static_cast<double>(rank.count) / ranks;
    }
    std::sort(slices_.begin(), slices_.end(), [](const Slice& a, const Slice& b) {
      return std::tie(a.rank_class, a.stream, a.start_ns, a.end_ns, a.item, a.op) <
             std::tie(b.rank_class, b.stream, b.start_ns, b.end_ns, b.item, b.op);
    });
    result.slices = std::move(slices_);
    for (std::size_t l = 0; l < fold_.links.size(); ++l) {
      const LinkClass& link = fold_.links[l];
      if (carried_[l] > 0)
        result.links.push_back({link.representative, link.count, link.capacity_bytes_per_s, carried_[l]});
    }
    result.link_classes = static_cast<std::int64_t>(fold_.links.size());
    result.channel_classes = static_cast<std::int64_t>(fold_.channels.size());
    result.flows = network_.started();
    result.events = event_count_;
    result.ops = op_count_;
    result.fold_rounds = fold_.rounds;
    result.trace_hash = XXH64_digest(hash_);
    return result;
  }

  // By part that a rank waits in: of the channels that it belongs to the one that takes longest, and its slowest link.
  std::array<std::int32_t, kStepPartCount> slowest_links(const RankClass& rank,
                                                         const std::vector<std::int32_t>& of_channel) const {
    std::array<std::int32_t, kStepPartCount> links{};
    std::array<double, kStepPartCount> longest_s{};
    links.fill(-1);
    const auto consider = [&](std::int32_t channel, std::size_t part) {
      if (channel < 0 || flowing_s_[index(channel)] <= longest_s[part]) return;
      longest_s[part] = flowing_s_[index(channel)];
      links[part] = of_channel[index(channel)];
    };
    for (std::size_t s = 0; s < fold_.sorts.size(); ++s) {
      const auto part = static_cast<std::size_t>(exposed_part_of(fold_.sorts[s].group));
      consider(rank.channel[s], part);
      consider(rank.channel_as_receiver[s], part);
    }
    return links;
  }

  // By channel class, of the links that it crosses the one that its own bytes fill most, at the least that the link has
  // had; -1: none.
  std::vector<std::int32_t> slowest_link_of_channels() const {
    std::vector<double> least;
    for (const LinkClass& link : fold_.links) least.push_back(link.capacity_bytes_per_s);
    for (const LinkChange& change : link_changes_) {
      double& its = least[index(change.link_class)];
      if (change.time < now_) its = std::max(1e-9, std::min(its, change.capacity));
    }
    std::vector<std::int32_t> links;
    for (const ChannelClass& channel : fold_.channels) {
      double most = 0;
      links.push_back(-1);
      for (const Crossing& crossing : channel.crossings) {
        const double load = static_cast<double>(crossing.weight) / least[index(crossing.link_class)];
        if (load <= most) continue;
        most = load;
        links.back() = fold_.links[index(crossing.link_class)].representative;
      }
    }
    return links;
  }

  const StepProgram& program_;
  const ClusterSpec& cluster_;
  const CostModel& cost_;
  const StepOptions& options_;
  const Fold& fold_;
  FlowNetwork network_;
  std::deque<FlatStage> flat_;
  std::vector<ClassState> classes_;
  std::array<std::int32_t, kGroupCount> sort_of_group_{};  // of channels; -1: the group is one rank
  std::array<std::int32_t, 2> sort_of_transfers_{-1, -1};  // forward, backward
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  std::deque<Channel> channels_;  // by tag
  std::vector<std::int64_t> free_channels_;
  std::vector<Waiting> released_;  // by the channel that has just ended
  std::map<CollectiveKey, std::int64_t> open_collectives_;
  std::map<TransferKey, std::int64_t> open_transfers_;
  std::unordered_map<const Op*, double> kernel_cache_;
  std::vector<LinkChange> link_changes_;
  struct Lossy {
    double begin, end, loss;
  };
  std::vector<std::vector<Lossy>> lossy_;  // by link class
  std::vector<double> down_since_;
  std::vector<double> carried_;    // bytes, by link class
  std::vector<double> flowing_s_;  // by channel class
  std::vector<Slice> slices_;
  std::string error_;
  std::optional<Problem> problem_;
  XXH64_state_t* hash_ = nullptr;
  std::int64_t next_order_ = 0, event_count_ = 0, op_count_ = 0;
  std::size_t finished_classes_ = 0;
  double now_ = 0;
  bool over_ = false;
};

}  // namespace

Result<StepResult> conduct(const StepProgram& program, const ClusterSpec& cluster, const CostModel& cost,
                           const StepOptions& options, const Fold& fold, const std::vector<double>& contention) {
  return Conductor(program, cluster, cost, options, fold, contention).run();
}

}  // namespace trainyard
