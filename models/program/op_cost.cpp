#include "models/program/op_cost.h"

#include <algorithm>

#include "models/program/block_builder.h"

namespace trainyard {

namespace {

// Bounded expert buffers move only their filled rows; index arrays and weights move whole.
double filled_bytes(const Op& op, const Tensor& tensor) {
  const bool rows = tensor.shape.rank == 2 && tensor.dtype != Dtype::I32;
  return static_cast<double>(tensor.bytes()) * (rows ? op.attr.fill : 1.0);
}

double attention_flops(const Op& op, const Tensor& q) {
  // Each context rank holds two slices of the sequence that together carry an even share of the causal work.
  const OpAttributes& a = op.attr;
  const double local = static_cast<double>(q.shape.dims[0]) / static_cast<double>(a.batch);
  const double pairs = attended_pairs(local * static_cast<double>(a.cp), static_cast<double>(a.window));
  const double blocks = a.hop < 0 ? 1 : static_cast<double>(a.cp);  // of keys, in a ring: as even
  return 4.0 * static_cast<double>(a.heads * a.head_dim * a.batch) * pairs / static_cast<double>(a.cp) / blocks;
}

}  // namespace

double attended_pairs(double sequence_length, double window) {
  if (window <= 0 || window >= sequence_length) return sequence_length * (sequence_length + 1) / 2;
  return window * (window + 1) / 2 + (sequence_length - window) * window;
}

void set_cost(Op& op, const std::vector<Tensor>& tensors) {
  const auto at = [&](TensorId id) -> const Tensor& { return tensors[static_cast<std::size_t>(id)]; };
  for (const TensorId id : op.in) op.bytes_read += filled_bytes(op, at(id));
  for (std::size_t i = 0; i < op.out.size(); ++i) {
    const double bytes = filled_bytes(op, at(op.out[i]));
    op.bytes_written += bytes;
    if (accumulates(op, i)) op.bytes_read += bytes;
  }
  switch (op.kind) {
    case OpKind::Matmul:
    case OpKind::GroupedMatmul:
    case OpKind::GroupedMatmulWgrad:
      op.flops = 2.0 * static_cast<double>(op.attr.m) * static_cast<double>(op.attr.n) * static_cast<double>(op.attr.k);
      break;
    case OpKind::Attention: op.flops = attention_flops(op, at(op.in[0])); break;
    case OpKind::AttentionGrad:
      op.flops = 2.5 * attention_flops(op, at(op.in[1]));  // five matrix products against two, scores recomputed
      break;
    case OpKind::Embedding: {
      const double rows = static_cast<double>(at(op.out[0]).bytes());
      op.bytes_read = rows + static_cast<double>(at(op.in[0]).bytes());  // gathered rows, not the table
      break;
    }
    case OpKind::EmbeddingGrad:
    case OpKind::PositionGrad: {
      // Touches one row of the table per token, read and written.
      const Tensor& dy = at(op.in[1]);
      const double rows = static_cast<double>(dy.shape.elements() * size_of(at(op.out[0]).dtype));
      op.bytes_read = static_cast<double>(at(op.in[0]).bytes() + dy.bytes()) + rows;
      op.bytes_written = rows;
      break;
    }
    case OpKind::PositionAdd:
      op.bytes_read = static_cast<double>(2 * at(op.in[0]).bytes() + at(op.in[1]).bytes());
      break;
    case OpKind::AllReduce:
    case OpKind::ReduceScatter:
    case OpKind::AllToAllV: op.payload_bytes = filled_bytes(op, at(op.in[0])); break;
    case OpKind::AllToAllCounts: op.payload_bytes = static_cast<double>(at(op.in[0]).bytes()); break;
    case OpKind::AllGather: op.payload_bytes = filled_bytes(op, at(op.out[0])); break;
    case OpKind::RingShift: op.payload_bytes = op.bytes_read; break;
    default: break;
  }
  if (op.kind == OpKind::AllReduce && op.attr.in_place) {
    op.payload_bytes = static_cast<double>(op.attr.m * size_of(at(op.in[0]).dtype));  // m: elements of the shard
    op.bytes_read = op.bytes_written = op.payload_bytes;
  }
  if (op.kind == OpKind::SquaredNorm || op.kind == OpKind::AdamW) {
    // A bucket operand is touched only in this rank's block, as large as the optimizer state.
    if (op.kind == OpKind::AdamW) {
      const double shard = static_cast<double>(at(op.out[1]).shape.elements());
      op.bytes_read = shard * static_cast<double>(size_of(at(op.in[0]).dtype) + 3 * size_of(at(op.out[1]).dtype));
      op.bytes_written = shard * static_cast<double>(size_of(at(op.out[0]).dtype) + 3 * size_of(at(op.out[1]).dtype));
    } else {
      op.bytes_read = static_cast<double>(op.attr.m * size_of(at(op.in[0]).dtype));  // m: elements of the shard
      op.bytes_written = 0;
    }
  }
}

}  // namespace trainyard
