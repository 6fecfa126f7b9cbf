// A model at another width, as muP's checks and sweeps vary it.
#pragma once

#include "models/spec/model_spec.h"

namespace trainyard {

enum class Parametrization { Standard, Mup };

/// `model` with hidden_size `width`: as many layers, heads of the same size, their number and the MLP in proportion.
/// The base of muP is the model's own, or else the model as it is. The standard parametrization has initializer_range
/// at the base's width too, from where it falls with the root of the width, for the embedding as well: the variance of
/// initial weights is as 1 / fan in. A problem, without file or path, when no whole number of heads gives that width.
Result<ModelSpec> widened(const ModelSpec& model, std::int64_t width, Parametrization parametrization);

}  // namespace trainyard
