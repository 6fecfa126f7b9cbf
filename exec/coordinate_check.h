// How large activations are, step by step: what a coordinate check of muP looks at (Yang et al., Tensor Programs V,
// appendix D.1).
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "exec/corpus.h"
#include "models/program/program.h"

namespace trainyard::exec {

/// Where activations are looked at: what the embedding gives, what attention and the MLP of the last layer add to the
/// residual stream, and the logits as the loss sees them.
enum class Coordinate : std::uint8_t { Embedding, Attention, Mlp, Logits };
inline constexpr std::size_t kCoordinateCount = 4;
const char* to_string(Coordinate coordinate);

/// By Coordinate: mean |x| over a step's tokens and features.
using Magnitudes = std::array<double, kCoordinateCount>;

/// Takes `steps` optimizer steps in this process and says the magnitudes of each. The program is for one rank, without
/// recompute.
Result<std::vector<Magnitudes>> measure_coordinates(const StepProgram& program, const Corpus& corpus,
                                                    std::uint64_t seed, std::int64_t steps);

}  // namespace trainyard::exec
