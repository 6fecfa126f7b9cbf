// JSON to each spec. Every reader reports all problems and returns what it could read.
#pragma once

#include "models/plan/parallel_plan.h"
#include "models/spec/cluster_spec.h"
#include "models/spec/fault_spec.h"
#include "models/spec/json_reader.h"
#include "models/spec/model_spec.h"
#include "models/spec/policy_spec.h"
#include "models/spec/training_spec.h"
#include "models/spec/validation_spec.h"

namespace trainyard {

void read_model(ObjectReader& from, ModelSpec& model);
void read_cluster(ObjectReader& from, ClusterSpec& cluster);
void read_faults(ObjectReader& from, FaultSpec& faults);
void read_policy(ObjectReader& from, PolicySpec& policy);
void read_plan(ObjectReader& from, ParallelPlan& plan);
void read_training(ObjectReader& from, TrainingSpec& training);
void read_validation(ObjectReader& from, ValidationSpec& validation);

}  // namespace trainyard
