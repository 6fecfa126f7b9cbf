// The forward pass of one chunk as a graph in single-assignment form, from which its forward
// and its backward block are both derived.
//
// Values are tensors, nodes are ops. Backward rules live in graph.cpp, one per op kind. What the
// forward pass keeps is decided by what the backward pass asks for, and by the recompute policy:
// a value that is asked for but not kept is computed again, by the same ops, where it is needed.
#pragma once

#include <string>
#include <vector>

#include "models/program/program.h"

namespace trainyard {

using ValueId = std::int32_t;

enum class ValueSource : std::uint8_t { Computed, Param, Batch, Input };

struct Value {
  std::string name;
  Dtype dtype = Dtype::Bf16;
  Shape shape;
  ValueSource source = ValueSource::Computed;
  std::int32_t producer = -1;            // node
  std::int32_t bucket = -1, param = -1;  // Param: where it lies
  std::int64_t batch_offset_bytes = 0;   // Batch
  /// Start of a decoder layer: kept under full recompute.
  bool layer_boundary = false;
  bool differentiable = true;
};

/// A product of a layer that a recompute policy can name.
enum class LayerProduct : std::uint8_t { Other, AttentionOut, MlpUp, MlpGateUp, MlpDown };

struct Node {
  Op op;  // kind, stream, group, label and attributes; operands are values below
  std::vector<ValueId> in, out;
  std::int64_t layer = -1;  // -1: embedding or head, never recomputed
  LayerProduct product = LayerProduct::Other;
  /// Identity forward and all-reduce backward: the entry of a tensor-parallel region.
  bool tp_entry = false;
};

struct Graph {
  std::vector<Value> values;
  std::vector<Node> nodes;
  ValueId input = -1;            // -1: the chunk starts from tokens
  ValueId output = -1;           // -1: the chunk ends in the loss
  std::int64_t batch_bytes = 0;  // of a micro-batch's Batch frame

  [[nodiscard]] const Value& value(ValueId id) const { return values[static_cast<std::size_t>(id)]; }
};

/// The forward graph of a chunk.
Graph build_decoder(const ModelSpec& model, const ParallelPlan& plan, const Chunk& chunk);

/// The forward block, and the backward block of the same graph. `sync_gradients`: the backward
/// block also reduces each bucket once its gradients are complete.
Block forward_block(const Graph& graph, const ParallelPlan& plan, const Chunk& chunk, const std::string& name);
Block backward_block(const Graph& graph, const ParallelPlan& plan, const Chunk& chunk, bool sync_gradients,
                     const std::string& name);

}  // namespace trainyard
