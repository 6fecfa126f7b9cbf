// Proofs about a program. Two models of it are built here, independent of how lowering made it:
// a happens-before relation inside each stage (streams, dependencies, waits) for what concerns
// memory, and an abstract run of all stages with rendezvous for what concerns deadlock.

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>
#include <tuple>

#include <fmt/format.h>

#include "models/base/check.h"
#include "models/base/index.h"
#include "models/program/block_builder.h"
#include "models/program/launch_order.h"
#include "models/program/parameters.h"
#include "models/program/program.h"

namespace trainyard {

namespace {

constexpr std::size_t kProblemsShown = 20;

Problem broken(std::string where, std::string rule, std::string fix = "this is a bug in lowering: please report it") {
  Problem problem;
  problem.file = "program";
  problem.path = std::move(where);
  problem.rule = std::move(rule);
  problem.fix = std::move(fix);
  return problem;
}

std::string describe(const StepProgram& program, const StageProgram& stage, std::int32_t item_index, OpId op) {
  const Item& item = stage.items[index(item_index)];
  if (item.block < 0) {
    std::string text = fmt::format("stage {} item {}", stage.stage, item_index);
    for (const Transfer& move : item.transfers) {
      text += fmt::format(" {} {} of micro-batch {} chunk {} {} stage {}", move.send ? "send" : "receive",
                          move.backward ? "gradient" : "activation", move.micro_batch, move.model_chunk,
                          move.send ? "to" : "from", move.peer_stage);
    }
    return text;
  }
  const Block& block = program.block(item);
  const Op& at = block.ops[index(op)];
  return fmt::format("stage {} item {} {} micro-batch {} op {} {} ({})", stage.stage, item_index, block.name,
                     item.micro_batch, op, at.label, to_string(at.kind));
}

// --- happens-before inside a stage

using Clock = std::array<std::int32_t, kStreamCount>;

// One launched op: a block's op, or a whole batch of transfers.
struct Launched {
  std::int32_t item = 0;
  OpId op = -1;
  Stream stream = Stream::Compute;
  std::int32_t sequence = 0;  // on its stream, from 1
};

// Vector clocks: clock[s] is the newest op of stream s that has completed when this one has.
class HappensBefore {
 public:
  HappensBefore(const StepProgram& program, const StageProgram& stage) {
    std::array<std::int32_t, kStreamCount> next{};
    std::array<Clock, kStreamCount> last{};
    for (std::size_t i = 0; i < stage.items.size(); ++i) {
      const Item& item = stage.items[i];
      first_.push_back(static_cast<std::int32_t>(ops_.size()));
      Clock start{};
      for (const Wait& wait : item.waits) join_wait(start, wait);
      const std::size_t count = item.block < 0 ? 1 : program.block(item).ops.size();
      for (std::size_t o = 0; o < count; ++o) {
        const Op* op = item.block < 0 ? nullptr : &program.block(item).ops[o];
        const Stream stream = op != nullptr ? op->stream : item.stream;
        const std::size_t s = static_cast<std::size_t>(stream);
        Clock clock = start;
        join(clock, last[s]);
        if (op != nullptr) {
          for (const OpId dep : op->deps) join(clock, clocks_[index(first_.back() + dep)]);
        }
        clock[s] = ++next[s];
        ops_.push_back({static_cast<std::int32_t>(i), static_cast<OpId>(o), stream, clock[s]});
        clocks_.push_back(clock);
        last[s] = clock;
      }
    }
    first_.push_back(static_cast<std::int32_t>(ops_.size()));
  }

  [[nodiscard]] std::int32_t id(std::int32_t item, OpId op) const { return first_[index(item)] + op; }
  [[nodiscard]] const Launched& op(std::int32_t id) const { return ops_[index(id)]; }
  [[nodiscard]] const Clock& clock(std::int32_t id) const { return clocks_[index(id)]; }
  [[nodiscard]] bool before(std::int32_t a, std::int32_t b) const {
    const Launched& op = ops_[index(a)];
    return a != b && clocks_[index(b)][static_cast<std::size_t>(op.stream)] >= op.sequence;
  }

 private:
  static void join(Clock& into, const Clock& from) {
    for (std::size_t s = 0; s < kStreamCount; ++s) into[s] = std::max(into[s], from[s]);
  }
  void join_wait(Clock& start, const Wait& wait) const {
    if (wait.op >= 0) return join(start, clocks_[index(id(wait.item, wait.op))]);
    for (std::int32_t o = first_[index(wait.item)]; o < first_[index(wait.item + 1)]; ++o)
      join(start, clocks_[index(o)]);
  }

