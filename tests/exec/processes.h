// Trains in real processes, one for each rank, and brings back what the reference gives: losses, gradients, weights.
#pragma once

#include "tests/program/training.h"

namespace trainyard::test {

/// What ranks compute on: the step interpreter on the processor; the device interpreter with the processor as the
/// device, or with the first GPU (one rank only).
enum class On { Processor, HostDevice, Gpu };

/// `steps` steps from these weights on these tokens [global batch, sequence length + 1]. Throws std::runtime_error when
/// a rank fails, or when two hold different copies of one element. Arrays come back in float64 whatever the precision.
Run train_in_processes(const StepProgram& program, const Weights& weights, const GoldenTensor& tokens, int steps,
                       On on = On::Processor);

}  // namespace trainyard::test
