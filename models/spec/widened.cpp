#include "models/spec/widened.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

namespace trainyard {

Result<ModelSpec> widened(const ModelSpec& model, std::int64_t width, Parametrization parametrization) {
  const std::int64_t group = model.num_attention_heads / model.num_key_value_heads;
  ModelSpec out = model;
  out.name = fmt::format("{} {} wide", model.name, width);
  out.hidden_size = width;
  out.num_attention_heads = model.num_attention_heads * width / model.hidden_size;
  out.num_key_value_heads = std::max<std::int64_t>(out.num_attention_heads / group, 1);
  out.intermediate_size =
      std::max<std::int64_t>(std::llround(static_cast<double>(model.intermediate_size) * static_cast<double>(width) /
                                          static_cast<double>(model.hidden_size)),
                             1);
  const bool whole = out.num_attention_heads * model.hidden_size == model.num_attention_heads * width;
  if (width < 1 || !whole || out.num_attention_heads % out.num_key_value_heads != 0)
    return Problem{"", "", fmt::format("{}", width),
                   fmt::format("no whole number of heads makes {} this wide", model.name),
                   fmt::format("use multiples of {}", model.hidden_size / model.num_key_value_heads)};
  if (parametrization == Parametrization::Mup) {
    out.mup = model.mup.value_or(
        MupSpec{model.hidden_size, model.intermediate_size, model.num_attention_heads, model.head_dim});
  } else {
    out.mup.reset();
    const std::int64_t base = model.mup ? model.mup->base_hidden_size : model.hidden_size;
    out.initializer_range *= std::sqrt(static_cast<double>(base) / static_cast<double>(width));
  }
  return out;
}

}  // namespace trainyard
