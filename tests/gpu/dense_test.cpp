// Embeddings, norms, element-wise kernels, the layouts around attention and the loss, beside their twins.

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "tests/gpu/twin.h"

namespace trainyard::gpu {

namespace {

using kernels::Act;
using kernels::Kernels;
using kernels::Tensor;
using Int = std::int64_t;

constexpr Dtype kStorages[] = {Dtype::Bf16, Dtype::F32, Dtype::F64};
constexpr std::uint64_t kSeeds[] = {1, 2, 3};

struct Size {
  Int rows = 0, columns = 0;
};

// What a kernel computes in.
Dtype wide(Dtype storage) { return storage == Dtype::F64 ? Dtype::F64 : Dtype::F32; }
// What gradients of a storage may be accumulated in.
std::vector<Dtype> gradients(Dtype storage) {
  return storage == Dtype::Bf16 ? std::vector{Dtype::Bf16, Dtype::F32} : std::vector{storage};
}
// Of results that were computed in `storage`, or kept in it: in bf16, a unit in the last place either way.
double tolerance(Dtype storage) { return storage == Dtype::Bf16 ? 1e-2 : storage == Dtype::F32 ? 2e-5 : 1e-12; }

Pair matrix(Dtype dtype, Size size, std::uint64_t seed) {
  return random_pair(dtype, {size.rows, size.columns, 1}, seed);
}
Pair vector(Dtype dtype, Int size, std::uint64_t seed) { return random_pair(dtype, {size, 1, 1}, seed); }
Pair blank(Dtype dtype, Int rows, Int columns = 1) { return empty_pair(dtype, {rows, columns, 1}); }

// Uniform in [low, high).
Pair indices(Int count, int low, int high, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::int32_t> values;
  for (Int i = 0; i < count; ++i) {
    values.push_back(low + static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(high - low)));
  }
  return index_pair(values, {count, 1, 1});
}

// Elements from the second on, so that no address is a multiple of 16 bytes.
Tensor shifted(const Pair& pair, Side side, Size size) {
  Tensor tensor = pair.on(side);
  tensor.data = static_cast<std::byte*>(tensor.data) + pair.bytes() / tensor.size();
  tensor.dims = {size.rows, size.columns, 1};
  return tensor;
}
Pair room_for(Dtype dtype, Size size, std::uint64_t seed) {
  return random_pair(dtype, {size.rows * size.columns + 8, 1, 1}, seed);
}

void check_same_bits(const Pair& a, const Pair& b) { CHECK(a.gpu_bytes() == b.gpu_bytes()); }

// The first so many elements, where the rest is undefined.
void check_first(const Pair& pair, Int count, double within) {
  const std::vector<double> cpu = pair.values(Side::Cpu), gpu = pair.values(Side::Gpu);
  double worst = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    const double difference = std::abs(cpu[i] - gpu[i]) / std::max(1.0, std::abs(cpu[i]));
    worst = std::isnan(difference) ? std::numeric_limits<double>::infinity() : std::max(worst, difference);
  }
  CHECK(worst <= within);
}

struct NormOut {
  Pair dx, dweight, dbias;
};

// Operands of a norm and of its gradient; `run` gives those that are computed.
struct NormCase {
  Dtype storage, gradient;
  Size size;
  bool centred;
  std::uint64_t seed;

  NormOut run() const {
    const kernels::NormShape shape{centred, 1e-5};
    const Pair x = matrix(storage, size, seed), dy = matrix(storage, size, seed + 10);
    const Pair weight = vector(storage, size.columns, seed + 20);
    const Pair bias = centred ? vector(storage, size.columns, seed + 30) : Pair{};
    const Pair y = blank(storage, size.rows, size.columns), rstd = blank(wide(storage), size.rows);
    const Pair mean = centred ? blank(wide(storage), size.rows) : Pair{};
    const NormOut out{blank(storage, size.rows, size.columns), vector(gradient, size.columns, seed + 40),
                      centred ? vector(gradient, size.columns, seed + 50) : Pair{}};
    twins([&](Kernels& kernels, Side side) {
      kernels.norm(shape, x.on(side), weight.on(side), bias.on(side), y.on(side), rstd.on(side), mean.on(side));
      kernels.norm_grad(shape, dy.on(side), x.on(side), weight.on(side), rstd.on(side), mean.on(side), out.dx.on(side),
                        out.dweight.on(side), out.dbias.on(side));
    });
    check_close(y, tolerance(storage));
    check_close(rstd, tolerance(wide(storage)));
    if (centred) check_close(mean, tolerance(wide(storage)));
    return out;
  }
};

}  // namespace

