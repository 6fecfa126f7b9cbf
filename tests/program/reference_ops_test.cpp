// Each op kind on its own: backward kinds are the slopes of forward kinds, data movement is undone
// by its inverse, collectives and the optimizer do what op.h says. That the goldens pass proves the
// paths that tiny models take; this proves the corners that they do not.
#include <catch2/catch.hpp>

#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>

#include "models/base/random.h"
#include "models/program/layout.h"
#include "tests/program/reference_ops.h"

using namespace trainyard;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Tensors and the ops of one rank over them.
class Bench {
 public:
  explicit Bench(const ParallelPlan& plan = {}, std::int64_t rank = 0) : rank_(rank), random_(5, "bench") {
    program_.plan = plan;
    chunk_.first_layer = 3;
  }

  View random(Shape shape) {
    const View view = constant(shape, 0);
    for (std::int64_t i = 0; i < view.size(); ++i) view.f()[i] = random_.normal();
    return view;
  }
  View constant(Shape shape, double value) {
    const View view = make(shape, Dtype::F64);
    std::fill_n(view.f(), view.size(), value);
    return view;
  }
  // An output: poisoned, so that what an op leaves out shows.
  View poison(Shape shape) { return constant(shape, kNan); }
  View ints(Shape shape, const std::vector<std::int32_t>& values) {
    const View view = make(shape, Dtype::I32);
    REQUIRE(static_cast<std::int64_t>(values.size()) == view.size());
    std::copy(values.begin(), values.end(), view.i());
    return view;
  }
  View poisoned_ints(Shape shape) {
    return ints(shape, std::vector<std::int32_t>(static_cast<std::size_t>(shape.elements()), -1));
  }

  void run(OpKind kind, const OpAttributes& attr, const std::vector<View>& in, const std::vector<View>& out) {
    Op op;
    op.kind = kind;
    op.attr = attr;
    compute(op, {&program_, &chunk_, rank_, step_}, in, out);
  }

  Chunk& chunk() { return chunk_; }
  void set_step(std::int64_t step) { step_ = step; }

 private:
  struct Slot {
    Tensor tensor;
    std::vector<double> storage;
  };
  View make(Shape shape, Dtype dtype) {
    Slot& slot = slots_.emplace_back();
    slot.tensor.shape = shape;
    slot.tensor.dtype = dtype;
    slot.storage.resize(static_cast<std::size_t>(shape.elements()) + 1);
    return {&slot.tensor, reinterpret_cast<std::byte*>(slot.storage.data())};
  }

  StepProgram program_;
  Chunk chunk_;
  std::int64_t rank_, step_ = 0;
  RandomStream random_;
  std::deque<Slot> slots_;  // views point into it
};

double inner(const View& x, const View& y) {
  double sum = 0;
  for (std::int64_t i = 0; i < x.size(); ++i) sum += x.f()[i] * y.f()[i];
  return sum;
}

// `gradient` minus `base` (what it held before, for += outputs) is the slope of `loss` in `x`.
void check_slopes(const char* what, const std::function<double()>& loss, const View& x, const View& gradient,
                  double base = 0) {
  INFO(what);
  REQUIRE(x.size() == gradient.size());
  for (std::int64_t i = 0; i < x.size(); ++i) {
    INFO("element " << i);
    const double value = x.f()[i], h = 1e-5;
    x.f()[i] = value + h;
    const double above = loss();
    x.f()[i] = value - h;
    const double below = loss();
    x.f()[i] = value;
    CHECK(gradient.f()[i] - base == Approx((above - below) / (2 * h)).epsilon(1e-6).margin(1e-8));
  }
  loss();  // leave the forward outputs as they were
}

void check_equal(const View& got, const View& want) {
  REQUIRE(got.size() == want.size());
  for (std::int64_t i = 0; i < want.size(); ++i) CHECK(got.f()[i] == want.f()[i]);
}

std::vector<std::int32_t> values_of(const View& view) { return {view.i(), view.i() + view.size()}; }

Op collective(OpKind kind, const OpAttributes& attr = {}) {
  Op op;
  op.kind = kind;
  op.attr = attr;
  op.label = "test";
  return op;
}

ParallelPlan tp2() {
  ParallelPlan plan;
  plan.tp = 2;
  return plan;
}

}  // namespace

// --- embedding and positions

TEST_CASE("EmbeddingGrad is the slope of Embedding, on each vocabulary shard", "[program][ops]") {
  const std::int64_t rank = GENERATE(0, 1);
  Bench b(tp2(), rank);
  const View tokens = b.ints(Shape(5), {1, 6, 3, 6, 4}), table = b.random(Shape(4, 3)), y = b.poison(Shape(5, 3)),
             dy = b.random(Shape(5, 3)), dtable = b.constant(Shape(4, 3), 1);
  OpAttributes attr;
  attr.scale = 2.5;
  const auto loss = [&] {
    b.run(OpKind::Embedding, attr, {tokens, table}, {y});
    return inner(y, dy);
  };
  loss();
  // Token 3 is the last row of shard 0, token 4 the first of shard 1.
  for (int c = 0; c < 3; ++c) {
    CHECK(y.f()[2 * 3 + c] == (rank == 0 ? 2.5 * table.f()[3 * 3 + c] : 0.0));
    CHECK(y.f()[4 * 3 + c] == (rank == 1 ? 2.5 * table.f()[c] : 0.0));
  }
  b.run(OpKind::EmbeddingGrad, attr, {tokens, dy}, {dtable});
  check_slopes("table", loss, table, dtable, 1);
}

