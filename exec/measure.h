// How fast ranks of this machine talk: what the simulator is told of it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "exec/communicator.h"
#include "models/base/status.h"
#include "models/cost/cost.h"

namespace trainyard::exec {

struct CollectiveTime {
  Collective kind = Collective::AllReduce;
  std::int64_t bytes = 0;  // of the larger buffer, as Op::payload_bytes counts
  double seconds = 0;  // median over repeats, from the start of the last rank to the end on the last one; on GPUs of
                       // one in a row of several
};

struct TransferTime {
  std::int64_t bytes = 0;
  double seconds = 0;
};

struct CommunicationTimes {
  std::vector<CollectiveTime> collectives;
  std::vector<TransferTime> transfers;  // one way, between ranks 0 and 1
};

/// Runs collectives and transfers of these sizes between `ranks` processes: over the mesh, or over NCCL between as many
/// GPUs.
Result<CommunicationTimes> measure_communication(std::int64_t ranks, const std::vector<std::int64_t>& sizes,
                                                 DeviceKind on = DeviceKind::Cpu);

/// Bytes/s between pinned memory of the host and a GPU.
struct CopyRates {
  double to_device = 0, to_host = 0;
};
Result<CopyRates> measure_copies(int gpu);

}  // namespace trainyard::exec
