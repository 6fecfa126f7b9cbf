#include <algorithm>
#include <bit>
#include <catch2/catch.hpp>
#include <cmath>

#include "tests/gpu/twin.h"

namespace trainyard::gpu {

namespace {

using kernels::AttentionShape;
using kernels::Heads;
using kernels::Kernels;
using kernels::Tensor;

struct Case {
  Heads heads;
  std::int64_t batch = 1, length = 0, window = 0;  // length: of queries that are here
  double softcap = 0;
  Dtype dtype = Dtype::Bf16;
  bool one_key = false;  // each query sees but one: weights of 1 have no slope, so that dq and dk are nothing
  std::int64_t cp = 1, cp_index = 0, key_block = -1;
};

AttentionShape shape_of(const Case& c) {
  AttentionShape shape;
  shape.heads = c.heads;
  shape.batch = c.batch;
  shape.window = c.window;
  shape.scale = 1 / std::sqrt(static_cast<double>(c.heads.dim));
  shape.softcap = c.softcap;
  shape.cp = c.cp;
  shape.cp_index = c.cp_index;
  shape.key_block = c.key_block;
  return shape;
}

// Keys of all blocks, of which a ring's hop takes one.
struct Operands {
  explicit Operands(const Case& c, double deviation = 1)
      : rows(c.batch * c.length),
        key_rows(rows * (c.key_block < 0 ? c.cp : 1)),
        q(random_pair(c.dtype, {rows, c.heads.query * c.heads.dim, 1}, 1, deviation)),
        k(random_pair(c.dtype, {rows * c.cp, c.heads.key * c.heads.dim, 1}, 2, deviation)),
        v(random_pair(c.dtype, {rows * c.cp, c.heads.key * c.heads.dim, 1}, 3)),
        dout(random_pair(c.dtype, {rows, c.heads.query * c.heads.dim, 1}, 4)),
        o(empty_pair(c.dtype, {rows, c.heads.query * c.heads.dim, 1})),
        lse(empty_pair(c.dtype == Dtype::F64 ? Dtype::F64 : Dtype::F32, {rows, c.heads.query, 1})),
        dq(empty_pair(c.dtype, {rows, c.heads.query * c.heads.dim, 1})),
        dk(empty_pair(c.dtype, {key_rows, c.heads.key * c.heads.dim, 1})),
        dv(empty_pair(c.dtype, {key_rows, c.heads.key * c.heads.dim, 1})) {}

  [[nodiscard]] Tensor keys(const Pair& pair, const AttentionShape& shape, Side side) const {
    Tensor x = pair.on(side);
    if (shape.key_block < 0) return x;
    x.dims[0] = rows;
    x.data = static_cast<std::byte*>(x.data) + shape.key_block * x.size() * size_of(x.dtype);
    return x;
  }
  void forward(Kernels& kernels, const AttentionShape& shape, Side side) const {
    kernels.attention(shape, q.on(side), keys(k, shape, side), keys(v, shape, side), o.on(side), lse.on(side));
  }
  void backward(Kernels& kernels, const AttentionShape& shape, Side side) const {
    kernels.attention_grad(shape, dout.on(side), q.on(side), keys(k, shape, side), keys(v, shape, side), o.on(side),
                           lse.on(side), dq.on(side), dk.on(side), dv.on(side));
  }

