// What one rank does for a whole run: starts from initial or saved weights, takes steps as the launcher grants them,
// and saves its part of checkpoints meanwhile.
#pragma once

#include <cstdint>
#include <vector>

#include "exec/communicator.h"
#include "exec/control_channel.h"
#include "exec/corpus.h"
#include "exec/saved_state.h"
#include "models/program/program.h"

namespace trainyard::exec {

/// The same for all ranks.
struct RankJob {
  const StepProgram* program = nullptr;
  const Corpus* corpus = nullptr;
  std::uint64_t seed = 1;
  /// Where it goes on from; null: initial weights.
  const SavedState* resume = nullptr;
  /// Where ranks meet when Gloo connects them; empty: the mesh does.
  std::string gloo_folder;
  DeviceKind device = DeviceKind::Cpu;
  /// On GPUs: sums in group order, the same bits wherever ranks are.
  bool strict_sums = false;
  /// On GPUs: what is the same in every step is queued as one graph.
  bool graphs = false;
};

// Messages, as JSON objects with a "type".
//
// From the launcher:
//   run       until: take steps until so many are done; timed: the step of which "times" may be asked
//   save      folder: snapshot the state as it is now, write it, say "saved"
//   times     say when the ops of the last step ran
//   end       leave
// From a rank:
//   ready     arena_bytes
//   step      step, loss, grad_norm, begin_ns, end_ns
//   snapshot  stall_ns: training goes on
//   saved     file (null when this rank has nothing to save), bytes, crcs, or problem
//   times     times: [item, op, begin_ns, end_ns], in several messages; the last has last: true, rss_bytes and
//   device_bytes problem   what keeps this rank from going on

/// Runs until the launcher says so or is gone; returns the process's exit code.
int run_rank(const RankJob& job, std::int64_t rank, std::vector<int> mesh_sockets, ControlChannel channel);

}  // namespace trainyard::exec
