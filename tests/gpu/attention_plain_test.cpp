// Attention with all its options on the GPU, beside the processor. Which kernel computes it there is the GPU's choice:
// what cuDNN takes is held to what it rounds, all else to the precision that it is computed in.
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "models/base/alibi.h"
#include "tests/gpu/twin.h"

namespace trainyard::gpu {
namespace {

using kernels::AttentionShape;
using kernels::Heads;
using kernels::Kernels;
using kernels::Tensor;

struct Tolerance {
  double output, grad, lse;
};

Tolerance tolerance(Dtype dtype) {
  if (dtype == Dtype::Bf16) return {2e-2, 4e-2, 1e-3};
  return dtype == Dtype::F32 ? Tolerance{2e-5, 1e-4, 1e-5} : Tolerance{1e-11, 1e-10, 1e-12};
}

struct Case {
  AttentionShape shape;
  std::int64_t local = 0;  // queries of a sequence
};

AttentionShape shape_of(Heads heads, std::int64_t batch) {
  AttentionShape shape;
  shape.heads = heads;
  shape.batch = batch;
  shape.scale = 1 / std::sqrt(static_cast<double>(heads.dim));
  return shape;
}

// Block `block` of `cp` that lie in x.
Tensor block_of(const Tensor& x, std::int64_t cp, std::int64_t block) {
  Tensor part = x;
  part.dims[0] /= cp;
  part.data = static_cast<std::byte*>(x.data) + block * part.size() * size_of(x.dtype);
  return part;
}

// Operands of one attention: all blocks of keys, of which a ring's hop takes one.
struct Operands {
  Operands(Dtype dtype, const Case& c) : shape(c.shape) {
    const std::int64_t rows = c.local * shape.batch, query = shape.heads.query * shape.heads.dim,
                       key = shape.heads.key * shape.heads.dim;
    q = random_pair(dtype, {rows, query, 1}, 1);
    k = random_pair(dtype, {rows * shape.cp, key, 1}, 2);
    v = random_pair(dtype, {rows * shape.cp, key, 1}, 3);
    dout = random_pair(dtype, {rows, query, 1}, 4);
    o = empty_pair(dtype, {rows, query, 1});
    lse = empty_pair(dtype == Dtype::F64 ? Dtype::F64 : Dtype::F32, {rows, shape.heads.query, 1});
    dq = empty_pair(dtype, {rows, query, 1});
    const std::int64_t blocks = shape.key_block < 0 ? shape.cp : 1;
    dk = empty_pair(dtype, {rows * blocks, key, 1});
    dv = empty_pair(dtype, {rows * blocks, key, 1});
  }
  [[nodiscard]] Tensor keys(const Pair& x, Side side) const {
    return shape.key_block < 0 ? x.on(side) : block_of(x.on(side), shape.cp, shape.key_block);
  }
  void attend(Kernels& kernels, Side side) const {
    kernels.attention(shape, q.on(side), keys(k, side), keys(v, side), o.on(side), lse.on(side));
  }
  void attend_all(Kernels& kernels, Side side) const {
    AttentionShape all = shape;
    all.key_block = -1;
    kernels.attention(all, q.on(side), k.on(side), v.on(side), o.on(side), lse.on(side));
  }
  void attend_grad(Kernels& kernels, Side side) const {
    kernels.attention_grad(shape, dout.on(side), q.on(side), keys(k, side), keys(v, side), o.on(side), lse.on(side),
                           dq.on(side), dk.on(side), dv.on(side));
  }

