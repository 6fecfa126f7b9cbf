// Symptoms: what can be seen of a fault. Derived from the truth, and never carrying it: whoever gets these cannot tell
// a lost packet from a lost machine, but by their pattern. Some come late, twice, of the wrong node, or not at all.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "models/base/random.h"
#include "models/faults/fault_source.h"

namespace trainyard::faults {

enum class SymptomKind : std::uint8_t {
  HeartbeatLost,      // the node falls silent
  Xid,                // the driver of one GPU logs `xid`
  CommunicatorError,  // a communicator at `slot` fails with an error, and may name a peer
  CollectiveTimeout,  // a rank at `slot` has waited too long in a collective, and names nobody
  Straggling,         // `slot` is seen to be `slowdown` times slower than the others
  HashMismatch,       // the parameters of `slot` differ from those of its replicas
  LinkDown,           // the link of a NIC is reported down
  LinkUp,
};
const char* to_string(SymptomKind kind);

struct Symptom {
  SymptomKind kind = SymptomKind::HeartbeatLost;
  /// Seconds after the struck rank is first missed: after the next collective, or after the fault where no rank runs.
  double delay_s = 0;
  /// Which node it speaks of or comes from: so many slots after the struck node, round the job. Not 0: a peer, or a
  /// mistake.
  std::int64_t slot = 0;
  /// The slot that an error names, counted likewise.
  std::optional<std::int64_t> suspect_slot = {};
  /// GPU or NIC of the node.
  std::int64_t device = 0;
  int xid = 0;
  double slowdown = 1;
};

/// What of the job matters for what shows. Defaults: NCCL 2.23's queue pairs, PyTorch's watchdog.
struct SymptomContext {
  /// Slots of the job; with one there are no peers that could complain.
  std::int64_t job_nodes = 1;
  std::int64_t gpus_per_node = 8;
  /// The struck node holds ranks. A spare shows no more than its own XIDs, silence and links.
  bool in_job = true;
  double heartbeat_timeout_s = 60;
  double collective_timeout_s = 600;
  /// 4.096 us * 2^NCCL_IB_TIMEOUT * NCCL_IB_RETRY_CNT, of 20 and 7.
  double queue_pair_timeout_s = 30.06;
  /// How long slowness is watched before it is called so.
  double straggler_window_s = 60;
  /// Between checks of parameter hashes; 0: there are none.
  double hash_interval_s = 0;
};

/// How unreliable evidence is, whatever the cause. Assumed: nobody has published it.
struct SymptomNoise {
  double lost = 0.02;            // probability that a symptom never arrives
  double duplicated = 0.05;      // that it arrives twice
  double wrong_node = 0.01;      // that it is booked to a neighbour
  double slowdown_sigma = 0.03;  // relative error of a measured slowdown
};

/// What shows of a fault, in the order of time. Fewer than twenty. A fault that stops ranks of the job shows by a
/// timeout at the latest, which is never lost; one that only slows or corrupts may never show.
std::vector<Symptom> symptoms_of(const Fault& fault, const SymptomContext& context, RandomStream& draws,
                                 const SymptomNoise& noise = {});

}  // namespace trainyard::faults
