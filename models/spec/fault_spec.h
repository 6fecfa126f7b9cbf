// FaultSpec: what goes wrong. Rates for faults that strike at random, a list for faults that
// strike at a given time, and generators for the nodes of a fleet as a trace shows them. Ground
// truth: the controller never sees these, only their symptoms.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "models/base/status.h"

namespace trainyard {

/// What a fault stops.
enum class FaultScope { Gpu, Node, Network, Job };

/// What broke. models/faults/fault_mode.h says of each what it does, what mends it and what of it shows.
enum class FaultMode : std::uint8_t {
  GpuEccUncorrectable,
  GpuHbmRowRemap,
  NvLink,
  GspHang,
  GpuOffBus,
  GpuThermalThrottle,
  GpuPowerThrottle,
  SilentDataCorruption,
  GpuEarlyLife,              // a new or just replaced part fails
  LooseConnection,           // PCIe, NVLink or cable that comes and goes
  MisconfiguredAfterRepair,  // back from repair with the wrong firmware, GID, MTU, ...
  HostCrash,
  HostMaintenance,
  HostMemory,
  NicLost,
  NicDegraded,
  LinkDown,
  LinkFlap,
  GrayLoss,          // a link loses packets, in one direction, and nobody says so
  RateDowngrade,     // 400 to 200 Gb/s, or PCIe x16 to x8
  GidMisconfigured,  // the NIC connects to nobody
  MtuMismatch,       // small packets pass, large ones do not
  PfcMisconfigured,  // PFC or DSCP unset: packets are dropped where they should wait
  AcsEnabled,        // PCIe's access control on: what the NIC reads goes round by the processor
  SwitchCrash,       // a leaf: all its nodes at once
  LeafFlap,          // all ports of a leaf, for seconds
  PfcStorm,          // a NIC pauses its leaf, and the leaf all others
  PfcDeadlock,       // buffers that wait for each other
  BootstrapFailure,  // ranks cannot find each other out of band
  StorageOutage,
  SoftwareCrash,
  SoftwareHang,
  UserError,  // strikes again after each restart, until a human mends it
};
inline constexpr std::size_t kFaultModes = 33;

/// snake_case, as in JSON: "gpu_off_bus".
const char* to_string(FaultMode mode);
/// Names of all modes, in the order of the enumeration.
const std::array<const char*, kFaultModes>& fault_mode_names();
/// What a fault of this mode stops, in the coarse terms of a cause: a crashed leaf switch is Network, storage is Job.
FaultScope scope_of(FaultMode mode);
/// The mode of a cause that names none: gpu_ecc_uncorrectable, host_crash, link_down or software_crash.
FaultMode default_mode(FaultScope scope);

/// A cause with its rate: arrivals are a Poisson process on the wall clock over every GPU
/// that the job holds, its spares included when `scope` is Gpu or Node.
struct FaultCause {
  std::string name;
  FaultScope scope = FaultScope::Gpu;
  double rate_per_gpu_hour = 0;
  std::string source;
  std::optional<FaultMode> mode = {};  // unset: default_mode(scope)
  /// The rate is that of interruptions: they stop the job even where the mode by itself only slows or corrupts.
  bool stops_job = false;

