// Kernels on several threads: what one thread computes, up to rounding, and the same bits every time. Sizes are large
// enough for threads to be used.
#include <catch2/catch.hpp>

#include <cmath>
#include <functional>

#include "tests/kernels/arrays.h"

using namespace trainyard;
using namespace trainyard::kernels;
using namespace trainyard::kernels::test;

namespace {

constexpr std::int64_t kRows = 1000, kWidth = 96;

// Runs one kernel and returns everything that it wrote.
using Run = std::function<std::vector<double>(Kernels&)>;

std::vector<double> joined(std::initializer_list<const Array*> arrays) {
  std::vector<double> all;
  for (const Array* array : arrays) all.insert(all.end(), array->values.begin(), array->values.end());
  return all;
}

std::vector<double> norm(Kernels& cpu, bool centred) {
  const NormShape shape{centred, 1e-5};
  Array x("x", kRows, kWidth), dy("dy", kRows, kWidth), w("w", kWidth), b("b", kWidth), y(kRows, kWidth), rstd(kRows),
      mean(kRows), dx(kRows, kWidth), dw("dw", kWidth), db("db", kWidth);
  cpu.norm(shape, x.tensor(), w.tensor(), centred ? b.tensor() : Tensor{}, y.tensor(), rstd.tensor(), mean.tensor());
  cpu.norm_grad(shape, dy.tensor(), x.tensor(), w.tensor(), rstd.tensor(), mean.tensor(), dx.tensor(), dw.tensor(),
                centred ? db.tensor() : Tensor{});
  return joined({&y, &rstd, &dx, &dw, &db});
}

std::vector<double> elementwise(Kernels& cpu) {
  Array a("a", kRows, kWidth), b("b", kRows, kWidth), bias("bias", kWidth), sum(kRows, kWidth), shifted(kRows, kWidth),
      dbias("dbias", kWidth);
  cpu.add(a.tensor(), b.tensor(), sum.tensor());
  cpu.bias_add(a.tensor(), bias.tensor(), shifted.tensor());
  cpu.bias_grad(a.tensor(), dbias.tensor());
  cpu.accumulate(a.tensor(), b.tensor());
  return joined({&sum, &shifted, &dbias, &b});
}

std::vector<double> activation(Kernels& cpu) {
  Array h("h", kRows, 2 * kWidth), a(kRows, kWidth), da("da", kRows, kWidth), dh(kRows, 2 * kWidth);
  cpu.activation(Act::Silu, true, h.tensor(), {}, a.tensor());
  cpu.activation_grad(Act::Silu, true, da.tensor(), h.tensor(), {}, dh.tensor());
  return joined({&a, &dh});
}

std::vector<double> matmul(Kernels& cpu) {
  Array a("a", kRows, kWidth), b("b", 200, kWidth), c(kRows, 200), w(200, kWidth);
  cpu.matmul({kRows, 200, kWidth, false, true}, a.tensor(), b.tensor(), {}, c.tensor());
  cpu.matmul({200, kWidth, kRows, true, false}, c.tensor(), a.tensor(), {}, w.tensor());
  return joined({&c, &w});
}

std::vector<double> attention(Kernels& cpu) {
  AttentionShape shape;
  shape.heads = {6, 2, 16};
  shape.batch = 5;
  shape.scale = 0.25;
  shape.softcap = 20;
  Array qkv("qkv", kRows, 160), q(kRows, kWidth), k(kRows, 32), v(kRows, 32), o(kRows, kWidth), lse(kRows, 6),
      dout("dout", kRows, kWidth), dq(kRows, kWidth), dk(kRows, 32), dv(kRows, 32), dqkv(kRows, 160);
  Indices positions(kRows, 1);
  for (std::size_t i = 0; i < positions.values.size(); ++i) positions.values[i] = static_cast<std::int32_t>(i % 200);
  cpu.split_qkv(shape.heads, 10000, qkv.tensor(), positions.tensor(), q.tensor(), k.tensor(), v.tensor());
  cpu.attention(shape, q.tensor(), k.tensor(), v.tensor(), o.tensor(), lse.tensor());
  cpu.attention_grad(shape, dout.tensor(), q.tensor(), k.tensor(), v.tensor(), o.tensor(), lse.tensor(), dq.tensor(),
                     dk.tensor(), dv.tensor());
  cpu.merge_qkv_grad(shape.heads, 10000, dq.tensor(), dk.tensor(), dv.tensor(), positions.tensor(), dqkv.tensor());
  return joined({&o, &lse, &dqkv});
}

std::vector<double> loss(Kernels& cpu) {
  const Xent xent{0.5, 30, 1e-3, 0};
  Array logits("logits", kRows, kWidth), max(kRows), stats(kRows, 2), sum(1), grad(kRows, kWidth);
  Indices labels(kRows, 1);
  for (std::size_t i = 0; i < labels.values.size(); ++i) labels.values[i] = static_cast<std::int32_t>(i % kWidth);
  cpu.xent_max(xent, logits.tensor(), max.tensor());
  cpu.xent_sum(xent, logits.tensor(), max.tensor(), labels.tensor(), stats.tensor());
  cpu.xent_loss(xent, max.tensor(), stats.tensor(), sum.tensor());
  cpu.xent_grad(xent, logits.tensor(), max.tensor(), stats.tensor(), labels.tensor(), grad.tensor());
  return joined({&stats, &sum, &grad});
}

std::vector<double> experts(Kernels& cpu) {
  constexpr std::int64_t kExperts = 8, kTop = 2;
  Array logits("logits", kRows, kExperts), probs(kRows, kTop), softmax(kRows, kExperts), x("x", kRows, kWidth),
      rows(kRows * kTop, kWidth), w("w", kExperts, 64, kWidth), up(kRows * kTop, 64), y(kRows, kWidth),
      dy("dy", kRows, kWidth), drows(kRows * kTop, kWidth), dprobs(kRows, kTop), dx(kRows, kWidth),
      dw(kExperts, 64, kWidth);
  Indices chosen(kRows, kTop), map(kRows, kTop), counts({std::vector<std::int32_t>(kExperts)}, {1, 1, kExperts});
  cpu.router(true, logits.tensor(), probs.tensor(), chosen.tensor(), softmax.tensor());
  cpu.permute(x.tensor(), chosen.tensor(), rows.tensor(), map.tensor(), counts.tensor());
  const Gemm gemm{kRows * kTop, 64, kWidth, false, true};
  cpu.grouped_matmul(gemm, rows.tensor(), w.tensor(), counts.tensor(), up.tensor());
  cpu.grouped_matmul_wgrad(gemm, up.tensor(), rows.tensor(), counts.tensor(), dw.tensor());
  cpu.unpermute(rows.tensor(), map.tensor(), probs.tensor(), y.tensor());
  cpu.unpermute_grad(dy.tensor(), rows.tensor(), map.tensor(), probs.tensor(), drows.tensor(), dprobs.tensor());
  cpu.permute_grad(drows.tensor(), map.tensor(), dx.tensor());
  return joined({&up, &dw, &y, &dprobs, &dx});
}

std::vector<double> adamw(Kernels& cpu) {
  constexpr std::int64_t kCount = 100'000;
  Array grads("grads", kCount), norm(1), params(kCount), master("master", kCount), m("m", kCount), v(kCount);
  const std::vector<Range> ranges{{10, kCount / 2, true}, {kCount / 2 + 50, kCount / 3, false}};
  cpu.squared_norm(grads.tensor(), ranges, norm.tensor());
  cpu.adamw({1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0, 3}, grads.tensor(), norm.tensor(), ranges, params.tensor(),
            master.tensor(), m.tensor(), v.tensor());
  return joined({&norm, &params, &master, &m, &v});
}

}  // namespace

