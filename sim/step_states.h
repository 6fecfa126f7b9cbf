// States of a job whose steps take the same time are one state.
//
// A run of months comes to thousands of combinations of slow parts and of nodes away from home. Each would be a step to
// simulate, and one slow GPU among 100,000 splits the job into hundreds of classes of ranks: ten seconds. A small job
// is simulated as it is. For a large one, the answers to simpler questions are put together:
//
// - How much does a stage slow a step when a GPU or a NIC of it is slow, on switches that never fill up? Ranks that
//   meet in collectives of every layer (tensor, context, expert parallel) go at the pace of the slowest, so all of them
//   are made as slow, and a GPU and a NIC that are slow among them count both. Others of the stage only wait for them
//   at every gradient sync, so the slowest count alone, wherever they stand. Between factors that were simulated, times
//   are interpolated. Of several slow stages the slowest counts whole: a pipeline goes at its pace; the others count
//   only as often as the pipeline fills and drains.
// - How much does a node away from home? Only where a tier of switches can fill up; and since replicas wait for the
//   slowest here too, one node stands for all.
// - How much do all NICs, when copies of a checkpoint take a share of them? As much more in any state.
//
// How far that is off is measured in tests/sim/step_states_test.cpp against the exact simulation.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "models/plan/mesh.h"
#include "models/spec/cluster_spec.h"
#include "sim/job_state.h"

namespace trainyard {

/// A step to simulate.
struct StepQuestion {
  JobState state;
  /// On switches that never fill up.
  bool without_tiers = false;

  /// Of questions with one answer the same.
  [[nodiscard]] std::string key() const;
};

class StepStates {
 public:
  /// A job of so many ranks is simulated in a fraction of a second, whatever its state.
  static constexpr std::int64_t kExactRanks = 1024;

  /// `payload_rate`: bytes/s of payload that a NIC moves in one direction. `exact`: states are simulated as they are.
  /// Costs about what folding the job costs.
  StepStates(const ParallelPlan& plan, const ClusterSpec& cluster, double payload_rate, bool exact);

  /// A state that takes the same time, with as little in it as there can be: of a large job's, the slowest part of each
  /// kind among those of a stage who go at one pace and are not outdone by others, and one node away from home.
  [[nodiscard]] JobState reduced(const JobState& state) const;

  /// Seconds that the step takes which is asked about.
  using Ask = std::function<double(const StepQuestion&)>;
  /// Seconds of a step in this reduced state; in an empty one, of a healthy job.
  [[nodiscard]] double step_s(const JobState& reduced, const Ask& ask) const;

 private:
  [[nodiscard]] std::int64_t rank_of(const InjectedFault& part) const;
  [[nodiscard]] std::int64_t stage_of(std::int64_t rank) const;
  /// Ranks of a stage with the same number here wait for each other in every layer.
  [[nodiscard]] std::int64_t pace_of(std::int64_t rank) const;
  [[nodiscard]] double slowdown(const std::vector<InjectedFault>& slowest, const Ask& ask) const;
  [[nodiscard]] double stage_s(std::int64_t stage, const InjectedFault& part, const Ask& ask) const;
  [[nodiscard]] StepQuestion slow_stage(std::int64_t stage, InjectedKind kind, double factor, double loss) const;
  [[nodiscard]] InjectedFault fault_of(std::int64_t rank, InjectedKind kind, double factor, double loss) const;
  [[nodiscard]] std::vector<MovedNode> away(const JobState& state) const;

  Mesh mesh_;
  ClusterSpec cluster_;
  bool exact_;
  std::int64_t tp_, cp_, nodes_;
  /// Some tier of switches can be a bottleneck.
  bool tiers_matter_ = false;
  /// So many may be away from home, where no spares stand among the job's, and never fill a tier up.
  std::int64_t movable_nodes_ = 0;
  /// Consecutive data-parallel indices over which experts are spread.
  std::int64_t dp_together_;
  /// A stage works so often in a step, once of which the pipeline fills.
  double passes_;
};

}  // namespace trainyard
