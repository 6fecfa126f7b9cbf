// What each kernel reaches of what the GPU can do: of the bandwidth of a copy, measured here, and of the rate of a
// large bf16 product, measured here. JSON to standard output.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <vector>

#include <nlohmann/json.hpp>

#include "kernels/open_device.h"
#include "models/base/random.h"
#include "tests/gpu/twin.h"

namespace trainyard::gpu {

namespace {

using json = nlohmann::ordered_json;

std::vector<std::byte*>& bench_memory() {
  static std::vector<std::byte*> memory;
  return memory;
}

// Seconds of one call: the least mean of several rounds, each long enough to be timed.
double seconds_of(const KernelBench& bench) {
  kernels::Kernels& kernels = device().kernels(0);
  const auto begin = device().create_event(), end = device().create_event();
  const auto time = [&](int calls) {
    device().record(begin, 0);
    for (int i = 0; i < calls; ++i) bench.run(kernels);
    device().record(end, 0);
    return device().seconds_between(begin, end) / calls;
  };
  time(2);  // chooses algorithms and grows scratch memory
  const int calls = std::clamp(static_cast<int>(0.02 / std::max(time(1), 1e-6)), 3, 200);
  double best = time(calls);
  for (int round = 0; round < 4; ++round) best = std::min(best, time(calls));
  return best;
}

KernelBench copy_bench() {
  constexpr std::int64_t kElements = std::int64_t{1} << 29;
  const kernels::Tensor from = bench_tensor(Dtype::F32, {kElements, 1, 1}),
                        to = bench_tensor(Dtype::F32, {kElements, 1, 1});
  return {"copy f32, the ceiling of bandwidth", 8.0 * kElements, 0,
          [from, to](kernels::Kernels& kernels) { kernels.copy(from, to); }};
}

KernelBench product_bench() {
  constexpr std::int64_t kSize = 8192;
  const std::array<std::int64_t, 3> square{kSize, kSize, 1};
  const kernels::Tensor a = bench_tensor(Dtype::Bf16, square), b = bench_tensor(Dtype::Bf16, square),
                        c = bench_tensor(Dtype::Bf16, square);
  return {"matmul 8192^3 bf16, the ceiling of products", 0, 2.0 * kSize * kSize * kSize,
          [=](kernels::Kernels& kernels) {
            kernels.matmul({kSize, kSize, kSize, false, true, false, 1}, a, b, {}, c);
          }};
}

}  // namespace

kernels::Tensor bench_tensor(Dtype dtype, std::array<std::int64_t, 3> dims) {
  const std::int64_t size = dims[0] * dims[1] * dims[2], bytes = size * size_of(dtype);
  std::byte* memory = device().allocate(bytes);
  bench_memory().push_back(memory);
  kernels::Tensor out{memory, dtype, dims};
  if (dtype == Dtype::I32) {
    device().fill(memory, 0, bytes, 0);
    return out;
  }
  // Power, and so the clock, depends on what the bits are: noise, over and over.
  constexpr std::int64_t kPeriod = 1 << 20;
  static const std::vector<float> noise = [] {
    RandomStream random(1, "kernel bench");
    std::vector<float> values;
    for (std::int64_t i = 0; i < kPeriod; ++i) values.push_back(static_cast<float>(random.normal()));
    return values;
  }();
  std::byte* staged = device().allocate(kPeriod * 4);
  device().copy_to_device(staged, reinterpret_cast<const std::byte*>(noise.data()), kPeriod * 4, 0);
  for (std::int64_t first = 0; first < size; first += kPeriod) {
    const std::int64_t count = std::min(kPeriod, size - first);
    device().kernels(0).copy({staged, Dtype::F32, {count, 1, 1}},
                             {memory + first * size_of(dtype), dtype, {count, 1, 1}});
  }
  device().synchronize(0);
  device().release(staged);
  return out;
}

namespace {

int run() {
  if (!gpu_here()) return 4;
  const kernels::DeviceInfo info = device().info();
  const KernelBench copy = copy_bench(), product = product_bench();
  const double copy_bytes_per_s = copy.bytes / seconds_of(copy),
               product_flops_per_s = product.flops / seconds_of(product);
  json results = json::array();
  for (void (*add)(BenchList&) : {add_dense_benches, add_optimizer_benches, add_matmul_benches}) {
    BenchList list;
    add(list);
    for (const KernelBench& bench : list) {
      const double seconds = seconds_of(bench);
      const double at_memory = bench.bytes / copy_bytes_per_s, at_products = bench.flops / product_flops_per_s;
      results.push_back({{"name", bench.name},
                         {"seconds", seconds},
                         {"bytes_per_s", bench.bytes / seconds},
                         {"flops_per_s", bench.flops / seconds},
                         {"of_ceiling", std::max(at_memory, at_products) / seconds}});
      std::fprintf(stderr, "%-64s %9.1f us  %5.1f%% of the ceiling\n", bench.name.c_str(), seconds * 1e6,
                   100 * std::max(at_memory, at_products) / seconds);
    }
    device().synchronize();
    for (std::byte* memory : bench_memory()) device().release(memory);
    bench_memory().clear();
  }
  std::cout << json{{"gpu", info.name},
                    {"runtime", info.runtime},
                    {"copy_bytes_per_s", copy_bytes_per_s},
                    {"product_flops_per_s", product_flops_per_s},
                    {"kernels", results}}
                   .dump(1)
            << "\n";
  return 0;
}

}  // namespace

}  // namespace trainyard::gpu

int main() {
  try {
    return trainyard::gpu::run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kernel_bench: %s\n", error.what());
    return 1;
  }
}
