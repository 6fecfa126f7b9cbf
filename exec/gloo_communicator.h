// The communicator over Gloo, PyTorch's library for processors: slower than the mesh and harder to end, but written by
// others. It checks the mesh.
#pragma once

#include <memory>
#include <string>

#include "exec/communicator.h"
#include "models/program/program.h"

namespace trainyard::exec {

/// Whether this build has Gloo.
bool has_gloo();

/// Connects to all other ranks of the program, over loopback TCP; they meet in `folder`, which is empty at first.
/// Blocks until all are there. A problem when this build has no Gloo.
Result<std::unique_ptr<Communicator>> gloo_communicator(const StepProgram& program, std::int64_t rank,
                                                        const std::string& folder);

}  // namespace trainyard::exec
