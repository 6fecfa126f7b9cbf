// How fast the optimizer, conversions and the rows of experts are beside memory.
#include <memory>

#include "tests/gpu/twin.h"

namespace trainyard::gpu {

namespace {

using kernels::Kernels;
using kernels::Tensor;

constexpr std::int64_t kElements = std::int64_t{256} << 20;

void add_optimizer(BenchList& list) {
  const Tensor grads = bench_tensor(Dtype::F32, {kElements, 1, 1}),
               params = bench_tensor(Dtype::Bf16, {kElements, 1, 1}),
               master = bench_tensor(Dtype::F32, {kElements, 1, 1}), m = bench_tensor(Dtype::F32, {kElements, 1, 1}),
               v = bench_tensor(Dtype::F32, {kElements, 1, 1}), sum = bench_tensor(Dtype::F32, {1, 1, 1});
  const auto n = static_cast<double>(kElements);
  const std::vector<kernels::Range> all{{0, kElements}};
  const auto begun = std::make_shared<bool>(false);
  list.push_back({"adamw 256 Mi f32 grads, bf16 params", n * (4 + 3 * 8 + 2), 0, [=](Kernels& kernels) {
                    // Random moments would be roots of negative numbers, which take longer than others.
                    for (const Tensor& x : {m, v, sum}) {
                      if (!*begun) kernels.zero(x);
                    }
                    *begun = true;
                    kernels.adamw({1e-4, 0.9, 0.95, 1e-8, 0.1, 1, 100}, grads, sum, all, params, master, m, v);
                  }});
  list.push_back(
      {"squared_norm 256 Mi f32", n * 4, 0, [=](Kernels& kernels) { kernels.squared_norm(grads, all, sum); }});
  list.push_back(
      {"squared_norm 256 Mi bf16", n * 2, 0, [=](Kernels& kernels) { kernels.squared_norm(params, all, sum); }});
  list.push_back(
      {"accumulate 256 Mi bf16 to f32", n * (2 + 8), 0, [=](Kernels& kernels) { kernels.accumulate(params, grads); }});
  list.push_back({"copy 256 Mi f32 to bf16", n * (4 + 2), 0, [=](Kernels& kernels) { kernels.copy(grads, params); }});
  list.push_back({"copy 256 Mi bf16 to f32", n * (2 + 4), 0, [=](Kernels& kernels) { kernels.copy(params, grads); }});
  list.push_back({"copy 256 Mi f32", n * 8, 0, [=](Kernels& kernels) { kernels.copy(grads, master); }});
  list.push_back({"zero 256 Mi f32", n * 4, 0, [=](Kernels& kernels) { kernels.zero(m); }});
  list.push_back({"hash 256 Mi f32", n * 4, 0, [=](Kernels& kernels) { kernels.hash(grads); }});
}

void add_experts(BenchList& list) {
  constexpr std::int64_t kTokens = 16384, kHidden = 6144, kExperts = 8, kChosen = 2, kRows = kTokens * kChosen;
  const Tensor logits = bench_tensor(Dtype::F32, {kTokens, kExperts, 1}),
               softmax = bench_tensor(Dtype::F32, {kTokens, kExperts, 1}),
               probs = bench_tensor(Dtype::F32, {kTokens, kChosen, 1}),
               dprobs = bench_tensor(Dtype::F32, {kTokens, kChosen, 1}),
               experts = bench_tensor(Dtype::I32, {kTokens, kChosen, 1}),
               row_map = bench_tensor(Dtype::I32, {kTokens, kChosen, 1}),
               counts = bench_tensor(Dtype::I32, {1, 1, kExperts}),
               x = bench_tensor(Dtype::Bf16, {kTokens, kHidden, 1}),
               y = bench_tensor(Dtype::Bf16, {kTokens, kHidden, 1}),
               rows = bench_tensor(Dtype::Bf16, {kRows, kHidden, 1}),
               drows = bench_tensor(Dtype::Bf16, {kRows, kHidden, 1});
  const double token_bytes = 2.0 * kTokens * kHidden, row_bytes = 2.0 * kRows * kHidden;
  // Each benchmark routes for itself in its first call, so that it can run alone.
  const auto route = [=](Kernels& kernels, const std::shared_ptr<bool>& done) {
    if (*done) return;
    kernels.router(true, logits, probs, experts, softmax);
    kernels.permute(x, experts, rows, row_map, counts);
    *done = true;
  };
  const auto add = [&](const char* name, double bytes, const std::function<void(Kernels&)>& run) {
    const auto done = std::make_shared<bool>(false);
    list.push_back({std::string(name) + " 16384 x 6144 bf16, 2 of 8", bytes, 0, [=](Kernels& kernels) {
                      route(kernels, done);
                      run(kernels);
                    }});
  };
  add("router", 4.0 * kTokens * (2 * kExperts + 2 * kChosen),
      [=](Kernels& kernels) { kernels.router(true, logits, probs, experts, softmax); });
  add("permute", token_bytes + row_bytes,
      [=](Kernels& kernels) { kernels.permute(x, experts, rows, row_map, counts); });
  add("permute_grad", token_bytes + row_bytes, [=](Kernels& kernels) { kernels.permute_grad(rows, row_map, y); });
  add("unpermute", token_bytes + row_bytes, [=](Kernels& kernels) { kernels.unpermute(rows, row_map, probs, y); });
  add("unpermute_grad", token_bytes + 2 * row_bytes,
      [=](Kernels& kernels) { kernels.unpermute_grad(y, rows, row_map, probs, drows, dprobs); });
  add("sort_by_expert", 2 * row_bytes, [=](Kernels& kernels) {
    kernels.sort_by_expert({kRows, false}, rows, counts, drows);
  });
}

}  // namespace

void add_optimizer_benches(BenchList& list) {
  add_optimizer(list);
  add_experts(list);
}

}  // namespace trainyard::gpu
