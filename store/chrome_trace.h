// Chrome trace JSON, as Perfetto (ui.perfetto.dev), chrome://tracing and trace_processor read it.
//
// One process per rank class, numbered by its representative rank; one thread per stream. Slices are
// complete events ("X"). On one track they must nest, so where two of a stream overlap without nesting the
// second goes to a further track, "dp (2)". What happened to the run as a whole is a process of its own,
// "run": recoveries with their phases as slices, events as instants. Both lie on one time axis that
// starts with the run; the step whose timeline was kept is shown as if it were the first.
//
// Format: "Trace Event Format", Google, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <vector>

#include "models/base/status.h"
#include "store/run_reader.h"

namespace trainyard::store {

/// Process number of the run as a whole: above any rank.
constexpr std::int64_t kRunProcess = 1'000'000'000;

struct ChromeTraceCounts {
  std::int64_t processes = 0;
  std::int64_t tracks = 0;
  std::int64_t slices = 0;
  std::int64_t instants = 0;
  bool stopped = false;  // on request: the text is not complete
};

/// Told the fraction that is written; returns false to stop.
using ExportProgress = std::function<bool(double fraction)>;

/// Writes the run as one JSON object, with the rank classes of `only`, or all when that is empty. A Problem says what
/// of the store could not be read; whether the stream took the text is for the caller to see.
Result<ChromeTraceCounts> export_chrome(RunReader& reader, const Run& run, std::ostream& out,
                                        const std::vector<std::int64_t>& only = {},
                                        const ExportProgress& progress = {});

}  // namespace trainyard::store
