// Who has to be able to talk to whom on devices, before the first step: a library such as NCCL needs communicators made
// by all their members together.
#pragma once

#include <cstdint>
#include <vector>

#include "exec/communicator.h"
#include "models/program/program.h"

namespace trainyard::exec {

/// Messages from one rank to another that keep their order: activations, or gradients. Each has a communicator of its
/// own, because messages of one communicator wait for one another on a device.
struct MessageChannel {
  std::int64_t sender = 0, receiver = 0;
  bool backward = false;
  auto operator<=>(const MessageChannel&) const = default;
};

struct DeviceTeams {
  /// Of more than one rank, each once. All ranks list those that they share in one order. That of Stream::Pp is for
  /// batches of transfers whose moves have to go on together, whichever of them can: one communicator moves them all.
  std::vector<Team> teams;
  std::vector<MessageChannel> channels;
};

DeviceTeams device_teams(const StepProgram& program, std::int64_t rank);

/// Of a transfer's key: see Rank::transfer.
inline bool is_backward(const Move& move) { return move.key % 2 != 0; }

}  // namespace trainyard::exec
