// The time of a process, which never goes back; only differences mean anything.
#pragma once

#include <chrono>
#include <cstdint>

namespace trainyard::exec {

inline std::int64_t now_ns() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace trainyard::exec
