// Training a program that has no golden: random weights and tokens, a function of their names alone,
// so that any two plans of one job start alike.
#pragma once

#include <vector>

#include "models/base/random.h"
#include "tests/program/reference.h"

namespace trainyard {

/// Every tensor that the sharding table names: matrices small, vectors around 0.7.
Weights random_weights(const StepProgram& program);

GoldenTensor random_tokens(const ModelSpec& model, const ParallelPlan& plan);

struct Run {
  std::vector<Reference::Step> steps;
  Weights gradients;  // of the first step
  Weights weights;    // after the last
};

/// `steps` steps of a program on random weights and tokens. Throws as Reference does.
Run train(const StepProgram& program, int steps, std::uint64_t seed, Compute compute = trainyard::compute);

/// True when two runs are equal to the bit.
bool same_bits(const Run& a, const Run& b);

/// A plan drawn from the whole space that lowering covers; it needs as many layers as chunks (8).
ParallelPlan random_plan(const ModelSpec& model, RandomStream& random);

/// "tiny-llama tp2 cp1 ...", to name a case that fails.
std::string describe(const ModelSpec& model, const ParallelPlan& plan);

}  // namespace trainyard
