// Sanitizers make a test ten times as long: repetitions that only make a net finer are left to ordinary builds.
#pragma once

namespace trainyard::testing {

#if defined(TRAINYARD_SANITIZED)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace trainyard::testing
