// In place of gloo_communicator.cpp where Gloo was not found.
#include "exec/gloo_communicator.h"

namespace trainyard::exec {

bool has_gloo() { return false; }

Result<std::unique_ptr<Communicator>> gloo_communicator(const StepProgram& /*program*/, std::int64_t /*rank*/,
                                                        const std::string& /*folder*/) {
  return Problem{"",
                 "",
                 "gloo",
                 "is not part of this build",
                 "install libgloo-dev and build again, or use the mesh",
                 ProblemKind::MissingCapability};
}

}  // namespace trainyard::exec
