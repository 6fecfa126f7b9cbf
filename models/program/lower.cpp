// Lowering: from model and plan to the step program. Block templates are made once per shape of
// chunk; each stage then strings instances of them together in the order of its schedule,
// connects them with transfers, and lays its frames out in the arena.

#include <algorithm>
#include <deque>
#include <map>
#include <tuple>

#include <fmt/format.h>

#include "models/base/check.h"
#include "models/program/block_builder.h"
#include "models/program/graph.h"
#include "models/program/parameters.h"
#include "models/program/program.h"
#include "models/program/schedule.h"
#include "models/program/step_blocks.h"

namespace trainyard {

namespace {

std::size_t at(Role role) { return static_cast<std::size_t>(role); }

// Makes each block once: chunks of equal shape share theirs.
class BlockLibrary {
 public:
  BlockLibrary(const ModelSpec& model, const ParallelPlan& plan, std::vector<Block>& blocks)
      : model_(model), plan_(plan), blocks_(blocks) {}

  std::int32_t forward(const Chunk& chunk) {
    return once(BlockKind::Forward, chunk, false,
                [&](const std::string& name) { return forward_block(graph(chunk), plan_, chunk, name); });
  }
  std::int32_t backward(const Chunk& chunk, bool sync) {
    return once(BlockKind::Backward, chunk, sync,
                [&](const std::string& name) { return backward_block(graph(chunk), plan_, chunk, sync, name); });
  }
  std::int32_t step_begin(const Chunk& chunk, bool zero_scalars) {
    return once(BlockKind::StepBegin, chunk, zero_scalars,
                [&](const std::string& name) { return step_begin_block(plan_, chunk, zero_scalars, name); });
  }
  std::int32_t param_gather(const Chunk& chunk) {
    return once(BlockKind::ParamGather, chunk, false,
                [&](const std::string& name) { return param_gather_block(plan_, chunk, name); });
  }
  std::int32_t boundary_gather(bool gradient) {
    const auto [entry, is_new] = boundary_gather_.try_emplace(gradient, static_cast<std::int32_t>(blocks_.size()));
    if (is_new) blocks_.push_back(boundary_gather_block(model_, plan_, gradient));
    return entry->second;
  }
  std::int32_t gradient_sync(const Chunk& chunk) {
    return once(BlockKind::GradientSync, chunk, false,
                [&](const std::string& name) { return gradient_sync_block(plan_, chunk, name); });
  }
  std::int32_t grad_norm(const Chunk& chunk) {
    return once(BlockKind::GradNorm, chunk, false,
                [&](const std::string& name) { return grad_norm_block(plan_, chunk, name); });
  }
  std::int32_t optimizer(const Chunk& chunk) {
    return once(BlockKind::Optimizer, chunk, false,
                [&](const std::string& name) { return optimizer_block(plan_, chunk, name); });
  }
  std::int32_t scalar_reduce(bool last_stage) {
    const auto [entry, is_new] = scalar_reduce_.try_emplace(last_stage, static_cast<std::int32_t>(blocks_.size()));
    if (is_new)
      blocks_.push_back(scalar_reduce_block(plan_, last_stage, last_stage ? "step.reduce_with_loss" : "step.reduce"));
    return entry->second;
  }

 private:
  using Shape = std::tuple<bool, bool, std::int64_t>;  // embedding, head, layers
  static Shape shape_of(const Chunk& chunk) { return {chunk.has_embedding, chunk.has_head, chunk.layers}; }

  const Graph& graph(const Chunk& chunk) {
    const auto [entry, is_new] = graphs_.try_emplace(shape_of(chunk));
    if (is_new) entry->second = build_decoder(model_, plan_, chunk);
    return entry->second;
  }

