// What an op costs on a piece of hardware under a software stack. Times are seconds on a healthy
// device; degradations are the simulator's business.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "models/base/status.h"
#include "models/plan/parallel_plan.h"
#include "models/program/program.h"

namespace trainyard {

/// A quantity by log2(size): linear between points, clamped (efficiencies) or continued (times) beyond.
struct Curve {
  std::vector<double> log2_size, value;
};

/// Seconds that a collective over `ranks` GPUs of one NVLink domain takes, by bytes of its larger buffer.
struct LinkCurve {
  std::int64_t ranks = 0;
  Curve seconds;
};

enum class Collective : std::uint8_t { AllReduce, AllGather, ReduceScatter, AllToAll };
inline constexpr std::size_t kCollectiveCount = 4;
const char* to_string(Collective kind);

/// A fused attention kernel on heads of one size: share of peak by sequence length, causal pairs counted once.
struct AttentionCurve {
  std::string kernel;
  std::int64_t head_dim = 0;
  Curve forward;
};

/// Parameters of the GEMM model: see gemm_seconds.
struct GemmModel {
  double efficiency = 0;         // of peak, for the best tile, long k and full waves
  double prologue_k = 0;         // filling and draining a tile costs this many elements of k
  double quantisation = 0;       // what share of an unfilled last wave is lost
  double memory_efficiency = 0;  // of memory bandwidth, for operands
  double relative_128x128 = 1, relative_64x128 = 1, relative_64x64 = 1;
};

/// How fast processors compute a kind of op: floor_s + flops * seconds_per_flop + bytes * seconds_per_byte, with bytes
/// read and written together.
struct OpRate {
  double floor_s = 0, seconds_per_flop = 0, seconds_per_byte = 0;
};

/// Rates by kind of op, for ranks of one precision and so many threads each.
struct OpRates {
  Precision precision = Precision::F32;
  std::int64_t threads = 1;
  std::map<OpKind, OpRate> kinds;
};

/// Measured facts of one GPU and its node: scenarios/profiles/<name>.json, made by fit.py beside them. Or of a machine
/// whose processors are the devices, made by `trainyard calibrate`: then it has op_rates, and no GPU's models.
struct HardwareProfile {
  std::string name;
  double peak_bf16_flops = 0, peak_f32_flops = 0;
  double sms = 0;
  double memory_bytes = 0, memory_bytes_per_s = 0;
  double memory_efficiency = 0;  // of memory bandwidth, for large memory-bound kernels
  double kernel_floor_s = 0;     // the smallest kernel
  GemmModel gemm;
  std::vector<AttentionCurve> attention;
  double attention_backward_efficiency_ratio = 1;
  std::array<std::vector<LinkCurve>, kCollectiveCount> nvlink;
  double nvlink_p2p_bytes_per_s = 0, nvlink_p2p_latency_s = 0;
  double nic_latency_s = 0;   // one step of a collective over the network
  double nic_efficiency = 0;  // payload over line rate
  /// One step of an all-reduce by a tree over nodes that sum inside themselves on the way (NCCL's NVLSTree), without
  /// the chunk that it carries; 0: such trees are not known of this hardware.
  double tree_step_s = 0;
  std::vector<OpRates> op_rates;

  [[nodiscard]] bool of_processors() const { return !op_rates.empty(); }
  /// The rates for a plan; null when they were not measured.
  [[nodiscard]] const OpRates* rates_for(const ParallelPlan& plan) const;
};

/// Facts of a software stack, and at most five fitted numbers: scenarios/profiles/stack-<name>.json.
struct StackProfile {
  std::string name;
  /// Profiles that it speaks of; empty: any.
  std::vector<std::string> hardware;
  /// Parts of the names under which published runs know it.
  std::vector<std::string> frameworks;
  /// Published runs on which its numbers were fitted, by id.
  std::vector<std::string> fitted_on;
  /// The attention kernel: one of the hardware's, "fastest", or "materialised", which writes out the scores.
  std::string attention = "fastest";
  bool attention_dropout = false;  // where scores are materialised, dropout is two more passes over them
  double sustained_clock = 1;      // GEMM and attention speed under training load over the isolated kernel's
  double attention_relative = 1;   // this stack's attention kernel over the profile's
  double memory_traffic = 1;    // bytes that memory-bound kernels move over those of the program's ops, which are fused
  double overlap_slowdown = 0;  // what share of its duration a collective beside it costs compute: SMs and bandwidth
  double collectives_relative = 1;  // rates of this stack's collectives over the profile's, NVLink's and NICs'
  double nvlink_relative = 1;       // once more, of those inside a node alone
  double jitter = 0;                // spread of kernels' times over ranks, as a share: the slowest is waited for
  double kernel_gap_s = 0;          // between two kernels of one stream
  double host_sync_s = 0;           // the device idles while the host reads a value and launches on
  // Resident beside the arena.
  double context_bytes = 0;
  double communicator_bytes = 0;   // buffers of each communicator
  double gradient_copy_bytes = 0;  // for each parameter: gradients in its own type, kept beside those in f32
  double step_gradient_bytes = 0;  // for each parameter that a rank updates: its 16-bit gradient in f32, for the step
  double logit_copy_bytes = 0;     // for each logit of a micro-batch: copies in f32 beside the program's
  double allocator_reserve = 0;    // share of the arena lost to fragmentation
};

/// What a rank's process holds at its peak.
struct ProcessMemory {
  double arena_bytes = 0;
  double fragmentation_bytes = 0;  // what a caching allocator loses
  double context_bytes = 0;        // the device's context, and libraries' kernels and workspaces
  std::int64_t communicators = 0;
  double communicator_bytes = 0;   // of all of them
  double gradient_copy_bytes = 0;  // gradients in the parameters' type beside those in f32
  double step_gradient_bytes = 0;  // 16-bit gradients in f32 for the step, beyond what activations leave free by then
  double logit_copy_bytes = 0;     // logits in f32, where the loss is not one kernel
  double workspace_bytes = 0;      // of the largest op, where processors compute