TEST_CASE("PositionGrad is the slope of PositionAdd, also on a block of the rows", "[program][ops]") {
  Bench b(tp2(), 1);
  const std::int64_t rows = GENERATE(6, 3);  // all rows, or tp rank 1's half of them
  const View positions = b.ints(Shape(6), {0, 1, 2, 0, 1, 2}), x = b.random(Shape(rows, 2)),
             table = b.random(Shape(4, 2)), y = b.poison(Shape(rows, 2)), dy = b.random(Shape(rows, 2)),
             dtable = b.constant(Shape(4, 2), 1);
  const auto loss = [&] {
    b.run(OpKind::PositionAdd, {}, {x, positions, table}, {y});
    return inner(y, dy);
  };
  loss();
  b.run(OpKind::PositionGrad, {}, {positions, dy}, {dtable});
  check_slopes("table", loss, table, dtable, 1);
  check_slopes("x", loss, x, dy);
}

// --- dense math

TEST_CASE("NormGrad is the slope of Norm", "[program][ops]") {
  OpAttributes attr;
  attr.norm = GENERATE(NormKind::RmsNorm, NormKind::LayerNorm);
  attr.eps = 0.1;  // large enough to be seen
  const bool layer = attr.norm == NormKind::LayerNorm;
  Bench b;
  const Shape wide(3, 5), row(5), column(3);
  const View x = b.random(wide), weight = b.random(row), bias = b.random(row), y = b.poison(wide),
             rstd = b.poison(column), mean = b.poison(column), dy = b.random(wide), dx = b.poison(wide),
             dweight = b.constant(row, 1), dbias = b.constant(row, 1);
  const auto loss = [&] {
    if (layer) {
      b.run(OpKind::Norm, attr, {x, weight, bias}, {y, rstd, mean});
    } else {
      b.run(OpKind::Norm, attr, {x, weight}, {y, rstd});
    }
    return inner(y, dy);
  };
  loss();
  if (layer) {
    b.run(OpKind::NormGrad, attr, {dy, x, weight, rstd, mean}, {dx, dweight, dbias});
    check_slopes("bias", loss, bias, dbias, 1);
  } else {
    b.run(OpKind::NormGrad, attr, {dy, x, weight, rstd}, {dx, dweight});
  }
  check_slopes("x", loss, x, dx);
  check_slopes("weight", loss, weight, dweight, 1);
}

TEST_CASE("Matmul takes either operand transposed, adds a bias, accumulates", "[program][ops]") {
  Bench b;
  OpAttributes attr;
  attr.m = 2, attr.n = 3, attr.k = 4, attr.alpha = 0.5;
  attr.trans_a = GENERATE(false, true);
  attr.trans_b = GENERATE(false, true);
  attr.accumulate = GENERATE(false, true);
  attr.has_bias = GENERATE(false, true);
  const View a = b.random(attr.trans_a ? Shape(4, 2) : Shape(2, 4)),
             w = b.random(attr.trans_b ? Shape(3, 4) : Shape(4, 3)), bias = b.random(Shape(3)),
             c = attr.accumulate ? b.constant(Shape(2, 3), 10) : b.poison(Shape(2, 3));
  std::vector<View> in{a, w};
  if (attr.has_bias) in.push_back(bias);
  b.run(OpKind::Matmul, attr, in, {c});
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 3; ++j) {
      double want = (attr.accumulate ? 10 : 0) + (attr.has_bias ? bias.f()[j] : 0);
      for (int k = 0; k < 4; ++k) {
        want += 0.5 * a.f()[attr.trans_a ? k * 2 + i : i * 4 + k] * w.f()[attr.trans_b ? j * 4 + k : k * 3 + j];
      }
      CHECK(c.f()[i * 3 + j] == Approx(want).epsilon(1e-14));
    }
  }
}

TEST_CASE("BiasGrad is the slope of BiasAdd", "[program][ops]") {
  Bench b;
  const View x = b.random(Shape(3, 2)), bias = b.random(Shape(2)), y = b.poison(Shape(3, 2)),
             dy = b.random(Shape(3, 2)), dbias = b.constant(Shape(2), 1);
  const auto loss = [&] {
    b.run(OpKind::BiasAdd, {}, {x, bias}, {y});
    return inner(y, dy);
  };
  b.run(OpKind::BiasGrad, {}, {dy}, {dbias});
  check_slopes("bias", loss, bias, dbias, 1);
  check_slopes("x", loss, x, dy);
}

TEST_CASE("ActivationGrad is the slope of Activation", "[program][ops]") {
  OpAttributes attr;
  attr.activation =
      GENERATE(ActivationKind::Silu, ActivationKind::Gelu, ActivationKind::GeluTanh, ActivationKind::SquaredRelu);
  attr.gated = GENERATE(false, true);
  Bench b;
  const Shape wide(3, attr.gated ? 8 : 4), narrow(3, 4);
  const View h = b.random(wide), a = b.poison(narrow), da = b.random(narrow), dh = b.poison(wide);
  const auto loss = [&] {
    b.run(OpKind::Activation, attr, {h}, {a});
    return inner(a, da);
  };
  loss();
  b.run(OpKind::ActivationGrad, attr, {da, h}, {dh});
  check_slopes("h", loss, h, dh);
}

TEST_CASE("activations have PyTorch's values", "[program][ops]") {
  // PyTorch 1.13: F.silu, F.gelu, F.gelu(approximate='tanh'), relu()**2 at 1.5 and -0.75, in float64.
  const auto [kind, at_1_5, at_minus_0_75] =
      GENERATE(std::tuple{ActivationKind::Silu, 1.2263617142904655, -0.24061597561845527},
               std::tuple{ActivationKind::Gelu, 1.399789198096713, -0.16997051428265111},
               std::tuple{ActivationKind::GeluTanh, 1.3995715769802328, -0.17003944483437966},
               std::tuple{ActivationKind::SquaredRelu, 2.25, 0.0});
  Bench b;
  OpAttributes attr;
  attr.activation = kind;
  const View h = b.constant(Shape(1, 2), 1.5), a = b.poison(Shape(1, 2));
  h.f()[1] = -0.75;
  b.run(OpKind::Activation, attr, {h}, {a});
  CHECK(a.f()[0] == Approx(at_1_5).epsilon(1e-14));
  CHECK(a.f()[1] == Approx(at_minus_0_75).epsilon(1e-14).margin(1e-15));
}

