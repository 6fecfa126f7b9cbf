// Units: names end in them (_ns _s _bytes _flops _bytes_per_s). Simulated time that is stored
// or hashed is int64 nanoseconds; inside a computation it is double seconds.
#pragma once

#include <cstdint>
#include <string>

namespace trainyard {

constexpr double kNsPerS = 1e9;
constexpr std::int64_t kGiB = std::int64_t{1} << 30;
constexpr std::int64_t kMiB = std::int64_t{1} << 20;

/// Seconds to nanoseconds, rounded to nearest.
std::int64_t to_ns(double seconds);

/// "1.44 s", "23.1 ms", "7 d 0 h", "1 h 30 min".
std::string format_duration(double seconds);
/// "62.3 GiB".
std::string format_bytes(double bytes);
/// "98,304".
std::string format_count(std::int64_t count);

}  // namespace trainyard