  template <class Make>
  std::int32_t once(BlockKind kind, const Chunk& chunk, bool flag, Make make) {
    const auto [entry, is_new] =
        index_.try_emplace({kind, flag, shape_of(chunk)}, static_cast<std::int32_t>(blocks_.size()));
    if (is_new) {
      blocks_.push_back(make(fmt::format("{}{}.{}{}x{}", to_string(kind), flag ? "+" : "",
                                         chunk.has_embedding ? "e" : "", chunk.has_head ? "h" : "", chunk.layers)));
    }
    return entry->second;
  }

  const ModelSpec& model_;
  const ParallelPlan& plan_;
  std::vector<Block>& blocks_;
  std::map<Shape, Graph> graphs_;
  std::map<std::tuple<BlockKind, bool, Shape>, std::int32_t> index_;
  std::map<bool, std::int32_t> scalar_reduce_, boundary_gather_;
};

// Strings one stage together.
//
// Time, for memory, is counted in block slots: slot k computes during [2k], and what happens
// between slots k-1 and k has the odd number 2k-1. Blocks before the schedule have negative
// numbers, those after it follow the last slot.
class StageBuilder {
 public:
  StageBuilder(const ModelSpec& model, const ParallelPlan& plan, std::int32_t stage, BlockLibrary& library,
               const std::vector<Block>& blocks)
      : model_(model), plan_(plan), library_(library), blocks_(blocks) {
    out_.stage = stage;
  }

  StageProgram build(const std::vector<std::int64_t>& layers) {
    make_chunks(layers);
    slots_ = pipeline_schedule(plan_, out_.stage);
    warmup_ = warmup_slots(plan_, out_.stage);
    make_persistent_frames();
    begin_step();
    run_schedule();
    end_step();
    place_frames();
    return std::move(out_);
  }

 private:
  struct Boundary {  // of one (chunk, micro-batch): frames, -1 where there is none
    std::int32_t input = -1, output = -1, output_grad = -1, input_grad = -1, saved = -1;
  };

  void make_chunks(const std::vector<std::int64_t>& layers) {
    for (std::int64_t v = 0; v < plan_.virtual_stages; ++v) {
      const std::int64_t model_chunk = v * plan_.pp + out_.stage;
      std::int64_t first = 0;
      for (std::int64_t c = 0; c < model_chunk; ++c) first += layers[static_cast<std::size_t>(c)];
      out_.chunks.push_back(
          make_chunk(model_, plan_, model_chunk, first, layers[static_cast<std::size_t>(model_chunk)]));
    }
  }

  // --- frames

  std::int32_t frame(Role role, std::int32_t chunk, std::int32_t micro_batch, std::int64_t bytes) {
    Frame made;
    made.role = role;
    made.chunk = chunk;
    made.micro_batch = micro_batch;
    made.bytes = bytes;
    out_.frames.push_back(made);
    lifetimes_.push_back({0, -1, align(bytes)});
    return static_cast<std::int32_t>(out_.frames.size() - 1);
  }

  void hold(std::int32_t frame, std::int64_t begin, std::int64_t end) {
    Interval& life = lifetimes_[static_cast<std::size_t>(frame)];
    life.begin = begin;
    life.end = end;
  }

  void make_persistent_frames() {
    step_frame_ = frame(Role::Step, -1, -1, kStepFrameBytes);
    for (std::size_t c = 0; c < out_.chunks.size(); ++c) {
      const auto chunk = static_cast<std::int32_t>(c);
      params_.push_back(frame(Role::Params, chunk, -1, params_bytes(out_.chunks[c], plan_)));
      grads_.push_back(frame(Role::Grads, chunk, -1, grads_bytes(out_.chunks[c], plan_)));
      optimizer_.push_back(frame(Role::Optimizer, chunk, -1, optimizer_bytes(out_.chunks[c], plan_)));
    }
    const std::int64_t batch_bytes =
        4 * align(plan_.micro_batch * plan_.sequence_length / plan_.cp * size_of(Dtype::I32));
    for (std::int32_t m = 0; m < plan_.micro_batches(); ++m) batch_.push_back(frame(Role::Batch, -1, m, batch_bytes));
    transient_ = frame(Role::Transient, -1, -1, 0);
    persistent_frames_ = out_.frames.size();
  }