  std::int64_t rows, key_rows;
  Pair q, k, v, dout, o, lse, dq, dk, dv;
};

double root_mean_square(const std::vector<double>& values) {
  double squares = 0, count = 0;
  for (const double x : values) {
    if (!std::isfinite(x)) continue;
    squares += x * x;
    ++count;
  }
  return std::sqrt(squares / std::max(count, 1.0));
}

// What is averaged over many keys is smaller by far than what is not: rows are held to their own scale, but for those
// that are nothing, and to no less than `floor`.
void check_rows_close(const char* what, const Pair& pair, std::int64_t rows, double tolerance, double floor = 0) {
  const std::vector<double> cpu = pair.values(Side::Cpu), gpu = pair.values(Side::Gpu);
  const std::size_t width = cpu.size() / static_cast<std::size_t>(rows);
  floor = std::max(floor, 0.05 * root_mean_square(cpu));
  double worst = 0;
  std::size_t worst_row = 0;
  for (std::size_t row = 0; row < static_cast<std::size_t>(rows); ++row) {
    double squares = 0, most = 0;
    for (std::size_t i = row * width; i < (row + 1) * width; ++i) {
      if (cpu[i] == gpu[i] && !std::isfinite(cpu[i])) continue;  // the log of nothing, on both sides
      squares += cpu[i] * cpu[i];
      most = std::isfinite(gpu[i]) ? std::max(most, std::abs(cpu[i] - gpu[i])) : HUGE_VAL;
    }
    const double error = most / std::max(std::sqrt(squares / static_cast<double>(width)), floor);
    if (error > worst) {
      worst = error;
      worst_row = row;
    }
  }
  INFO(what << ": row " << worst_row << " is furthest off");
  CHECK(worst <= tolerance);
}

// Rows of queries that see nothing, and of keys that nobody sees: exactly nothing, and as many as there are.
void check_empty_rows(const char* what, const Pair& pair, std::int64_t rows, std::int64_t expected, double nothing) {
  const std::vector<double> cpu = pair.values(Side::Cpu), gpu = pair.values(Side::Gpu);
  const auto width = static_cast<std::ptrdiff_t>(cpu.size() / static_cast<std::size_t>(rows));
  std::int64_t empty = 0, differ = 0;
  for (std::ptrdiff_t row = 0; row < rows; ++row) {
    const auto is_nothing = [&](const std::vector<double>& x) {
      return std::all_of(x.begin() + row * width, x.begin() + (row + 1) * width,
                         [&](double value) { return value == nothing; });
    };
    empty += is_nothing(cpu) ? 1 : 0;
    differ += is_nothing(cpu) != is_nothing(gpu) ? 1 : 0;
  }
  INFO(what);
  CHECK(empty == expected);
  CHECK(differ == 0);
}

// Of vectors, as a share of the second's length.
double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double apart = 0, length = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    apart += (a.at(i) - b[i]) * (a.at(i) - b[i]);
    length += b[i] * b[i];
  }
  return std::sqrt(apart / length);
}

void check_attention(const Case& c) {
  INFO(c.heads.query << "/" << c.heads.key << " heads of " << c.heads.dim << ", " << c.batch << " sequences of "
                     << c.length << ", softcap " << c.softcap << ", window " << c.window << ", " << to_string(c.dtype)
                     << ", rank " << c.cp_index << " of " << c.cp << ", block " << c.key_block);
  const AttentionShape shape = shape_of(c);
  const bool bf16 = c.dtype == Dtype::Bf16;
  const double exact = c.dtype == Dtype::F64 ? 1e-11 : 1e-4;
  Operands x(c);
  twins([&](Kernels& kernels, Side side) { x.forward(kernels, shape, side); });
  check_rows_close("o", x.o, x.rows, bf16 ? 4e-2 : exact);
  check_rows_close("lse", x.lse, x.rows, bf16 ? 5e-3 : exact);
  const std::int64_t blind = c.key_block > c.cp_index ? x.rows / 2 : 0;
  const std::int64_t unseen = c.key_block >= 0 && c.key_block < c.cp_index ? x.rows / 2 : 0;
  if (blind > 0) {
    check_empty_rows("o", x.o, x.rows, blind, 0);
    check_empty_rows("lse", x.lse, x.rows, blind, -HUGE_VAL);
  }
  if (c.key_block >= 0) {  // a ring's gradient is of o and lse over all keys
    AttentionShape all = shape;
    all.key_block = -1;
    twins([&](Kernels& kernels, Side side) { x.forward(kernels, all, side); });
  }
  // The same o on both sides: its rounding is not the gradient's.
  x.o = Pair(c.dtype, x.o.on(Side::Cpu).dims, x.o.on(Side::Cpu).data);
  x.lse = Pair(x.lse.on(Side::Cpu).dtype, x.lse.on(Side::Cpu).dims, x.lse.on(Side::Cpu).data);
  twins([&](Kernels& kernels, Side side) { x.backward(kernels, shape, side); });
  const double floor = c.one_key ? 0.05 * root_mean_square(x.dv.values(Side::Cpu)) : 0;
  check_rows_close("dq", x.dq, x.rows, bf16 ? 6e-2 : exact, floor);
  check_rows_close("dk", x.dk, x.key_rows, bf16 ? 6e-2 : exact, floor);
  check_rows_close("dv", x.dv, x.key_rows, bf16 ? 6e-2 : exact);
  if (blind > 0) check_empty_rows("dq", x.dq, x.rows, blind, 0);
  if (unseen > 0) {
    check_empty_rows("dk", x.dk, x.key_rows, unseen, 0);
    check_empty_rows("dv", x.dv, x.key_rows, unseen, 0);
  }
}

