// A kernel on the processor beside its twin on the GPU, with the same operands.
//
//     TEST_CASE("norm") {
//       if (!gpu_here()) return;
//       const Pair x = random_pair(Dtype::Bf16, {512, 1024}, 1), y = empty_pair(Dtype::Bf16, {512, 1024}), ...;
//       twins([&](kernels::Kernels& kernels, Side side) { kernels.norm({}, x.on(side), ..., y.on(side), ...); });
//       check_close(y, 1e-2);
//     }
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device.h"

namespace trainyard::gpu {

/// Whether there is a GPU that the plug-in can use. The first time that there is none, says so and why.
bool gpu_here();
/// The GPU, with two streams. Only where there is one.
kernels::Device& device();

enum class Side { Cpu, Gpu };

/// A tensor on both sides, freed with the last copy of it.
class Pair {
 public:
  Pair() = default;
  Pair(Dtype dtype, std::array<std::int64_t, 3> dims, const void* content);
  [[nodiscard]] kernels::Tensor on(Side side) const { return side == Side::Cpu ? cpu_ : gpu_; }
  [[nodiscard]] std::int64_t bytes() const;
  /// What the GPU's side holds, on the host.
  [[nodiscard]] std::vector<std::byte> gpu_bytes() const;
  /// Elements as numbers.
  [[nodiscard]] std::vector<double> values(Side side) const;

 private:
  kernels::Tensor cpu_, gpu_;
  std::shared_ptr<void> owner_;
};

/// Normally distributed, with this standard deviation, rounded to the type; the same for a seed on both sides.
Pair random_pair(Dtype dtype, std::array<std::int64_t, 3> dims, std::uint64_t seed, double deviation = 1);
/// Of bytes 0xff: no number, no index.
Pair empty_pair(Dtype dtype, std::array<std::int64_t, 3> dims);
Pair zero_pair(Dtype dtype, std::array<std::int64_t, 3> dims);
/// i32.
Pair index_pair(const std::vector<std::int32_t>& values, std::array<std::int64_t, 3> dims);

/// Calls it for the processor and for the GPU, and waits for both.
void twins(const std::function<void(kernels::Kernels&, Side)>& call);

/// Every difference is at most `tolerance` times the largest of (the root mean square of the processor's side, the
/// element). NaN and infinities are to be alike.
void check_close(const Pair& pair, double tolerance);
/// Bit for bit.
void check_equal(const Pair& pair);

/// What a kernel took on the GPU beside what it moved and computed.
struct KernelBench {
  std::string name;  // "norm forward 8192 x 4096 bf16"
  double bytes = 0;  // read and written, each once
  double flops = 0;  // of matrix products; 0: memory is the ceiling
  std::function<void(kernels::Kernels&)> run;
};
/// Files of benchmarks add theirs to the list; operands on the GPU only. See kernel_bench.cpp.
using BenchList = std::vector<KernelBench>;
/// GPU memory for a benchmark, filled with numbers of deviation 1 (i32: zeros); freed at the end.
kernels::Tensor bench_tensor(Dtype dtype, std::array<std::int64_t, 3> dims);
void add_dense_benches(BenchList& list);      // norm, activation, embedding, attention layout, loss
void add_optimizer_benches(BenchList& list);  // experts, optimizer
void add_matmul_benches(BenchList& list);     // matmul, attention, grouped matmul

}  // namespace trainyard::gpu