  // --- items

  const Block& block(std::int32_t index) const { return blocks_[static_cast<std::size_t>(index)]; }

  static OpId last_compute_op(const Block& block) {
    for (std::size_t i = block.ops.size(); i-- > 0;) {
      if (block.ops[i].stream == Stream::Compute) return static_cast<OpId>(i);
    }
    return -1;
  }

  // Appends a block instance; it starts after the last compute op launched before it, so that even its
  // first collectives find the memory of earlier blocks free.
  std::int32_t launch(std::int32_t block_index, std::int32_t chunk, std::int32_t micro_batch,
                      const Boundary& at_boundary, std::vector<Wait> waits) {
    if (block(block_index).ops.empty()) return -1;
    Item item;
    item.block = block_index;
    item.chunk = chunk;
    item.micro_batch = micro_batch;
    item.frames.fill(-1);
    item.frames[at(Role::Step)] = step_frame_;
    item.frames[at(Role::Transient)] = transient_;
    if (chunk >= 0) {
      item.frames[at(Role::Params)] = params_[static_cast<std::size_t>(chunk)];
      item.frames[at(Role::Grads)] = grads_[static_cast<std::size_t>(chunk)];
      item.frames[at(Role::Optimizer)] = optimizer_[static_cast<std::size_t>(chunk)];
    }
    if (micro_batch >= 0) item.frames[at(Role::Batch)] = batch_[static_cast<std::size_t>(micro_batch)];
    item.frames[at(Role::Input)] = at_boundary.input;
    item.frames[at(Role::Output)] = at_boundary.output;
    item.frames[at(Role::OutputGrad)] = at_boundary.output_grad;
    item.frames[at(Role::InputGrad)] = at_boundary.input_grad;
    item.frames[at(Role::Saved)] = at_boundary.saved;
    for (std::size_t role = 0; role < kRoleCount; ++role) {
      if (block(block_index).frame_bytes[role] == 0) item.frames[role] = -1;  // bound only where it is used
    }
    if (last_compute_.item >= 0) waits.push_back(last_compute_);
    item.waits = std::move(waits);

    const auto index = static_cast<std::int32_t>(out_.items.size());
    out_.items.push_back(std::move(item));
    auto& scratch = out_.frames[static_cast<std::size_t>(transient_)].bytes;
    scratch = std::max(scratch, block(block_index).frame_bytes[at(Role::Transient)]);
    if (const OpId last = last_compute_op(block(block_index)); last >= 0) last_compute_ = {index, last};
    return index;
  }

  std::int32_t post(Stream stream, std::vector<Transfer> transfers, std::vector<Wait> waits) {
    Item item;
    item.stream = stream;
    item.frames.fill(-1);
    item.transfers = std::move(transfers);
    item.waits = std::move(waits);
    out_.items.push_back(std::move(item));
    return static_cast<std::int32_t>(out_.items.size() - 1);
  }

  // --- the parts of a step

  void begin_step() {
    const auto chunks = static_cast<std::int32_t>(out_.chunks.size());
    gather_.assign(static_cast<std::size_t>(chunks), -1);
    for (std::int32_t c = 0; c < chunks; ++c) {
      launch(library_.step_begin(out_.chunks[static_cast<std::size_t>(c)], c == 0), c, -1, {}, {});
    }
    if (!plan_.overlap.param_gather) return;
    for (std::int32_t c = 0; c < chunks; ++c) {
      if (!gathers_params(plan_, out_.chunks[static_cast<std::size_t>(c)])) continue;
      gather_[static_cast<std::size_t>(c)] =
          launch(library_.param_gather(out_.chunks[static_cast<std::size_t>(c)]), c, -1, {}, {});
    }
  }

