// Assertions that stay on in release builds. They guard against our own mistakes; bad user
// input is reported through Problems (see status.h) and never reaches one of these.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace trainyard {

[[noreturn]] inline void check_failed(const char* expression, const char* file, int line, const char* why) {
  std::fprintf(stderr, "trainyard: internal error at %s:%d: %s (%s)\n", file, line, why, expression);
  std::abort();
}

}  // namespace trainyard

#define TY_CHECK(condition, why) \
  ((condition) ? static_cast<void>(0) : ::trainyard::check_failed(#condition, __FILE__, __LINE__, why))
