// The communicator over NCCL: what it starts is queued on the device's streams, by the team's stream. Part of the GPU
// plug-in.
//
// Fast mode hands reductions to NCCL, whose sums are the same bits only on the same GPUs in the same places. Strict
// mode sums in group order, as the mesh does: all ranks exchange blocks, each adds up its own, all gather.
#pragma once

#include <memory>

#include "exec/device_teams.h"
#include "kernels/device.h"

namespace trainyard::exec {

struct NcclSetup {
  std::int64_t rank = 0;
  DeviceTeams teams;
  bool strict = false;
  double deadline_s = 60;  // for communicators to come up, and for work to be queued
};

/// Connects to the other members of all teams, who meet through `bootstrap` and call it too. Throws
/// kernels::DeviceError. All three outlive it.
std::unique_ptr<Communicator> connect_nccl(const NcclSetup& setup, kernels::Device& device, Communicator& bootstrap);

/// As the plug-in exports it: null, with the reason as text in `problem`, where that throws.
using ConnectNccl = Communicator* (*)(const NcclSetup& setup, kernels::Device& device, Communicator& bootstrap,
                                      char* problem, int problem_size);
inline constexpr const char* kConnectNcclSymbol = "trainyard_connect_nccl";

}  // namespace trainyard::exec
