// Routing and the rows of experts on the GPU, beside the processor.
#include <algorithm>
#include <catch2/catch.hpp>
#include <numeric>

#include "tests/gpu/twin.h"

namespace trainyard::gpu {
namespace {

using kernels::Kernels;

// What probabilities beside tensors of this type are kept in.
Dtype wide(Dtype dtype) { return dtype == Dtype::F64 ? Dtype::F64 : Dtype::F32; }

double tolerance(Dtype dtype) { return dtype == Dtype::Bf16 ? 8e-3 : dtype == Dtype::F32 ? 1e-5 : 1e-12; }

// Numbers below `bound`, the same for a seed.
class Draws {
 public:
  explicit Draws(std::uint32_t seed) : state_(seed * 2654435761U + 1) {}
  int below(int bound) {
    state_ = state_ * 1664525U + 1013904223U;
    return static_cast<int>((state_ >> 8) % static_cast<std::uint32_t>(bound));
  }

 private:
  std::uint32_t state_;
};

// k different experts for each token.
Pair some_experts(int tokens, int k, int experts, std::uint32_t seed) {
  Draws draws(seed);
  std::vector<std::int32_t> chosen;
  for (int t = 0; t < tokens; ++t) {
    const int first = draws.below(experts);
    for (int j = 0; j < k; ++j) chosen.push_back((first + j) % experts);
  }
  return index_pair(chosen, {tokens, k, 1});
}

// That the GPU, asked again, writes the same bits.
template <class Call>
void check_repeats(const std::vector<Pair>& outputs, Call call) {
  std::vector<std::vector<std::byte>> before;
  for (const Pair& output : outputs) before.push_back(output.gpu_bytes());
  call(device().kernels(0), Side::Gpu);
  device().synchronize();
  for (std::size_t i = 0; i < outputs.size(); ++i) CHECK(outputs[i].gpu_bytes() == before[i]);
}

// The k experts with the highest logits, the lower first of two that are alike.
std::vector<double> best_experts(const std::vector<double>& logits, int tokens, int experts, int k) {
  std::vector<double> best;
  std::vector<int> order(static_cast<std::size_t>(experts));
  for (int t = 0; t < tokens; ++t) {
    const auto logit = [&](int e) { return logits[static_cast<std::size_t>(t * experts + e)]; };
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logit(a) > logit(b); });
    best.insert(best.end(), order.begin(), order.begin() + k);
  }
  return best;
}

// The processor's exponentials may differ between two places of one number, so that its experts can too where logits
// are alike: the order of the logits decides here.
void check_router(Dtype dtype, int tokens, int experts, int k, bool renormalize) {
  const Pair logits = random_pair(dtype, {tokens, experts, 1}, 1), probs = empty_pair(wide(dtype), {tokens, k, 1}),
             chosen = empty_pair(Dtype::I32, {tokens, k, 1}), softmax = empty_pair(wide(dtype), {tokens, experts, 1});
  const auto call = [&](Kernels& kernels, Side side) {
    kernels.router(renormalize, logits.on(side), probs.on(side), chosen.on(side), softmax.on(side));
  };
  twins(call);
  check_close(probs, tolerance(wide(dtype)));
  check_close(softmax, tolerance(wide(dtype)));
  CHECK(chosen.values(Side::Gpu) == best_experts(logits.values(Side::Gpu), tokens, experts, k));
  check_repeats({probs, chosen, softmax}, call);

  const Pair picked = some_experts(tokens, k, experts, 3), dprobs = random_pair(wide(dtype), {tokens, k, 1}, 2),
             dlogits = empty_pair(dtype, {tokens, experts, 1});
  const auto grad = [&](Kernels& kernels, Side side) {
    kernels.router_grad(renormalize, dprobs.on(side), picked.on(side), softmax.on(side), dlogits.on(side));
  };
  twins(grad);
  check_close(dlogits, 10 * tolerance(dtype));
  check_repeats({dlogits}, grad);
}

}  // namespace

TEST_CASE("the GPU routes as the processor does", "[gpu]") {
  if (!gpu_here()) return;
  const auto dtype = GENERATE(Dtype::Bf16, Dtype::F32, Dtype::F64);
  const bool renormalize = GENERATE(false, true);
  check_router(dtype, 1, 1, 1, renormalize);
  check_router(dtype, 100, 8, 2, renormalize);
  check_router(dtype, 37, 40, 8, renormalize);
  check_router(dtype, 13, 257, 3, renormalize);
  check_router(dtype, 5, 1000, 6, renormalize);
}

TEST_CASE("the GPU routes ties to the lower expert", "[gpu]") {
  if (!gpu_here()) return;
  constexpr int kTokens = 50, kExperts = 70, kChosen = 9;
  Draws draws(5);
  std::vector<float> content;
  for (int i = 0; i < kTokens * kExperts; ++i) content.push_back(static_cast<float>(draws.below(4)));
  const Pair logits(Dtype::F32, {kTokens, kExperts, 1}, content.data());
  const Pair probs = empty_pair(Dtype::F32, {kTokens, kChosen, 1}),
             chosen = empty_pair(Dtype::I32, {kTokens, kChosen, 1}),
             softmax = empty_pair(Dtype::F32, {kTokens, kExperts, 1});
  device().kernels(0).router(true, logits.on(Side::Gpu), probs.on(Side::Gpu), chosen.on(Side::Gpu),
                             softmax.on(Side::Gpu));
  device().synchronize();
  CHECK(chosen.values(Side::Gpu) == best_experts(logits.values(Side::Gpu), kTokens, kExperts, kChosen));
}