// From each rank of a context: all blocks together, then each as in a ring.
void check_context(Case c) {
  for (c.cp_index = 0; c.cp_index < c.cp; ++c.cp_index) {
    for (c.key_block = -1; c.key_block < c.cp; ++c.key_block) check_attention(c);
  }
}

}  // namespace

TEST_CASE("attention: heads, dimensions and lengths") {
  if (!gpu_here()) return;
  check_attention({.heads = {4, 4, 64}, .batch = 2, .length = 128});
  check_attention({.heads = {4, 2, 64}, .batch = 3, .length = 256});
  check_attention({.heads = {8, 1, 128}, .batch = 1, .length = 512});
  check_attention({.heads = {6, 2, 128}, .batch = 2, .length = 1024});
  check_attention({.heads = {4, 2, 128}, .batch = 1, .length = 2048});
}

TEST_CASE("attention: a soft cap") {
  if (!gpu_here()) return;
  check_attention({.heads = {4, 4, 64}, .batch = 2, .length = 128, .softcap = 30});
  check_attention({.heads = {6, 1, 128}, .batch = 2, .length = 512, .softcap = 30});
  check_attention({.heads = {4, 2, 128}, .batch = 1, .length = 2048, .softcap = 30});
  check_attention({.heads = {4, 2, 64}, .batch = 1, .length = 256, .softcap = 1});  // a cap that bends every score
}

TEST_CASE("attention: lengths and dimensions that no tile divides") {
  if (!gpu_here()) return;
  check_attention({.heads = {4, 2, 64}, .batch = 3, .length = 200});
  check_attention({.heads = {4, 2, 64}, .batch = 3, .length = 200, .softcap = 30});
  check_attention({.heads = {3, 3, 128}, .batch = 2, .length = 333});
  check_attention({.heads = {2, 1, 96}, .batch = 2, .length = 129});
  check_attention({.heads = {4, 4, 8}, .batch = 2, .length = 16});
  check_attention({.heads = {2, 1, 16}, .batch = 2, .length = 64, .softcap = 30});
  check_attention({.heads = {2, 1, 64}, .batch = 5, .length = 1, .one_key = true});
}

TEST_CASE("attention: a window") {
  if (!gpu_here()) return;
  check_attention({.heads = {4, 2, 64}, .batch = 2, .length = 512, .window = 100});
  check_attention({.heads = {4, 2, 128}, .batch = 1, .length = 512, .window = 128, .softcap = 30});
  check_attention({.heads = {2, 2, 64}, .batch = 1, .length = 128, .window = 1, .one_key = true});
  check_attention({.heads = {2, 2, 64}, .batch = 1, .length = 128, .window = 4096});
}

