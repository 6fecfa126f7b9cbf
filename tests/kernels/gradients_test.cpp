// Every gradient kernel against finite differences of its forward kernel, in float64.
#include <catch2/catch.hpp>

#include <cmath>
#include <functional>

#include "tests/kernels/arrays.h"

using namespace trainyard;
using namespace trainyard::kernels;
using namespace trainyard::kernels::test;

namespace {

std::shared_ptr<Kernels> cpu() {
  static const std::shared_ptr<Kernels> kernels = cpu_kernels();
  return kernels;
}

double dot(const Array& a, const Array& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.values.size(); ++i) sum += a.values[i] * b.values[i];
  return sum;
}

// The gradient of `loss` with respect to x by central differences, against `got`.
void check_slope(const std::string& what, Array& x, const Array& got, const std::function<double()>& loss) {
  constexpr double kStep = 1e-5;
  double worst = 0, largest = 1e-6;
  // Of a large operand, a hundred elements spread over it.
  const std::size_t stride = x.values.size() / 100 + 1;
  for (std::size_t i = 0; i < x.values.size(); i += stride) {
    const double kept = x.values[i];
    x.values[i] = kept + kStep;
    const double above = loss();
    x.values[i] = kept - kStep;
    const double below = loss();
    x.values[i] = kept;
    const double slope = (above - below) / (2 * kStep);
    worst = std::max(worst, std::fabs(slope - got.values[i]));
    largest = std::max(largest, std::fabs(slope));
  }
  INFO(what);
  CHECK(worst / largest < 1e-7);
}

}  // namespace

TEST_CASE("gradients of tables", "[kernels]") {
  Indices tokens({4, 1, 9, 4, 2}), positions({0, 3, 1, 1, 2});
  Array table("table", 5, 6), dy("dy", 5, 6), y(5, 6), dtable(5, 6);
  SECTION("embedding, a shard of the vocabulary") {
    const auto loss = [&] {
      cpu()->embedding(tokens.tensor(), table.tensor(), 1.7, 1, y.tensor());
      return dot(y, dy);
    };
    cpu()->embedding_grad(tokens.tensor(), dy.tensor(), 1.7, 1, dtable.tensor());
    check_slope("table", table, dtable, loss);
  }
  SECTION("positions") {
    Array x("x", 5, 6);
    const auto loss = [&] {
      cpu()->position_add(x.tensor(), positions.tensor(), table.tensor(), y.tensor());
      return dot(y, dy);
    };
    cpu()->position_grad(positions.tensor(), dy.tensor(), dtable.tensor());
    check_slope("table", table, dtable, loss);
    check_slope("x", x, dy, loss);
  }
}

TEST_CASE("gradients of norms", "[kernels]") {
  const bool centred = GENERATE(false, true);
  const NormShape shape{centred, 1e-5};
  Array x("x", 4, 8), w("w", 8), b("b", 8), dy("dy", 4, 8), y(4, 8), rstd(4), mean(4), dx(4, 8), dw(8), db(8);
  const Tensor none;
  const auto loss = [&] {
    cpu()->norm(shape, x.tensor(), w.tensor(), centred ? b.tensor() : none, y.tensor(), rstd.tensor(),
                centred ? mean.tensor() : none);
    return dot(y, dy);
  };
  loss();
  cpu()->norm_grad(shape, dy.tensor(), x.tensor(), w.tensor(), rstd.tensor(), centred ? mean.tensor() : none,
                   dx.tensor(), dw.tensor(), centred ? db.tensor() : none);
  check_slope("x", x, dx, loss);
  check_slope("weight", w, dw, loss);
  if (centred) check_slope("bias", b, db, loss);
}

TEST_CASE("gradients of activations", "[kernels]") {
  const auto act = GENERATE(Act::Silu, Act::Gelu, Act::GeluTanh, Act::SquaredRelu);
  const bool gated = GENERATE(false, true);
  Array h("h", 5, gated ? 14 : 7), da("da", 5, 7), a(5, 7), dh(5, gated ? 14 : 7);
  const auto loss = [&] {
    cpu()->activation(act, gated, h.tensor(), {}, a.tensor());
    return dot(a, da);
  };
  cpu()->activation_grad(act, gated, da.tensor(), h.tensor(), {}, dh.tensor());
  check_slope("h", h, dh, loss);
}

