// The sharding table: which parameters a chunk holds, how each is split over tp and ep, and in
// which bucket it is synchronised. Everything that knows a Hugging Face name is here.
#pragma once

#include <cstdint>
#include <string>

#include "models/program/program.h"

namespace trainyard {

/// A chunk of `layers` decoder layers from `first_layer` on, with its buckets laid out.
/// Buckets run from the last layer to the first: the order in which gradients become ready.
Chunk make_chunk(const ModelSpec& model, const ParallelPlan& plan, std::int64_t model_chunk, std::int64_t first_layer,
                 std::int64_t layers);

/// Storage type of parameters and activations, of gradients, and of optimizer state.
Dtype param_dtype(const ParallelPlan& plan);
Dtype grad_dtype(const ParallelPlan& plan);
Dtype state_dtype(const ParallelPlan& plan);

std::int64_t group_size(const ParallelPlan& plan, Group group);

/// Names of the parameters of a decoder layer, shared by this table and the graph. `layer` counts
/// from the chunk's first layer, so that chunks of equal shape have equal names.
std::string layer_param(std::int64_t layer, const char* what);

/// Bytes of a chunk's Params, Grads and Optimizer frames.
std::int64_t params_bytes(const Chunk& chunk, const ParallelPlan& plan);
std::int64_t grads_bytes(const Chunk& chunk, const ParallelPlan& plan);
std::int64_t optimizer_bytes(const Chunk& chunk, const ParallelPlan& plan);

/// Bytes from a bucket's master weights to its first moment, and from there to the second.
std::int64_t optimizer_stride_bytes(const Bucket& bucket, const ParallelPlan& plan);

/// Elements of the bucket's gradient buffer on one rank: the shard when gradients are reduced
/// with every micro-batch, else all.
std::int64_t grad_elements(const Bucket& bucket, const ParallelPlan& plan);

/// True when a rank stores its shard of the bucket's parameters only, and passes gather it (ZeRO 3).
bool params_sharded(const Bucket& bucket, const ParallelPlan& plan);
/// Elements of the bucket's parameters that a rank stores.
std::int64_t param_elements(const Bucket& bucket, const ParallelPlan& plan);

/// True when gradients are summed over the bucket's group with every micro-batch (from ZeRO 2
/// on, where there are shards). Under hybrid sharding that is all of it: within the shard group, then over copies.
bool reduces_every_micro_batch(const Bucket& bucket, const ParallelPlan& plan);

}  // namespace trainyard
