#include "cli/version.h"

#include "version_commit.h"

namespace trainyard::cli {

std::string version_number() { return TRAINYARD_VERSION; }
std::string commit_id() { return TRAINYARD_COMMIT; }
std::string version_text() { return version_number() + " (" + commit_id() + ")"; }

}  // namespace trainyard::cli
