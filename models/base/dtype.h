// Types of tensor elements.
#pragma once

#include <cstdint>

namespace trainyard {

enum class Dtype : std::uint8_t { Bf16, F32, F64, I32 };
/// Bytes of one element.
std::int64_t size_of(Dtype dtype);
const char* to_string(Dtype dtype);

}  // namespace trainyard
