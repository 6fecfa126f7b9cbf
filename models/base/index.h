// Counts are signed in specs, programs and on disk; containers count with std::size_t.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trainyard {

inline std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

}  // namespace trainyard
