// FaultSpec: what goes wrong. Rates for faults that strike at random, a list for faults that
// strike at a given time. Ground truth: the controller never sees these, only their symptoms.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "models/base/status.h"

namespace trainyard {

/// What a fault stops.
enum class FaultScope { Gpu, Node, Network, Job };

/// A cause with its rate: arrivals are a Poisson process on the wall clock over every GPU
/// that the job holds, its spares included when `scope` is Gpu or Node.
struct FaultCause {
  std::string name;
  FaultScope scope = FaultScope::Gpu;
  double rate_per_gpu_hour = 0;
  std::string source;
};

/// What a degradation does to the part that it strikes. Kills are failures; the others only slow.
enum class InjectedKind {
  GpuSlow,    // every kernel of one GPU takes `factor` times as long
  NicSlow,    // one NIC runs at 1/factor of its line rate
  LinkDown,   // one NIC's link is down: a stall, and a communicator error once retries are spent
  NodeCrash,  // the node is gone
};

struct InjectedFault {
  InjectedKind kind = InjectedKind::GpuSlow;
  /// Seconds after the start of the run; in a step simulation, after the start of the step.
  double at_s = 0;
  /// How long it lasts; unset: to the end.
  std::optional<double> duration_s;
  std::int64_t node = 0;
  /// Index of the GPU or NIC in the node.
  std::int64_t device = 0;
  double factor = 1;
};

struct FaultSpec {
  std::vector<FaultCause> causes;
  std::vector<InjectedFault> injected;

  [[nodiscard]] double total_rate_per_gpu_hour() const;
};

Problems validate(const FaultSpec& faults, const std::string& path = "$");

}  // namespace trainyard