  const Chunk& chunk_of(const Slot& slot) const { return out_.chunks[static_cast<std::size_t>(slot.chunk)]; }
  bool receives(const Slot& slot) const {
    return slot.forward ? !chunk_of(slot).has_embedding : !chunk_of(slot).has_head;
  }
  bool sends(const Slot& slot) const { return slot.forward ? !chunk_of(slot).has_head : !chunk_of(slot).has_embedding; }

  Boundary& boundary(const Slot& slot) {
    return boundaries_[static_cast<std::size_t>(slot.chunk * plan_.micro_batches() + slot.micro_batch)];
  }

  std::int64_t boundary_bytes() const {
    const std::int64_t rows =
        plan_.micro_batch * plan_.sequence_length / plan_.cp / (plan_.sequence_parallel ? plan_.tp : 1);
    return rows * model_.hidden_size * size_of(param_dtype(plan_));
  }

  // Frames of a boundary, made when first needed, in launch order.
  std::int32_t& boundary_frame(const Slot& slot, bool receiving) {
    Boundary& edge = boundary(slot);
    const Role role =
        slot.forward ? (receiving ? Role::Input : Role::Output) : (receiving ? Role::OutputGrad : Role::InputGrad);
    std::int32_t& id = role == Role::Input        ? edge.input
                       : role == Role::Output     ? edge.output
                       : role == Role::OutputGrad ? edge.output_grad
                                                  : edge.input_grad;
    if (id < 0) id = frame(role, slot.chunk, slot.micro_batch, boundary_bytes());
    return id;
  }

  // The match key of a transfer is the model chunk that uses an activation forward, and that made
  // a gradient backward: the same boundary of the model in both directions.
  Transfer transfer(const Slot& slot, bool receiving) {
    Transfer move;
    move.send = !receiving;
    move.backward = !slot.forward;
    move.micro_batch = slot.micro_batch;
    move.frame = boundary_frame(slot, receiving);
    move.bytes = boundary_bytes() / (plan_.pipeline_scatter_gather ? plan_.tp : 1);
    move.block_of_tp = plan_.pipeline_scatter_gather;
    const std::int64_t chunk = chunk_of(slot).model_chunk;
    const bool upstream = slot.forward == receiving;  // the peer holds the previous chunk
    move.model_chunk = static_cast<std::int32_t>(upstream ? chunk : chunk + 1);
    move.peer_stage = static_cast<std::int32_t>(((upstream ? chunk - 1 : chunk + 1) + plan_.pp) % plan_.pp);
    return move;
  }

  void run_schedule() {
    boundaries_.resize(static_cast<std::size_t>(plan_.virtual_stages * plan_.micro_batches()));
    const bool lockstep = plan_.schedule == PipelineSchedule::OneFOneB || !plan_.overlap.p2p;
    const auto count = static_cast<std::int64_t>(slots_.size());
    if (lockstep && receives(slots_[0])) batch_wait_ = post(Stream::Pp, {receive(0, -1)}, start_waits());
    for (std::int64_t k = 0; k < count; ++k) {
      if (!lockstep) {
        if (k == 0) post_receive(0);
        if (k + 1 < count) post_receive(k + 1);
      }
      const std::int32_t item = run_slot(k);
      if (lockstep) {
        exchange(k, item);
      } else {
        post_send(k, item);
      }
    }
  }

  std::vector<Wait> start_waits() const {
    return last_compute_.item >= 0 ? std::vector<Wait>{last_compute_} : std::vector<Wait>{};
  }

  // Starts the receive buffer of slot k at `time`.
  Transfer receive(std::int64_t k, std::int64_t time) {
    const Slot& slot = slots_[static_cast<std::size_t>(k)];
    const Transfer move = transfer(slot, true);
    hold(move.frame, time, 2 * k);
    return move;
  }