TEST_CASE("gradients of dropout, rotary positions and biases", "[kernels]") {
  SECTION("dropout is its own gradient") {
    Indices samples({0, 0, 1}), positions({0, 1, 0});
    Array x("x", 3, 50), dy("dy", 3, 50), y(3, 50), dx(3, 50);
    const DropoutSeed seed{5, 3, 1, 2, 0.3};
    const auto loss = [&] {
      cpu()->dropout(seed, x.tensor(), samples.tensor(), positions.tensor(), y.tensor());
      return dot(y, dy);
    };
    cpu()->dropout(seed, dy.tensor(), samples.tensor(), positions.tensor(), dx.tensor());
    check_slope("x", x, dx, loss);
  }
  SECTION("split and merge") {
    const Heads heads{4, 2, 6};
    Indices positions({0, 7, 2});
    Array qkv("qkv", 3, 48), dq("dq", 3, 24), dk("dk", 3, 12), dv("dv", 3, 12), q(3, 24), k(3, 12), v(3, 12),
        dqkv(3, 48);
    const auto loss = [&] {
      cpu()->split_qkv(heads, 1e4, qkv.tensor(), positions.tensor(), q.tensor(), k.tensor(), v.tensor());
      return dot(q, dq) + dot(k, dk) + dot(v, dv);
    };
    cpu()->merge_qkv_grad(heads, 1e4, dq.tensor(), dk.tensor(), dv.tensor(), positions.tensor(), dqkv.tensor());
    check_slope("qkv", qkv, dqkv, loss);
  }
  SECTION("bias") {
    Array x("x", 4, 5), b("b", 5), dy("dy", 4, 5), y(4, 5), db(5);
    const auto loss = [&] {
      cpu()->bias_add(x.tensor(), b.tensor(), y.tensor());
      return dot(y, dy);
    };
    cpu()->bias_grad(dy.tensor(), db.tensor());
    check_slope("bias", b, db, loss);
  }
}

TEST_CASE("gradients of attention", "[kernels]") {
  AttentionShape shape;
  shape.heads = {4, 2, 6};
  shape.batch = 2;
  shape.scale = 0.4;
  SECTION("plain") {}
  SECTION("soft cap") { shape.softcap = 2; }
  SECTION("window") { shape.window = 3; }
  SECTION("ALiBi") { shape.alibi = {0.5, 0.25, 0.125, 0.0625}; }
  SECTION("all of them") {
    shape.softcap = 2;
    shape.window = 5;
    shape.alibi = {0.5, 0.25, 0.125, 0.0625};
  }
  SECTION("context parallel") {
    shape.cp = 2;
    shape.cp_index = 1;
  }
  SECTION("a block of a ring, of which some rows see nothing") {
    shape.cp = 2;
    shape.cp_index = 0;
    shape.key_block = 1;
  }
  // Longer than one block of queries, and not a multiple of it.
  // Of a ring's block, so long that a whole block of queries sees nothing.
  const std::int64_t rows = shape.key_block >= 0 ? 2 * 130
                            : shape.cp == 2      ? 2 * 8
                                                 : 2 * 70,
                     keys = rows * (shape.key_block < 0 ? shape.cp : 1);
  Array q("q", rows, 24), k("k", keys, 12), v("v", keys, 12), dout("do", rows, 24), o(rows, 24), lse(rows, 4);
  Array dq(rows, 24), dk(keys, 12), dv(keys, 12);
  const auto loss = [&] {
    cpu()->attention(shape, q.tensor(), k.tensor(), v.tensor(), o.tensor(), lse.tensor());
    return dot(o, dout);
  };
  loss();
  cpu()->attention_grad(shape, dout.tensor(), q.tensor(), k.tensor(), v.tensor(), o.tensor(), lse.tensor(), dq.tensor(),
                        dk.tensor(), dv.tensor());
  check_slope("q", q, dq, loss);
  check_slope("k", k, dk, loss);
  check_slope("v", v, dv, loss);
}

