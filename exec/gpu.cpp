#include "exec/gpu.h"

#include <fmt/format.h>

#include <array>

#include "exec/nccl/nccl_communicator.h"
#include "kernels/open_device.h"

namespace trainyard::exec {

Result<Gpu> open_gpu(std::int64_t rank, const DeviceTeams& teams, bool strict_sums,
                     std::unique_ptr<Communicator> mesh) {
  Gpu gpu;
  gpu.mesh = std::move(mesh);
  Result<std::unique_ptr<kernels::Device>> device = kernels::open_cuda_device(static_cast<int>(rank), kStreamCount);
  if (!device) return device.problems();
  gpu.device = std::move(device).value();
  const Result<void*> connect = kernels::cuda_symbol(kConnectNcclSymbol);
  if (!connect) return connect.problems();
  std::array<char, 1024> problem{};
  gpu.communicator.reset(reinterpret_cast<ConnectNccl>(connect.value())(
      {rank, teams, strict_sums}, *gpu.device, *gpu.mesh, problem.data(), static_cast<int>(problem.size())));
  if (!gpu.communicator)
    return Problem{fmt::format("rank {}", rank), "", "", problem.data(), "see `trainyard doctor`", ProblemKind::Failed};
  return gpu;
}

}  // namespace trainyard::exec