TEST_CASE("gpu: embeddings read rows of a table, and none outside their shard", "[gpu]") {
  if (!gpu_here()) return;
  for (const Dtype storage : kStorages) {
    for (const Int d : {1, 7, 64, 1000, 5000}) {
      const Int rows = 37, table_rows = 50;
      const Pair tokens = indices(rows, 0, 70, 1), table = matrix(storage, {table_rows, d}, 2);
      const Pair y = blank(storage, rows, d);
      twins([&](Kernels& kernels, Side side) {
        kernels.embedding(tokens.on(side), table.on(side), 1.7, 10, y.on(side));
      });
      check_equal(y);
      const Pair positions = indices(rows, 0, 50, 3), x = matrix(storage, {rows, d}, 4), sum = blank(storage, rows, d);
      twins([&](Kernels& kernels, Side side) {
        kernels.position_add(x.on(side), positions.on(side), table.on(side), sum.on(side));
        kernels.position_add(x.on(side), positions.on(side), table.on(side), x.on(side));
      });
      check_equal(sum);
      check_equal(x);
    }
  }
}

TEST_CASE("gpu: gradients of tables add rows of one index, in the order of the rows", "[gpu]") {
  if (!gpu_here()) return;
  struct Case {
    Int rows, table_rows;
  };
  // Few rows of a table: sums over many tiles; many: tiles of nothing but single rows.
  const Case cases[] = {{1, 3}, {31, 1}, {32, 40}, {100, 2}, {257, 300}, {700, 5}, {5000, 1}, {3001, 2000}};
  for (const Dtype storage : kStorages) {
    for (const Dtype gradient : gradients(storage)) {
      for (const Case& c : cases) {
        for (const Int d : {5, 64, 1032}) {
          CAPTURE(to_string(storage), to_string(gradient), c.rows, c.table_rows, d);
          const Pair tokens = indices(c.rows, 0, static_cast<int>(c.table_rows) + 4, 1);
          const Pair positions = indices(c.rows, 0, static_cast<int>(c.table_rows), 2);
          const Pair dy = matrix(storage, {c.rows, d}, 3);
          const auto run = [&] {
            std::vector<Pair> tables{matrix(gradient, {c.table_rows, d}, 4), matrix(gradient, {c.table_rows, d}, 5)};
            twins([&](Kernels& kernels, Side side) {
              kernels.embedding_grad(tokens.on(side), dy.on(side), 0.3, 2, tables[0].on(side));
              kernels.position_grad(positions.on(side), dy.on(side), tables[1].on(side));
            });
            return tables;
          };
          const auto first = run(), second = run();
          for (std::size_t i = 0; i < 2; ++i) {
            check_close(first[i], tolerance(gradient));
            check_same_bits(first[i], second[i]);
          }
        }
      }
    }
  }
}

TEST_CASE("gpu: norms and their gradients, of rows of any length", "[gpu]") {
  if (!gpu_here()) return;
  // Past 8192 of bf16, and sooner where rows are odd, gradients are taken in two passes; past 32768 no row is held.
  const Size sizes[] = {{2, 5},    {5, 37},    {300, 64},  {257, 1000}, {65, 1001},
                        {9, 8192}, {40, 5001}, {6, 16384}, {3, 40000}};
  for (const Dtype storage : kStorages) {
    for (const Dtype gradient : gradients(storage)) {
      for (const Size size : sizes) {
        for (const bool centred : {false, true}) {
          CAPTURE(to_string(storage), to_string(gradient), size.rows, size.columns, centred);
          const NormCase c{storage, gradient, size, centred, 7};
          const NormOut first = c.run(), second = c.run();
          check_close(first.dx, tolerance(storage));
          check_close(first.dweight, tolerance(gradient));
          check_same_bits(first.dx, second.dx);
          check_same_bits(first.dweight, second.dweight);
          if (!centred) continue;
          check_close(first.dbias, tolerance(gradient));
          check_same_bits(first.dbias, second.dbias);
        }
      }
    }
  }
}