namespace {

void check_rows(Dtype dtype, int tokens, int k, int experts, int d) {
  CAPTURE(tokens, k, experts, d);
  const Pair x = random_pair(dtype, {tokens, d, 1}, 1), chosen = some_experts(tokens, k, experts, 2);
  const Pair rows = empty_pair(dtype, {tokens * k, d, 1}), row_map = empty_pair(Dtype::I32, {tokens, k, 1}),
             counts = empty_pair(Dtype::I32, {experts, 1, 1});
  const auto permute = [&](Kernels& kernels, Side side) {
    kernels.permute(x.on(side), chosen.on(side), rows.on(side), row_map.on(side), counts.on(side));
  };
  twins(permute);
  check_equal(row_map);
  check_equal(counts);
  check_equal(rows);
  check_repeats({rows, row_map, counts}, permute);

  const Pair probs = random_pair(wide(dtype), {tokens, k, 1}, 3), dy = random_pair(dtype, {tokens, d, 1}, 4),
             drows = random_pair(dtype, {tokens * k, d, 1}, 5);
  const Pair dx = empty_pair(dtype, {tokens, d, 1}), y = empty_pair(dtype, {tokens, d, 1}),
             written = empty_pair(dtype, {tokens * k, d, 1}), dprobs = empty_pair(wide(dtype), {tokens, k, 1});
  const auto rest = [&](Kernels& kernels, Side side) {
    kernels.permute_grad(drows.on(side), row_map.on(side), dx.on(side));
    kernels.unpermute(drows.on(side), row_map.on(side), probs.on(side), y.on(side));
    kernels.unpermute_grad(dy.on(side), drows.on(side), row_map.on(side), probs.on(side), written.on(side),
                           dprobs.on(side));
  };
  twins(rest);
  check_close(dx, tolerance(dtype));
  check_close(y, tolerance(dtype));
  check_close(written, tolerance(dtype));
  check_close(dprobs, 10 * tolerance(wide(dtype)));
  check_repeats({dx, y, written, dprobs}, rest);
}

}  // namespace

TEST_CASE("the GPU moves rows to experts and back as the processor does", "[gpu]") {
  if (!gpu_here()) return;
  const auto dtype = GENERATE(Dtype::Bf16, Dtype::F32, Dtype::F64);
  check_rows(dtype, 1, 1, 1, 1);
  check_rows(dtype, 7, 2, 3, 5);
  check_rows(dtype, 300, 2, 8, 136);
  check_rows(dtype, 129, 3, 257, 40);
  check_rows(dtype, 500, 1, 1, 24);
  check_rows(dtype, 33, 8, 9, 2056);
  check_rows(dtype, 20, 6, 64, 2053);
}

namespace {

// Segments of `bound` rows, of which some are filled.
void check_sort(Dtype dtype, int segments, int sources, int experts, int most, int d, std::uint32_t seed) {
  CAPTURE(segments, sources, experts, d);
  Draws draws(seed);
  std::vector<std::int32_t> counts;
  int bound = 1;
  for (int s = 0; s < segments; ++s) {
    int filled = 0;
    for (int i = 0; i < sources * experts; ++i) {
      counts.push_back(std::max(0, draws.below(most + 2) - 2));
      filled += counts.back();
    }
    bound = std::max(bound, filled + draws.below(3));
  }
  const Pair count = index_pair(counts, {segments, sources, experts});
  const std::array<std::int64_t, 3> dims{segments * bound, d, 1};
  const Pair rows = random_pair(dtype, dims, seed), sorted = empty_pair(dtype, dims), back = empty_pair(dtype, dims);
  const auto call = [&](Kernels& kernels, Side side) {
    kernels.sort_by_expert({bound, false}, rows.on(side), count.on(side), sorted.on(side));
    kernels.sort_by_expert({bound, true}, sorted.on(side), count.on(side), back.on(side));
  };
  twins(call);
  check_equal(sorted);
  check_equal(back);
  check_repeats({sorted, back}, call);
}

}  // namespace

TEST_CASE("the GPU sorts received rows by expert as the processor does", "[gpu]") {
  if (!gpu_here()) return;
  const auto dtype = GENERATE(Dtype::Bf16, Dtype::F32, Dtype::F64);
  check_sort(dtype, 1, 1, 1, 4, 3, 1);
  check_sort(dtype, 1, 4, 6, 9, 16, 2);
  check_sort(dtype, 3, 2, 5, 7, 17, 3);
  check_sort(dtype, 4, 8, 40, 3, 8, 4);
  check_sort(dtype, 2, 3, 4, 0, 8, 5);  // no rows
}

}  // namespace trainyard::gpu