TEST_CASE("several threads compute what one does", "[kernels]") {
  const std::vector<std::pair<std::string, Run>> runs{{"norm", [](Kernels& cpu) { return norm(cpu, false); }},
                                                      {"centred norm", [](Kernels& cpu) { return norm(cpu, true); }},
                                                      {"elementwise", elementwise},
                                                      {"activation", activation},
                                                      {"matmul", matmul},
                                                      {"attention", attention},
                                                      {"loss", loss},
                                                      {"experts", experts},
                                                      {"adamw", adamw}};
  const auto one = cpu_kernels(1), four = cpu_kernels(4);
  for (const auto& [name, run] : runs) {
    INFO(name);
    const std::vector<double> want = run(*one), got = run(*four), again = run(*four);
    REQUIRE(got.size() == want.size());
    double worst = 0, largest = 0;
    for (std::size_t i = 0; i < want.size(); ++i) {
      worst = std::max(worst, std::fabs(got[i] - want[i]));
      largest = std::max(largest, std::fabs(want[i]));
    }
    CHECK(worst < 1e-12 * largest);
    CHECK(got == again);
  }
}

TEST_CASE("an element of the optimizer has the same bits wherever it lies", "[kernels]") {
  const auto cpu = cpu_kernels();
  constexpr std::int64_t kCount = 200;
  std::vector<std::vector<float>> results;
  for (std::int64_t shift = 0; shift < 17; ++shift) {
    const auto make = [&](const char* name) {
      const Array from(name, kCount);
      std::vector<float> at(static_cast<std::size_t>(shift));
      for (const double value : from.values) at.push_back(static_cast<float>(std::fabs(value)));
      return at;
    };
    std::vector<float> grads = make("g"), master = make("w"), m = make("m"), v = make("v"), params = make("p"), norm{9};
    const auto tensor = [](std::vector<float>& x) {
      return Tensor{x.data(), Dtype::F32, {static_cast<std::int64_t>(x.size()), 1, 1}};
    };
    cpu->adamw({1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0, 3}, tensor(grads), tensor(norm), {{shift, kCount, true}},
               tensor(params), tensor(master), tensor(m), tensor(v));
    results.emplace_back(params.begin() + shift, params.end());
  }
  for (const auto& result : results) CHECK(result == results.front());
}