TEST_CASE("with counts, activations touch only the rows that hold data", "[program][ops]") {
  Bench b;
  OpAttributes attr;
  attr.gated = attr.has_counts = true;
  const View counts = b.ints(Shape(1, 2, 2), {1, 0, 0, 1}), h = b.random(Shape(4, 4)), a = b.poison(Shape(4, 2)),
             dh = b.poison(Shape(4, 4)), da = b.random(Shape(4, 2));
  b.run(OpKind::Activation, attr, {h, counts}, {a});
  b.run(OpKind::ActivationGrad, attr, {da, h, counts}, {dh});
  for (int t = 0; t < 4; ++t) {
    CHECK(std::isnan(a.f()[t * 2]) == (t >= 2));
    CHECK(std::isnan(dh.f()[t * 4]) == (t >= 2));
  }
}

TEST_CASE("Dropout is linear, its own gradient, and the same on any block of the rows", "[program][ops]") {
  OpAttributes attr;
  attr.probability = 0.3;
  attr.salt = 2;
  attr.layer = 1;
  Bench whole(tp2(), 0), half(tp2(), 1);
  const std::vector<std::int32_t> sample{7, 7, 8, 8}, position{0, 1, 0, 1};
  const View samples = whole.ints(Shape(4), sample), positions = whole.ints(Shape(4), position),
             ones = whole.constant(Shape(4, 500), 1), y = whole.poison(Shape(4, 500)),
             again = whole.poison(Shape(4, 500)), lower = half.poison(Shape(2, 500));
  whole.run(OpKind::Dropout, attr, {ones, samples, positions}, {y});
  int kept = 0;
  for (int i = 0; i < 2000; ++i) {
    const bool scaled = std::fabs(y.f()[i] - 1 / 0.7) < 1e-15;
    CHECK((scaled || y.f()[i] == 0.0));
    kept += scaled ? 1 : 0;
  }
  CHECK(std::abs(kept - 1400) < 5 * std::sqrt(2000 * 0.3 * 0.7));  // five standard deviations

  half.run(OpKind::Dropout, attr, {half.constant(Shape(2, 500), 1), samples, positions}, {lower});
  CHECK(std::memcmp(lower.f(), y.f() + 1000, 1000 * sizeof(double)) == 0);

  const auto differs = [&] { return std::memcmp(again.f(), y.f(), 2000 * sizeof(double)) != 0; };
  whole.run(OpKind::Dropout, attr, {ones, samples, positions}, {again});
  CHECK_FALSE(differs());
  SECTION("another step") { whole.set_step(1); }
  SECTION("another layer") { attr.layer = 0; }
  SECTION("another site") { attr.salt = 1; }
  SECTION("another sample") { samples.i()[3] = 9; }
  SECTION("another position") { positions.i()[3] = 2; }
  whole.run(OpKind::Dropout, attr, {ones, samples, positions}, {again});
  CHECK(differs());
}

// --- attention

namespace {

OpAttributes attention_attributes() {
  OpAttributes attr;
  attr.heads = 4;
  attr.kv_heads = 2;
  attr.head_dim = 4;
  attr.rope_theta = 100;
  attr.scale = 0.7;
  return attr;
}

}  // namespace

TEST_CASE("MergeQkvGrad is the slope of SplitQkv", "[program][ops]") {
  OpAttributes attr = attention_attributes();
  attr.rope = GENERATE(false, true);
  Bench b;
  const View positions = b.ints(Shape(3), {0, 5, 2}), qkv = b.random(Shape(3, 32)), q = b.poison(Shape(3, 16)),
             k = b.poison(Shape(3, 8)), v = b.poison(Shape(3, 8)), dq = b.random(Shape(3, 16)),
             dk = b.random(Shape(3, 8)), dv = b.random(Shape(3, 8)), dqkv = b.poison(Shape(3, 32));
  std::vector<View> in{qkv}, grads{dq, dk, dv};
  if (attr.rope) {
    in.push_back(positions);
    grads.push_back(positions);
  }
  const auto loss = [&] {
    b.run(OpKind::SplitQkv, attr, in, {q, k, v});
    return inner(q, dq) + inner(k, dk) + inner(v, dv);
  };
  b.run(OpKind::MergeQkvGrad, attr, grads, {dqkv});
  check_slopes("qkv", loss, qkv, dqkv);
}

TEST_CASE("rope rotates halves, so that scores depend on distance alone", "[program][ops]") {
  OpAttributes attr = attention_attributes();
  attr.rope = true;
  attr.heads = attr.kv_heads = 1;
  Bench b;
  const View qkv = b.random(Shape(2, 12));
  std::copy_n(qkv.f(), 12, qkv.f() + 12);
  const auto score = [&](std::int32_t query_at, std::int32_t key_at) {
    const View q = b.poison(Shape(2, 4)), k = b.poison(Shape(2, 4)), v = b.poison(Shape(2, 4));
    b.run(OpKind::SplitQkv, attr, {qkv, b.ints(Shape(2), {query_at, key_at})}, {q, k, v});
    double sum = 0;
    for (int c = 0; c < 4; ++c) sum += q.f()[c] * k.f()[4 + c];
    return sum;
  };
  CHECK(score(7, 4) == Approx(score(3, 0)).epsilon(1e-12));
  CHECK(score(7, 4) != Approx(score(7, 3)).epsilon(1e-3));

  // Halves, not neighbours: dimension 0 turns with dimension 2 at frequency 1.
  const View unit = b.constant(Shape(1, 12), 0), q = b.poison(Shape(1, 4)), k = b.poison(Shape(1, 4)),
             v = b.poison(Shape(1, 4));
  unit.f()[0] = 1;
  b.run(OpKind::SplitQkv, attr, {unit, b.ints(Shape(1), {1})}, {q, k, v});
  CHECK(q.f()[0] == Approx(std::cos(1.0)));
  CHECK(q.f()[2] == Approx(std::sin(1.0)));
  CHECK(q.f()[1] == 0.0);
}