  [[nodiscard]] double total_bytes() const;
};

Result<HardwareProfile> load_hardware_profile(const std::string& file);
Result<StackProfile> load_stack_profile(const std::string& file);

/// A collective that leaves the node, as the fabric sees it: `latency_s` after its last member has arrived it
/// starts to move `bytes_per_nic` out of and into every NIC of the group, at most at `max_bytes_per_s`.
struct FabricCost {
  double latency_s = 0;
  double bytes_per_nic = 0;
  double max_bytes_per_s = 0;
};

class CostModel {
 public:
  CostModel(HardwareProfile hardware, StackProfile stack, Precision precision = Precision::Bf16);
  /// For a plan, whose precision and threads a profile of processors must have rates for.
  CostModel(HardwareProfile hardware, StackProfile stack, const ParallelPlan& plan);

  /// How many times as long the slowest rank's kernels take as an average one's.
  [[nodiscard]] double slowest_rank() const { return slowest_rank_; }
  /// Duration of an op that is not communication.
  [[nodiscard]] double op_seconds(const Op& op) const;
  /// C[m,n] = A[m,k] B[k,n], alone on the GPU.
  [[nodiscard]] double gemm_seconds(double m, double n, double k) const;
  /// A collective inside one NVLink domain. Payload as in Op::payload_bytes.
  [[nodiscard]] double nvlink_collective_seconds(Collective kind, std::int64_t ranks, double payload_bytes) const;
  [[nodiscard]] double nvlink_p2p_seconds(double bytes) const;
  /// A collective over `ranks` ranks, ranks / nodes of them on each of `nodes` nodes with NICs of their own.
  [[nodiscard]] FabricCost fabric_collective(Collective kind, std::int64_t ranks, std::int64_t nodes,
                                             double payload_bytes, double nic_bytes_per_s) const;
  [[nodiscard]] double fabric_p2p_latency_s() const { return hardware_.nic_latency_s; }
  /// Payload rate of a NIC of this line rate.
  [[nodiscard]] double nic_payload_rate(double nic_bytes_per_s) const {
    return hardware_.nic_efficiency * stack_.collectives_relative * nic_bytes_per_s;
  }

  /// What a rank of this stage holds at most: its arena, and what the process has beside and around it.
  [[nodiscard]] ProcessMemory process_memory(const StepProgram& program, const StageProgram& stage) const;
  [[nodiscard]] double process_peak_bytes(const StepProgram& program, const StageProgram& stage) const {
    return process_memory(program, stage).total_bytes();
  }

  [[nodiscard]] const HardwareProfile& hardware() const { return hardware_; }
  [[nodiscard]] const StackProfile& stack() const { return stack_; }
  [[nodiscard]] double peak_flops() const;

 private:
  [[nodiscard]] double kernel_seconds(const Op& op) const;
  [[nodiscard]] double attention_efficiency(const std::string& kernel, std::int64_t head_dim, double length) const;
  [[nodiscard]] double attention_seconds(const Op& op, double efficiency_ratio) const;
  [[nodiscard]] double materialised_attention_seconds(const Op& op, bool backward) const;
  [[nodiscard]] double grouped_gemm_seconds(double groups, double m, double n, double k) const;
  [[nodiscard]] double memory_bound_seconds(const Op& op) const;
  [[nodiscard]] double processor_seconds(const Op& op) const;
  [[nodiscard]] double workspace_bytes(const StepProgram& program, const StageProgram& stage) const;

  HardwareProfile hardware_;
  StackProfile stack_;
  Precision precision_;
  std::map<OpKind, OpRate> rates_;  // of processors
  double slowest_rank_ = 1;         // times over the mean of all ranks
};

/// The collective that an op performs. Only for communication kinds with a group.
Collective collective_of(OpKind kind);

}  // namespace trainyard