  // Without overlap, as 1F1B always is: atomic batches, each of which sends what was made since the last one, and
  // receives what is needed until the next; the next slot waits for it.
  void exchange(std::int64_t k, std::int32_t item) {
    if (first_of_pair(k)) return;
    std::vector<Transfer> moves;
    for (std::int64_t made = k > 0 && first_of_pair(k - 1) ? k - 1 : k; made <= k; ++made) {
      if (!sends(slots_[static_cast<std::size_t>(made)])) continue;
      const Transfer move = transfer(slots_[static_cast<std::size_t>(made)], false);
      hold(move.frame, 2 * made, 2 * k + 1);
      moves.push_back(move);
    }
    const std::int64_t end = std::min(k + (first_of_pair(k + 1) ? 3 : 2), std::ssize(slots_));
    for (std::int64_t next = k + 1; next < end; ++next) {
      if (receives(slots_[static_cast<std::size_t>(next)])) moves.push_back(receive(next, 2 * k + 1));
    }
    batch_wait_ = moves.empty() ? -1 : post(Stream::Pp, std::move(moves), {{item, last_compute_.op}});
  }

  // A forward slot that is followed by a backward one without an exchange between them. An interleaved stage is two
  // slots ahead of the next: were it to wait for a gradient after each forward slot, that would wait for it in turn
  // (Megatron's send_forward_backward_recv_forward_backward).
  bool first_of_pair(std::int64_t k) const {
    if (plan_.virtual_stages == 1 || k < warmup_) return false;
    const std::int64_t pairs = std::ssize(slots_) / 2 - warmup_;
    return k < warmup_ + 2 * pairs && (k - warmup_) % 2 == 0;
  }

  // Interleaved: receives are posted one slot ahead, sends are waited for two slots of their kind later.
  void post_receive(std::int64_t k) {
    const Slot& slot = slots_[static_cast<std::size_t>(k)];
    if (!receives(slot)) return;
    const Stream stream = slot.forward ? Stream::PpForwardRecv : Stream::PpBackwardRecv;
    receive_item_[boundary_frame(slot, true)] =
        post(stream, {receive(k, std::max<std::int64_t>(2 * (k - 2) + 1, -1))}, start_waits());
  }

  void post_send(std::int64_t k, std::int32_t item) {
    const Slot& slot = slots_[static_cast<std::size_t>(k)];
    if (!sends(slot)) return;
    const Stream stream = slot.forward ? Stream::PpForwardSend : Stream::PpBackwardSend;
    const Transfer move = transfer(slot, false);
    const std::int32_t sent = post(stream, {move}, {{item, last_compute_.op}});
    in_flight_[slot.forward].push_back({sent, move.frame, 2 * k});
  }

  // Waits for sends of this kind but the newest `keep`, and frees their frames before time `now`.
  void retire_sends(bool forward, std::size_t keep, std::int64_t now, std::vector<Wait>& waits) {
    auto& sends_in_flight = in_flight_[forward];
    while (sends_in_flight.size() > keep) {
      const SendInFlight& oldest = sends_in_flight.front();
      waits.push_back({oldest.item, -1});
      hold(oldest.frame, oldest.made_at, now - 1);
      sends_in_flight.pop_front();
    }
  }

