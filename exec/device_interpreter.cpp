#include "exec/device_interpreter.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <set>
#include <thread>

#include "exec/clock.h"
#include "exec/compute_op.h"
#include "models/base/check.h"
#include "models/base/index.h"
#include "models/program/step_blocks.h"

namespace trainyard::exec {

namespace {

using kernels::Device;

constexpr int kCompute = static_cast<int>(Stream::Compute);
constexpr auto kPollEvery = std::chrono::microseconds(20);

// The kernel's arguments differ from step to step, or the host has to know what the device has counted.
bool varies(OpKind kind) {
  return kind == OpKind::AdamW || kind == OpKind::Dropout || kind == OpKind::GroupedMatmul ||
         kind == OpKind::GroupedMatmulWgrad;
}

}  // namespace

DeviceInterpreter::DeviceInterpreter(const StepProgram& program, std::int64_t rank, Device& device,
                                     Communicator& communicator, bool graphs)
    : Rank(program, rank, communicator),
      device_(device),
      schedule_(schedule_streams(program, stage_)),
      graphs_(graphs) {
  arena_ = device.allocate(std::max<std::int64_t>(stage_.arena_bytes, 1));
  // What nobody has written is not a number, and no valid index.
  device.fill(arena_, 0xff, stage_.arena_bytes, kCompute);
  std::int64_t batch_bytes = 1;
  for (const Frame& frame : stage_.frames) {
    if (frame.role == Role::Batch) batch_bytes += frame.bytes;
  }
  batch_ = device.allocate_host(batch_bytes);
  scalars_ = device.allocate_host(frame_of(Role::Step, -1).bytes);
  std::set<int> used;
  bool is_static = true;
  for (std::size_t i = 0; i < schedule_.size(); ++i) {
    const ScheduledLaunch& launch = schedule_[i];
    used.insert(static_cast<int>(launch.stream));
    const Item& item = stage_.items[index(launch.item)];
    const OpKind kind = item.block < 0 ? OpKind::SendRecv : program.block(item).ops[index(launch.op)].kind;
    is_static &= !varies(kind) && kind != OpKind::HostSync && kind != OpKind::AllToAllV &&
                 (communicator.can_be_captured() || !(is_communication(kind) || kind == OpKind::SendRecv));
    if (is_static) static_end_ = i + 1;
  }
  streams_used_.assign(used.begin(), used.end());
  over_.assign(schedule_.size(), -1);
  began_ = ended_ = over_;
  last_.resize(kStreamCount);
  for (Device::Event& event : last_) event = device.create_event();
  step_began_ = device.create_event();
  graph_over_ = device.create_event();
}

DeviceInterpreter::~DeviceInterpreter() {
  try {
    // A graph holds on to the communicators that it was captured from.
    if (graph_ >= 0) device_.release_graph(graph_);
    device_.release(arena_);
    device_.release_host(batch_);
    device_.release_host(scalars_);
  } catch (const kernels::DeviceError&) {
    // A device that has failed holds nothing any more.
  }
}

// --- state

void DeviceInterpreter::read(Role role, std::int64_t chunk, std::int64_t offset_bytes, std::byte* to,
                             std::int64_t bytes) const {
  device_.copy_to_host(to, arena_ + frame_of(role, chunk).offset_bytes + offset_bytes, bytes, kCompute);
  device_.synchronize(kCompute);
}

std::int64_t DeviceInterpreter::device_bytes() const {
  const kernels::DeviceInfo info = device_.info();
  return info.memory_bytes - info.free_bytes;
}

std::byte* DeviceInterpreter::edit(Role role, std::int64_t chunk) {
  std::unique_ptr<std::byte[]>& bytes = edited_[{role, chunk}];
  // Whoever edits writes it first: not here, where one thread would touch all of it.
  if (!bytes) bytes.reset(new std::byte[index(frame_of(role, chunk).bytes)]);
  return bytes.get();
}

void DeviceInterpreter::commit() {
  for (const auto& [which, bytes] : edited_) {
    const Frame& frame = frame_of(which.first, which.second);
    device_.copy_to_device(arena_ + frame.offset_bytes, bytes.get(), frame.bytes, kCompute);
  }
  device_.synchronize(kCompute);
  edited_.clear();
}

std::vector<std::int32_t> DeviceInterpreter::host_counts(const Operand& counts, Stream stream) {
  std::vector<std::int32_t> values(index(counts.size()));
  const int its = static_cast<int>(stream);
  device_.copy_to_host(reinterpret_cast<std::byte*>(values.data()), static_cast<const std::byte*>(counts.data),
                       counts.size() * 4, its);
  wait({its});
  return values;
}

// --- a step

Result<StepOutcome> DeviceInterpreter::step(const Samples& samples) {
  try {
    queue_batch(samples);
    queue_all();
    if (problems_.empty()) wait(streams_used_);
    device_.copy_to_host(scalars_, arena_ + frame_of(Role::Step, -1).offset_bytes, frame_of(Role::Step, -1).bytes,
                         kCompute);
    if (problems_.empty()) wait({kCompute});
    if (problems_.empty() && timing_) note_times();
  } catch (const kernels::DeviceError& error) {
    problems_.push_back(
        {"rank " + std::to_string(rank_), "", "", error.what(), "see `trainyard doctor`", ProblemKind::Failed});
  }
  if (!problems_.empty()) return problems_;
  ++steps_;
  ++steps_run_;
  return outcome();
}

StepOutcome DeviceInterpreter::outcome() {
  const auto scalar = [&](std::int64_t offset) {
    if (program_.plan.precision == Precision::F64) return *reinterpret_cast<const double*>(scalars_ + offset);
    return static_cast<double>(*reinterpret_cast<const float*>(scalars_ + offset));
  };
  const bool last = mesh_.coordinates(rank_).pp == program_.plan.pp - 1;
  return {last ? scalar(kLossOffset) : 0, std::sqrt(scalar(kGradNormOffset))};
}

void DeviceInterpreter::queue_batch(const Samples& samples) {
  std::int64_t at = 0;
  for (const Frame& frame : stage_.frames) {
    if (frame.role != Role::Batch) continue;
    fill_batch(frame, samples, batch_ + at);
    device_.copy_to_device(arena_ + frame.offset_bytes, batch_ + at, frame.bytes, kCompute);
    at += frame.bytes;
  }
  device_.record(step_began_, kCompute);
  step_began_ns_ = now_ns();
  // Only compute and what it has queued is ordered behind the batch otherwise.
  for (const int stream : streams_used_) {
    if (stream != kCompute) device_.wait(stream, step_began_);
  }
}

// The first step meets every size, so that nothing is allocated or chosen later; the second is noted down.
void DeviceInterpreter::queue_all() {
  if (steps_run_ == 0 || timing_ || !graphs_ || static_end_ == 0) return queue_range(0, schedule_.size(), timing_);
  if (graph_ < 0) capture();
  device_.launch(graph_, kCompute);
  device_.record(graph_over_, kCompute);
  for (const int stream : streams_used_) {
    if (stream != kCompute) device_.wait(stream, graph_over_);
  }
  queue_range(static_end_, schedule_.size(), false);
}

void DeviceInterpreter::capture() {
  device_.begin_capture(kCompute);
  device_.record(step_began_, kCompute);
  for (const int stream : streams_used_) {
    if (stream != kCompute) device_.wait(stream, step_began_);
  }
  queue_range(0, static_end_, false);
  for (const int stream : streams_used_) {
    if (stream == kCompute) continue;
    device_.record(last_[index(stream)], stream);
    device_.wait(kCompute, last_[index(stream)]);
  }
  graph_ = device_.end_capture(kCompute);
}

void DeviceInterpreter::queue_range(std::size_t first, std::size_t last, bool timed) {
  for (std::size_t i = first; i < last && problems_.empty(); ++i) {
    const ScheduledLaunch& launch = schedule_[i];
    const int stream = static_cast<int>(launch.stream);
    for (const std::int32_t awaited : launch.waits) {
      if (index(awaited) >= first) device_.wait(stream, over_[index(awaited)]);
    }
    if (timed) device_.record(event_of(began_, i), stream);
    queue_launch(i);
    if (timed) device_.record(event_of(ended_, i), stream);
    if (launch.awaited) device_.record(event_of(over_, i), stream);
  }
}

Device::Event DeviceInterpreter::event_of(std::vector<Device::Event>& events, std::size_t launch) {
  if (events[launch] < 0) events[launch] = device_.create_event();
  return events[launch];
}

void DeviceInterpreter::queue_launch(std::size_t at) {
  const ScheduledLaunch& launch = schedule_[at];
  const Item& item = stage_.items[index(launch.item)];
  if (item.block < 0) {
    transfer(item);
    return;
  }
  const Op& op = program_.block(item).ops[index(launch.op)];
  if (is_communication(op.kind)) {
    communicate(item, op);
    return;
  }
  if (op.kind == OpKind::HostSync) return wait({static_cast<int>(launch.stream)});
  const Chunk* chunk = item.chunk < 0 ? nullptr : &stage_.chunks[index(item.chunk)];
  compute_op(op, {&program_, chunk, rank_, steps_, seed_}, operands(item, op.in), operands(item, op.out),
             device_.kernels(static_cast<int>(launch.stream)));
}

void DeviceInterpreter::wait(const std::vector<int>& streams) {
  for (const int stream : streams) device_.record(last_[index(stream)], stream);
  const auto over = [&](int stream) { return device_.finished(last_[index(stream)]); };
  while (!std::all_of(streams.begin(), streams.end(), over)) {
    const Problems lost = communicator_.progress(0);
    problems_.insert(problems_.end(), lost.begin(), lost.end());
    if (!problems_.empty()) return;
    std::this_thread::sleep_for(kPollEvery);
  }
}

void DeviceInterpreter::note_times() {
  times_.clear();
  const auto ns_of = [&](Device::Event event) {
    return step_began_ns_ + std::llround(device_.seconds_between(step_began_, event) * 1e9);
  };
  for (std::size_t i = 0; i < schedule_.size(); ++i)
    times_.push_back({schedule_[i].item, schedule_[i].op, ns_of(began_[i]), ns_of(ended_[i])});
}

}  // namespace trainyard::exec
