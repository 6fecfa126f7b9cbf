// Where the tokens of a sequence lie under context parallelism: for programs, kernels and interpreters alike.
#pragma once

#include <cstdint>

namespace trainyard {

/// Global position of local position `t` on context rank `cp_index`. The sequence is cut in 2*cp
/// slices and rank r holds slices r and 2*cp-1-r, so that causal work is even.
inline std::int64_t context_position(std::int64_t cp, std::int64_t cp_index, std::int64_t sequence_length,
                                     std::int64_t t) {
  if (cp == 1) return t;
  const std::int64_t slice = sequence_length / (2 * cp);
  return t < slice ? cp_index * slice + t : (2 * cp - 1 - cp_index) * slice + (t - slice);
}

}  // namespace trainyard
