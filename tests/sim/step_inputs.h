// What tests of the step simulator share.
#pragma once

#include <string>

#include "models/cost/cost.h"

namespace trainyard::testing {

/// H100s under the stack of software that nobody has fitted.
inline CostModel h100() {
  const std::string profiles = std::string(TRAINYARD_SOURCE_DIR) + "/scenarios/profiles/";
  return CostModel(load_hardware_profile(profiles + "h100-sxm.json").value(),
                   load_stack_profile(profiles + "stack-default.json").value());
}

}  // namespace trainyard::testing