TEST_CASE("AttentionGrad is the slope of Attention", "[program][ops]") {
  OpAttributes attr = attention_attributes();
  attr.softcap = GENERATE(0.0, 1.5);
  attr.window = GENERATE(0, 3);
  attr.alibi_heads = GENERATE(0, 12);
  attr.cp = GENERATE(1, 2);
  attr.batch = 2;
  ParallelPlan plan;
  plan.cp = attr.cp;
  Bench b(plan, attr.cp - 1);
  const std::int64_t rows = 8, keys = attr.cp * rows;
  const View q = b.random(Shape(rows, 16)), k = b.random(Shape(keys, 8)), v = b.random(Shape(keys, 8)),
             o = b.poison(Shape(rows, 16)), lse = b.poison(Shape(rows, 4)), dout = b.random(Shape(rows, 16)),
             dq = b.poison(Shape(rows, 16)), dk = b.poison(Shape(keys, 8)), dv = b.poison(Shape(keys, 8));
  const auto loss = [&] {
    b.run(OpKind::Attention, attr, {q, k, v}, {o, lse});
    return inner(o, dout);
  };
  loss();
  b.run(OpKind::AttentionGrad, attr, {dout, q, k, v, o, lse}, {dq, dk, dv});
  check_slopes("q", loss, q, dq);
  check_slopes("k", loss, k, dk);
  check_slopes("v", loss, v, dv);
}

TEST_CASE("attention over context ranks is attention over the whole sequence", "[program][ops]") {
  OpAttributes attr = attention_attributes();
  attr.window = GENERATE(0, 3);
  attr.alibi_heads = GENERATE(0, 4);
  attr.batch = 2;
  const std::int64_t length = 8, cp = 2, local = length / cp;
  Bench single;
  const View q = single.random(Shape(16, 16)), k = single.random(Shape(16, 8)), v = single.random(Shape(16, 8)),
             o = single.poison(Shape(16, 16)), lse = single.poison(Shape(16, 4));
  single.run(OpKind::Attention, attr, {q, k, v}, {o, lse});

  ParallelPlan plan;
  plan.cp = attr.cp = cp;
  // Row in the whole of local row `t` of sequence `i` on a context rank.
  const auto row = [&](std::int64_t rank, std::int64_t i, std::int64_t t) {
    return i * length + context_position(cp, rank, length, t);
  };
  for (std::int64_t rank = 0; rank < cp; ++rank) {
    Bench b(plan, rank);
    const View lq = b.poison(Shape(8, 16)), lk = b.poison(Shape(16, 8)), lv = b.poison(Shape(16, 8)),
               lo = b.poison(Shape(8, 16)), llse = b.poison(Shape(8, 4));
    for (std::int64_t i = 0; i < 2; ++i) {
      for (std::int64_t t = 0; t < local; ++t) {
        std::copy_n(q.f() + row(rank, i, t) * 16, 16, lq.f() + (i * local + t) * 16);
        for (std::int64_t block = 0; block < cp; ++block) {
          std::copy_n(k.f() + row(block, i, t) * 8, 8, lk.f() + (block * 8 + i * local + t) * 8);
          std::copy_n(v.f() + row(block, i, t) * 8, 8, lv.f() + (block * 8 + i * local + t) * 8);
        }
      }
    }
    b.run(OpKind::Attention, attr, {lq, lk, lv}, {lo, llse});
    for (std::int64_t i = 0; i < 2; ++i) {
      for (std::int64_t t = 0; t < local; ++t) {
        for (int c = 0; c < 16; ++c)
          CHECK(lo.f()[(i * local + t) * 16 + c] == Approx(o.f()[row(rank, i, t) * 16 + c]).epsilon(1e-12));
      }
    }
  }
}