  std::vector<std::int32_t> first_;  // by item, and one past the last
  std::vector<Launched> ops_;
  std::vector<Clock> clocks_;
};

// --- memory

// Everything that touched one byte range of a frame, as the newest access per stream.
struct RangeUse {
  std::int64_t begin = 0, end = 0;
  std::array<std::int32_t, kStreamCount> last_read{}, last_write{};  // op ids + 1; 0: none
  bool written = false;
};

class MemoryCheck {
 public:
  MemoryCheck(const StepProgram& program, const StageProgram& stage, Problems& problems)
      : program_(program),
        stage_(stage),
        problems_(problems),
        order_(program, stage),
        ranges_(stage.frames.size()),
        use_(stage.frames.size()),
        turns_(stage.frames.size()) {}

  void run() {
    for (std::size_t i = 0; i < stage_.items.size() && problems_.size() < kProblemsShown; ++i)
      visit_item(static_cast<std::int32_t>(i));
    if (problems_.size() < kProblemsShown) check_reuse();
  }

 private:
  struct FrameUse {
    bool used = false;
    std::array<std::int32_t, kStreamCount> last{};  // newest sequence on each stream
    Clock floor{};                                  // what every access of the frame comes after
    std::int32_t an_op = -1;
  };

  // Whose turn it is with a transient frame, and the newest accesses of that item and of those before it.
  struct Turn {
    std::int32_t item = -1;
    Clock own{}, earlier{};
  };

  void visit_item(std::int32_t i) {
    const Item& item = stage_.items[index(i)];
    if (item.block < 0) {
      for (const Transfer& move : item.transfers) {
        access(order_.id(i, 0), move.frame, 0, move.bytes, !move.send, move.send);
      }
      return;
    }
    const Block& block = program_.block(item);
    for (std::size_t o = 0; o < block.ops.size(); ++o) {
      const Op& op = block.ops[o];
      const std::int32_t id = order_.id(i, static_cast<OpId>(o));
      // Of what it gathers in place a rank reads its own block.
      const bool gathers = op.kind == OpKind::AllGather && op.attr.in_place;
      const std::int64_t blocks = gathers ? group_size(program_.plan, op.group) : 1;
      for (const TensorId in : op.in) touch(id, item, block.tensors[index(in)], false, true, blocks);
      for (std::size_t k = 0; k < op.out.size(); ++k) {
        touch(id, item, block.tensors[index(op.out[k])], true, accumulates(op, k) || (op.attr.in_place && !gathers));
      }
    }
  }

  // One of `blocks` equal parts of the tensor, and which one does not matter: every rank has its own.
  void touch(std::int32_t id, const Item& item, const Tensor& tensor, bool writes, bool reads,
             std::int64_t blocks = 1) {
    const std::int32_t frame = item.frames[static_cast<std::size_t>(tensor.role)];
    if (frame < 0)
      return fail(id, fmt::format("{} lies in {}, which is not bound", tensor.name, to_string(tensor.role)));
    const Frame& f = stage_.frames[index(frame)];
    if (tensor.offset_bytes < 0 || tensor.offset_bytes + tensor.bytes() > f.bytes) {
      return fail(id, fmt::format("{} lies outside its {} frame", tensor.name, to_string(tensor.role)));
    }
    if (tensor.role == Role::Transient) return take_turns(id, frame);  // within a block: TransientCheck
    access(id, frame, tensor.offset_bytes, tensor.bytes() / blocks, writes, reads);
  }

  void note_use(std::int32_t id, std::int32_t frame) {
    FrameUse& use = use_[index(frame)];
    const Launched& op = order_.op(id);
    const Clock& clock = order_.clock(id);
    auto& last = use.last[static_cast<std::size_t>(op.stream)];
    last = std::max(last, op.sequence);
    // Its own position does not count as something it comes after.
    Clock floor = clock;
    floor[static_cast<std::size_t>(op.stream)] = op.sequence - 1;
    if (!use.used) use.floor = floor;
    for (std::size_t s = 0; s < kStreamCount; ++s) use.floor[s] = std::min(use.floor[s], floor[s]);
    use.used = true;
    use.an_op = id;
  }