  std::int32_t run_slot(std::int64_t k) {
    const Slot& slot = slots_[static_cast<std::size_t>(k)];
    const Chunk& chunk = chunk_of(slot);
    std::vector<Wait> waits;
    if (batch_wait_ >= 0) waits.push_back({batch_wait_, -1});
    batch_wait_ = -1;
    if (receives(slot)) {
      if (const auto posted = receive_item_.find(boundary_frame(slot, true)); posted != receive_item_.end()) {
        waits.push_back({posted->second, -1});
      }
    }
    if (sends(slot)) {
      retire_sends(slot.forward, 1, 2 * k, waits);
      boundary_frame(slot, false);
    }
    Boundary& edge = boundary(slot);
    if (receives(slot) && plan_.pipeline_scatter_gather) {
      const std::int32_t whole =
          launch(library_.boundary_gather(!slot.forward), slot.chunk, slot.micro_batch, edge, std::exchange(waits, {}));
      waits.push_back({whole, -1});
    }
    if (slot.forward) {
      const std::int32_t gather = gather_[static_cast<std::size_t>(slot.chunk)];
      if (gather >= 0 && slot.micro_batch == 0) waits.push_back({gather, -1});
      const std::int32_t made = library_.forward(chunk);
      edge.saved = frame(Role::Saved, slot.chunk, slot.micro_batch, block(made).frame_bytes[at(Role::Saved)]);
      hold(edge.saved, 2 * k, 2 * k);
      return launch(made, slot.chunk, slot.micro_batch, edge, std::move(waits));
    }
    for (const std::int32_t kept : {edge.saved, edge.input}) {
      if (kept >= 0) lifetimes_[static_cast<std::size_t>(kept)].end = 2 * k;
    }
    const bool last = slot.micro_batch == plan_.micro_batches() - 1;
    const bool sync = last && plan_.overlap.grad_reduce;
    const std::int32_t item =
        launch(library_.backward(chunk, sync), slot.chunk, slot.micro_batch, edge, std::move(waits));
    if (last) last_backward_.push_back(item);
    return item;
  }

  void end_step() {
    const auto after = 2 * static_cast<std::int64_t>(slots_.size());
    const auto chunks = static_cast<std::int32_t>(out_.chunks.size());
    std::vector<Wait> waits;
    if (batch_wait_ >= 0) waits.push_back({batch_wait_, -1});
    for (const bool forward : {true, false}) retire_sends(forward, 0, after, waits);
    std::vector<std::int32_t> syncs = last_backward_;
    for (std::int32_t c = 0; c < chunks; ++c) {
      const std::int32_t item = launch(library_.gradient_sync(out_.chunks[static_cast<std::size_t>(c)]), c, -1, {}, {});
      if (item >= 0) syncs.push_back(item);
    }
    for (const std::int32_t item : syncs) waits.push_back({item, -1});
    for (std::int32_t c = 0; c < chunks; ++c) {
      launch(library_.grad_norm(out_.chunks[static_cast<std::size_t>(c)]), c, -1, {}, std::exchange(waits, {}));
    }
    const bool last_stage = out_.stage == plan_.pp - 1;
    const std::int32_t reduced = launch(library_.scalar_reduce(last_stage), -1, -1, {}, {});
    if (reduced >= 0) waits.push_back({reduced, -1});
    for (std::int32_t c = 0; c < chunks; ++c) {
      launch(library_.optimizer(out_.chunks[static_cast<std::size_t>(c)]), c, -1, {}, std::exchange(waits, {}));
    }
  }

  // Persistent frames one after another, the rest packed above them by lifetime.
  void place_frames() {
    std::int64_t base = 0;
    for (std::size_t i = 0; i < persistent_frames_; ++i) {
      out_.frames[i].offset_bytes = base;
      base += align(out_.frames[i].bytes);
    }
    std::vector<Interval> moving(lifetimes_.begin() + static_cast<std::ptrdiff_t>(persistent_frames_),
                                 lifetimes_.end());
    const std::vector<std::int64_t> offsets = pack(moving);
    for (std::size_t i = 0; i < moving.size(); ++i)
      out_.frames[persistent_frames_ + i].offset_bytes = base + offsets[i];
    out_.arena_bytes = base + offsets.back();
    note_use();
  }

