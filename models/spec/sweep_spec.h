// Sweep: one scenario under many policies and many seeds. What `trainyard sim sweep` takes.
//
// Policies are varied over a grid: each of them with every combination of the values under "vary". Every variation is
// simulated under the same seeds, so that two of them can be compared fault by fault.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "models/spec/scenario.h"

namespace trainyard {

/// A key of a policy, "spare_nodes" or "spares.hot", and the values that it takes.
struct SweepAxis {
  std::string key;
  std::vector<std::string> values;  // as JSON
  std::string file, path;           // where it was written
};

struct SweepSpec {
  std::string file;  // where it was read from
  std::string name;
  std::string scenario;  // file, as seen from the working directory
  std::int64_t seeds = 20;
  std::optional<std::uint64_t> first_seed;  // unset: the scenario's
  std::optional<OtherPolicies> policies;    // unset: the scenario's
  std::vector<SweepAxis> vary;
};

inline constexpr std::int64_t kMaxSweepSeeds = 100'000;
inline constexpr std::int64_t kMaxSweepVariations = 10'000;

/// Reads a sweep file; a scenario file is a sweep of that scenario.
Result<SweepSpec> load_sweep(const std::string& file);

/// "checkpoint_interval_s=30,60": as written on the command line. It takes the place of an axis of the same key.
Problems add_axis(const std::string& text, SweepSpec& sweep);

/// One policy with one combination of values.
struct Variation {
  std::string name;     // "grok-90s,checkpoint_interval_s=60"
  std::string policy;   // "grok-90s"
  std::string changes;  // the varied keys as a JSON object: "{}" without any
  std::string written;  // the whole policy as JSON
};

struct Sweep {
  SweepSpec spec;
  /// Its policies are the variations, one for one.
  Scenario scenario;
  std::vector<Variation> variations;
  std::vector<std::string> policies;  // as JSON, before they are varied

  [[nodiscard]] std::uint64_t first_seed() const { return spec.first_seed.value_or(scenario.seed); }
};

/// Loads the scenario and makes the variations. Each obeys every rule that a scenario's own policies obey.
Result<Sweep> expand(const SweepSpec& spec);

}  // namespace trainyard