  // Block instances share one transient frame, one after another.
  void take_turns(std::int32_t id, std::int32_t frame) {
    note_use(id, frame);
    Turn& turn = turns_[index(frame)];
    const Launched& op = order_.op(id);
    if (turn.item != op.item) {
      for (std::size_t s = 0; s < kStreamCount; ++s) turn.earlier[s] = std::max(turn.earlier[s], turn.own[s]);
      turn.own = {};
      turn.item = op.item;
    }
    turn.own[static_cast<std::size_t>(op.stream)] = op.sequence;
    const Clock& clock = order_.clock(id);
    for (std::size_t s = 0; s < kStreamCount; ++s) {
      if (clock[s] >= turn.earlier[s]) continue;
      fail(id, fmt::format("uses transient memory without being ordered after what an earlier block did with it on "
                           "stream {}",
                           to_string(static_cast<Stream>(s))));
    }
  }

  static bool starts_valid(Role role) { return role == Role::Params || role == Role::Optimizer || role == Role::Batch; }

  void access(std::int32_t id, std::int32_t frame, std::int64_t offset, std::int64_t bytes, bool writes, bool reads) {
    note_use(id, frame);
    std::int64_t covered = 0;
    RangeUse* own = nullptr;
    for (RangeUse& range : ranges_[index(frame)]) {
      if (range.begin >= offset + bytes || offset >= range.end) continue;
      if (range.begin == offset && range.end == offset + bytes) own = &range;
      if (range.written) covered += std::min(range.end, offset + bytes) - std::max(range.begin, offset);
      order_after(id, range.last_write);
      if (writes) order_after(id, range.last_read);
    }
    const Role role = stage_.frames[index(frame)].role;
    if (reads && !starts_valid(role) && covered < bytes) {
      fail(id, fmt::format("reads {} at byte {} before all of it was written", to_string(role), offset));
    }
    if (own == nullptr) {
      ranges_[index(frame)].push_back({offset, offset + bytes, {}, {}, false});
      own = &ranges_[index(frame)].back();
    }
    const std::size_t stream = static_cast<std::size_t>(order_.op(id).stream);
    if (reads) own->last_read[stream] = id + 1;
    if (writes) {
      own->last_write[stream] = id + 1;
      own->written = true;
    }
  }

  void order_after(std::int32_t id, const std::array<std::int32_t, kStreamCount>& earlier) {
    for (const std::int32_t before : earlier) {
      if (before == 0 || before - 1 == id || order_.before(before - 1, id)) continue;
      const Launched& op = order_.op(before - 1);
      fail(id, "touches memory that is not ordered after " + describe(program_, stage_, op.item, op.op));
    }
  }

  // Two frames may share addresses only if every access of one comes before every access of the other.
  void check_reuse() {
    std::vector<std::size_t> by_address;
    for (std::size_t f = 0; f < stage_.frames.size(); ++f) {
      const Frame& frame = stage_.frames[f];
      if (frame.offset_bytes < 0 || frame.offset_bytes + frame.bytes > stage_.arena_bytes) {
        problems_.push_back(broken(fmt::format("stage {} frame {}", stage_.stage, f), "lies inside the arena"));
      }
      if (use_[f].used && frame.bytes > 0) by_address.push_back(f);
    }
    std::sort(by_address.begin(), by_address.end(), [&](std::size_t a, std::size_t b) {
      return std::pair(stage_.frames[a].offset_bytes, a) < std::pair(stage_.frames[b].offset_bytes, b);
    });
    for (std::size_t i = 0; i < by_address.size(); ++i) {
      const Frame& a = stage_.frames[by_address[i]];
      for (std::size_t j = i + 1; j < by_address.size(); ++j) {
        const Frame& b = stage_.frames[by_address[j]];
        if (b.offset_bytes >= a.offset_bytes + a.bytes) break;
        if (all_before(by_address[i], by_address[j]) || all_before(by_address[j], by_address[i])) continue;
        fail(use_[by_address[j]].an_op,
             fmt::format("{} frame {} shares memory with {} frame {} without being ordered after it", to_string(b.role),
                         by_address[j], to_string(a.role), by_address[i]));
        if (problems_.size() >= kProblemsShown) return;
      }
    }
  }

  bool all_before(std::size_t a, std::size_t b) const {
    for (std::size_t s = 0; s < kStreamCount; ++s) {
      if (use_[b].floor[s] < use_[a].last[s]) return false;
    }
    return true;
  }

