// Exit codes, the same for every command; README.md lists them for users.
#pragma once

namespace trainyard::cli {

enum ExitCode : int {
  kOk = 0,
  kInternal = 1,
  kInvalidInput = 2,       // usage, or a file that breaks a rule
  kInfeasible = 3,         // a well-formed plan that cannot run
  kMissingCapability = 4,  // this build or machine lacks what was asked for
  kNotRecovered = 5,       // the job was still down at the end
  kParityMismatch = 6,
  kInterrupted = 130,
};

}  // namespace trainyard::cli