TEST_CASE("gpu: norms of other seeds", "[gpu]") {
  if (!gpu_here()) return;
  for (const std::uint64_t seed : kSeeds) {
    for (const Dtype storage : kStorages) {
      const NormOut out = NormCase{storage, storage, {129, 512}, true, seed}.run();
      check_close(out.dx, tolerance(storage));
      check_close(out.dweight, tolerance(storage));
    }
  }
}

TEST_CASE("gpu: biases are added to rows, and their gradients summed over them", "[gpu]") {
  if (!gpu_here()) return;
  const Size sizes[] = {{1, 1}, {7, 8}, {33, 1023}, {1000, 24}, {515, 3072}, {9, 20000}};
  for (const Dtype storage : kStorages) {
    for (const Dtype gradient : gradients(storage)) {
      for (const Size size : sizes) {
        CAPTURE(to_string(storage), to_string(gradient), size.rows, size.columns);
        const Pair x = matrix(storage, size, 1), bias = vector(storage, size.columns, 2);
        const Pair y = blank(storage, size.rows, size.columns);
        const Pair first = vector(gradient, size.columns, 3), second = vector(gradient, size.columns, 3);
        twins([&](Kernels& kernels, Side side) {
          kernels.bias_add(x.on(side), bias.on(side), y.on(side));
          kernels.bias_grad(x.on(side), first.on(side));
          kernels.bias_grad(x.on(side), second.on(side));
        });
        check_equal(y);
        check_close(first, tolerance(gradient));
        check_same_bits(first, second);
      }
    }
  }
}

TEST_CASE("gpu: activations and their gradients, of all rows or of those that counts add up to", "[gpu]") {
  if (!gpu_here()) return;
  const Size sizes[] = {{1, 1}, {19, 37}, {12, 1000}, {5, 5000}};
  for (const Dtype storage : kStorages) {
    for (const Act act : {Act::Silu, Act::Gelu, Act::GeluTanh, Act::SquaredRelu}) {
      for (const bool gated : {false, true}) {
        for (const Size size : sizes) {
          for (const bool counted : {false, true}) {
            CAPTURE(to_string(storage), static_cast<int>(act), gated, size.rows, size.columns, counted);
            const Int width = gated ? 2 * size.columns : size.columns, valid = counted ? size.rows / 2 : size.rows;
            const std::int32_t some = static_cast<std::int32_t>(valid) / 2,
                               rest = static_cast<std::int32_t>(valid) - some;
            const Pair counts = counted ? index_pair({some, 0, rest, 0}, {1, 2, 2}) : Pair{};
            const Pair h = random_pair(storage, {size.rows, width, 1}, 1, 3), da = matrix(storage, size, 2);
            const Pair a = blank(storage, size.rows, size.columns), dh = blank(storage, size.rows, width);
            twins([&](Kernels& kernels, Side side) {
              kernels.activation(act, gated, h.on(side), counts.on(side), a.on(side));
              kernels.activation_grad(act, gated, da.on(side), h.on(side), counts.on(side), dh.on(side));
            });
            check_first(a, valid * size.columns, tolerance(storage));
            check_first(dh, valid * width, tolerance(storage));
          }
        }
      }
    }
  }
}

TEST_CASE("gpu: rows past the counts are left alone", "[gpu]") {
  if (!gpu_here()) return;
  const Pair h = matrix(Dtype::Bf16, {10, 16}, 1), a = blank(Dtype::Bf16, 10, 8);
  const Pair counts = index_pair({3, 1}, {1, 1, 2});
  twins([&](Kernels& kernels, Side side) {
    kernels.activation(Act::Silu, true, h.on(side), counts.on(side), a.on(side));
  });
  const std::vector<std::byte> bytes = a.gpu_bytes();
  for (std::size_t i = 4 * 8 * 2; i < bytes.size(); ++i) CHECK(bytes[i] == std::byte{0xff});
}