TEST_CASE("attention: context parallelism") {
  if (!gpu_here()) return;
  check_context({.heads = {4, 2, 64}, .batch = 2, .length = 256, .cp = 2});
  check_context({.heads = {4, 4, 128}, .batch = 2, .length = 512, .cp = 2});
  check_context({.heads = {8, 2, 64}, .batch = 2, .length = 256, .cp = 4});
  check_context({.heads = {4, 2, 64}, .batch = 1, .length = 1024, .cp = 4});
}

TEST_CASE("attention: context parallelism with a soft cap") {
  if (!gpu_here()) return;
  check_context({.heads = {4, 2, 64}, .batch = 2, .length = 256, .softcap = 30, .cp = 2});
  check_context({.heads = {6, 1, 128}, .batch = 2, .length = 256, .softcap = 30, .cp = 4});
  check_context({.heads = {4, 2, 64}, .batch = 2, .length = 256, .softcap = 1, .cp = 2});
}

TEST_CASE("attention: context parallelism in lengths that no tile divides") {
  if (!gpu_here()) return;
  check_context({.heads = {4, 2, 64}, .batch = 2, .length = 200, .cp = 2});
  check_context({.heads = {3, 3, 128}, .batch = 2, .length = 334, .cp = 4});
  check_context({.heads = {2, 1, 64}, .batch = 2, .length = 200, .softcap = 30, .cp = 2});
  check_context({.heads = {4, 4, 8}, .batch = 2, .length = 16, .cp = 2});
}

// For which the graphs have no form, but for a window that is longer than all.
TEST_CASE("attention: context parallelism with a window, and in f32") {
  if (!gpu_here()) return;
  check_attention({.heads = {4, 2, 64}, .batch = 2, .length = 128, .window = 100, .cp = 2, .cp_index = 1});
  check_context({.heads = {4, 2, 64}, .batch = 2, .length = 128, .window = 4096, .cp = 2});
  check_context({.heads = {4, 2, 64}, .batch = 2, .length = 128, .dtype = Dtype::F32, .cp = 2});
}

TEST_CASE("attention: f32 and f64") {
  if (!gpu_here()) return;
  for (const Dtype dtype : {Dtype::F32, Dtype::F64}) {
    check_attention({.heads = {4, 2, 64}, .batch = 2, .length = 128, .dtype = dtype});
    check_attention({.heads = {2, 1, 16}, .batch = 2, .length = 77, .softcap = 30, .dtype = dtype});
  }
}

