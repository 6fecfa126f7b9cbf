// A set of published training runs: reads the rows, and turns each into a scenario or names the reason why not.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "models/base/status.h"
#include "models/published/published_run.h"

namespace trainyard {

/// A row that cannot be simulated.
struct SkippedRow {
  std::string id, source, reason;
};

struct PublishedSet {
  std::size_t rows = 0;
  std::vector<PublishedRun> runs;
  std::vector<SkippedRow> skipped;
};

/// Two forms: a list of rows, each an object in which absent and null mean unknown; or an object whose `groups` are
/// lists of such `rows` with what they have in `common`. Keys that are not needed are not looked at: sets are made by
/// others. Problems name a file that cannot be read, and rows whose values are no values of their key.
Result<PublishedSet> load_published_set(const std::string& file);

}  // namespace trainyard
