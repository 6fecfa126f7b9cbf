// The step interpreter's switch: every op that is not communication becomes one call of a kernel. OpKind's order; the
// simulator has the same switch in sim/conductor.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "models/program/program.h"

namespace trainyard::exec {

/// What an op may know of its rank beyond its operands.
struct OpPlace {
  const StepProgram* program = nullptr;
  const Chunk* chunk = nullptr;  // null for step-wide blocks
  std::int64_t rank = 0;
  std::int64_t step = 0;   // optimizer steps taken before this one
  std::uint64_t seed = 0;  // of dropout
};

/// Where an operand lies.
kernels::Tensor bind(const Tensor& tensor, std::byte* bytes);

void compute_op(const Op& op, const OpPlace& place, const std::vector<kernels::Tensor>& in,
                const std::vector<kernels::Tensor>& out, kernels::Kernels& kernels);

}  // namespace trainyard::exec
