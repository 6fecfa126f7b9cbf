// Many nights, and what to do with one that goes wrong: cut it down to what it takes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "sim/fuzz/night.h"
#include "sim/fuzz/night_world.h"

namespace trainyard::fuzz {

struct Violation {
  std::uint64_t seed = 0;
  std::string what;
  double at_s = 0;
  bool operator==(const Violation&) const = default;
};

/// What all nights together came to. The same for the same seeds, however many threads play them.
struct FuzzResult {
  std::int64_t nights = 0;  // played; fewer than asked for when stopped
  std::vector<Violation> violations;
  std::vector<std::int64_t> transitions;  // by row of recovery::transition_table()
  std::vector<std::int64_t> mischief;     // of each night, ascending
  std::int64_t recoveries = 0, checkpoints = 0, takeovers = 0, messages = 0;
  /// Slowest return to a durable checkpoint after the mischief.
  double worst_calm_recovery_s = 0;
  std::uint64_t action_hash = 0;

  [[nodiscard]] std::int64_t median_mischief() const;
  [[nodiscard]] std::int64_t transitions_covered() const;
};

struct FuzzOptions {
  std::uint64_t first_seed = 1;
  std::int64_t seeds = 1000;
  int threads = 0;  // 0: one per processor
  /// Ends after the nights that are under way once this many went wrong; 0: never.
  std::int64_t stop_after = 0;
  /// Called in the calling thread a few times a second, with the number of nights played.
  std::function<void(std::int64_t played)> on_wait;
};

FuzzResult fuzz(const FuzzOptions& options);

/// The shortest night found in which the same invariant is violated: mischief is left out (delta
/// debugging: Zeller 2002, ddmin), and knobs set back to their defaults.
/// `played`: how many nights that took.
Night minimise(const Night& night, std::int64_t* played = nullptr);

}  // namespace trainyard::fuzz