TEST_CASE("attention: a gradient in several runs is that of each sequence and head") {
  if (!gpu_here()) return;
  // A rank beside a later one, and beside an earlier one, has halves of sequences to split as well.
  const auto [cp, cp_index] = GENERATE(std::pair(1, 0), std::pair(2, 0), std::pair(2, 1));
  INFO("rank " << cp_index << " of " << cp);
  // Two sequences of 4,096 with 36 heads: 2.4 GB of workspace in all, which attention.cpp allows itself not at once.
  const Case large{.heads = {36, 12, 64}, .batch = 2, .length = 4096, .cp = cp, .cp_index = cp_index},
      small{.heads = {3, 1, 64}, .batch = 1, .length = 4096, .cp = cp, .cp_index = cp_index};
  const Operands x(large);
  Kernels& kernels = device().kernels(0);
  x.forward(kernels, shape_of(large), Side::Gpu);
  x.backward(kernels, shape_of(large), Side::Gpu);
  device().synchronize();

  // The last key head of the last sequence, alone; of keys in every block.
  const auto head_of = [&](const Pair& pair, std::int64_t heads, std::int64_t count) {
    const std::vector<double> all = pair.values(Side::Gpu);
    const auto width = static_cast<std::size_t>(heads * 64), part = static_cast<std::size_t>(count * 64);
    std::vector<double> values;
    for (std::size_t row = 0; row < all.size() / width; ++row) {
      if (row % 8192 < 4096) continue;
      values.insert(values.end(), all.begin() + static_cast<std::ptrdiff_t>((row + 1) * width - part),
                    all.begin() + static_cast<std::ptrdiff_t>((row + 1) * width));
    }
    return values;
  };
  const auto alone = [&](const Pair& pair, std::int64_t heads, std::int64_t count) {
    std::vector<std::uint16_t> bits;  // bf16 numbers are exact as doubles
    for (const double value : head_of(pair, heads, count)) {
      const auto narrow = static_cast<float>(value);
      bits.push_back(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(narrow) >> 16));
    }
    return Pair(Dtype::Bf16, {static_cast<std::int64_t>(bits.size()) / (count * 64), count * 64, 1}, bits.data());
  };
  Operands z(small);
  z.q = alone(x.q, 36, 3);
  z.k = alone(x.k, 12, 1);
  z.v = alone(x.v, 12, 1);
  z.dout = alone(x.dout, 36, 3);
  z.forward(kernels, shape_of(small), Side::Gpu);
  z.backward(kernels, shape_of(small), Side::Gpu);
  device().synchronize();
  // Close, not equal: for another number of heads cuDNN may choose another kernel.
  CHECK(distance(z.o.values(Side::Gpu), head_of(x.o, 36, 3)) < 1e-2);
  CHECK(distance(z.dq.values(Side::Gpu), head_of(x.dq, 36, 3)) < 1e-2);
  CHECK(distance(z.dk.values(Side::Gpu), head_of(x.dk, 12, 1)) < 1e-2);
  CHECK(distance(z.dv.values(Side::Gpu), head_of(x.dv, 12, 1)) < 1e-2);
}

TEST_CASE("attention: the same bits every time") {
  if (!gpu_here()) return;
  const Case whole{.heads = {8, 2, 128}, .batch = 2, .length = 1024},
      capped{.heads = {8, 2, 128}, .batch = 2, .length = 1024, .softcap = 30};
  const Case context{.heads = {8, 2, 64}, .batch = 2, .length = 512, .cp = 4, .cp_index = 1};
  for (const Case& c : {whole, capped, context}) {
    const Operands x(c);
    std::vector<std::vector<std::byte>> first;
    for (int i = 0; i < 20; ++i) {
      x.forward(device().kernels(0), shape_of(c), Side::Gpu);
      x.backward(device().kernels(0), shape_of(c), Side::Gpu);
      device().synchronize();
      const std::vector<std::vector<std::byte>> now{x.o.gpu_bytes(), x.lse.gpu_bytes(), x.dq.gpu_bytes(),
                                                    x.dk.gpu_bytes(), x.dv.gpu_bytes()};
      if (i == 0) first = now;
      CHECK(now == first);
    }
  }
}

TEST_CASE("attention: a graph of it does what it does") {
  if (!gpu_here()) return;
  const std::int64_t cp = GENERATE(1, 2);
  const Case c{.heads = {4, 2, 128}, .batch = 2, .length = 256, .softcap = 30, .cp = cp, .cp_index = cp - 1};
  const Operands x(c), y(c);
  const auto queue = [&](const Operands& o) {
    o.forward(device().kernels(0), shape_of(c), Side::Gpu);
    o.backward(device().kernels(0), shape_of(c), Side::Gpu);
  };
  queue(x);
  device().synchronize();
  device().begin_capture(0);
  queue(y);
  const kernels::Device::Graph graph = device().end_capture(0);
  device().launch(graph, 0);
  device().synchronize();
  CHECK(x.o.gpu_bytes() == y.o.gpu_bytes());
  CHECK(x.dq.gpu_bytes() == y.dq.gpu_bytes());
  CHECK(x.dk.gpu_bytes() == y.dk.gpu_bytes());
}

}  // namespace trainyard::gpu