  void fail(std::int32_t id, std::string rule) {
    if (problems_.size() >= kProblemsShown) return;
    const Launched& op = order_.op(id);
    problems_.push_back(broken(describe(program_, stage_, op.item, op.op), std::move(rule)));
  }

  const StepProgram& program_;
  const StageProgram& stage_;
  Problems& problems_;
  HappensBefore order_;
  std::vector<std::vector<RangeUse>> ranges_;  // by frame
  std::vector<FrameUse> use_;                  // by frame
  std::vector<Turn> turns_;                    // by frame
};

// Transient tensors of one block: written before read, and apart in memory unless apart in time.
class TransientCheck {
 public:
  TransientCheck(const Block& block, Problems& problems) : block_(block), problems_(problems) {}

  void run() {
    compute_clocks();
    find_shared();
    gather_uses();
    compare();
    check_exit();
  }

 private:
  struct Use {
    // Newest access, read and write on each stream, as positions on it.
    Clock last{}, last_read{}, last_write{};
    Clock floor{};
    bool used = false, written = false;
  };

  void compute_clocks() {
    std::array<std::int32_t, kStreamCount> next{};
    std::array<Clock, kStreamCount> last{};
    for (std::size_t o = 0; o < block_.ops.size(); ++o) {
      const Op& op = block_.ops[o];
      const std::size_t s = static_cast<std::size_t>(op.stream);
      Clock clock = last[s];
      for (const OpId dep : op.deps) {
        if (dep < 0 || dep >= static_cast<OpId>(o)) {
          fail(op, "depends on an op that is launched later");
          continue;
        }
        for (std::size_t k = 0; k < kStreamCount; ++k) clock[k] = std::max(clock[k], clocks_[index(dep)][k]);
      }
      before_.push_back(clock);
      clock[s] = ++next[s];
      clocks_.push_back(clock);
      last[s] = clock;
    }
  }

  // For each transient tensor, the tensors that hold the same data: itself, and views.
  void find_shared() {
    shared_.resize(block_.tensors.size());
    for (std::size_t a = 0; a < block_.tensors.size(); ++a) {
      shared_[a].push_back(a);
      if (block_.tensors[a].role != Role::Transient || !is_staging(block_.tensors[a])) continue;
      for (std::size_t b = 0; b < block_.tensors.size(); ++b) {
        const Tensor& other = block_.tensors[b];
        if (a == b || other.role != Role::Transient || !nested(block_.tensors[a], other)) continue;
        shared_[a].push_back(b);
        if (!is_staging(other)) shared_[b].push_back(a);
      }
    }
  }

  void gather_uses() {
    uses_.resize(block_.tensors.size());
    for (std::size_t o = 0; o < block_.ops.size(); ++o) {
      const Op& op = block_.ops[o];
      for (const TensorId in : op.in) order_after(o, in, false);
      for (const TensorId out : op.out) order_after(o, out, true);
      for (const TensorId in : op.in) use(o, in, false);
      for (const TensorId out : op.out) use(o, out, true);
    }
  }

  // A read happens after the writes before it, and a write after the reads too: by dependencies, not by
  // their place in the list. Tensors that merely reuse the memory are kept apart by compare().
  void order_after(std::size_t o, TensorId id, bool writes) {
    const Tensor& tensor = block_.tensors[index(id)];
    if (tensor.role != Role::Transient) return;
    for (const std::size_t other : shared_[index(id)]) {
      for (std::size_t s = 0; s < kStreamCount; ++s) {
        if (before_[o][s] >= uses_[other].last_write[s] && (!writes || before_[o][s] >= uses_[other].last_read[s]))
          continue;
        fail(block_.ops[o],
             fmt::format("{} {} without being ordered after what {} it on stream {}", writes ? "writes" : "reads",
                         tensor.name, writes ? "used" : "wrote", to_string(static_cast<Stream>(s))));
      }
    }
  }

  void use(std::size_t o, TensorId id, bool writes) {
    if (block_.tensors[index(id)].role != Role::Transient) return;
    Use& use = uses_[index(id)];
    const Op& op = block_.ops[o];
    if (!writes && !use.written && !inside_written(id))
      fail(op, "reads " + block_.tensors[index(id)].name + " before it is written");
    if (!use.used) use.floor = before_[o];
    for (std::size_t s = 0; s < kStreamCount; ++s) use.floor[s] = std::min(use.floor[s], before_[o][s]);
    const std::size_t stream = static_cast<std::size_t>(op.stream);
    use.last[stream] = clocks_[o][stream];
    (writes ? use.last_write : use.last_read)[stream] = clocks_[o][stream];
    use.used = true;
    use.written |= writes;
  }