TEST_CASE("attention to one block after another, merged, is attention to all of them", "[program][ops]") {
  OpAttributes attr = attention_attributes();
  attr.alibi_heads = GENERATE(0, 4);
  attr.softcap = GENERATE(0.0, 1.5);
  attr.batch = 2;
  ParallelPlan plan;
  plan.cp = attr.cp = 3;
  const std::int64_t rank = GENERATE(0, 1, 2), rows = 12;
  Bench b(plan, rank);
  const View q = b.random(Shape(rows, 16)), k = b.random(Shape(3 * rows, 8)), v = b.random(Shape(3 * rows, 8)),
             o = b.poison(Shape(rows, 16)), lse = b.poison(Shape(rows, 4)), dout = b.random(Shape(rows, 16)),
             dq = b.poison(Shape(rows, 16)), dk = b.poison(Shape(3 * rows, 8)), dv = b.poison(Shape(3 * rows, 8));
  b.run(OpKind::Attention, attr, {q, k, v}, {o, lse});
  b.run(OpKind::AttentionGrad, attr, {dout, q, k, v, o, lse}, {dq, dk, dv});

  const auto block = [&](const View& of, std::int64_t owner) {
    const View one = b.poison(Shape(rows, 8));
    std::copy_n(of.f() + owner * rows * 8, rows * 8, one.f());
    return one;
  };
  std::vector<View> parts;
  std::vector<double> dq_sum(static_cast<std::size_t>(rows * 16), 0.0);
  for (attr.hop = 0; attr.hop < 3; ++attr.hop) {
    const std::int64_t owner = (rank - attr.hop + 3) % 3;
    const View k1 = block(k, owner), v1 = block(v, owner), o1 = b.poison(Shape(rows, 16)),
               lse1 = b.poison(Shape(rows, 4)), dq1 = b.poison(Shape(rows, 16)), dk1 = b.poison(Shape(rows, 8)),
               dv1 = b.poison(Shape(rows, 8));
    b.run(OpKind::Attention, attr, {q, k1, v1}, {o1, lse1});
    parts.insert(parts.end(), {o1, lse1});
    b.run(OpKind::AttentionGrad, attr, {dout, q, k1, v1, o, lse}, {dq1, dk1, dv1});
    for (std::int64_t i = 0; i < rows * 16; ++i) dq_sum[static_cast<std::size_t>(i)] += dq1.f()[i];
    for (std::int64_t i = 0; i < rows * 8; ++i) {
      CHECK(dk1.f()[i] == Approx(dk.f()[owner * rows * 8 + i]).margin(1e-13));
      CHECK(dv1.f()[i] == Approx(dv.f()[owner * rows * 8 + i]).margin(1e-13));
    }
  }
  const View merged = b.poison(Shape(rows, 16)), merged_lse = b.poison(Shape(rows, 4));
  b.run(OpKind::AttentionMerge, attr, parts, {merged, merged_lse});
  for (std::int64_t i = 0; i < rows * 16; ++i) {
    CHECK(merged.f()[i] == Approx(o.f()[i]).margin(1e-13));
    CHECK(dq_sum[static_cast<std::size_t>(i)] == Approx(dq.f()[i]).margin(1e-13));
  }
  for (std::int64_t i = 0; i < rows * 4; ++i) CHECK(merged_lse.f()[i] == Approx(lse.f()[i]));
}

TEST_CASE("attention sees the past, a window of it, and shares keys among query heads", "[program][ops]") {
  OpAttributes attr = attention_attributes();
  attr.window = GENERATE(0, 1, 2);
  Bench b;
  const View q = b.constant(Shape(4, 16), 0), k = b.random(Shape(4, 8)), v = b.constant(Shape(4, 8), 0),
             o = b.poison(Shape(4, 16)), lse = b.poison(Shape(4, 4));
  for (int t = 0; t < 4; ++t) {
    for (int g = 0; g < 2; ++g) v.f()[t * 8 + g * 4] = 10 * t + g;  // queries of zero weigh all keys alike
  }
  b.run(OpKind::Attention, attr, {q, k, v}, {o, lse});
  for (int t = 0; t < 4; ++t) {
    const int seen = attr.window == 0 ? t + 1 : std::min<int>(t + 1, static_cast<int>(attr.window));
    for (int h = 0; h < 4; ++h) {
      CHECK(o.f()[t * 16 + h * 4] == Approx(10 * (t - (seen - 1) / 2.0) + h / 2));
      CHECK(lse.f()[t * 4 + h] == Approx(std::log(seen)).margin(1e-15));
    }
  }
}

// --- mixture of experts

TEST_CASE("Router takes the largest, lower expert first among equals", "[program][ops]") {
  OpAttributes attr;
  attr.top_k = 2;
  attr.renormalize = GENERATE(false, true);
  Bench b;
  const View logits = b.constant(Shape(2, 4), 0), probs = b.poison(Shape(2, 2)), experts = b.poisoned_ints(Shape(2, 2)),
             softmax = b.poison(Shape(2, 4));
  for (int e = 0; e < 4; ++e) logits.f()[e] = std::log(e + 1.0);  // softmax 0.1 0.2 0.3 0.4; row 1: all equal
  b.run(OpKind::Router, attr, {logits}, {probs, experts, softmax});
  CHECK(values_of(experts) == std::vector<std::int32_t>{3, 2, 0, 1});
  CHECK(softmax.f()[2] == Approx(0.3));
  CHECK(probs.f()[0] == Approx(attr.renormalize ? 4.0 / 7 : 0.4));
  CHECK(probs.f()[1] == Approx(attr.renormalize ? 3.0 / 7 : 0.3));
  CHECK(probs.f()[2] == Approx(attr.renormalize ? 0.5 : 0.25));
}

TEST_CASE("RouterGrad is the slope of Router", "[program][ops]") {
  OpAttributes attr;
  attr.top_k = GENERATE(1, 2, 3);
  attr.renormalize = GENERATE(false, true);
  Bench b;
  const Shape chosen(3, attr.top_k), all(3, 5);
  const View logits = b.random(all), probs = b.poison(chosen), experts = b.poisoned_ints(chosen),
             softmax = b.poison(all), dprobs = b.random(chosen), dlogits = b.poison(all);
  const auto loss = [&] {
    b.run(OpKind::Router, attr, {logits}, {probs, experts, softmax});
    return inner(probs, dprobs);
  };
  loss();
  b.run(OpKind::RouterGrad, attr, {dprobs, experts, softmax}, {dlogits});
  check_slopes("logits", loss, logits, dlogits);
}

