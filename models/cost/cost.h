// What an op costs on a piece of hardware under a software stack. Times are seconds on a
// healthy device; degradations are the simulator's business.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "models/base/status.h"
#include "models/program/op.h"

namespace trainyard {

/// A number with where it came from. Every constant of a profile is one of these in JSON:
/// {"value": 3.35e12, "unit": "bytes/s", "source": "...", "date": "2026-08-21"}.
struct Constant {
  double value = 0;
  std::string unit, source, date;
};

/// alpha + bytes / bandwidth for one collective at one number of ranks in one NVLink domain.
struct LinkFit {
  int ranks = 0;
  double latency_s = 0;
  double bus_bytes_per_s = 0;  // bus bandwidth as nccl-tests defines it
};

/// Achieved fraction of peak by problem size: piecewise linear over log2(size), clamped at both ends.
struct EfficiencyCurve {
  std::vector<double> log2_size;
  std::vector<double> efficiency;
  [[nodiscard]] double at(double size) const;
};

struct HardwareProfile {
  std::string name;
  double peak_bf16_flops = 0, peak_f32_flops = 0;
  double memory_bytes = 0;
  double memory_bytes_per_s = 0;
  /// Fraction of memory_bytes_per_s that a large memory-bound kernel reaches, and its launch floor.
  double memory_efficiency = 0;
  double kernel_floor_s = 0;
  /// GEMM efficiency: see gemm_seconds in cost.cpp for the form that these parameterise.
  std::map<std::string, double> gemm;
  EfficiencyCurve attention_forward;      // by keys per query, head size 128, causal
  double attention_backward_ratio = 2.5;  // backward FLOPs over forward FLOPs
  double attention_backward_efficiency_ratio = 0.8;
  std::map<std::string, std::vector<LinkFit>>
      nvlink;  // by collective: all_reduce, all_gather, reduce_scatter, all_to_all
  double nvlink_p2p_bytes_per_s = 0, nvlink_p2p_latency_s = 0;
  /// One network hop of a collective step, and the fraction of the NIC's line rate that is payload.
  double nic_latency_s = 0, nic_efficiency = 0;
};

/// Facts and at most five fitted numbers of a software stack.
struct StackProfile {
  std::string name;
  /// In-training GEMM and attention speed over the isolated, unthrottled kernel.
  double sustained_clock = 1;
  double launch_overhead_s = 0;  // per kernel, where the host is not ahead
  /// Resident beside the arena: CUDA context, NCCL buffers, allocator reserve.
  double context_bytes = 0, nccl_bytes = 0, allocator_reserve = 0;
};

Result<HardwareProfile> load_hardware_profile(const std::string& file);
Result<StackProfile> load_stack_profile(const std::string& file);

enum class Collective { AllReduce, AllGather, ReduceScatter, AllToAll };

/// A collective that leaves the node, as the fabric sees it: wait `latency_s` after the last
/// member arrives, then move `bytes_per_nic` out of and into each member node's NICs that the
/// group uses, no faster than `max_bytes_per_s` per NIC.
struct FabricCost {
  double latency_s = 0;
  double bytes_per_nic = 0;
  double max_bytes_per_s = 0;
};

class CostModel {
 public:
  CostModel(HardwareProfile hardware, StackProfile stack);

  /// Duration of a compute-stream op. Zero for Join; communication kinds are not accepted.
  [[nodiscard]] double op_seconds(const Op& op) const;
  /// A collective whose members share one NVLink domain. payload as in Op::payload_bytes.
  [[nodiscard]] double nvlink_collective_seconds(Collective kind, std::int64_t ranks, double payload_bytes) const;
  /// Point-to-point between two GPUs of one NVLink domain.
  [[nodiscard]] double nvlink_p2p_seconds(double bytes) const;
  /// A collective over `ranks` ranks spread evenly over `nodes` nodes (ranks / nodes on each).
  [[nodiscard]] FabricCost fabric_collective(Collective kind, std::int64_t ranks, std::int64_t nodes,
                                             double payload_bytes, double nic_bytes_per_s) const;
  /// Extra latency of a point-to-point message between nodes.
  [[nodiscard]] double fabric_p2p_latency_s() const { return hardware_.nic_latency_s; }

  [[nodiscard]] const HardwareProfile& hardware() const { return hardware_; }
  [[nodiscard]] const StackProfile& stack() const { return stack_; }

 private:
  HardwareProfile hardware_;
  StackProfile stack_;
};

}  // namespace trainyard