TEST_CASE("gpu: sums and dropout are those of the processor, bit for bit", "[gpu]") {
  if (!gpu_here()) return;
  const Size sizes[] = {{1, 1}, {19, 37}, {64, 4096}, {3, 9001}};
  for (const Dtype storage : kStorages) {
    for (const Size size : sizes) {
      for (const std::uint64_t seed : kSeeds) {
        CAPTURE(to_string(storage), size.rows, size.columns, seed);
        const Pair a = matrix(storage, size, seed), b = matrix(storage, size, seed + 10);
        const Pair sum = blank(storage, size.rows, size.columns), dropped = blank(storage, size.rows, size.columns);
        const Pair samples = indices(size.rows, 0, 1 << 30, seed), positions = indices(size.rows, 0, 1 << 20, seed + 1);
        const kernels::DropoutSeed drop{seed, 17, static_cast<Int>(seed) - 2, 3, 0.1 * static_cast<double>(seed)};
        twins([&](Kernels& kernels, Side side) {
          kernels.add(a.on(side), b.on(side), sum.on(side));
          kernels.dropout(drop, a.on(side), samples.on(side), positions.on(side), dropped.on(side));
          kernels.add(a.on(side), b.on(side), a.on(side));
          kernels.add(a.on(side), b.on(side), b.on(side));
          kernels.dropout(drop, b.on(side), samples.on(side), positions.on(side), b.on(side));
        });
        for (const Pair& pair : {sum, dropped, a, b}) check_equal(pair);
      }
    }
  }
}

TEST_CASE("gpu: queries, keys and values are taken apart, rotated, and put together again", "[gpu]") {
  if (!gpu_here()) return;
  struct Case {
    kernels::Heads heads;
    Int rows;
    double theta;
    int positions;
  };
  const Case cases[] = {{{1, 1, 2}, 1, 1e4, 5},      {{4, 2, 64}, 33, 1e4, 3000}, {{3, 1, 20}, 7, 5e5, 500},
                        {{2, 2, 9}, 5, 1e4, 100},    {{8, 1, 128}, 21, 0, 1},     {{4, 4, 8}, 11, 1e6, 130000},
                        {{2, 1, 256}, 9, 1e4, 1000}, {{5, 5, 13}, 6, 0, 1},       {{32, 8, 128}, 130, 5e5, 2000}};
  for (const Dtype storage : kStorages) {
    for (const Case& c : cases) {
      CAPTURE(to_string(storage), c.heads.query, c.heads.key, c.heads.dim, c.rows, c.theta);
      const Int nq = c.heads.query * c.heads.dim, nk = c.heads.key * c.heads.dim;
      const Pair packed = matrix(storage, {c.rows, nq + 2 * nk}, 1), back = blank(storage, c.rows, nq + 2 * nk);
      const Pair positions = c.theta > 0 ? indices(c.rows, 0, c.positions, 2) : Pair{};
      const Pair q = blank(storage, c.rows, nq), k = blank(storage, c.rows, nk), v = blank(storage, c.rows, nk);
      twins([&](Kernels& kernels, Side side) {
        kernels.split_qkv(c.heads, c.theta, packed.on(side), positions.on(side), q.on(side), k.on(side), v.on(side));
        kernels.merge_qkv_grad(c.heads, c.theta, q.on(side), k.on(side), v.on(side), positions.on(side), back.on(side));
      });
      for (const Pair& pair : {q, k, v, back}) check_close(pair, tolerance(storage));
      if (c.theta == 0) CHECK(back.gpu_bytes() == packed.gpu_bytes());
    }
  }
}

TEST_CASE("gpu: attention over parts of the keys is merged", "[gpu]") {
  if (!gpu_here()) return;
  for (const Dtype storage : kStorages) {
    for (const Int dim : {1, 20, 64, 128, 257}) {
      for (const std::size_t count : {1, 2, 5}) {
        CAPTURE(to_string(storage), dim, count);
        const kernels::Heads heads{3, 1, dim};
        const Int rows = 17;
        std::vector<Pair> parts;
        for (std::size_t p = 0; p < count; ++p) {
          // Of the second part, no row sees a key.
          parts.push_back(p == 1 ? zero_pair(storage, {rows, 3 * dim, 1}) : matrix(storage, {rows, 3 * dim}, p));
          std::vector<float> unseen(static_cast<std::size_t>(rows * 3), -std::numeric_limits<float>::infinity());
          const std::vector<double> unseen_wide(unseen.begin(), unseen.end());
          const bool f64 = storage == Dtype::F64;
          parts.push_back(p == 1 ? Pair(wide(storage), {rows, 3, 1},
                                        f64 ? static_cast<const void*>(unseen_wide.data()) : unseen.data())
                                 : matrix(wide(storage), {rows, 3}, p + 20));
        }
        const Pair o = blank(storage, rows, 3 * dim), lse = blank(wide(storage), rows, 3);
        twins([&](Kernels& kernels, Side side) {
          std::vector<Tensor> operands;
          for (const Pair& part : parts) operands.push_back(part.on(side));
          kernels.attention_merge(heads, operands, o.on(side), lse.on(side));
        });
        check_close(o, tolerance(storage));
        check_close(lse, tolerance(wide(storage)));
      }
    }
  }
}