  // A view of a written tensor, or a tensor whose views were written.
  bool inside_written(TensorId id) const {
    const Tensor& t = block_.tensors[index(id)];
    for (std::size_t other = 0; other < block_.tensors.size(); ++other) {
      const Tensor& o = block_.tensors[other];
      if (uses_[other].written && o.role == Role::Transient && nested(t, o)) return true;
    }
    return false;
  }
  static bool contains(const Tensor& a, const Tensor& b) {
    return a.offset_bytes <= b.offset_bytes && b.offset_bytes + b.bytes() <= a.offset_bytes + a.bytes();
  }
  static bool nested(const Tensor& a, const Tensor& b) { return contains(a, b) || contains(b, a); }

  // Tensors of one staging bucket (its views) overlap by intent: same base name "bucketN.staging" scope.
  void compare() {
    std::vector<std::size_t> live;
    for (std::size_t t = 0; t < uses_.size(); ++t) {
      if (uses_[t].used) live.push_back(t);
    }
    std::sort(live.begin(), live.end(), [&](std::size_t a, std::size_t b) {
      return std::pair(block_.tensors[a].offset_bytes, a) < std::pair(block_.tensors[b].offset_bytes, b);
    });
    for (std::size_t i = 0; i < live.size(); ++i) {
      const Tensor& a = block_.tensors[live[i]];
      for (std::size_t j = i + 1; j < live.size(); ++j) {
        const Tensor& b = block_.tensors[live[j]];
        if (b.offset_bytes >= a.offset_bytes + a.bytes()) break;
        if (all_before(live[i], live[j]) || all_before(live[j], live[i])) continue;
        if (is_view_pair(a, b)) continue;
        Op op;
        op.label = b.name;
        fail(op, "shares transient memory with " + a.name + " while both are in use");
      }
    }
  }

  static bool is_staging(const Tensor& t) { return t.name.find(".staging") != std::string::npos; }
  static bool is_view_pair(const Tensor& a, const Tensor& b) {
    return (is_staging(a) || is_staging(b)) && nested(a, b);
  }

  bool all_before(std::size_t a, std::size_t b) const {
    for (std::size_t s = 0; s < kStreamCount; ++s) {
      if (uses_[b].floor[s] < uses_[a].last[s]) return false;
    }
    return true;
  }

  // The next block's compute stream may overwrite everything: it must come after every transient access.
  void check_exit() {
    Clock end{};
    for (std::size_t o = 0; o < block_.ops.size(); ++o) {
      if (block_.ops[o].stream == Stream::Compute) end = clocks_[o];
    }
    for (std::size_t t = 0; t < uses_.size(); ++t) {
      for (std::size_t s = 0; s < kStreamCount; ++s) {
        if (uses_[t].used && uses_[t].last[s] > end[s]) {
          Op op;
          op.label = block_.tensors[t].name;
          fail(op, "is still in use when the block's last compute op has completed");
        }
      }
    }
  }

  void fail(const Op& op, std::string rule) {
    if (problems_.size() < kProblemsShown)
      problems_.push_back(broken(fmt::format("block {} {}", block_.name, op.label), std::move(rule)));
  }

  const Block& block_;
  Problems& problems_;
  std::vector<Clock> clocks_, before_;
  std::vector<std::vector<std::size_t>> shared_;  // by tensor
  std::vector<Use> uses_;
};

// --- deadlock

// Runs every stage abstractly: an op completes when it heads its stream, its dependencies are met and,
// where other stages take part, they have reached theirs. Collectives within a stage need no
// partner here: all their members run this same program.
class Rendezvous {
 public:
  Rendezvous(const StepProgram& program, Problems& problems) : program_(program), problems_(problems) {
    for (const StageProgram& stage : program.stages) stages_.emplace_back(program, stage);
  }

  void run() {
    bool progress = true;
    while (progress) {
      progress = false;
      for (std::size_t s = 0; s < stages_.size(); ++s) progress |= advance(s);
    }
    for (const StageState& state : stages_) {
      if (state.done_ops < state.total_ops) return report();
    }
  }

