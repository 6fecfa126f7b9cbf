// Plays one night: real launcher, controller and agents on a simulated network, cluster and store,
// with the invariants watched from outside, where everything can be seen.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "sim/fuzz/night.h"

namespace trainyard::fuzz {

struct NightResult {
  /// What was violated first; empty if nothing was.
  std::string violation;
  double violation_at_s = 0;
  /// How often each row of recovery::transition_table() was taken.
  std::vector<std::int64_t> transitions;
  std::int64_t mischief = 0;  // of it, what struck before the night was over
  std::int64_t recoveries = 0;
  std::int64_t checkpoints = 0;  // promoted by the store
  std::int64_t takeovers = 0;
  std::int64_t messages = 0;
  /// From the end of the mischief to the next checkpoint in the store.
  double calm_recovery_s = 0;
  /// xxHash64 of all that the controllers did.
  std::uint64_t action_hash = 0;
};

struct PlayOptions {
  /// Called with each line of what happened, as it happens.
  std::function<void(double at_s, const std::string& line)> log;
};

NightResult play(const Night& night, const PlayOptions& options = {});

}  // namespace trainyard::fuzz
