#include "models/cost/cost.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "models/base/check.h"

namespace trainyard {

namespace {

// Linear over log2(size). Beyond the ends: the end's value, or the last slope of a time continued.
double at(const Curve& curve, double size, bool continue_above) {
  const auto& x = curve.log2_size;
  const double position = std::log2(std::max(size, 1.0));
  if (position <= x.front()) return curve.value.front();
  if (position >= x.back())
    return continue_above ? curve.value.back() * std::exp2(position - x.back()) : curve.value.back();
  const auto upper = static_cast<std::size_t>(std::upper_bound(x.begin(), x.end(), position) - x.begin());
  const double share = (position - x[upper - 1]) / (x[upper] - x[upper - 1]);
  const double low = curve.value[upper - 1], high = curve.value[upper];
  // Times span decades: interpolate their logarithm.
  return continue_above ? std::exp2(std::log2(low) + share * (std::log2(high) - std::log2(low)))
                        : low + share * (high - low);
}

}  // namespace

const char* to_string(Collective kind) {
  static constexpr const char* kNames[] = {"all_reduce", "all_gather", "reduce_scatter", "all_to_all"};
  return kNames[static_cast<int>(kind)];
}

Collective collective_of(OpKind kind) {
  switch (kind) {
    case OpKind::AllReduce: return Collective::AllReduce;
    case OpKind::AllGather: return Collective::AllGather;
    case OpKind::ReduceScatter: return Collective::ReduceScatter;
    case OpKind::AllToAllCounts:
    case OpKind::AllToAllV: return Collective::AllToAll;
    default: TY_CHECK(false, "not a collective");
  }
}

CostModel::CostModel(HardwareProfile hardware, StackProfile stack, Precision precision)
    : hardware_(std::move(hardware)), stack_(std::move(stack)), precision_(precision) {}

CostModel::CostModel(HardwareProfile hardware, StackProfile stack, const ParallelPlan& plan)
    : CostModel(std::move(hardware), std::move(stack), plan.precision) {
  // The expected largest of n draws of a normal distribution is about sqrt(2 ln n) deviations above their mean.
  slowest_rank_ = 1 + stack_.jitter * std::sqrt(2 * std::log(static_cast<double>(plan.ranks())));
  if (!hardware_.of_processors()) return;
  const OpRates* rates = hardware_.rates_for(plan);
  TY_CHECK(rates != nullptr, "who makes a cost model has seen that the profile has rates for the plan");
  rates_ = rates->kinds;
}

const OpRates* HardwareProfile::rates_for(const ParallelPlan& plan) const {
  for (const OpRates& rates : op_rates) {
    if (rates.precision == plan.precision && rates.threads == plan.cpu_threads) return &rates;
  }
  return nullptr;
}

double CostModel::peak_flops() const {
  return precision_ == Precision::Bf16 ? hardware_.peak_bf16_flops : hardware_.peak_f32_flops;
}

// A product is cut in output tiles, and SMs take them in waves. A tile costs its FLOPs over k plus a prologue
// and epilogue worth prologue_k; of an unfilled last wave a share is lost. Of the tile shapes the fastest is
// taken, as cuBLAS's heuristics try to. Operands cross memory once at least. fit.py fits this same function.
double CostModel::gemm_seconds(double m, double n, double k) const {
  struct Tile {
    double m, n, relative;
  };
  const GemmModel& gemm = hardware_.gemm;
  const Tile tiles[] = {{128, 256, 1},
                        {256, 128, 1},
                        {128, 128, gemm.relative_128x128},
                        {64, 128, gemm.relative_64x128},
                        {128, 64, gemm.relative_64x128},
                        {64, 64, gemm.relative_64x64}};
  double compute = std::numeric_limits<double>::infinity();
  for (const Tile& tile : tiles) {
    const double waves = std::ceil(m / tile.m) * std::ceil(n / tile.n) / hardware_.sms;
    const double quantised = waves + gemm.quantisation * (std::ceil(waves) - waves);
    const double flops_per_wave = 2 * tile.m * tile.n * (k + gemm.prologue_k) * hardware_.sms;
    compute = std::min(compute, quantised * flops_per_wave / (peak_flops() * gemm.efficiency * tile.relative));
  }
  // Tensor cores read rows of 16 bytes at a time (NVIDIA's matrix multiplication guide). Without them sums in f32 are
  // added up at the rate of f32.
  const bool aligned = std::fmod(n, 8) == 0 && std::fmod(k, 8) == 0;
  if (!aligned && precision_ == Precision::Bf16)
    compute = std::max(compute, 2 * m * n * k / (hardware_.peak_f32_flops * gemm.efficiency));
  const double element = precision_ == Precision::Bf16 ? 2 : 4;
  const double memory = element * (m * k + n * k + m * n) / (hardware_.memory_bytes_per_s * gemm.memory_efficiency);
  return hardware_.kernel_floor_s + std::max(compute / stack_.sustained_clock, memory);
}

// Between two head sizes by their logarithm, beyond the measured ones as at the nearest.
double CostModel::attention_efficiency(const std::string& kernel, std::int64_t head_dim, double length) const {
  const AttentionCurve *below = nullptr, *above = nullptr;
  for (const AttentionCurve& curve : hardware_.attention) {
    if (curve.kernel != kernel) continue;
    if (curve.head_dim <= head_dim && (below == nullptr || curve.head_dim > below->head_dim)) below = &curve;
    if (curve.head_dim >= head_dim && (above == nullptr || curve.head_dim < above->head_dim)) above = &curve;
  }
  if (below == nullptr) below = above;
  if (above == nullptr) above = below;
  double share = 0;
  if (above->head_dim > below->head_dim)
    share = std::log2(static_cast<double>(head_dim) / static_cast<double>(below->head_dim)) /
            std::log2(static_cast<double>(above->head_dim) / static_cast<double>(below->head_dim));
  return (1 - share) * at(below->forward, length, false) + share * at(above->forward, length, false);
}

double CostModel::attention_seconds(const Op& op, double efficiency_ratio) const {
  // attr.m rows of this rank's queries; each context rank has an even share of the causal work of the whole sequence.
  // In a ring a kernel has as many keys as queries.
  const double length = static_cast<double>(op.attr.m) / static_cast<double>(op.attr.batch) *
                        static_cast<double>(op.attr.hop < 0 ? op.attr.cp : 1);
  double measured = 0;
  for (const AttentionCurve& curve : hardware_.attention) {
    if (stack_.attention == curve.kernel || stack_.attention == "fastest")
      measured = std::max(measured, attention_efficiency(curve.kernel, op.attr.head_dim, length));
  }
  TY_CHECK(measured > 0, "who makes a cost model has seen that the hardware has the kernel");
  const double efficiency = measured * stack_.attention_relative * efficiency_ratio;
  return hardware_.kernel_floor_s + op.flops / (peak_flops() * efficiency * stack_.sustained_clock);
}

// Batched products that know nothing of the mask, and passes over the scores between them: scale, mask and softmax
// are one, dropout is another. Backward: four products, and the softmax's gradient reads two of what it writes one of.
double CostModel::materialised_attention_seconds(const Op& op, bool backward) const {
  const auto batch = static_cast<double>(op.attr.batch), heads = static_cast<double>(op.attr.heads);
  const double rows = static_cast<double>(op.attr.m) / batch,
               length = rows * static_cast<double>(op.attr.hop < 0 ? op.attr.cp : 1);
  const auto head_dim = static_cast<double>(op.attr.head_dim);
  const double groups = batch * heads, scores = groups * rows * length;
  const double element = precision_ == Precision::Bf16 ? 2 : 4;
  const double dropout = stack_.attention_dropout ? 2 * element + 1 : 0;
  const double passes = scores * ((backward ? 3 : 2) * element + dropout);
  const double products =
      grouped_gemm_seconds(groups, rows, length, head_dim) + grouped_gemm_seconds(groups, rows, head_dim, length);
  return (backward ? 2 : 1) * products + hardware_.kernel_floor_s +
         passes / (hardware_.memory_bytes_per_s * hardware_.memory_efficiency);
}

// One launch: the products' tiles follow one another, and only one floor is paid.
double CostModel::grouped_gemm_seconds(double groups, double m, double n, double k) const {
  return hardware_.kernel_floor_s + groups * (gemm_seconds(m, n, k) - hardware_.kernel_floor_s);
}

double CostModel::memory_bound_seconds(const Op& op) const {
  return hardware_.kernel_floor_s + stack_.memory_traffic * (op.bytes_read + op.bytes_written) /
                                        (hardware_.memory_bytes_per_s * hardware_.memory_efficiency);
}

double CostModel::processor_seconds(const Op& op) const {
  if (op.kind == OpKind::Join || op.kind == OpKind::HostSync) return 0;
  // Every kind that programs of today have was measured; one that comes later moves its bytes like an addition.
  const auto found = rates_.find(op.kind);
  const OpRate& rate = found != rates_.end() ? found->second : rates_.at(OpKind::Add);
  return stack_.kernel_gap_s + rate.floor_s + op.flops * rate.seconds_per_flop +
         (op.bytes_read + op.bytes_written) * rate.seconds_per_byte;
}

double CostModel::op_seconds(const Op& op) const {
  TY_CHECK(!is_communication(op.kind), "communication is costed by its group");
  if (!rates_.empty()) return processor_seconds(op);
  return slowest_rank_ * kernel_seconds(op);
}

double CostModel::kernel_seconds(const Op& op) const {
  const auto m = static_cast<double>(op.attr.m), n = static_cast<double>(op.attr.n), k = static_cast<double>(op.attr.k);
  const auto groups = static_cast<double>(std::max<std::int64_t>(op.attr.local_experts, 1));
  switch (op.kind) {
    case OpKind::Join: return 0;
    case OpKind::HostSync: return stack_.host_sync_s;
    // A bias is added in a product's epilogue, or together with the residual.
    case OpKind::BiasAdd: return 0;
    // Views of one product, which attention kernels read with strides, unless something rotates them.
    case OpKind::SplitQkv: return op.attr.rope ? stack_.kernel_gap_s + memory_bound_seconds(op) : 0;
    case OpKind::Matmul: return stack_.kernel_gap_s + gemm_seconds(m, n, k);
    // By expert.
    case OpKind::GroupedMatmul: return stack_.kernel_gap_s + grouped_gemm_seconds(groups, m / groups, n, k);
    case OpKind::GroupedMatmulWgrad: return stack_.kernel_gap_s + grouped_gemm_seconds(groups, n, k, m / groups);
    case OpKind::Attention:
    case OpKind::AttentionGrad: {
      const bool backward = op.kind == OpKind::AttentionGrad;
      if (stack_.attention == "materialised") return stack_.kernel_gap_s + materialised_attention_seconds(op, backward);
      return stack_.kernel_gap_s + attention_seconds(op, backward ? hardware_.attention_backward_efficiency_ratio : 1);
    }
    default: return stack_.kernel_gap_s + memory_bound_seconds(op);
  }
}

double CostModel::nvlink_collective_seconds(Collective kind, std::int64_t ranks, double payload_bytes) const {
  if (ranks <= 1) return 0;
  const auto& curves = hardware_.nvlink[static_cast<std::size_t>(kind)];
  TY_CHECK(!curves.empty(), "a profile has curves for every collective");
  const auto above =
      std::find_if(curves.begin(), curves.end(), [&](const auto& curve) { return curve.ranks >= ranks; });
  const auto seconds = [&](const LinkCurve& curve) { return at(curve.seconds, payload_bytes, true); };
  double its = seconds(above == curves.end() ? curves.back() : *above);
  if (above == curves.end()) {  // a switch gives everybody as much: what grows is the share that leaves a GPU
    const auto n = static_cast<double>(ranks), most = static_cast<double>(curves.back().ranks);
    its *= (n - 1) / n / ((most - 1) / most);
  }
  if (above != curves.end() && above != curves.begin() && above->ranks > ranks) {
    // Between two measured numbers of ranks, evenly by the logarithms of both.
    const LinkCurve& below = *std::prev(above);
    const double share = std::log2(static_cast<double>(ranks) / static_cast<double>(below.ranks)) /
                         std::log2(static_cast<double>(above->ranks) / static_cast<double>(below.ranks));
    its = std::pow(seconds(below), 1 - share) * std::pow(its, share);
  }
  return its / (stack_.collectives_relative * stack_.nvlink_relative);
}

double CostModel::nvlink_p2p_seconds(double bytes) const {
  return hardware_.nvlink_p2p_latency_s + bytes / hardware_.nvlink_p2p_bytes_per_s;
}

FabricCost CostModel::fabric_collective(Collective kind, std::int64_t ranks, std::int64_t nodes, double payload_bytes,
                                        double nic_bytes_per_s) const {
  TY_CHECK(nodes > 1 && ranks >= nodes, "a fabric collective spans nodes");
  const auto n = static_cast<double>(ranks), hops = static_cast<double>(nodes), per_node = n / hops;
  const double hop_s = hardware_.nic_latency_s, payload_rate = nic_payload_rate(nic_bytes_per_s);
  FabricCost cost;
  cost.max_bytes_per_s = payload_rate;
  if (kind == Collective::AllToAll) {
    // Every rank sends each other rank its share; what stays in the node does not touch a NIC. One round of
    // messages in flight together: one latency.
    cost.latency_s = hop_s;
    cost.bytes_per_nic = payload_bytes * (n - per_node) / n;
    return cost;
  }
  // Rings through every node, one for each NIC of the group's ranks on a node, that share the payload: a
  // ring edge carries (n-1)/n of it, twice for an all-reduce (Patarasuk and Yuan, 2009).
  const double passes = kind == Collective::AllReduce ? 2 : 1;
  const double wire_bytes = passes * (n - 1) / n * payload_bytes / per_node;
  const double intra_step_s = hardware_.nvlink_p2p_latency_s / 2;
  const double ring_latency_s = passes * ((hops - 1) * hop_s + (n - hops) * intra_step_s / std::max(1.0, per_node));
  // A tree (all-reduce), or NCCL's PAT (all-gather, reduce-scatter: tuning.cc, log2(N) network steps and 2.8 us a
  // rank), has a latency that grows slower, for a lower bandwidth: 0.92 * 0.85 of the ring's, and 0.75.
  const double log_steps = std::ceil(std::log2(hops));
  const double tree_latency_s =
      kind == Collective::AllReduce ? 2 * log_steps * hop_s : log_steps * hop_s / 3.5 + 2.8e-6 * hops;
  const double tree_slowdown = kind == Collective::AllReduce ? 1 / (0.92 * 0.85) : 1 / 0.75;
  cost.bytes_per_nic = wire_bytes;
  if (kind == Collective::AllReduce && hardware_.tree_step_s > 0) {
    // Up and down a tree of nodes that sum inside themselves, at the NICs' full rate once chunks follow one another:
    // NCCL's of 512 KiB (NCCL_BUFFSIZE / NCCL_STEPS), or a quarter of what a NIC has to carry. A ring has more steps,
    // and waits for no chunk.
    const double step_s = hardware_.tree_step_s;
    const double chunk = std::min(static_cast<double>(512 << 10), payload_bytes / per_node / 4);
    cost.latency_s = std::min(2 * log_steps * (step_s + chunk / payload_rate), 2 * (hops - 1) * step_s);
  } else {
    const double ring_s = ring_latency_s + wire_bytes / payload_rate;
    const double tree_s = tree_latency_s + wire_bytes * tree_slowdown / payload_rate;
    cost.latency_s = ring_s <= tree_s ? ring_latency_s : tree_latency_s;
    if (tree_s < ring_s) cost.max_bytes_per_s = payload_rate / tree_slowdown;
  }
  // The NVLink part of each ring bounds it too.
  if (per_node > 1) {
    const auto per_node_ranks = static_cast<std::int64_t>(per_node);
    const double inside_s = nvlink_collective_seconds(kind, per_node_ranks, 1 << 30);
    const double inside_rate = passes * (per_node - 1) / per_node * static_cast<double>(1 << 30) / inside_s / per_node;
    cost.max_bytes_per_s = std::min(cost.max_bytes_per_s, inside_rate);
  }
  return cost;
}

}  // namespace trainyard
