#include "exec/coordinate_check.h"

#include <cmath>
#include <optional>
#include <string>

#include <fmt/format.h>

#include "exec/mesh_communicator.h"
#include "exec/rank_state.h"
#include "exec/step_interpreter.h"
#include "models/base/bf16.h"
#include "models/base/check.h"
#include "models/base/stop.h"

namespace trainyard::exec {

namespace {

double sum_of_magnitudes(const kernels::Tensor& x) {
  double sum = 0;
  for (std::int64_t i = 0; i < x.size(); ++i) {
    switch (x.dtype) {
      case Dtype::F64: sum += std::abs(static_cast<const double*>(x.data)[i]); break;
      case Dtype::F32: sum += std::abs(static_cast<double>(static_cast<const float*>(x.data)[i])); break;
      case Dtype::Bf16:
        sum += std::abs(static_cast<double>(bf16_to_float(static_cast<const std::uint16_t*>(x.data)[i])));
        break;
      default: TY_CHECK(false, "activations are of a floating type");
    }
  }
  return sum;
}

class Recorder {
 public:
  explicit Recorder(const StepProgram& program) : scale_(program.model.logit_scale()) {
    const std::string last = fmt::format("layer{}.", program.model.num_hidden_layers - 1);
    labels_ = {"embedding", last + "attn.out", last + (program.model.moe ? "unpermute" : "mlp.down"), "head"};
  }

  void observe(const Op& op, const kernels::Tensor& out) {
    for (std::size_t c = 0; c < kCoordinateCount; ++c) {
      if (op.label != labels_[c]) continue;
      sums_[c] += sum_of_magnitudes(out);
      counts_[c] += out.size();
    }
  }

  // Of all micro-batches since the last call.
  Magnitudes take() {
    Magnitudes means{};
    for (std::size_t c = 0; c < kCoordinateCount; ++c) {
      TY_CHECK(counts_[c] > 0, "every coordinate is computed in every step");
      means[c] = sums_[c] / static_cast<double>(counts_[c]);
    }
    means[static_cast<std::size_t>(Coordinate::Logits)] *= scale_;
    sums_ = {};
    counts_ = {};
    return means;
  }

 private:
  double scale_;
  std::array<std::string, kCoordinateCount> labels_;
  std::array<double, kCoordinateCount> sums_{};
  std::array<std::int64_t, kCoordinateCount> counts_{};
};

}  // namespace

const char* to_string(Coordinate coordinate) {
  switch (coordinate) {
    case Coordinate::Embedding: return "embedding";
    case Coordinate::Attention: return "attention";
    case Coordinate::Mlp: return "MLP";
    case Coordinate::Logits: return "logits";
  }
  return "?";
}

Result<std::vector<Magnitudes>> measure_coordinates(const StepProgram& program, const Corpus& corpus,
                                                    std::uint64_t seed, std::int64_t steps) {
  const ParallelPlan& plan = program.plan;
  TY_CHECK(plan.ranks() == 1 && plan.recompute == RecomputeMode::None, "each activation is computed once, and whole");
  const auto kernels = kernels::cpu_kernels(static_cast<int>(plan.cpu_threads));
  const auto communicator = mesh_communicator(0, {-1});
  StepInterpreter interpreter(program, 0, *kernels, *communicator);
  initialise(interpreter, seed);
  Recorder recorder(program);
  interpreter.observe([&](const Item&, const Op& op, const std::vector<kernels::Tensor>& out) {
    if (!out.empty()) recorder.observe(op, out.front());
  });
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(plan.sequence_length + 1));
  std::vector<Magnitudes> magnitudes;
  for (std::int64_t step = 0; step < steps; ++step) {
    if (stop_requested()) return stopped();
    const Result<StepOutcome> outcome = interpreter.step([&](std::int64_t sample) {
      corpus.sample(seed, step, sample, plan.global_batch, plan.sequence_length, tokens.data());
      return tokens.data();
    });
    if (!outcome) return outcome.problems();
    magnitudes.push_back(recorder.take());
  }
  return magnitudes;
}

}  // namespace trainyard::exec
