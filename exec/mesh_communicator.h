// The communicator between processes of one machine: a full mesh of connected sockets, polled by the rank's own thread.
// No listening port, no threads; a wait can be ended at any time.
#pragma once

#include <memory>
#include <vector>

#include "exec/communicator.h"

namespace trainyard::exec {

/// `sockets`: by rank, connected and owned from here on; -1 for this rank itself.
std::unique_ptr<Communicator> mesh_communicator(std::int64_t rank, std::vector<int> sockets);

/// Connected sockets between every two of `ranks` processes that are about to be forked: [rank][peer].
Result<std::vector<std::vector<int>>> connect_mesh(std::int64_t ranks);

}  // namespace trainyard::exec
