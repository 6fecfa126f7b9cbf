// FLOPs, bytes and payload of an op, from its shapes alone.
#pragma once

#include <vector>

#include "models/program/program.h"

namespace trainyard {

/// Fills op.flops, bytes_read, bytes_written and payload_bytes. FLOPs count a multiply-add as two.
void set_cost(Op& op, const std::vector<Tensor>& tensors);

/// Query-key pairs that a causal mask (and a window, when > 0) leaves of one sequence.
double attended_pairs(double sequence_length, double window);

}  // namespace trainyard
