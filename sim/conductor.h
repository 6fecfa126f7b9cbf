// The step interpreter: moves every class of ranks through its program in one discrete-event loop. Kernels and whatever
// stays inside a node are events of its own queue; what shares fabric links goes through FlowNetwork.
#pragma once

#include "models/base/status.h"
#include "models/cost/cost.h"
#include "models/program/program.h"
#include "models/spec/cluster_spec.h"
#include "sim/fold.h"
#include "sim/step_simulator.h"

namespace trainyard {

/// Runs one step over the classes of `fold`. Once per process, as FlowNetwork is. `contention`: by class, how many
/// times as long its kernels take for the collectives beside them; empty: 1.
Result<StepResult> conduct(const StepProgram& program, const ClusterSpec& cluster, const CostModel& cost,
                           const StepOptions& options, const Fold& fold, const std::vector<double>& contention = {});

}  // namespace trainyard
