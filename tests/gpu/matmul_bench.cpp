// Products and attention of Llama 3 8B and of Grok-1 on 8 GPUs, with 8,192 tokens; attention of Llama 3.2 1B beside
// another rank of its context.

#include <cmath>

#include "tests/gpu/twin.h"

namespace trainyard::gpu {

namespace {

using kernels::AttentionShape;
using kernels::Gemm;
using kernels::Kernels;
using kernels::Tensor;

std::string sizes(const Gemm& g) {
  return std::to_string(g.m) + " x " + std::to_string(g.n) + " x " + std::to_string(g.k);
}

double product_flops(const Gemm& g) {
  return 2 * static_cast<double>(g.m) * static_cast<double>(g.n) * static_cast<double>(g.k);
}

double bytes_of(const std::vector<Tensor>& tensors) {
  double bytes = 0;
  for (const Tensor& x : tensors) bytes += static_cast<double>(x.size() * size_of(x.dtype));
  return bytes;
}

void add_product(BenchList& list, const std::string& name, const Gemm& gemm, Dtype out) {
  const Tensor a = bench_tensor(Dtype::Bf16, {gemm.trans_a ? gemm.k : gemm.m, gemm.trans_a ? gemm.m : gemm.k, 1}),
               b = bench_tensor(Dtype::Bf16, {gemm.trans_b ? gemm.n : gemm.k, gemm.trans_b ? gemm.k : gemm.n, 1}),
               c = bench_tensor(out, {gemm.m, gemm.n, 1});
  list.push_back({"matmul " + name + " " + sizes(gemm), bytes_of({a, b, c}), product_flops(gemm),
                  [=](Kernels& kernels) { kernels.matmul(gemm, a, b, {}, c); }});
}

// A linear layer's three products: y = x W^T, dx = dy W, dW += dy^T x.
void add_linear(BenchList& list, const std::string& name, std::int64_t tokens, std::int64_t out, std::int64_t in) {
  add_product(list, name, {.m = tokens, .n = out, .k = in, .trans_b = true}, Dtype::Bf16);
  add_product(list, name + " dx", {.m = tokens, .n = in, .k = out}, Dtype::Bf16);
  add_product(list, name + " dW", {.m = out, .n = in, .k = tokens, .trans_a = true, .accumulate = true}, Dtype::F32);
}

// Causal: of the pairs of positions half count, which every rank of a context has its even share of.
void add_attention(BenchList& list, const std::string& name, std::int64_t batch, std::int64_t length,
                   const kernels::Heads& heads, double softcap, std::int64_t cp = 1) {
  const std::int64_t rows = batch * length;
  AttentionShape shape;
  shape.heads = heads;
  shape.batch = batch;
  shape.scale = 1 / std::sqrt(static_cast<double>(heads.dim));
  shape.softcap = softcap;
  shape.cp = cp;
  const auto like_q = [&] { return bench_tensor(Dtype::Bf16, {rows, heads.query * heads.dim, 1}); };
  const auto like_k = [&] { return bench_tensor(Dtype::Bf16, {rows * cp, heads.key * heads.dim, 1}); };
  const Tensor q = like_q(), k = like_k(), v = like_k(), o = like_q(), dout = like_q(), dq = like_q(), dk = like_k(),
               dv = like_k(), lse = bench_tensor(Dtype::F32, {rows, heads.query, 1});
  const double flops = 4 * static_cast<double>(rows) * static_cast<double>(length * cp) / 2 *
                       static_cast<double>(heads.query * heads.dim);
  const std::string what = name + " " + std::to_string(batch) + " x " + std::to_string(length) + ", " +
                           std::to_string(heads.query) + "/" + std::to_string(heads.key) + " heads of " +
                           std::to_string(heads.dim) + (cp > 1 ? ", cp " + std::to_string(cp) : "");
  list.push_back({"attention " + what, bytes_of({q, k, v, o, lse}), flops,
                  [=](Kernels& kernels) { kernels.attention(shape, q, k, v, o, lse); }});
  list.push_back({"attention gradient " + what, bytes_of({dout, q, k, v, o, lse, dq, dk, dv}), 2.5 * flops,
                  [=](Kernels& kernels) { kernels.attention_grad(shape, dout, q, k, v, o, lse, dq, dk, dv); }});
}

Tensor even_counts(std::int64_t rows, std::int64_t experts) {
  const Tensor counts = bench_tensor(Dtype::I32, {1, 1, experts});
  const std::vector<std::int32_t> each(static_cast<std::size_t>(experts), static_cast<std::int32_t>(rows / experts));
  device().copy_to_device(static_cast<std::byte*>(counts.data), reinterpret_cast<const std::byte*>(each.data()),
                          experts * 4, 0);
  device().synchronize();
  return counts;
}

void add_grouped(BenchList& list, const std::string& name, std::int64_t rows, std::int64_t n, std::int64_t k,
                 std::int64_t experts) {
  const Tensor x = bench_tensor(Dtype::Bf16, {rows, k, 1}), y = bench_tensor(Dtype::Bf16, {rows, n, 1}),
               w = bench_tensor(Dtype::Bf16, {experts, n, k}), dw = bench_tensor(Dtype::F32, {experts, n, k}),
               counts = even_counts(rows, experts);
  const Gemm forward{.m = rows, .n = n, .k = k, .trans_b = true}, back{.m = rows, .n = k, .k = n},
      gradient{.m = rows, .n = n, .k = k, .accumulate = true};
  const std::string what = " " + name + " " + std::to_string(experts) + " experts, " + sizes(forward);
  list.push_back({"grouped matmul" + what, bytes_of({x, w, y}), product_flops(forward),
                  [=](Kernels& kernels) { kernels.grouped_matmul(forward, x, w, counts, y); }});
  list.push_back({"grouped matmul dx" + what, bytes_of({x, w, y}), product_flops(forward),
                  [=](Kernels& kernels) { kernels.grouped_matmul(back, y, w, counts, x); }});
  list.push_back({"grouped matmul dW" + what, bytes_of({x, y, dw, dw}), product_flops(forward),
                  [=](Kernels& kernels) { kernels.grouped_matmul_wgrad(gradient, y, x, counts, dw); }});
}

}  // namespace

void add_matmul_benches(BenchList& list) {
  add_linear(list, "Llama 3 8B qkv", 8192, 6144, 4096);
  add_linear(list, "Llama 3 8B mlp up", 8192, 28672, 4096);
  add_linear(list, "Llama 3 8B mlp down", 8192, 4096, 14336);
  add_linear(list, "square", 8192, 8192, 8192);
  add_attention(list, "Llama 3 8B", 1, 8192, {32, 8, 128}, 0);
  add_attention(list, "Llama 3 8B", 4, 2048, {32, 8, 128}, 0);
  add_attention(list, "Llama 3.2 1B", 4, 2048, {32, 8, 64}, 0);
  add_attention(list, "Llama 3.2 1B", 4, 2048, {32, 8, 64}, 0, 2);
  add_attention(list, "Grok-1 of 8", 1, 8192, {6, 1, 128}, 30);
  add_grouped(list, "Grok-1 up of 8", 16384, 8192, 6144, 8);
  add_grouped(list, "Grok-1 down of 8", 16384, 6144, 4096, 8);
}

}  // namespace trainyard::gpu