TEST_CASE("gpu: cross-entropy over a shard of the vocabulary", "[gpu]") {
  if (!gpu_here()) return;
  const Size sizes[] = {{1, 3}, {33, 37}, {20, 1024}, {9, 32001}, {5, 50304}};
  for (const Dtype storage : kStorages) {
    for (const Size size : sizes) {
      for (const double softcap : {0.0, 5.0}) {
        CAPTURE(to_string(storage), size.rows, size.columns, softcap);
        const kernels::Xent xent{0.7, softcap, 0.01, 11};
        // Some labels belong to other shards.
        const Pair labels = indices(size.rows, 0, static_cast<int>(size.columns) + 30, 1);
        const auto run = [&] {
          const Pair logits = random_pair(storage, {size.rows, size.columns, 1}, 2, 3);
          const Pair max = blank(wide(storage), size.rows), stats = blank(wide(storage), size.rows, 2);
          const Pair dlogits = blank(storage, size.rows, size.columns), loss = vector(wide(storage), 1, 3);
          twins([&](Kernels& kernels, Side side) {
            kernels.xent_max(xent, logits.on(side), max.on(side));
            kernels.xent_sum(xent, logits.on(side), max.on(side), labels.on(side), stats.on(side));
            kernels.xent_loss(xent, max.on(side), stats.on(side), loss.on(side));
            kernels.xent_grad(xent, logits.on(side), max.on(side), stats.on(side), labels.on(side), dlogits.on(side));
            kernels.xent_grad(xent, logits.on(side), max.on(side), stats.on(side), labels.on(side), logits.on(side));
          });
          return std::vector{max, stats, loss, dlogits, logits};
        };
        const std::vector<Pair> first = run(), second = run();
        for (std::size_t i = 0; i < first.size(); ++i) {
          check_close(first[i], tolerance(i < 3 ? wide(storage) : storage));
          check_same_bits(first[i], second[i]);
        }
        check_same_bits(first[3], first[4]);
      }
    }
  }
}

TEST_CASE("gpu: operands may begin at any element", "[gpu]") {
  if (!gpu_here()) return;
  const Size size{21, 64};
  for (const Dtype storage : kStorages) {
    CAPTURE(to_string(storage));
    const Pair x = room_for(storage, size, 1), other = room_for(storage, size, 2), sum = room_for(storage, size, 3);
    const Pair active = room_for(storage, size, 4), normed = room_for(storage, size, 5);
    const Pair grad = room_for(storage, size, 6), table = room_for(storage, size, 7);
    const Pair weight = room_for(storage, {1, size.columns}, 8), dweight = room_for(storage, {1, size.columns}, 9);
    const Pair rstd = blank(wide(storage), size.rows), tokens = indices(size.rows, 0, 21, 10);
    const auto at = [&](const Pair& pair, Side side) { return shifted(pair, side, size); };
    twins([&](Kernels& kernels, Side side) {
      Tensor w = shifted(weight, side, {size.columns, 1}), dw = shifted(dweight, side, {size.columns, 1});
      kernels.add(at(x, side), at(other, side), at(sum, side));
      kernels.activation(Act::Silu, false, at(x, side), {}, at(active, side));
      kernels.norm({}, at(x, side), w, {}, at(normed, side), rstd.on(side), {});
      kernels.norm_grad({}, at(other, side), at(x, side), w, rstd.on(side), {}, at(grad, side), dw, {});
      kernels.embedding_grad(tokens.on(side), at(other, side), 1, 0, at(table, side));
    });
    for (const Pair& pair : {sum, active, normed, grad, table, dweight}) check_close(pair, tolerance(storage));
  }
}

}  // namespace trainyard::gpu
