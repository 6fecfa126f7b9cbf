// Every op of every program, computed by the CPU kernels in float64 beside the reference.
#include <catch2/catch.hpp>

#include <cmath>
#include <cstring>
#include <map>

#include "exec/compute_op.h"
#include "tests/program/reference.h"
#include "tests/program/tiny_models.h"
#include "tests/program/training.h"
#include "tests/sanitized.h"

using namespace trainyard;

namespace {

kernels::Tensor operand(const View& view) { return exec::bind(*view.tensor, view.bytes); }

std::vector<kernels::Tensor> operands(const std::vector<View>& views) {
  std::vector<kernels::Tensor> out;
  for (const View& view : views) out.push_back(operand(view));
  return out;
}

using Bytes = std::vector<std::byte>;

Bytes bytes_of(const View& view) { return {view.bytes, view.bytes + view.tensor->bytes()}; }

// The largest difference over the largest value; NaN agrees with NaN: memory that neither writes. So does an infinity
// with itself: the logarithm of no keys.
double difference(const View& got, const Bytes& want) {
  if (got.tensor->dtype == Dtype::I32) return std::memcmp(got.bytes, want.data(), want.size()) == 0 ? 0 : 1;
  const auto* expected = reinterpret_cast<const double*>(want.data());
  double worst = 0, largest = 1e-300;
  for (std::int64_t i = 0; i < got.size(); ++i) {
    const double x = got.f()[i], y = expected[i];
    if (std::isnan(x) != std::isnan(y)) return 1;
    if (std::isnan(y) || (std::isinf(y) && x == y)) continue;
    worst = std::max(worst, std::fabs(x - y));
    largest = std::max(largest, std::fabs(y));
  }
  return worst / largest;
}

// Computes each op twice, and goes on with what the kernels gave.
class Twice {
 public:
  void operator()(const Op& op, const OpContext& context, const std::vector<View>& in, const std::vector<View>& out) {
    std::vector<Bytes> before, inputs, wanted;
    for (const View& view : out) before.push_back(bytes_of(view));
    for (const View& view : in) inputs.push_back(bytes_of(view));
    compute(op, context, in, out);
    for (const View& view : out) wanted.push_back(bytes_of(view));
    // Some ops work in place: back to what was there.
    for (std::size_t i = 0; i < out.size(); ++i) std::memcpy(out[i].bytes, before[i].data(), before[i].size());
    for (std::size_t i = 0; i < in.size(); ++i) std::memcpy(in[i].bytes, inputs[i].data(), inputs[i].size());
    exec::compute_op(op, {context.program, context.chunk, context.rank, context.step}, operands(in), operands(out),
                     *kernels_);
    for (std::size_t i = 0; i < out.size(); ++i) {
      double& worst = (*worst_)[op.kind];
      worst = std::max(worst, difference(out[i], wanted[i]));
    }
  }
  [[nodiscard]] const std::map<OpKind, double>& worst() const { return *worst_; }

 private:
  std::shared_ptr<kernels::Kernels> kernels_ = kernels::cpu_kernels();
  std::shared_ptr<std::map<OpKind, double>> worst_ = std::make_shared<std::map<OpKind, double>>();
};

void compare_ops(int plans_of_a_family) {
  const Twice twice;
  RandomStream random(2, "compute_op_test");
  for (const ModelFamily family : {ModelFamily::Llama, ModelFamily::Mixtral, ModelFamily::Grok1, ModelFamily::Gpt3}) {
    ModelSpec model = tiny_model(family);
    model.num_hidden_layers = 8;
    for (int i = 0; i < plans_of_a_family; ++i) {
      model.hidden_dropout = i % 2 == 0 ? 0 : 0.1;
      model.position = i % 4 == 3 ? PositionKind::Alibi : tiny_model(family).position;
      const ParallelPlan plan = random_plan(model, random);
      INFO(describe(model, plan));
      CHECK_NOTHROW(train(lower(model, plan), 1, 1, twice));
    }
  }
  for (const auto& [kind, worst] : twice.worst()) {
    INFO(to_string(kind) << " " << worst * 1e15 << "e-15");
    CHECK(worst < 1e-11);  // seen: 1.2e-12, AttentionGrad, where p * (dp - delta) cancels; all others below 1e-12
  }
  if (testing::kSanitized) return;
  // Nothing that a rank computes is left out.
  for (int i = 0; i < kOpKindCount; ++i) {
    const auto kind = static_cast<OpKind>(i);
    if (is_communication(kind) || kind == OpKind::HostSync || kind == OpKind::Join) continue;
    INFO(to_string(kind));
    CHECK(twice.worst().count(kind) == 1);
  }
}

}  // namespace

TEST_CASE("the CPU kernels compute what the reference computes, op by op", "[exec]") {
  compare_ops(testing::kSanitized ? 1 : 6);
}

// A part of its own in CI.
TEST_CASE("the CPU kernels compute what the reference computes, op by op, under many plans", "[.slow]") {
  compare_ops(16);
}
