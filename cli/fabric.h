// trainyard fabric stress and sweep, for fabric.cpp.
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

struct SweepOptions {
  std::string file;
  std::string collective = "all_reduce";
  std::vector<std::int64_t> gpus;  // empty: one node, and four
  double least_bytes = 1024, most_bytes = 8.0 * (1LL << 30);
  std::string measured;  // a file of measured all-reduces to compare with; empty: none
};

int sweep_fabric(const SweepOptions& options, const Context& context);
int stress_fabric(const StressOptions& options, const Context& context);

}  // namespace trainyard::cli
