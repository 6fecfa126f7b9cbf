// Joins stores, such as those that the shards of a sweep wrote, into a new one.
//
// Runs keep everything but their ids. Sweeps of one identity become one sweep. What several stores hold alike is kept
// once; a cell that two stores hold with different figures is a Problem that names both, and then there is no new
// store. The stores that are joined are only read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/base/status.h"

namespace trainyard::store {

struct MergeCounts {
  std::int64_t runs = 0, sweeps = 0, cells = 0;
  std::int64_t runs_again = 0, cells_again = 0;  // that another store had too
};

/// Makes the store `out`, which appears whole or not at all. There must be none yet.
Result<MergeCounts> merge(const std::vector<std::string>& files, const std::string& out);

}  // namespace trainyard::store