  // The items that touch each frame first and last.
  void note_use() {
    for (Frame& frame : out_.frames) frame.first_item = frame.last_item = -1;
    for (std::size_t i = 0; i < out_.items.size(); ++i) {
      const auto touch = [&](std::int32_t id) {
        if (id < 0) return;
        Frame& frame = out_.frames[static_cast<std::size_t>(id)];
        if (frame.first_item < 0) frame.first_item = static_cast<std::int32_t>(i);
        frame.last_item = static_cast<std::int32_t>(i);
      };
      for (const std::int32_t id : out_.items[i].frames) touch(id);
      for (const Transfer& move : out_.items[i].transfers) touch(move.frame);
    }
    for (std::size_t i = 0; i < persistent_frames_; ++i) {
      out_.frames[i].first_item = 0;
      out_.frames[i].last_item = static_cast<std::int32_t>(out_.items.size()) - 1;
    }
  }

  struct SendInFlight {
    std::int32_t item, frame;
    std::int64_t made_at;
  };

  const ModelSpec& model_;
  const ParallelPlan& plan_;
  BlockLibrary& library_;
  const std::vector<Block>& blocks_;
  StageProgram out_;

  std::vector<Slot> slots_;
  std::int64_t warmup_ = 0;          // slots
  std::vector<Interval> lifetimes_;  // by frame
  std::size_t persistent_frames_ = 0;
  std::int32_t step_frame_ = -1, transient_ = -1;
  std::vector<std::int32_t> params_, grads_, optimizer_, batch_;
  std::vector<Boundary> boundaries_;  // by chunk * micro_batches + micro_batch

  Wait last_compute_{-1, -1};
  std::vector<std::int32_t> gather_;                   // by chunk: the item that gathers its parameters
  std::map<std::int32_t, std::int32_t> receive_item_;  // by frame
  std::deque<SendInFlight> in_flight_[2];              // by direction: [true] is forward
  std::int32_t batch_wait_ = -1;                       // transfers that the next slot waits for
  std::vector<std::int32_t> last_backward_;            // items that finish a chunk's gradients
};

}  // namespace

StepProgram lower(const ModelSpec& model, const ParallelPlan& plan) {
  StepProgram program;
  program.model = model;
  program.plan = plan;
  BlockLibrary library(model, plan, program.blocks);
  const std::vector<std::int64_t> layers = layers_per_chunk(model, plan);
  for (std::int32_t stage = 0; stage < plan.pp; ++stage) {
    program.stages.push_back(StageBuilder(model, plan, stage, library, program.blocks).build(layers));
  }
  return program;
}

MemoryUse memory_use(const StageProgram& stage) {
  MemoryUse use;
  use.arena_bytes = stage.arena_bytes;
  // The peak of what is live, item by item; fragmentation is what is left of the arena.
  std::vector<std::int64_t> change(stage.items.size() + 1, 0);
  for (const Frame& frame : stage.frames) {
    if (frame.first_item < 0) continue;
    change[static_cast<std::size_t>(frame.first_item)] += align(frame.bytes);
    change[static_cast<std::size_t>(frame.last_item) + 1] -= align(frame.bytes);
  }
  std::int64_t live = 0, peak = -1;
  std::int32_t peak_item = 0;
  for (std::size_t i = 0; i < stage.items.size(); ++i) {
    live += change[i];
    if (live > peak) {
      peak = live;
      peak_item = static_cast<std::int32_t>(i);
    }
  }
  for (const Frame& frame : stage.frames) {
    if (frame.first_item <= peak_item && peak_item <= frame.last_item)
      use.by_role[at(frame.role)] += align(frame.bytes);
  }
  return use;
}

const char* to_string(Role role) {
  static constexpr const char* kNames[] = {"params", "grads",       "optimizer",  "step",  "batch",    "input",
                                           "output", "output_grad", "input_grad", "saved", "transient"};
  static_assert(std::size(kNames) == kRoleCount);
  return kNames[static_cast<int>(role)];
}

const char* to_string(BlockKind kind) {
  static constexpr const char* kNames[] = {"step_begin", "param_gather",  "boundary_gather", "forward",
                                           "backward",   "gradient_sync", "grad_norm",       "optimizer"};
  return kNames[static_cast<int>(kind)];
}

}  // namespace trainyard
