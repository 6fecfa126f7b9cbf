#include "models/base/stop.h"

#include <atomic>

namespace trainyard {

namespace {

std::atomic<bool> requested{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler sets it");

}  // namespace

void request_stop() { requested.store(true); }
bool stop_requested() { return requested.load(); }

Problem stopped() { return {"", "", "", "stopped on request", "", ProblemKind::Stopped}; }

}  // namespace trainyard
