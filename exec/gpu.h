// A GPU for a rank, and how it talks to those of others.
#pragma once

#include <cstdint>
#include <memory>

#include "exec/communicator.h"
#include "exec/device_teams.h"
#include "kernels/device.h"

namespace trainyard::exec {

struct Gpu {
  std::unique_ptr<kernels::Device> device;
  std::unique_ptr<Communicator> mesh;          // over which the GPUs' ranks have met
  std::unique_ptr<Communicator> communicator;  // NCCL's, on the device's streams
  Gpu() = default;
  Gpu(Gpu&&) = default;
  Gpu& operator=(Gpu&&) = default;
  ~Gpu() { communicator.reset(), mesh.reset(), device.reset(); }
};

/// Opens the GPU of this number, with a stream for each of Stream, and connects it with the others of its teams, who
/// call this too.
Result<Gpu> open_gpu(std::int64_t rank, const DeviceTeams& teams, bool strict_sums, std::unique_ptr<Communicator> mesh);

}  // namespace trainyard::exec
