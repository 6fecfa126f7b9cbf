#include <catch2/catch.hpp>

#include "tests/gpu/twin.h"

namespace trainyard::gpu {

namespace {

using kernels::Gemm;
using kernels::Kernels;
using kernels::Tensor;

struct Operands {
  Pair a, b, bias, c;
};

// C starts as numbers where it is accumulated into.
Operands operands(const Gemm& gemm, Dtype in, Dtype out, bool bias) {
  const auto shape = [](bool transposed, std::int64_t rows, std::int64_t columns) {
    return transposed ? std::array<std::int64_t, 3>{columns, rows, 1} : std::array<std::int64_t, 3>{rows, columns, 1};
  };
  return {random_pair(in, shape(gemm.trans_a, gemm.m, gemm.k), 1),
          random_pair(in, shape(gemm.trans_b, gemm.k, gemm.n), 2), bias ? random_pair(out, {gemm.n, 1, 1}, 3) : Pair(),
          gemm.accumulate ? random_pair(out, {gemm.m, gemm.n, 1}, 4) : empty_pair(out, {gemm.m, gemm.n, 1})};
}

void multiply(const Gemm& gemm, const Operands& x) {
  twins([&](Kernels& kernels, Side side) {
    kernels.matmul(gemm, x.a.on(side), x.b.on(side), x.bias.on(side), x.c.on(side));
  });
}

// Tensor cores cut off what they do not keep of a sum, every time they add to it.
double tolerance(Dtype in, Dtype out) {
  if (out == Dtype::Bf16) return 1e-2;
  if (out == Dtype::F64) return 1e-12;
  return in == Dtype::Bf16 ? 3e-4 : 3e-5;
}

void check_product(const Gemm& gemm, Dtype in, Dtype out, bool bias) {
  INFO(gemm.m << " x " << gemm.n << " x " << gemm.k << (gemm.trans_a ? " A^T" : "") << (gemm.trans_b ? " B^T" : "")
              << (gemm.accumulate ? " +=" : "") << (bias ? " + bias" : "") << " " << to_string(in) << " to "
              << to_string(out));
  const Operands x = operands(gemm, in, out, bias);
  multiply(gemm, x);
  check_close(x.c, tolerance(in, out));
}

}  // namespace

TEST_CASE("matmul: all transposes, types, sums and biases") {
  if (!gpu_here()) return;
  const std::pair<Dtype, Dtype> types[] = {
      {Dtype::Bf16, Dtype::Bf16}, {Dtype::Bf16, Dtype::F32}, {Dtype::F32, Dtype::F32}, {Dtype::F64, Dtype::F64}};
  for (const auto& [in, out] : types)
    for (const bool trans_a : {false, true})
      for (const bool trans_b : {false, true})
        for (const bool accumulate : {false, true})
          for (const bool bias : {false, true}) {
            if (bias && in != out) continue;  // a bias is of the product's type, and the program has none with f32
            const Gemm gemm{.m = 96,
                            .n = 160,
                            .k = 64,
                            .trans_a = trans_a,
                            .trans_b = trans_b,
                            .accumulate = accumulate,
                            .alpha = 0.5};
            check_product(gemm, in, out, bias);
          }
}

TEST_CASE("matmul: awkward sizes") {
  if (!gpu_here()) return;
  for (const Dtype type : {Dtype::Bf16, Dtype::F32, Dtype::F64}) {
    check_product({.m = 1, .n = 1, .k = 1}, type, type, false);
    check_product({.m = 33, .n = 17, .k = 7, .trans_b = true}, type, type, true);
    check_product({.m = 129, .n = 1, .k = 255, .trans_a = true, .accumulate = true}, type, type, false);
    check_product({.m = 1, .n = 1000, .k = 513}, type, type, true);
  }
}

TEST_CASE("matmul: long sums, as of gradients of weights") {
  if (!gpu_here()) return;
  check_product({.m = 256, .n = 192, .k = 8192, .trans_a = true, .accumulate = true}, Dtype::Bf16, Dtype::F32, false);
  check_product({.m = 64, .n = 64, .k = 16384, .trans_a = true, .accumulate = true}, Dtype::Bf16, Dtype::Bf16, false);
}

TEST_CASE("matmul: operands that are not aligned to 16 bytes") {
  if (!gpu_here()) return;
  const Gemm gemm{.m = 64, .n = 64, .k = 64, .trans_b = true};
  const Pair a = random_pair(Dtype::Bf16, {65 * 64, 1, 1}, 1), b = random_pair(Dtype::Bf16, {64, 64, 1}, 2),
             c = zero_pair(Dtype::Bf16, {65 * 64, 1, 1});
  const auto shifted = [](Tensor x) {
    x.data = static_cast<std::byte*>(x.data) + 2;
    x.dims = {64, 64, 1};
    return x;
  };
  twins([&](Kernels& kernels, Side side) {
    kernels.matmul(gemm, shifted(a.on(side)), b.on(side), {}, shifted(c.on(side)));
  });
  check_close(c, 1e-2);
}

TEST_CASE("matmul: the gradients of a router's logits, which are f32 beside bf16") {
  if (!gpu_here()) return;
  const Pair dlogits = random_pair(Dtype::F32, {200, 8, 1}, 1), weight = random_pair(Dtype::Bf16, {8, 96, 1}, 2),
             x = random_pair(Dtype::Bf16, {200, 96, 1}, 3);
  const Pair dx = empty_pair(Dtype::Bf16, {200, 96, 1}), wide = random_pair(Dtype::F32, {8, 96, 1}, 4),
             narrow = random_pair(Dtype::Bf16, {8, 96, 1}, 5);
  twins([&](Kernels& kernels, Side side) {
    kernels.matmul({.m = 200, .n = 96, .k = 8}, dlogits.on(side), weight.on(side), {}, dx.on(side));
    const Gemm gradient{.m = 8, .n = 96, .k = 200, .trans_a = true, .accumulate = true};
    kernels.matmul(gradient, dlogits.on(side), x.on(side), {}, wide.on(side));
    kernels.matmul(gradient, dlogits.on(side), x.on(side), {}, narrow.on(side));
  });
  check_close(dx, 1e-2);
  check_close(wide, 3e-5);
  check_close(narrow, 1e-2);
}

TEST_CASE("matmul: f32 is f32") {
  if (!gpu_here()) return;
  // TF32 and bf16 keep so little of b that sums are off by a ten-thousandth.
  const std::vector<float> ones(64 * 64, 1);
  const Pair a(Dtype::F32, {64, 64, 1}, ones.data()), b = random_pair(Dtype::F32, {64, 64, 1}, 1),
                                                      c = empty_pair(Dtype::F32, {64, 64, 1});
  twins([&](Kernels& kernels, Side side) {
    kernels.matmul({.m = 64, .n = 64, .k = 64}, a.on(side), b.on(side), {}, c.on(side));
  });
  check_close(c, 5e-6);
}

TEST_CASE("matmul: the same bits every time") {
  if (!gpu_here()) return;
  for (const Gemm& gemm :
       {Gemm{.m = 512, .n = 384, .k = 1024, .trans_b = true}, Gemm{.m = 128, .n = 128, .k = 8192, .trans_a = true}}) {
    const Operands x = operands(gemm, Dtype::Bf16, Dtype::F32, false);
    std::vector<std::byte> first;
    for (int i = 0; i < 20; ++i) {
      device().kernels(0).matmul(gemm, x.a.on(Side::Gpu), x.b.on(Side::Gpu), {}, x.c.on(Side::Gpu));
      device().synchronize();
      if (i == 0) first = x.c.gpu_bytes();
      CHECK(x.c.gpu_bytes() == first);
    }
  }
}

TEST_CASE("matmul: a graph of it does what it does") {
  if (!gpu_here()) return;
  const Gemm gemm{.m = 128, .n = 256, .k = 512, .trans_b = true};
  const Operands x = operands(gemm, Dtype::Bf16, Dtype::Bf16, true), y = operands(gemm, Dtype::Bf16, Dtype::Bf16, true);
  const auto queue = [&](const Operands& o) {
    device().kernels(0).matmul(gemm, o.a.on(Side::Gpu), o.b.on(Side::Gpu), o.bias.on(Side::Gpu), o.c.on(Side::Gpu));
  };
  queue(x);
  device().begin_capture(0);
  queue(y);
  const kernels::Device::Graph graph = device().end_capture(0);
  device().launch(graph, 0);
  device().synchronize();
  CHECK(x.c.gpu_bytes() == y.c.gpu_bytes());
}

}  // namespace trainyard::gpu