TEST_CASE("Permute sorts stably; its gradient and Unpermute's are slopes", "[program][ops]") {
  OpAttributes attr;
  attr.top_k = 2;
  Bench b;
  const View x = b.random(Shape(3, 2)), experts = b.ints(Shape(3, 2), {2, 0, 0, 3, 2, 0}), rows = b.poison(Shape(6, 2)),
             row_map = b.poisoned_ints(Shape(3, 2)), counts = b.poisoned_ints(Shape(4)), probs = b.random(Shape(3, 2)),
             y = b.poison(Shape(3, 2)), dy = b.random(Shape(3, 2)), drows = b.poison(Shape(6, 2)),
             dprobs = b.poison(Shape(3, 2)), dx = b.poison(Shape(3, 2));
  b.run(OpKind::Permute, attr, {x, experts}, {rows, row_map, counts});
  CHECK(values_of(counts) == std::vector<std::int32_t>{3, 0, 2, 1});
  CHECK(values_of(row_map) == std::vector<std::int32_t>{3, 0, 1, 5, 4, 2});
  CHECK(rows.f()[4 * 2] == x.f()[2 * 2]);

  const auto unpermute = [&] {
    b.run(OpKind::Unpermute, attr, {rows, row_map, probs}, {y});
    return inner(y, dy);
  };
  const auto both = [&] {
    b.run(OpKind::Permute, attr, {x, experts}, {rows, row_map, counts});
    return unpermute();
  };
  both();
  b.run(OpKind::UnpermuteGrad, attr, {dy, rows, row_map, probs}, {drows, dprobs});
  b.run(OpKind::PermuteGrad, attr, {drows, row_map}, {dx});
  check_slopes("rows", unpermute, rows, drows);
  check_slopes("probs", unpermute, probs, dprobs);
  check_slopes("x", both, x, dx);
}

TEST_CASE("SortByExpert orders by expert, segment, source, and reverse undoes it", "[program][ops]") {
  Bench b;
  OpAttributes attr;
  attr.segments = 2;
  attr.rows_bound = 5;
  // counts[s][c][e]: segment 0 holds (c0e0) (c0e1 c0e1) (c1e0), segment 1 (c0e1) (c1e0 c1e0) (c1e1).
  const View counts = b.ints(Shape(2, 2, 2), {1, 2, 1, 0, 0, 1, 2, 1}), rows = b.poison(Shape(10, 1)),
             sorted = b.poison(Shape(10, 1)), back = b.poison(Shape(10, 1));
  for (int r = 0; r < 4; ++r) {
    rows.f()[r] = r;
    rows.f()[5 + r] = 10 + r;
  }
  b.run(OpKind::SortByExpert, attr, {rows, counts}, {sorted});
  const std::vector<double> want{0, 3, 11, 12, 1, 2, 10, 13};
  CHECK(std::vector<double>(sorted.f(), sorted.f() + 8) == want);
  attr.reverse = true;
  b.run(OpKind::SortByExpert, attr, {sorted, counts}, {back});
  for (const int r : {0, 1, 2, 3, 5, 6, 7, 8}) CHECK(back.f()[r] == rows.f()[r]);
}

TEST_CASE("grouped products are slopes of each other", "[program][ops]") {
  Bench b;
  OpAttributes forward;
  forward.n = 3;
  forward.k = 2;
  forward.trans_b = true;
  OpAttributes backward = forward;
  backward.n = 2;
  backward.k = 3;
  backward.trans_b = false;
  // Expert 1 has no rows; two rows of the buffer hold nothing.
  const View counts = b.ints(Shape(2, 1, 3), {1, 0, 2, 1, 0, 0}), x = b.random(Shape(6, 2)),
             w = b.random(Shape(3, 3, 2)), c = b.constant(Shape(6, 3), 0), dc = b.random(Shape(6, 3)),
             dx = b.constant(Shape(6, 2), 0), dw = b.constant(Shape(3, 3, 2), 1);
  const auto loss = [&] {
    b.run(OpKind::GroupedMatmul, forward, {x, w, counts}, {c});
    return inner(c, dc);
  };
  loss();
  CHECK(c.f()[0] == Approx(x.f()[0] * w.f()[0] + x.f()[1] * w.f()[1]));
  CHECK(c.f()[2 * 3] == Approx(x.f()[4] * w.f()[12] + x.f()[5] * w.f()[13]));  // the third row is expert 2's
  b.run(OpKind::GroupedMatmul, backward, {dc, w, counts}, {dx});
  b.run(OpKind::GroupedMatmulWgrad, forward, {dc, x, counts}, {dw});
  check_slopes("x", loss, x, dx);
  check_slopes("w", loss, w, dw, 1);
}

// --- loss

TEST_CASE("cross entropy over vocabulary shards: the value of the whole, XentGrad its slope", "[program][ops]") {
  OpAttributes attr;
  attr.alpha = 0.6;
  attr.softcap = GENERATE(0.0, 1.2);
  attr.scale = 0.25;
  const std::int64_t rows = 3, vocabulary = 6, local = 3;
  Bench first(tp2(), 0), second(tp2(), 1);
  Bench* const ranks[] = {&first, &second};
  std::vector<View> logits, max, stats, loss, labels;
  for (Bench* b : ranks) {
    logits.push_back(b->random(Shape(rows, local)));
    max.push_back(b->poison(Shape(rows)));
    stats.push_back(b->poison(Shape(rows, 2)));
    loss.push_back(b->constant(Shape(1), 0));
    labels.push_back(b->ints(Shape(rows), {1, 3, 5}));
  }
  for (std::int64_t i = 0; i < logits[1].size(); ++i) logits[1].f()[i] *= -2;  // the two benches draw alike
  OpAttributes reduce_max;
  reduce_max.reduce = Reduce::Max;
  const auto forward = [&] {
    for (std::size_t r = 0; r < 2; ++r) ranks[r]->run(OpKind::XentMax, attr, {logits[r]}, {max[r]});
    communicate(collective(OpKind::AllReduce, reduce_max), {{max[0]}, {max[1]}}, {{max[0]}, {max[1]}});
    for (std::size_t r = 0; r < 2; ++r)
      ranks[r]->run(OpKind::XentSum, attr, {logits[r], max[r], labels[r]}, {stats[r]});
    communicate(collective(OpKind::AllReduce), {{stats[0]}, {stats[1]}}, {{stats[0]}, {stats[1]}});
    for (std::size_t r = 0; r < 2; ++r) {
      loss[r].f()[0] = 0;
      ranks[r]->run(OpKind::XentLoss, attr, {max[r], stats[r]}, {loss[r]});
    }
    return loss[0].f()[0];
  };
  double want = 0;
  for (std::int64_t t = 0; t < rows; ++t) {
    double sum = 0;
    const auto logit = [&](std::int64_t c) {
      const double raw = 0.6 * logits[static_cast<std::size_t>(c / local)].f()[t * local + c % local];
      return attr.softcap > 0 ? attr.softcap * std::tanh(raw / attr.softcap) : raw;
    };
    for (std::int64_t c = 0; c < vocabulary; ++c) sum += std::exp(logit(c));
    want += 0.25 * (std::log(sum) - logit(labels[0].i()[t]));
  }
  CHECK(forward() == Approx(want).epsilon(1e-13));
  CHECK(loss[0].f()[0] == loss[1].f()[0]);
  for (std::size_t r = 0; r < 2; ++r) {
    const View dlogits = ranks[r]->poison(Shape(rows, local));
    ranks[r]->run(OpKind::XentGrad, attr, {logits[r], max[r], stats[r], labels[r]}, {dlogits});
    check_slopes("logits", forward, logits[r], dlogits);
  }
}

