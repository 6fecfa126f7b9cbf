// What every op computes, in float64 and as plainly as it can be said. models/program/op.h is the
// contract; this is its executable form.
#pragma once

#include <cstdint>
#include <vector>

#include "models/program/program.h"

namespace trainyard {

/// A tensor in a rank's arena. Floats are float64, indices int32.
struct View {
  const Tensor* tensor = nullptr;
  std::byte* bytes = nullptr;

  [[nodiscard]] double* f() const { return reinterpret_cast<double*>(bytes); }
  [[nodiscard]] std::int32_t* i() const { return reinterpret_cast<std::int32_t*>(bytes); }
  [[nodiscard]] std::int64_t dim(int k) const { return tensor->shape.dims[static_cast<std::size_t>(k)]; }
  [[nodiscard]] std::int64_t size() const { return tensor->shape.elements(); }
};

/// What an op may know beyond its operands.
struct OpContext {
  const StepProgram* program = nullptr;
  const Chunk* chunk = nullptr;  // null for step-wide blocks
  std::int64_t rank = 0;
  std::int64_t step = 0;  // optimizer steps taken before this one
};

/// Computes one op of one rank. Communication kinds are not accepted.
void compute(const Op& op, const OpContext& context, const std::vector<View>& in, const std::vector<View>& out);

/// Computes one collective for all members of its group, in group order.
void communicate(const Op& op, const std::vector<std::vector<View>>& in, const std::vector<std::vector<View>>& out);

}  // namespace trainyard