 private:
  struct StageState {
    StageState(const StepProgram& program, const StageProgram& from) : stage(&from) {
      LaunchOrder order = launch_order(program, from);
      queue = std::move(order.queue);
      first = std::move(order.first);
      total_ops = first.back();
      complete.assign(index(total_ops), false);
    }
    const StageProgram* stage;
    std::array<std::vector<Launch>, kStreamCount> queue;
    std::array<std::size_t, kStreamCount> head{};
    std::vector<std::int64_t> first;
    std::vector<bool> complete;
    std::int64_t total_ops = 0, done_ops = 0;
  };
  using Match = std::tuple<std::int32_t, std::int32_t, bool, std::int32_t,
                           std::int32_t>;  // from, to, backward, chunk, micro-batch

  static Match match_of(std::int32_t stage, const Transfer& move) {
    return {move.send ? stage : move.peer_stage, move.send ? move.peer_stage : stage, move.backward, move.model_chunk,
            move.micro_batch};
  }

  bool ready(const StageState& state, const Launch& launch) const {
    const Item& item = state.stage->items[index(launch.item)];
    for (const Wait& wait : item.waits) {
      if (wait.op >= 0) {
        if (!state.complete[index(state.first[index(wait.item)] + wait.op)]) return false;
        continue;
      }
      for (std::int64_t o = state.first[index(wait.item)]; o < state.first[index(wait.item + 1)]; ++o) {
        if (!state.complete[index(o)]) return false;
      }
    }
    if (item.block < 0) return true;
    for (const OpId dep : program_.block(item).ops[index(launch.op)].deps) {
      if (!state.complete[index(state.first[index(launch.item)] + dep)]) return false;
    }
    return true;
  }

  // Posts the op, and says whether its partners on other stages have all posted theirs.
  bool met(std::int32_t stage, const Item& item, OpId op_id) {
    if (item.block < 0) {
      bool all = true;
      for (const Transfer& move : item.transfers) {
        auto& posted = transfers_[match_of(stage, move)];
        posted |= move.send ? 1 : 2;
        all &= posted == 3;
      }
      return all;
    }
    const Op& op = program_.block(item).ops[index(op_id)];
    const bool crosses = is_communication(op.kind) && (op.group == Group::Embedding || op.group == Group::World);
    if (!crosses) return true;
    auto& arrived = collectives_[{op.group, op.label}];
    arrived.insert(stage);
    const std::size_t expected = op.group == Group::World ? stages_.size() : std::min<std::size_t>(2, stages_.size());
    return arrived.size() == expected;
  }

  bool advance(std::size_t s) {
    StageState& state = stages_[s];
    bool any = false, progress = true;
    while (progress) {
      progress = false;
      for (std::size_t q = 0; q < kStreamCount; ++q) {
        while (state.head[q] < state.queue[q].size()) {
          const Launch launch = state.queue[q][state.head[q]];
          if (!ready(state, launch) ||
              !met(static_cast<std::int32_t>(s), state.stage->items[index(launch.item)], launch.op))
            break;
          state.complete[index(state.first[index(launch.item)] + launch.op)] = true;
          ++state.done_ops;
          ++state.head[q];
          progress = any = true;
        }
      }
    }
    return any;
  }

  // Each stuck stage waits for a partner: following those edges must lead round a cycle.
  void report() {
    std::string text;
    for (const StageState& state : stages_) {
      for (std::size_t q = 0; q < kStreamCount; ++q) {
        if (state.head[q] >= state.queue[q].size()) continue;
        const Launch launch = state.queue[q][state.head[q]];
        if (!ready(state, launch)) continue;
        text += (text.empty() ? "" : "; ") + describe(program_, *state.stage, launch.item, launch.op);
      }
    }
    problems_.push_back(broken("rendezvous", "deadlock, each of these waits for another: " + text,
                               "change the schedule or the overlap switches of the plan"));
  }

  const StepProgram& program_;
  Problems& problems_;
  std::vector<StageState> stages_;
  std::map<Match, int> transfers_;  // 1: sender posted, 2: receiver posted
  std::map<std::pair<Group, std::string>, std::set<std::int32_t>> collectives_;
};

}  // namespace

Problems check(const StepProgram& program) {
  Problems problems;
  for (const Block& block : program.blocks) TransientCheck(block, problems).run();
  for (const StageProgram& stage : program.stages) {
    if (problems.size() < kProblemsShown) MemoryCheck(program, stage, problems).run();
  }
  Rendezvous(program, problems).run();
  return problems;
}

}  // namespace trainyard
