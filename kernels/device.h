// A GPU as the step interpreter sees it: memory, streams on which work is queued, events that order them, and graphs
// that queue a whole step at once. cuda/ implements it in a plug-in that is opened at run time, so that a binary needs
// no CUDA to start.
//
// Calls queue work and return, unless they say that they wait. Every function may throw DeviceError: a device that has
// failed is the caller's to report, never the end of the process by itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "kernels/kernels.h"

namespace trainyard::kernels {

/// What went wrong on a device, in words. Defined where it is thrown and caught alike: it has no code of its own.
using DeviceError = std::runtime_error;

struct DeviceInfo {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  std::int32_t ordinal = 0;
  std::int32_t multiprocessors = 0;
  std::int32_t compute_capability = 0;  // 90: 9.0
  std::int64_t memory_bytes = 0, free_bytes = 0;
  std::string runtime;  // versions of what was found: "CUDA 13.0, cuBLASLt 13.1, cuDNN 9.19"
};

class Device {
 public:
  /// Names for what the device holds; -1 is none.
  using Event = std::int32_t;
  using Graph = std::int32_t;

  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  virtual ~Device() = default;

  [[nodiscard]] virtual DeviceInfo info() const = 0;

  // --- memory

  /// Aligned to 256 bytes; lives until release() or the device's end.
  virtual std::byte* allocate(std::int64_t bytes) = 0;
  virtual void release(std::byte* memory) = 0;
  /// Host memory that copies reach at full speed and without waiting.
  virtual std::byte* allocate_host(std::int64_t bytes) = 0;
  virtual void release_host(std::byte* memory) = 0;
  /// Of `bytes` bytes; `from` or `to` is on the host as the name says. The host's side stays as it is until the stream
  /// has come past.
  virtual void copy_to_device(std::byte* to, const std::byte* from, std::int64_t bytes, int stream) = 0;
  virtual void copy_to_host(std::byte* to, const std::byte* from, std::int64_t bytes, int stream) = 0;
  virtual void fill(std::byte* to, std::uint8_t value, std::int64_t bytes, int stream) = 0;

  // --- streams: numbers below the count with which the device was opened. The first is for kernels; what is on the
  // others goes first

  /// Kernels whose work is queued on the stream.
  virtual Kernels& kernels(int stream) = 0;
  /// What the libraries of its maker take for it: a cudaStream_t.
  virtual void* native_stream(int stream) = 0;
  /// Waits until everything queued on it is done.
  virtual void synchronize(int stream) = 0;
  /// The same of all streams.
  virtual void synchronize() = 0;

  virtual Event create_event() = 0;
  virtual void record(Event event, int stream) = 0;
  /// What is queued on `stream` from now on waits for the event's last record.
  virtual void wait(int stream, Event event) = 0;
  /// Whether its last record is over.
  virtual bool finished(Event event) = 0;
  /// Seconds from one recorded event to another, once both are over. Not of events recorded in a graph.
  virtual double seconds_between(Event begin, Event end) = 0;

  // --- graphs

  /// Until end_capture(), what is queued on `stream`, and on streams that wait for its events, is noted down and not
  /// done. Nothing may be allocated meanwhile.
  virtual void begin_capture(int stream) = 0;
  virtual Graph end_capture(int stream) = 0;
  virtual void launch(Graph graph, int stream) = 0;
  virtual void release_graph(Graph graph) = 0;
};

}  // namespace trainyard::kernels
