// The catalogue of fault modes: ground truth about what breaks. What it stops, what it does to the ranks, what mends
// it, how long that takes, and what of it can show. Controllers never include this.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "models/spec/fault_spec.h"

namespace trainyard::faults {

using trainyard::FaultMode;

/// What a mode stops; finer than FaultScope, in whose terms scope_of(mode) speaks.
enum class ModeScope : std::uint8_t {
  Gpu,
  Node,
  Network,  // the link of one NIC
  Leaf,     // every node of a leaf switch
  Storage,
  Job,  // the processes, on sound machines
};

enum class Effect : std::uint8_t {
  KillsProcess,      // ranks die
  Hangs,             // ranks stop and say nothing
  Slows,             // ranks go on, by a factor more slowly
  CorruptsSilently,  // ranks go on, with wrong numbers
  Stalls,            // ranks wait for a link; if it takes too long, communicators fail
};

/// The least that mends it.
enum class Mend : std::uint8_t {
  ProcessRestart,
  GpuReset,
  Reboot,
  Repair,  // parts are changed
  Human,   // somebody finds the mistake
  Itself,  // passes after a time
};

/// exp(N(ln median, sigma)), seconds. A median of 0: nothing takes any time.
struct LognormalSeconds {
  double median_s = 0;
  double sigma = 0;
};

struct XidWeight {
  int xid = 0;
  double weight = 0;
};

/// What can be seen of a mode. A fault is *silent* when nothing but waiting peers, a slow step or wrong numbers give it
/// away. Otherwise each kind of evidence shows with its own probability, and one of them for certain.
struct SymptomProfile {
  double silent = 0;         // probability
  double xid = 0;            // the driver logs one of `xids`
  double heartbeat = 0;      // the node falls silent
  double peer_error = 0;     // communicators of peers fail with an error rather than a timeout
  double names_victim = 0;   // of those errors: share that names the struck node ...
  double names_other = 0;    // ... and a wrong one; the rest names nobody
  double link_event = 0;     // the NIC or switch reports the link
  double straggling = 0;     // telemetry shows the struck rank slower than the others
  double hash_mismatch = 0;  // a check of parameter hashes finds it, where there are such checks
  std::array<XidWeight, 6> xids{};
};

struct ModeRow {
  FaultMode mode = FaultMode::HostCrash;
  ModeScope scope = ModeScope::Node;
  Effect effect = Effect::KillsProcess;
  Mend mend = Mend::Reboot;
  /// Of modes that slow: uniform between these. 1 for the others.
  double slowdown_least = 1, slowdown_most = 1;
  /// Of modes that lose packets: the share, evenly by its logarithm between these. What it slows follows from it.
  double loss_least = 0, loss_most = 0;
  /// Of modes that pass by themselves: how long they last.
  LognormalSeconds lasts = {};
  /// How long the mend takes once it has begun, where the source of faults does not say.
  LognormalSeconds mends = {};
  SymptomProfile shows = {};
  /// Where the numbers are from; "assumed" where nobody has published them.
  std::string_view source = {};
};

/// All modes, in the order of the enumeration.
const std::array<ModeRow, kFaultModes>& fault_modes();
const ModeRow& row_of(FaultMode mode);

const char* to_string(ModeScope scope);
const char* to_string(Effect effect);
const char* to_string(Mend mend);

}  // namespace trainyard::faults