TEST_CASE("ALiBi is a bias that falls with distance", "[kernels]") {
  AttentionShape shape;
  shape.heads = {1, 1, 2};
  shape.alibi = {0.7};
  // Scores are all nought, so weights are exp(-slope * distance), normalised.
  Array q(3, 2), k(3, 2), v(3, 2), o(3, 2), lse(3, 1);
  for (int t = 0; t < 3; ++t) v.values[static_cast<std::size_t>(2 * t)] = t;
  cpu()->attention(shape, q.tensor(), k.tensor(), v.tensor(), o.tensor(), lse.tensor());
  const double near = std::exp(-0.7), far = std::exp(-1.4);
  CHECK(o.values[4] == Approx((1 * near + 2) / (1 + near + far)));
}

TEST_CASE("gradients of routing", "[kernels]") {
  const bool renormalize = GENERATE(false, true);
  Array logits("logits", 6, 5), probs(6, 2), softmax(6, 5), dprobs("dprobs", 6, 2), dlogits(6, 5);
  Indices experts(6, 2);
  const auto loss = [&] {
    cpu()->router(renormalize, logits.tensor(), probs.tensor(), experts.tensor(), softmax.tensor());
    return dot(probs, dprobs);
  };
  loss();
  cpu()->router_grad(renormalize, dprobs.tensor(), experts.tensor(), softmax.tensor(), dlogits.tensor());
  check_slope("logits", logits, dlogits, loss);
}

TEST_CASE("gradients of moving rows to experts and back", "[kernels]") {
  Indices experts({2, 0, 1, 2, 0, 1, 2, 1}, {4, 2, 1}), map(4, 2), counts(std::vector<std::int32_t>(3, 0));
  Array x("x", 4, 3), probs("probs", 4, 2), rows(8, 3), y(4, 3), dy("dy", 4, 3);
  const auto loss = [&] {
    cpu()->permute(x.tensor(), experts.tensor(), rows.tensor(), map.tensor(), counts.tensor());
    cpu()->unpermute(rows.tensor(), map.tensor(), probs.tensor(), y.tensor());
    return dot(y, dy);
  };
  loss();
  Array drows(8, 3), dprobs(4, 2), dx(4, 3);
  cpu()->unpermute_grad(dy.tensor(), rows.tensor(), map.tensor(), probs.tensor(), drows.tensor(), dprobs.tensor());
  cpu()->permute_grad(drows.tensor(), map.tensor(), dx.tensor());
  check_slope("x", x, dx, loss);
  check_slope("probs", probs, dprobs, loss);
}

TEST_CASE("gradients of products by expert", "[kernels]") {
  Indices counts({2, 0, 1, 3}, {2, 1, 2});  // two segments, two experts: 3 and 3 rows
  const Gemm forward{6, 4, 5, false, true}, backward{6, 5, 4, false, false};
  Array a("a", 6, 5), w("w", 2, 4, 5), c(6, 4), dc("dc", 6, 4), da(6, 5), dw(2, 4, 5);
  const auto loss = [&] {
    cpu()->grouped_matmul(forward, a.tensor(), w.tensor(), counts.tensor(), c.tensor());
    return dot(c, dc);
  };
  cpu()->grouped_matmul(backward, dc.tensor(), w.tensor(), counts.tensor(), da.tensor());
  cpu()->grouped_matmul_wgrad({6, 4, 5}, dc.tensor(), a.tensor(), counts.tensor(), dw.tensor());
  check_slope("rows", a, da, loss);
  check_slope("weights", w, dw, loss);
}

TEST_CASE("gradients of cross-entropy", "[kernels]") {
  Xent xent;
  xent.alpha = 0.8;
  xent.scale = 0.3;
  xent.softcap = GENERATE(0.0, 2.0);
  Indices labels({1, 6, 0, 3});
  Array logits("logits", 4, 7), max(4), stats(4, 2), dlogits(4, 7);
  const auto loss = [&] {
    Array total(1);
    cpu()->xent_max(xent, logits.tensor(), max.tensor());
    cpu()->xent_sum(xent, logits.tensor(), max.tensor(), labels.tensor(), stats.tensor());
    cpu()->xent_loss(xent, max.tensor(), stats.tensor(), total.tensor());
    return total.values[0];
  };
  loss();
  cpu()->xent_grad(xent, logits.tensor(), max.tensor(), stats.tensor(), labels.tensor(), dlogits.tensor());
  check_slope("logits", logits, dlogits, loss);
}
