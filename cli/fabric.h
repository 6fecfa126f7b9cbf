// trainyard fabric stress, for fabric.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/commands.h"

namespace trainyard::cli {

struct StressOptions {
  std::string file;
  std::vector<std::string> faults;  // names of modes; empty: some of each kind
  double loss = 1e-3, factor = 2, duration_s = 1;
  std::int64_t targets = 4;  // 0: all that differ
  std::uint64_t seed = 1;
};

int stress_fabric(const StressOptions& options, const Context& context);

}  // namespace trainyard::cli