  [[nodiscard]] FaultMode effective_mode() const { return mode.value_or(default_mode(scope)); }
};

/// What a degradation does to the part that it strikes. Kills are failures; the others only slow.
enum class InjectedKind {
  GpuSlow,    // every kernel of one GPU takes `factor` times as long
  NicSlow,    // one NIC runs at 1/factor of its line rate, or loses packets
  LinkDown,   // one NIC's link is down: a stall, and a communicator error once retries are spent
  NodeCrash,  // the node is gone
};
/// The nearest of the four kinds, for a world that knows no more than these.
InjectedKind kind_of(FaultMode mode);

/// Of a NIC.
enum class LinkDirection : std::uint8_t { Both, Out, In };
/// "both", "out", "in".
const char* to_string(LinkDirection direction);

struct InjectedFault {
  InjectedKind kind = InjectedKind::GpuSlow;
  /// Seconds after the start of the run; in a step simulation, after the start of the step.
  double at_s = 0;
  /// How long it lasts; unset: to the end.
  std::optional<double> duration_s;
  std::int64_t node = 0;
  /// Index of the GPU or NIC in the node.
  std::int64_t device = 0;
  double factor = 1;
  /// Of packets, the share that is lost; of NicSlow. Where `mode` is GrayLoss, `factor` has yet to follow from it.
  double loss = 0;
  LinkDirection direction = LinkDirection::Both;  // of NicSlow
  /// What broke, where that was said instead of a kind; `kind` is then kind_of(mode).
  std::optional<FaultMode> mode = {};
};

// ---- Generators ---------------------------------------------------------------------------

/// Faults of a fleet's nodes: lemons, refailures after repair, bursts and seasons. Rates are of one node and a day of
/// its being up. How the shipped numbers were fitted: scenarios/faults/fit_fleet.py.
struct FleetModel {
  double rate_per_node_day = 0;
  /// A share of the nodes fails at `factor` times the rate.
  struct Lemons {
    double share = 0;
    double factor = 1;
  } lemons;
  /// A node that is back from repair fails again with this probability, after a lognormal time; `same_class_share`
  /// of the time with the class of before, else with any.
  struct Refailure {
    double probability = 0;
    double median_days = 1;
    double sigma = 1;
    double same_class_share = 0;
  } refailure;
  /// All rates are multiplied by a lognormal factor with mean 1, drawn anew every `days`.
  struct Seasons {
    double days = 30;
    double sigma = 0;
  } seasons;
  /// Several nodes within a short time. The number n of nodes, 2 to max_nodes, has probability ~ n^-size_exponent; a
  /// node after the first is struck with the first one, or a while later (exponential, `spread_hours` on average); its
  /// repair ends with that of the first, or is its own. Of the bursts, a share that is repaired together also fails
  /// again together, or not at all.
  struct Bursts {
    double per_1000_node_days = 0;
    double size_exponent = 2;
    std::int64_t max_nodes = 2;
    double simultaneous_share = 1;
    double spread_hours = 1;
    double shared_repair_share = 0;
    double shared_refailure_share = 0;
  } bursts;
  /// A reset rather than a repair: lognormal.
  struct QuickRepair {
    double median_hours = 0.25;
    double sigma = 0.2;
  } quick_repair;
  /// What strikes, drawn by weight, and how long its repair takes: quick for a share, else Weibull.
  struct Class {
    std::string name;
    FaultMode mode = FaultMode::HostCrash;
    double weight = 0;
    double burst_weight = 0;
    double quick_share = 0;
    double repair_shape = 1;
    double repair_scale_hours = 24;
  };
  std::vector<Class> classes;
};

/// Faults that did happen, to be replayed: node i of the trace is node i of the run.
struct FaultTrace {
  std::int64_t nodes = 0;
  double days = 0;
  struct Class {
    std::string name;
    FaultMode mode = FaultMode::HostCrash;
  };
  std::vector<Class> classes;
  /// A node is out from `start_day` to `end_day`, in days after the start of the run.
  struct Entry {
    std::int64_t node = 0;
    double start_day = 0;
    double end_day = 0;
    std::size_t class_index = 0;
  };
  std::vector<Entry> faults;
};

/// Poisson: the causes alone. Fleet and Trace: faults of nodes besides those of the causes.
enum class GeneratorKind { Poisson, Fleet, Trace };

struct FaultGenerator {
  GeneratorKind kind = GeneratorKind::Poisson;
  std::string source;
  FleetModel fleet;  // of kind Fleet
  FaultTrace trace;  // of kind Trace

  /// Long-run mean, refailures and bursts included; 0 for Poisson.
  [[nodiscard]] double faults_per_node_day() const;
  /// Names of the classes of fleet or trace.
  [[nodiscard]] std::vector<std::string> class_names() const;
};

struct FaultSpec {
  std::vector<FaultCause> causes;
  std::vector<InjectedFault> injected;
  FaultGenerator generator;

  /// Of the causes alone: the generator's rate is per node.
  [[nodiscard]] double total_rate_per_gpu_hour() const;
};

Problems validate(const FaultSpec& faults, const std::string& path = "$");

}  // namespace trainyard
