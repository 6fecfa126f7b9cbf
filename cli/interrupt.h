// Ctrl-C and SIGTERM.
#pragma once

namespace trainyard::cli {

/// From now on they ask for an orderly end (models/base/stop.h): children end, the store gets what there is, and
/// the exit code is 130. The second one kills; the store bears that too.
void end_in_order_on_signals();

}  // namespace trainyard::cli
