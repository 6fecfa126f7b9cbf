// Runs a computation in a forked child and brings its bytes back: SimGrid allows one simulation per process, and
// forking after everything is built costs a few milliseconds.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "models/base/status.h"

namespace trainyard {

/// The bytes that `work` returns, computed in a child of this process.
Result<std::vector<std::uint8_t>> in_child_process(const std::function<std::vector<std::uint8_t>()>& work);

}  // namespace trainyard
