// A night: a small cluster, a policy, a network, and all that goes wrong with them, written down
// so that it can be played again, cut down and kept.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "models/base/status.h"
#include "models/recovery/launcher.h"

namespace trainyard::fuzz {

enum class MischiefKind : std::uint8_t {
  NodeCrash,      // the node is off for for_s, then boots, without its ranks, memory and temperature
  RankCrash,      // the ranks of the node exit
  Freeze,         // the ranks stand still for for_s
  AgentRestart,   // the agent starts anew; its ranks end with it
  CutOff,         // no mail between node and launcher for for_s
  LinkDown,       // the node's peers cannot reach it for for_s
  LeafFlap,       // the same for a whole failure domain
  LauncherCrash,  // in the middle of its next `count` outputs; another starts after for_s
  StoreOutage,    // the store answers nobody for for_s
  Corrupt,        // silent: the node's parameters change
  Slow,           // steps take `factor` times as long for for_s
  Xid,            // the driver logs `count`; true or not
  FalseBlame,     // `other` names the node in a communicator error that is not its fault
  Maintenance,    // the node will be switched off in for_s, and says so
  Stale,          // mail of the last hour arrives again: `count` pieces of it
  Refusal,        // the node refuses the next `count` pieces of work
  Deafness,       // the node loses the next `count` requests
  DiskFull,       // the node writes no shards for for_s
};
const char* to_string(MischiefKind kind);

struct Mischief {
  double at_s = 0;
  MischiefKind kind = MischiefKind::NodeCrash;
  std::int64_t node = 0;
  std::int64_t other = 0;
  double for_s = 0;
  double factor = 1;
  std::int64_t count = 1;
};

/// The job, the policy, the network and how long things take. Times in seconds.
struct NightKnobs {
  // The job and its cluster.
  std::int64_t slots = 4;
  std::int64_t replicas = 1;  // that the job can lose and take back; 1: it cannot shrink
  std::int64_t hot_spares = 2, warm_spares = 0, cold_spares = 0;
  std::int64_t nodes_per_domain = 4;
  bool spares_per_leaf = false;  // else they stand after the job's nodes

  // The policy.
  std::int64_t min_replicas = 1;
  std::int64_t keep_hot = 0;
  std::int64_t max_ejections_per_domain = 2;
  double ejection_window_s = 3600;
  std::int64_t lemon_ejections = 0, retire_ejections = 0;
  bool readmission_test = true;
  bool hash_vote = false;
  bool adaptive_cadence = false;
  std::int64_t usual_tier = 4;  // as recovery::Tier counts: 1 host ... 4 remote
  std::int64_t permanent_every = 1;
  double checkpoint_interval_s = 120;
  double replace_at_slowdown = 0, straggler_patience_s = 120;
  double regrow_patience_s = 60, maintenance_lead_s = 120;
  double diagnosis_s = 3, deadline_s = 120, answer_s = 100, page_retry_s = 1800;
  double detection_s = 50, training_s = 200, lease_s = 60, retry_s = 10;

  // The network between launcher, agents and store.
  double delay_s = 0.01;  // median; lognormal
  double delay_sigma = 0.5;
  double loss = 0, repeat = 0;  // of each piece of mail

  // The nodes.
  double step_s = 5, heartbeat_s = 15;
  double link_timeout_s = 30, collective_timeout_s = 120;
  double stop_s = 1, promote_s = 5, warm_extra_s = 20, cold_extra_s = 60, start_s = 5, connect_s = 5, load_s = 5;
  double warm_up_s = 5, test_s = 60, repair_s = 600, human_s = 900;
  double hash_s = 1, write_peer_s = 2, write_nvme_s = 5, write_remote_s = 20;
  /// Probability that a repaired node still has its fault.
  double bad_repair = 0;

  /// Mischief happens before this; then nothing does, and the job must get going again within calm_s.
  double mischief_ends_s = 3600;
  double calm_s = 9000;

  [[nodiscard]] std::int64_t spares() const { return hot_spares + warm_spares + cold_spares; }
  /// Slots whose shards make up one copy of the state.
  [[nodiscard]] std::int64_t shards() const { return slots / replicas; }
  /// By node, where it stands.
  [[nodiscard]] std::vector<std::int64_t> places() const;
};

struct Night {
  std::uint64_t seed = 1;
  NightKnobs knobs;
  std::vector<Mischief> mischief;  // in order of time
};

/// A night as the seed has it: every knob and every fault drawn.
Night draw_night(std::uint64_t seed);

/// The night with one knob at its default, for each that is not, where the night then still makes sense.
std::vector<Night> plainer(const Night& night);

recovery::LauncherConfig launcher_config(const NightKnobs& knobs);

/// {"schema": 1, "seed", "knobs": {...}, "mischief": [...]}; knobs at their defaults are left out.
nlohmann::ordered_json to_json(const Night& night);
Result<Night> night_from_json(const nlohmann::json& json, const std::string& file);

}  // namespace trainyard::fuzz
