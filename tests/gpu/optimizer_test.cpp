// AdamW, gradient norms and housekeeping on the GPU, beside the processor.
#include <catch2/catch.hpp>
#include <set>

#include "tests/gpu/twin.h"

namespace trainyard::gpu {
namespace {

using kernels::Kernels;
using kernels::Range;
using kernels::Tensor;

constexpr std::int64_t kSizes[] = {1, 7, 256, 4099, 20000, 300001};

// Elements [first, first + count): views that begin where vectors do not.
Tensor part_of(const Tensor& x, std::int64_t first, std::int64_t count) {
  return {static_cast<std::byte*>(x.data) + first * size_of(x.dtype), x.dtype, {count, 1, 1}};
}

// `count` ranges of all lengths, with gaps, that fit in what they need.
std::vector<Range> some_ranges(int count, std::int64_t* size) {
  std::vector<Range> ranges;
  std::int64_t at = 3;
  for (int i = 0; i < count; ++i) {
    const std::int64_t length = i % 7 == 0 ? 5000 + i : (i * 37) % 100;
    ranges.push_back({at, length, i % 3 != 0, i % 2 == 0 ? 1.0 : 0.5});
    at += length + i % 5;
  }
  *size = at + 2;
  return ranges;
}

}  // namespace

TEST_CASE("the GPU converts and adds as the processor does", "[gpu]") {
  if (!gpu_here()) return;
  struct Types {
    Dtype from, to;
  };
  const auto types =
      GENERATE(Types{Dtype::Bf16, Dtype::Bf16}, Types{Dtype::Bf16, Dtype::F32}, Types{Dtype::F32, Dtype::Bf16},
               Types{Dtype::F32, Dtype::F32}, Types{Dtype::Bf16, Dtype::F64}, Types{Dtype::F64, Dtype::F64});
  const std::int64_t shift = GENERATE(0, 1, 8);
  for (const std::int64_t size : kSizes) {
    const Pair x = random_pair(types.from, {size + shift, 1, 1}, 1), sum = random_pair(types.to, {size, 1, 1}, 2),
               copy = empty_pair(types.to, {size + shift, 1, 1});
    twins([&](Kernels& kernels, Side side) {
      kernels.copy(part_of(x.on(side), shift, size), part_of(copy.on(side), shift, size));
      kernels.accumulate(part_of(x.on(side), shift, size), sum.on(side));
    });
    check_equal(copy);
    check_equal(sum);
  }
}

TEST_CASE("the GPU converts between f32 and f64, and from f64 to bf16", "[gpu]") {
  if (!gpu_here()) return;
  const Pair x = random_pair(Dtype::Bf16, {10007, 1, 1}, 1);
  const Pair f64 = empty_pair(Dtype::F64, {10007, 1, 1}), f32 = empty_pair(Dtype::F32, {10007, 1, 1}),
             again = empty_pair(Dtype::F64, {10007, 1, 1}), bf16 = empty_pair(Dtype::Bf16, {10007, 1, 1});
  Kernels& kernels = device().kernels(0);
  kernels.copy(x.on(Side::Gpu), f64.on(Side::Gpu));
  kernels.copy(f64.on(Side::Gpu), f32.on(Side::Gpu));
  kernels.copy(f32.on(Side::Gpu), again.on(Side::Gpu));
  kernels.copy(again.on(Side::Gpu), bf16.on(Side::Gpu));
  device().synchronize();
  CHECK(bf16.gpu_bytes() == x.gpu_bytes());
}

TEST_CASE("the GPU zeroes", "[gpu]") {
  if (!gpu_here()) return;
  const auto dtype = GENERATE(Dtype::Bf16, Dtype::F32, Dtype::F64, Dtype::I32);
  for (const std::int64_t size : kSizes) {
    const Pair x = empty_pair(dtype, {size + 2, 1, 1});
    twins([&](Kernels& kernels, Side side) { kernels.zero(part_of(x.on(side), 1, size)); });
    check_equal(x);
  }
}

TEST_CASE("the GPU's norm of gradients is the processor's", "[gpu]") {
  if (!gpu_here()) return;
  const auto dtype = GENERATE(Dtype::Bf16, Dtype::F32, Dtype::F64);
  const std::int64_t shift = GENERATE(0, 1, 4);
  const int count = GENERATE(0, 1, 64, 150);
  const Dtype wide = dtype == Dtype::F64 ? Dtype::F64 : Dtype::F32;
  std::int64_t size = 0;
  const std::vector<Range> ranges = some_ranges(count, &size);
  const Pair grads = random_pair(dtype, {size + shift, 1, 1}, 1);
  const Pair sum = random_pair(wide, {1, 1, 1}, 2), again = random_pair(wide, {1, 1, 1}, 2);
  twins([&](Kernels& kernels, Side side) {
    kernels.squared_norm(part_of(grads.on(side), shift, size), ranges, sum.on(side));
    kernels.squared_norm(part_of(grads.on(side), shift, size), ranges, again.on(side));
  });
  check_close(sum, dtype == Dtype::F64 ? 1e-12 : 1e-5);
  CHECK(sum.gpu_bytes() == again.gpu_bytes());
}

namespace {

struct AdamCase {
  Dtype grads, params, wide;
  std::int64_t shift = 0, params_shift = 0;  // of the first element
  double clip_grad = 0;
  int ranges = 0;
};

// Bit for bit: replicas of which some are on a processor stay alike.
void check_adamw(const AdamCase& c) {
  std::int64_t size = 0;
  const std::vector<Range> ranges = some_ranges(c.ranges, &size);
  const kernels::Adam adam{1e-3, 0.9, 0.95, 1e-8, 0.1, c.clip_grad, 3};
  const auto numbers = [&](Dtype dtype, std::uint64_t seed) { return random_pair(dtype, {size + 8, 1, 1}, seed); };
  const Pair grads = numbers(c.grads, 1), params = numbers(c.params, 2), master = numbers(c.wide, 3),
             m = numbers(c.wide, 4), v = zero_pair(c.wide, {size + 8, 1, 1}), norm = zero_pair(c.wide, {1, 1, 1}),
             one = random_pair(c.wide, {1, 1, 1}, 5);
  twins([&](Kernels& kernels, Side side) {
    const auto shifted = [&](const Pair& x) { return part_of(x.on(side), c.shift, size); };
    kernels.squared_norm(one.on(side), {{0, 1}}, norm.on(side));
    for (int step = 0; step < 2; ++step) {
      kernels.adamw(adam, shifted(grads), norm.on(side), ranges, part_of(params.on(side), c.params_shift, size),
                    shifted(master), shifted(m), shifted(v));
    }
  });
  for (const Pair& x : {params, master, m, v}) check_equal(x);
}

}  // namespace

TEST_CASE("the GPU's AdamW is the processor's, bit for bit", "[gpu]") {
  if (!gpu_here()) return;
  const double clip_grad = GENERATE(0.0, 1e-3, 1e3);
  const int ranges = GENERATE(1, 64, 150);
  struct Types {
    Dtype grads, params, wide;
  };
  const auto types = GENERATE(Types{Dtype::Bf16, Dtype::Bf16, Dtype::F32}, Types{Dtype::F32, Dtype::Bf16, Dtype::F32},
                              Types{Dtype::F32, Dtype::F32, Dtype::F32}, Types{Dtype::F64, Dtype::F64, Dtype::F64});
  check_adamw({types.grads, types.params, types.wide, 0, 0, clip_grad, ranges});
  check_adamw({types.grads, types.params, types.wide, 3, 3, clip_grad, ranges});
  check_adamw({types.grads, types.params, types.wide, 0, 1, clip_grad, ranges});
}

TEST_CASE("a hash is the same on the GPU and on the processor", "[gpu]") {
  if (!gpu_here()) return;
  std::set<std::uint64_t> seen;
  for (const std::int64_t size : kSizes) {
    for (const std::int64_t shift : {0, 1, 8}) {
      const Pair x = random_pair(Dtype::Bf16, {size + shift, 1, 1}, 1);
      std::uint64_t of[2] = {};
      twins([&](Kernels& kernels, Side side) {
        of[side == Side::Gpu ? 1 : 0] = kernels.hash(part_of(x.on(side), shift, size));
      });
      CHECK(of[0] == of[1]);
      seen.insert(of[0]);
    }
  }
  CHECK(seen.size() == 3 * std::size(kSizes));
}

}  // namespace trainyard::gpu