// --- communication

TEST_CASE("collectives reduce in group order and place blocks in group order", "[program][ops]") {
  Bench b;
  const auto vector = [&](std::vector<double> values) {
    const View view = b.poison(Shape(static_cast<std::int64_t>(values.size())));
    std::copy(values.begin(), values.end(), view.f());
    return view;
  };
  SECTION("all-reduce") {
    // 1 + 1e16 - 1e16: what the sum is depends on the order, and the order is fixed.
    const View x = vector({1, 1}), y = vector({1e16, 2}), z = vector({-1e16, 5});
    communicate(collective(OpKind::AllReduce), {{x}, {y}, {z}}, {{x}, {y}, {z}});
    for (const View& view : {x, y, z}) check_equal(view, vector({0, 8}));
  }
  SECTION("all-gather") {
    const View x = vector({1, 2}), y = vector({3, 4}), gx = b.poison(Shape(4)), gy = b.poison(Shape(4));
    communicate(collective(OpKind::AllGather), {{x}, {y}}, {{gx}, {gy}});
    for (const View& view : {gx, gy}) check_equal(view, vector({1, 2, 3, 4}));
  }
  SECTION("all-gather in place reads this rank's block only") {
    OpAttributes attr;
    attr.in_place = true;
    const View x = vector({1, 2, kNan, kNan}), y = vector({kNan, kNan, 3, 4});
    communicate(collective(OpKind::AllGather, attr), {{x}, {y}}, {{x}, {y}});
    for (const View& view : {x, y}) check_equal(view, vector({1, 2, 3, 4}));
  }
  SECTION("reduce-scatter") {
    const View x = vector({1, 2, 3, 4}), y = vector({10, 20, 30, 40}), sx = b.poison(Shape(2)), sy = b.poison(Shape(2));
    communicate(collective(OpKind::ReduceScatter), {{x}, {y}}, {{sx}, {sy}});
    check_equal(sx, vector({11, 22}));
    check_equal(sy, vector({33, 44}));
  }
  SECTION("reduce-scatter in place leaves this rank's block only") {
    OpAttributes attr;
    attr.in_place = true;
    const View x = vector({1, 2, 3, 4}), y = vector({10, 20, 30, 40});
    communicate(collective(OpKind::ReduceScatter, attr), {{x}, {y}}, {{x}, {y}});
    CHECK((x.f()[0] == 11 && x.f()[1] == 22 && std::isnan(x.f()[2]) && std::isnan(x.f()[3])));
    CHECK((y.f()[2] == 33 && y.f()[3] == 44 && std::isnan(y.f()[0]) && std::isnan(y.f()[1])));
  }
}

TEST_CASE("rows travel to their experts by source and expert, and back", "[program][ops]") {
  Bench b;
  OpAttributes attr;
  attr.experts = 4;
  attr.local_experts = 2;
  attr.rows_bound = 5;
  const std::vector<View> counts{b.ints(Shape(4), {1, 0, 2, 1}), b.ints(Shape(4), {2, 1, 0, 1})};
  const std::vector<View> recv{b.poisoned_ints(Shape(1, 2, 2)), b.poisoned_ints(Shape(1, 2, 2))};
  communicate(collective(OpKind::AllToAllCounts), {{counts[0]}, {counts[1]}}, {{recv[0]}, {recv[1]}});
  CHECK(values_of(recv[0]) == std::vector<std::int32_t>{1, 0, 2, 1});
  CHECK(values_of(recv[1]) == std::vector<std::int32_t>{2, 1, 0, 1});

  std::vector<View> rows, got, back;
  for (int r = 0; r < 2; ++r) {
    rows.push_back(b.random(Shape(4, 2)));
    got.push_back(b.poison(Shape(5, 2)));
    back.push_back(b.poison(Shape(4, 2)));
  }
  communicate(collective(OpKind::AllToAllV, attr), {{rows[0], counts[0], recv[0]}, {rows[1], counts[1], recv[1]}},
              {{got[0]}, {got[1]}});
  CHECK(got[0].f()[0] == rows[0].f()[0]);          // from rank 0, expert 0
  CHECK(got[0].f()[1 * 2] == rows[1].f()[0]);      // from rank 1, expert 0 ...
  CHECK(got[0].f()[3 * 2] == rows[1].f()[2 * 2]);  // ... and its expert 1
  CHECK(std::isnan(got[0].f()[4 * 2]));            // past the counts
  CHECK(got[1].f()[2 * 2] == rows[0].f()[3 * 2]);
  CHECK(got[1].f()[3 * 2] == rows[1].f()[3 * 2]);

  attr.reverse = true;
  communicate(collective(OpKind::AllToAllV, attr), {{got[0], counts[0], recv[0]}, {got[1], counts[1], recv[1]}},
              {{back[0]}, {back[1]}});
  for (std::size_t r = 0; r < 2; ++r) check_equal(back[r], rows[r]);

  attr.reverse = false;
  attr.rows_bound = 3;  // both ranks receive four
  CHECK_THROWS_WITH(communicate(collective(OpKind::AllToAllV, attr),
                                {{rows[0], counts[0], recv[0]}, {rows[1], counts[1], recv[1]}}, {{got[0]}, {got[1]}}),
                    Catch::Contains("overflows its bound"));
}

