// The phase ledger: what happened during one recovery, as the controller lived it.
//
// A ledger is written by the controller from the times of its own events, so a simulated and
// a real recovery leave the same table. Steps that are trained again after the restore are
// NOT in it: they are lost work, accounted for by whoever measures progress. The recovery's
// seconds end when Resume is answered, with the job warm and at speed.
//
// When a failure strikes during a recovery, the recovery starts over. The ledger then holds
// several attempts; the time until the new symptom is booked to the phase that it hung in.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace trainyard::recovery {

enum class Phase : std::uint8_t {
  Detect,         // last sign of life to first symptom
  Decide,         // gathering symptoms, naming suspects
  Drain,          // a planned restart: standing still until the state is safe
  Fence,          // stopping the old ranks
  Allocate,       // bringing spares into the job
  WaitForSpare,   // none left: waiting for a repaired node
  WaitForHuman,   // paged, or until the ejection bound allows more
  ProcessStart,   // containers, imports, device contexts
  Communicators,  // rendezvous and communicator init
  LoadState,      // restoring the checkpoint
  FirstStep,      // warm-up beyond a normal step
};
inline constexpr int kPhaseCount = static_cast<int>(Phase::FirstStep) + 1;
/// "detect", "decide", ...: the names used in reports and in the store.
const char* to_string(Phase phase);

/// One uninterrupted stay in a phase.
struct PhaseSpan {
  Phase phase = Phase::Detect;
  std::int64_t attempt = 1;
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
  bool operator==(const PhaseSpan&) const = default;
};

struct RecoveryLedger {
  /// The epoch in which training went on.
  std::int64_t epoch = 0;
  std::int64_t attempts = 0;
  /// The step that was restored.
  std::int64_t restored_step = 0;
  std::vector<std::int64_t> ejected_nodes;
  /// In order of time, without gaps or overlaps.
  std::vector<PhaseSpan> spans;

  [[nodiscard]] std::int64_t begin_ns() const;
  [[nodiscard]] std::int64_t end_ns() const;
  /// Lost work not included.
  [[nodiscard]] double total_s() const;
  /// Seconds in each phase, all attempts together; index by Phase.
  [[nodiscard]] std::array<double, kPhaseCount> phase_s() const;
  bool operator==(const RecoveryLedger&) const = default;
};

/// Builds a RecoveryLedger while the recovery goes on.
class LedgerBook {
 public:
  /// Opens a recovery at the last sign of life and enters its first phase after detection.
  void open(std::int64_t last_seen_ns, std::int64_t now_ns, Phase first);
  /// Ends the current phase and enters `phase`. Entering Decide again begins a new attempt.
  void enter(std::int64_t now_ns, Phase phase);
  void ejected(std::int64_t node);
  /// Ends the recovery and hands over its ledger.
  RecoveryLedger close(std::int64_t now_ns, std::int64_t epoch, std::int64_t restored_step);

  /// Of a recovery that goes on: its ledger as if it ended now, with nothing restored.
  [[nodiscard]] RecoveryLedger so_far(std::int64_t now_ns) const;

  [[nodiscard]] bool is_open() const { return open_; }
  [[nodiscard]] std::int64_t attempt() const { return ledger_.attempts; }

 private:
  void end_span(std::int64_t now_ns);

  bool open_ = false;
  RecoveryLedger ledger_;
};

}  // namespace trainyard::recovery
