// ALiBi's slopes (Press, Smith and Lewis, arXiv 2108.12409): for programs, kernels and interpreters alike.
#pragma once

#include <cmath>
#include <cstdint>

namespace trainyard {

/// By which head `head` of `heads` lowers a score for each token between query and key: powers of 2^(-8/n) where the
/// number of heads n is a power of two; else those of the power of two below, then every other one of that above.
inline double alibi_slope(std::int64_t head, std::int64_t heads) {
  std::int64_t below = 1;
  while (2 * below <= heads) below *= 2;
  const bool own = head < below;
  const double n = static_cast<double>(own ? below : 2 * below);
  const std::int64_t i = own ? head : 2 * (head - below);
  return std::exp2(-8.0 / n * static_cast<double>(i + 1));
}

}  // namespace trainyard
