// Runs a step program on a GPU: ops are queued on streams in an order that is known before (stream_schedule.h), and the
// host waits only where the program says so, and at the end. What is the same in every step is queued as one graph.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "exec/rank.h"
#include "exec/stream_schedule.h"
#include "kernels/device.h"

namespace trainyard::exec {

class DeviceInterpreter final : public Rank {
 public:
  /// The program and both helpers outlive it. The device has a stream for each of Stream; `communicator` queues its
  /// work on them. Allocates the arena of the rank's stage.
  DeviceInterpreter(const StepProgram& program, std::int64_t rank, kernels::Device& device, Communicator& communicator,
                    bool graphs);
  ~DeviceInterpreter() override;

  Result<StepOutcome> step(const Samples& samples) override;

  void read(Role role, std::int64_t chunk, std::int64_t offset_bytes, std::byte* to, std::int64_t bytes) const override;
  std::byte* edit(Role role, std::int64_t chunk) override;
  void commit() override;
  void set_timing(bool on) override { timing_ = on; }
  std::int64_t device_bytes() const override;

 private:
  void queue_batch(const Samples& samples);
  void queue_all();
  void queue_range(std::size_t first, std::size_t last, bool timed);
  void queue_launch(std::size_t launch);
  void capture();
  /// Waits for everything queued on the streams, or until a rank is lost.
  void wait(const std::vector<int>& streams);
  void note_times();
  StepOutcome outcome();
  std::vector<std::int32_t> host_counts(const Operand& counts, Stream stream) override;
  kernels::Device::Event event_of(std::vector<kernels::Device::Event>& events, std::size_t launch);

  kernels::Device& device_;
  std::vector<ScheduledLaunch> schedule_;
  std::vector<int> streams_used_;
  std::size_t static_end_ = 0;                         // launches before it are the same in every step
  std::vector<kernels::Device::Event> over_;           // by launch; -1: not made
  std::vector<kernels::Device::Event> began_, ended_;  // by launch, of a timed step; -1: not made
  std::vector<kernels::Device::Event> last_;           // by stream
  kernels::Device::Event step_began_ = -1, graph_over_ = -1;
  std::int64_t step_began_ns_ = 0;
  kernels::Device::Graph graph_ = -1;
  bool timing_ = false, graphs_;
  std::byte* batch_ = nullptr;  // pinned, of the host
  std::byte* scalars_ = nullptr;
  std::int64_t steps_run_ = 0;
  std::map<std::pair<Role, std::int64_t>, std::unique_ptr<std::byte[]>> edited_;  // as large as their frames
};

}  // namespace trainyard::exec