  AttentionShape shape;
  Pair q, k, v, dout, o, lse, dq, dk, dv;
};

template <class Call>
void check_repeats(const std::vector<Pair>& outputs, Call call) {
  std::vector<std::vector<std::byte>> before;
  for (const Pair& output : outputs) before.push_back(output.gpu_bytes());
  call(device().kernels(0), Side::Gpu);
  device().synchronize();
  for (std::size_t i = 0; i < outputs.size(); ++i) CHECK(outputs[i].gpu_bytes() == before[i]);
}

void check_attention(Dtype dtype, const Case& c) {
  CAPTURE(to_string(dtype), c.local, c.shape.heads.query, c.shape.heads.key, c.shape.heads.dim, c.shape.batch,
          c.shape.cp, c.shape.cp_index, c.shape.key_block, c.shape.window, c.shape.softcap, c.shape.alibi.size());
  const Operands x(dtype, c);
  const Tolerance allowed = tolerance(dtype);
  const auto forward = [&](Kernels& kernels, Side side) { x.attend(kernels, side); };
  twins(forward);
  check_close(x.o, allowed.output);
  check_close(x.lse, allowed.lse);
  check_repeats({x.o, x.lse}, forward);

  twins([&](Kernels& kernels, Side side) { x.attend_all(kernels, side); });  // o and lse of all keys, as in a ring
  const auto backward = [&](Kernels& kernels, Side side) { x.attend_grad(kernels, side); };
  twins(backward);
  check_close(x.dq, allowed.grad);
  check_close(x.dk, allowed.grad);
  check_close(x.dv, allowed.grad);
  check_repeats({x.dq, x.dk, x.dv}, backward);
}

std::vector<double> slopes(std::int64_t heads) {
  std::vector<double> out;
  for (std::int64_t h = 0; h < heads; ++h) out.push_back(alibi_slope(h, heads));
  return out;
}

}  // namespace

TEST_CASE("the GPU's attention is the processor's, for heads of all sizes", "[gpu]") {
  if (!gpu_here()) return;
  const auto dtype = GENERATE(Dtype::Bf16, Dtype::F32, Dtype::F64);
  for (const std::int64_t dim : {1, 13, 64, 80, 128, 130, 256}) check_attention(dtype, {shape_of({2, 1, dim}, 1), 70});
  check_attention(dtype, {shape_of({6, 2, 16}, 3), 2});
  check_attention(dtype, {shape_of({6, 2, 16}, 3), 64});
  check_attention(dtype, {shape_of({4, 4, 32}, 2), 201});
}

TEST_CASE("the GPU's attention is the processor's, with every option", "[gpu]") {
  if (!gpu_here()) return;
  const auto dtype = GENERATE(Dtype::Bf16, Dtype::F32, Dtype::F64);
  const std::int64_t window = GENERATE(0, 2, 40, 100000);
  const bool capped = GENERATE(false, true), biased = GENERATE(false, true);
  Case c{shape_of({4, 2, 24}, 2), 150};
  c.shape.window = window;
  c.shape.softcap = capped ? 1.5 : 0;
  if (biased) c.shape.alibi = slopes(c.shape.heads.query);
  check_attention(dtype, c);
}

TEST_CASE("the GPU's attention is the processor's, under context parallelism", "[gpu]") {
  if (!gpu_here()) return;
  const auto dtype = GENERATE(Dtype::Bf16, Dtype::F32, Dtype::F64);
  const std::int64_t window = GENERATE(0, 90);
  Case c{shape_of({4, 2, 40}, 2), 140};
  c.shape.window = window;
  c.shape.cp = 3;
  for (c.shape.cp_index = 0; c.shape.cp_index < c.shape.cp; ++c.shape.cp_index) {
    // All blocks together, then each as in a ring: some of these have queries that see no key.
    for (c.shape.key_block = -1; c.shape.key_block < c.shape.cp; ++c.shape.key_block) check_attention(dtype, c);
  }
  c.shape.cp_index = 1;
  c.shape.key_block = -1;
  c.shape.softcap = 2;
  c.shape.alibi = slopes(c.shape.heads.query);
  check_attention(dtype, c);
}

TEST_CASE("a query that sees no key has no output on the GPU", "[gpu]") {
  if (!gpu_here()) return;
  const auto dtype = GENERATE(Dtype::Bf16, Dtype::F32, Dtype::F64);
  Case c{shape_of({2, 1, 16}, 1), 32};
  c.shape.cp = 2;
  c.shape.key_block = 1;  // slices 1 and 2, of which the first 16 queries, slice 0, see nothing
  const Operands x(dtype, c);
  x.attend(device().kernels(0), Side::Gpu);
  device().synchronize();
  const std::vector<double> out = x.o.values(Side::Gpu), lse = x.lse.values(Side::Gpu);
  for (std::size_t i = 0; i < 16 * 2 * 16; ++i) CHECK(out[i] == 0);
  for (std::size_t i = 0; i < 16 * 2; ++i) CHECK(lse[i] == -std::numeric_limits<double>::infinity());
  CHECK(std::isfinite(lse[16 * 2]));
}

}  // namespace trainyard::gpu