// --- optimizer

namespace {

Param param(const char* name, Shape shape, std::int64_t offset, Split split0, bool decay) {
  Param out;
  out.name = name;
  out.local_shape = shape;
  out.offset_elements = offset;
  out.split0 = split0;
  out.decay = decay;
  return out;
}

// Eight elements: a split matrix of 4, a replicated vector of 2, a tied copy of 1, one of padding.
Bucket small_bucket(const ParallelPlan& plan) {
  Bucket bucket;
  bucket.group = Group::DpCp;
  bucket.sharding = sharding(plan, bucket.group);
  bucket.params = {param("matrix", Shape(2, 2), 0, Split::Tp, true), param("norm", Shape(2), 4, Split::None, false),
                   param("copy", Shape(1), 6, Split::Tp, true)};
  bucket.params[2].tied_copy = true;
  bucket.elements = 8;
  bucket.shard_elements = 8 / Mesh(plan).group_size(bucket.sharding.shards);
  return bucket;
}

}  // namespace

TEST_CASE("the gradient norm counts every element once, whatever holds it", "[program][ops]") {
  const bool sharded = GENERATE(false, true), hybrid = GENERATE(false, true);
  const bool shard_buffer = sharded && GENERATE(false, true);
  ParallelPlan plan;
  plan.tp = 2;
  plan.dp = hybrid ? 4 : 2;
  plan.zero_stage = sharded ? 1 : 0;
  plan.zero_shard_size = sharded && hybrid ? 2 : 0;
  const Mesh mesh(plan);
  OpAttributes attr;
  attr.bucket = 0;
  double total = 0;
  for (std::int64_t rank = 0; rank < mesh.ranks(); ++rank) {
    const Coordinates at = mesh.coordinates(rank);
    Bench b(plan, rank);
    b.chunk().buckets = {small_bucket(plan)};
    // Matrix elements differ by tp rank, the vector's do not; copies and padding must not count.
    const std::vector<double> values{1.0 + 10.0 * static_cast<double>(at.tp), 2, 3, 4, 5, 6, 1e3, kNan};
    const View grads = b.poison(Shape(shard_buffer ? 4 : 8)), norm = b.constant(Shape(1), 0);
    for (std::int64_t i = 0; i < 8; ++i) {
      const bool mine = !sharded || i / 4 == at.dp % 2;
      if (mine) grads.f()[shard_buffer ? i % 4 : i] = values[static_cast<std::size_t>(i)];
    }
    b.run(OpKind::SquaredNorm, attr, {grads}, {norm});
    total += norm.f()[0];
  }
  CHECK(total == Approx(1.0 + 121 + 2 * (4 + 9 + 16) + 25 + 36));
}

TEST_CASE("AdamW steps as PyTorch's, on this rank's share, clipped by the global norm", "[program][ops]") {
  ParallelPlan plan;
  plan.dp = 2;
  plan.zero_stage = 1;
  plan.optimizer.learning_rate = 0.1;
  plan.optimizer.weight_decay = 0.5;
  plan.optimizer.clip_grad = GENERATE(0.0, 2.0, 100.0);
  const double clip = plan.optimizer.clip_grad == 2.0 ? 2.0 / 8.0 : 1.0;  // the norm is 8
  Bench b(plan, 1);
  b.chunk().buckets = {small_bucket(plan)};
  b.chunk().buckets[0].params[2].rate_scale = 0.25;  // as a parameter group of torch with a rate of its own
  OpAttributes attr;
  attr.bucket = 0;
  const View grads = b.random(Shape(8)), norm = b.constant(Shape(1), 64), params = b.constant(Shape(8), 9),
             master = b.random(Shape(4)), m = b.constant(Shape(4), 0), v = b.constant(Shape(4), 0);
  double p[3], mm[3] = {0, 0, 0}, vv[3] = {0, 0, 0};
  std::copy_n(master.f(), 3, p);
  for (int step = 0; step < 3; ++step) {
    b.set_step(step);
    b.run(OpKind::AdamW, attr, {grads, norm}, {params, master, m, v});
    for (int i = 0; i < 3; ++i) {  // torch/optim/adamw.py, _single_tensor_adamw
      const double g = clip * grads.f()[4 + i];
      if (i == 2) p[i] *= 1 - 0.1 * 0.5;  // the copy decays, the norm does not
      mm[i] = 0.9 * mm[i] + 0.1 * g;
      vv[i] = 0.95 * vv[i] + (1 - 0.95) * g * g;
      const double step_size = (i == 2 ? 0.25 : 1) * 0.1 / (1 - std::pow(0.9, step + 1));
      const double denominator = std::sqrt(vv[i]) / std::sqrt(1 - std::pow(0.95, step + 1)) + 1e-8;
      p[i] -= step_size * mm[i] / denominator;
      CHECK(master.f()[i] == Approx(p[i]).epsilon(1e-12));
      CHECK(params.f()[4 + i] == master.f()[i]);
    }
    for (int i = 0; i < 4; ++i) CHECK(params.f()[i] == 9);  // the other rank's share
  }
}
