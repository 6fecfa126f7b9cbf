// A request to end in an orderly way, as Ctrl-C makes it. Whoever works for long asks now and then, keeps what is
// done, and returns stopped().
#pragma once

#include "models/base/status.h"

namespace trainyard {

/// From now on stop_requested() is true. Safe in a signal handler.
void request_stop();
bool stop_requested();

/// What work that was stopped returns.
Problem stopped();

}  // namespace trainyard
