// PolicySpec: how recovery is done. The first half are the controller's own knobs; the second
// is how long the world takes to carry out what the controller asks for under this policy.
#pragma once

#include <cstdint>
#include <string>

#include "models/base/status.h"

namespace trainyard {

/// Seconds until a queue pair has retried in vain: 4.096 us * 2^`ib_timeout` * `retries` (InfiniBand specification
/// 11.6.2; NCCL_IB_TIMEOUT, NCCL_IB_RETRY_CNT).
double queue_pair_timeout_s(std::int64_t ib_timeout, std::int64_t retries);

/// Timeouts from the innermost layer to the outermost. Each must be longer than the one below it,
/// or the outer layer kills what the inner one was about to report (torchtitan #2899).
struct DetectionLadder {
  /// A queue pair's retries: 4.096 us * 2^NCCL_IB_TIMEOUT * NCCL_IB_RETRY_CNT. NCCL's defaults.
  double link_s = 30.064771072;
  /// Of them: NCCL_IB_RETRY_CNT.
  std::int64_t ib_retry_cnt = 7;
  double collective_s = 600;
  double process_group_s = 660;
  /// No step done for this long.
  double training_s = 900;
  /// Waiting for all to come to a restart.
  double rendezvous_s = 1800;
};

enum class CheckpointCadence { Fixed, YoungDaly, Adaptive };
/// Where a copy of the training state lies; models/recovery/messages.h says what each survives.
enum class CheckpointTier { Host, Peer, Nvme, Remote };

/// What a policy listens to.
enum class Evidence {
  Timeouts,  // silence and collectives that time out, both after detection_timeout_s: as plain PyTorch does
  All,       // errors, XIDs and links as they are reported; hangs after the collective timeout of the ladder
};

struct CheckpointPolicy {
  CheckpointCadence cadence = CheckpointCadence::YoungDaly;
  /// Every checkpoint goes this deep ...
  CheckpointTier usual_tier = CheckpointTier::Remote;
  /// ... and every n-th on to the remote store.
  std::int64_t permanent_every = 1;
  /// Of a node's NICs, what copies to peers may use: training has the rest.
  double drain_share = 0.1;
  /// Replicas compare hashes of their parameters at each snapshot, and only what they agree on is kept.
  bool hash_vote = false;
};

/// Where spares stand: after the job's nodes, or a like share of them below every leaf switch, where a spare takes a
/// failed node's place and its traffic stays on that leaf.
enum class SparePlacement { Together, PerLeaf };

/// What is ready on the spares, and what it takes to use one that is not hot.
struct SparePolicy {
  SparePlacement placement = SparePlacement::Together;
  /// Of spare_nodes; unset (-1): all. The rest are warm, but for `cold`.
  std::int64_t hot = -1;
  std::int64_t cold = 0;
  /// On top of allocate_s, for a warm spare (processes, device contexts) and a cold one (allocate, boot, image).
  double warm_extra_s = 60;
  double cold_extra_s = 600;
};

/// Going on with fewer data-parallel replicas rather than waiting for spares.
struct ElasticPolicy {
  bool enabled = false;
  std::int64_t min_replicas = 1;
  /// How long a whole replica of hot spares waits before it joins.
  double regrow_patience_s = 60;
};

struct StragglerSpec {
  /// A node is replaced when it makes the job's steps this many times as long; 0: tolerated ...
  double replace_at_slowdown = 0;
  /// ... for this long without a break.
  double patience_s = 300;
};

/// What a node must go through before it holds ranks again.
struct ReadmissionPolicy {
  /// Length of the test after a repair; 0: none.
  double test_s = 0;
  /// Of a lemon: a node ejected `lemon_ejections` times in window_days. 0: there are none.
  double thorough_test_s = 7200;
  std::int64_t lemon_ejections = 0;
  /// Ejected this often in window_days, it never comes back. 0: it always does.
  std::int64_t retire_ejections = 0;
  double window_days = 30;
};

struct PolicySpec {
  std::string name;

  // Knobs of the controller.
  /// Silence of a node after which it is declared dead.
  double detection_timeout_s = 600;
  Evidence evidence = Evidence::Timeouts;
  DetectionLadder timeouts;
  /// Time given to gather symptoms before suspects are named.
  double diagnosis_s = 60;
  /// Productive seconds between two checkpoints. Unset (0): left to the cadence.
  double checkpoint_interval_s = 0;
  /// Time for which the job stands still for each checkpoint.
  double checkpoint_stall_s = 5;
  CheckpointPolicy checkpoints;
  std::int64_t spare_nodes = 0;
  SparePolicy spares;
  ElasticPolicy elastic;
  StragglerSpec stragglers;
  ReadmissionPolicy readmission;
  /// Ejections allowed in one failure domain (a leaf) per hour before a human is paged.
  std::int64_t max_ejections_per_domain_per_hour = 8;
  /// How long before a node's maintenance the job is moved off it.
  double maintenance_lead_s = 600;
  /// A node whose ranks exit this often in an hour is blamed itself.
  std::int64_t exits_before_blame = 2;

  // What the world takes for each action under this policy, in seconds.
  double fence_s = 10;
  double allocate_s = 120;
  double process_start_s = 60;
  double communicators_s = 300;
  /// Beside what the bytes take where the cluster's storage has bandwidths.
  double load_state_s = 120;
  /// Extra time of the first step after a resume: warm-up, allocator, tuner.
  double first_step_s = 60;
  /// Ranks outlive a restart of the job: device memory keeps its state.
  bool in_process_restart = false;
  /// Median of the lognormal repair time of an ejected node, and its sigma.
  double repair_median_s = 14400;
  double repair_sigma = 1;

  /// Sum of the phases from the fault to the first productive second, lost work not counted.
  [[nodiscard]] double recovery_s() const;
};

Problems validate(const PolicySpec& policy, const std::string& path = "$");

}  // namespace trainyard
