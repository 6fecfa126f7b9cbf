#include "models/base/units.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

namespace trainyard {

std::int64_t to_ns(double seconds) {
  constexpr double kMost = 4e18;  // a century, to which as much can be added
  return std::llround(std::clamp(seconds * kNsPerS, -kMost, kMost));
}

std::string format_duration(double seconds) {
  const double magnitude = std::fabs(seconds);
  if (magnitude >= 48 * 3600)
    return fmt::format("{:.0f} d {:.0f} h", std::floor(seconds / 86400), std::floor(std::fmod(seconds, 86400) / 3600));
  if (magnitude >= 5400)
    return fmt::format("{:.0f} h {:.0f} min", std::floor(seconds / 3600), std::floor(std::fmod(seconds, 3600) / 60));
  if (magnitude >= 120) return fmt::format("{:.1f} min", seconds / 60);
  if (magnitude >= 10) return fmt::format("{:.1f} s", seconds);
  if (magnitude >= 1) return fmt::format("{:.2f} s", seconds);
  if (magnitude >= 1e-3) return fmt::format("{:.3g} ms", seconds * 1e3);
  if (magnitude == 0) return "0 s";
  return fmt::format("{:.3g} us", seconds * 1e6);
}

std::string format_bytes(double bytes) {
  const char* names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  int unit = 0;
  while (std::fabs(bytes) >= 1024 && unit < 5) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", bytes, unit == 0 ? 0 : 1, names[unit]);
}

std::string format_count(std::int64_t count) {
  std::string digits = std::to_string(count < 0 ? -count : count);
  for (int i = static_cast<int>(digits.size()) - 3; i > 0; i -= 3) digits.insert(static_cast<std::size_t>(i), 1, ',');
  return fmt::format("{}{}", count < 0 ? "-" : "", digits);
}

}  // namespace trainyard
