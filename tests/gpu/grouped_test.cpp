#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <numeric>

#include "tests/gpu/twin.h"

namespace trainyard::gpu {

namespace {

using kernels::Gemm;
using kernels::Kernels;

struct Case {
  std::vector<std::int32_t> counts;  // [segments, sources, experts]
  std::array<std::int64_t, 3> dims{};
  std::int64_t spare_rows = 0;  // past the counts
  std::int64_t n = 0, k = 0;
  Dtype dtype = Dtype::Bf16;
  Dtype gradients = Dtype::F32;

  [[nodiscard]] std::int64_t used() const { return std::accumulate(counts.begin(), counts.end(), std::int64_t{0}); }
  [[nodiscard]] std::int64_t rows() const { return used() + spare_rows; }
  [[nodiscard]] std::int64_t experts() const { return dims[2]; }
};

double tolerance(Dtype dtype) { return dtype == Dtype::Bf16 ? 1e-2 : dtype == Dtype::F32 ? 3e-5 : 1e-12; }

// Rows past the counts may hold anything.
void check_used_rows(const Pair& c, const Case& shape) {
  std::vector<double> cpu = c.values(Side::Cpu), gpu = c.values(Side::Gpu);
  cpu.resize(static_cast<std::size_t>(shape.used() * shape.n));
  gpu.resize(cpu.size());
  const double squares = std::inner_product(cpu.begin(), cpu.end(), cpu.begin(), 0.0);
  const double scale = std::sqrt(squares / static_cast<double>(std::max<std::size_t>(cpu.size(), 1)));
  double worst = 0;
  for (std::size_t i = 0; i < cpu.size(); ++i) {
    const double error = std::abs(cpu[i] - gpu[i]) / std::max(scale, std::abs(cpu[i]));
    worst = std::isfinite(error) ? std::max(worst, error) : HUGE_VAL;
  }
  CHECK(worst <= tolerance(shape.dtype));
}

void check_forward(const Case& shape) {
  const Pair counts = index_pair(shape.counts, shape.dims), a = random_pair(shape.dtype, {shape.rows(), shape.k, 1}, 1);
  for (const bool transposed : {true, false}) {
    INFO((transposed ? "W[E,n,k]" : "W[E,k,n]"));
    const Gemm gemm{.m = shape.rows(), .n = shape.n, .k = shape.k, .trans_b = transposed};
    const Pair w = transposed ? random_pair(shape.dtype, {shape.experts(), shape.n, shape.k}, 2)
                              : random_pair(shape.dtype, {shape.experts(), shape.k, shape.n}, 2);
    const Pair c = empty_pair(shape.dtype, {shape.rows(), shape.n, 1});
    twins([&](Kernels& kernels, Side side) {
      kernels.grouped_matmul(gemm, a.on(side), w.on(side), counts.on(side), c.on(side));
    });
    check_used_rows(c, shape);
  }
}

void check_gradient(const Case& shape) {
  const Pair counts = index_pair(shape.counts, shape.dims),
             dy = random_pair(shape.dtype, {shape.rows(), shape.n, 1}, 1),
             x = random_pair(shape.dtype, {shape.rows(), shape.k, 1}, 2),
             dw = random_pair(shape.gradients, {shape.experts(), shape.n, shape.k}, 3);
  const Gemm gemm{.m = shape.rows(), .n = shape.n, .k = shape.k, .accumulate = true};
  twins([&](Kernels& kernels, Side side) {
    kernels.grouped_matmul_wgrad(gemm, dy.on(side), x.on(side), counts.on(side), dw.on(side));
  });
  // Tensor cores cut off what they do not keep of a sum, every time they add to it.
  const bool cut = shape.dtype == Dtype::Bf16 && shape.gradients == Dtype::F32;
  check_close(dw, cut ? 3e-4 : tolerance(shape.gradients));
}

void check_both(const Case& shape) {
  INFO(shape.rows() << " rows, n " << shape.n << ", k " << shape.k << ", " << to_string(shape.dtype));
  check_forward(shape);
  check_gradient(shape);
}

const std::vector<std::int32_t> kUneven{100, 0, 257, 31};

}  // namespace

TEST_CASE("grouped matmul: uneven experts, one of them without rows") {
  if (!gpu_here()) return;
  check_both({.counts = kUneven, .dims = {1, 1, 4}, .n = 256, .k = 128});
  check_both({.counts = kUneven, .dims = {1, 1, 4}, .n = 256, .k = 128, .gradients = Dtype::Bf16});
  check_both({.counts = {0, 0, 5}, .dims = {1, 1, 3}, .n = 128, .k = 64});
  check_both({.counts = {1, 128, 129, 127, 1, 0, 0, 640}, .dims = {1, 1, 8}, .n = 384, .k = 512});
}

TEST_CASE("grouped matmul: counts of several segments and sources") {
  if (!gpu_here()) return;
  check_both({.counts = {3, 17, 40, 0, 11, 90, 64, 1}, .dims = {2, 2, 2}, .n = 64, .k = 192});
}

TEST_CASE("grouped matmul: rows past the counts") {
  if (!gpu_here()) return;
  check_both({.counts = kUneven, .dims = {1, 1, 4}, .spare_rows = 300, .n = 128, .k = 64});
  check_both({.counts = {0, 0}, .dims = {1, 1, 2}, .spare_rows = 64, .n = 64, .k = 64});
}

TEST_CASE("grouped matmul: sizes that no tile divides") {
  if (!gpu_here()) return;
  check_both({.counts = kUneven, .dims = {1, 1, 4}, .n = 200, .k = 72});
  check_both({.counts = kUneven, .dims = {1, 1, 4}, .n = 8, .k = 40});
  check_both({.counts = kUneven, .dims = {1, 1, 4}, .n = 33, .k = 31});  // not on tensor cores
  check_both({.counts = {1}, .dims = {1, 1, 1}, .n = 1, .k = 1});
}

TEST_CASE("grouped matmul: f32 and f64") {
  if (!gpu_here()) return;
  check_both({.counts = kUneven, .dims = {1, 1, 4}, .n = 100, .k = 60, .dtype = Dtype::F32});
  check_both({.counts = kUneven, .dims = {1, 1, 4}, .n = 100, .k = 60, .dtype = Dtype::F64, .gradients = Dtype::F64});
}

TEST_CASE("grouped matmul: long sums") {
  if (!gpu_here()) return;
  check_both({.counts = {2000, 48, 1000, 1048}, .dims = {1, 1, 4}, .n = 256, .k = 2048});
}

TEST_CASE("grouped matmul: the same bits every time") {
  if (!gpu_here()) return;
  const std::int64_t rows = 388, n = 512, k = 256;
  const Pair counts = index_pair(kUneven, {1, 1, 4}), x = random_pair(Dtype::Bf16, {rows, k, 1}, 1),
             dy = random_pair(Dtype::Bf16, {rows, n, 1}, 2), w = random_pair(Dtype::Bf16, {4, n, k}, 3),
             y = zero_pair(Dtype::Bf16, {rows, n, 1}), dx = zero_pair(Dtype::Bf16, {rows, k, 1}),
             dw = zero_pair(Dtype::F32, {4, n, k});
  Kernels& kernels = device().kernels(0);
  std::vector<std::vector<std::byte>> first;
  for (int i = 0; i < 20; ++i) {
    kernels.grouped_matmul({.m = rows, .n = n, .k = k, .trans_b = true}, x.on(Side::Gpu), w.on(Side::Gpu),
                           counts.on(Side::Gpu), y.on(Side::Gpu));
    kernels.grouped_matmul({.m = rows, .n = k, .k = n}, dy.on(Side::Gpu), w.on(Side::Gpu), counts.on(Side::Gpu),
                           dx.on(Side::Gpu));
    kernels.zero(dw.on(Side::Gpu));
    kernels.grouped_matmul_wgrad({.m = rows, .n = n, .k = k}, dy.on(Side::Gpu), x.on(Side::Gpu), counts.on(Side::Gpu),
                                 dw.on(Side::Gpu));
    device().synchronize();
    const std::vector<std::vector<std::byte>> now{y.gpu_bytes(), dx.gpu_bytes(), dw.gpu_bytes()};
    if (i == 0) first = now;
    CHECK(now == first);
  }
}

TEST_CASE("grouped matmul: a graph serves other counts than those it was captured with") {
  if (!gpu_here()) return;
  const std::int64_t rows = 388, n = 128, k = 64;
  const Gemm gemm{.m = rows, .n = n, .k = k, .trans_b = true};
  const std::vector<std::int32_t> other{0, 200, 88, 100};
  const Pair counts = index_pair(kUneven, {1, 1, 4}), x = random_pair(Dtype::Bf16, {rows, k, 1}, 1),
             w = random_pair(Dtype::Bf16, {4, n, k}, 2), y = empty_pair(Dtype::Bf16, {rows, n, 1});
  const auto queue = [&] {
    device().kernels(0).grouped_matmul(gemm, x.on(Side::Gpu), w.on(Side::Gpu), counts.on(Side::Gpu), y.on(Side::Gpu));
  };
  queue();
  device().synchronize();
  device().begin_capture(0);
  queue();
  const kernels::Device::Graph graph = device().end_capture(0);
  device().copy_to_device(static_cast<std::byte*>(counts.on(Side::Gpu).data),
                          reinterpret_cast<const std::byte*>(other.data()), 16, 0);
  device().launch(graph, 0);
  device().synchronize();
  const std::vector<std::byte> by_graph = y.gpu_bytes();
  queue();
  device().synchronize();
  CHECK(y.gpu_bytes() == by_graph);
}

}  // namespace trainyard::gpu
