// The catalogue. Sources, by the short name that the rows use:
//   Trace     InfiniteHBD-Trace (arXiv:2502.03885), our statistics of its classes: scenarios/faults/fit_fleet.py
//   XID       NVIDIA's XID catalogue, 2025-10-29: which XID a cause is logged with, and what NVIDIA says to do
//   Delta     the A100/H100 study of NCSA's Delta and DeltaAI, through notes on it
//   Robust    ByteRobust (arXiv:2509.16293), through notes on it: 5,948 of 44,184 incidents were implicit (13%)
//   Greyhound fail-slow study (ATC 2025), through notes on it
//   RDMA      NCCL's and NVIDIA's documents on queue pairs; HPN (SIGCOMM 2024)
//   assumed   nobody has published it: our guess, which a scenario should not rest on
// The shares of silent faults are set so that Llama 3's mix of causes is silent in 12-13% of cases (Robust), and XID 31
// and 13
// ("illegal memory access") so that it means hardware in a third of them (Robust: 21 of 62): tests/faults holds both.
#include "models/faults/fault_mode.h"

#include <cstddef>

#include "models/base/check.h"

namespace trainyard::faults {

namespace {

constexpr double kMinute = 60, kHour = 3600, kDay = 86400;
// A reset and the node is back: median and width of the trace's quick repairs.
constexpr LognormalSeconds kReset{0.22 * kHour, 0.2};

constexpr std::array<ModeRow, kFaultModes> kModes{{
    {.mode = FaultMode::GpuEccUncorrectable,
     .scope = ModeScope::Gpu,
     .effect = Effect::KillsProcess,
     .mend = Mend::GpuReset,
     .mends = kReset,
     .shows = {.silent = 0.08,
               .xid = 0.95,
               .peer_error = 0.9,
               .names_victim = 0.3,
               .names_other = 0.05,
               .xids = {{{48, 30}, {94, 30}, {95, 15}, {63, 10}, {140, 8}, {31, 7}}}},
     .source = "XID; mends: Trace; contained errors (94) and MMU faults after them (31): Delta; shares assumed"},
    {.mode = FaultMode::GpuHbmRowRemap,
     .scope = ModeScope::Gpu,
     .effect = Effect::KillsProcess,
     .mend = Mend::GpuReset,
     .mends = kReset,
     .shows = {.silent = 0.05,
               .xid = 1,
               .peer_error = 0.9,
               .names_victim = 0.3,
               .names_other = 0.05,
               .xids = {{{63, 50}, {64, 25}, {94, 25}}}},
     .source = "XID (63 pending, 64 failed, 94 contained); mends: Trace; shares assumed"},
    {.mode = FaultMode::NvLink,
     .scope = ModeScope::Gpu,
     .effect = Effect::Hangs,
     .mend = Mend::GpuReset,
     .mends = kReset,
     .shows = {.silent = 0.15,
               .xid = 0.95,
               .peer_error = 0.5,
               .names_victim = 0.3,
               .names_other = 0.1,
               .xids = {{{74, 80}, {145, 8}, {149, 8}, {155, 4}}}},
     .source = "XID; 16% touch a second GPU: Delta; shares assumed"},
    {.mode = FaultMode::GspHang,
     .scope = ModeScope::Gpu,
     .effect = Effect::Hangs,
     .mend = Mend::Reboot,
     .mends = {0.5 * kHour, 1},
     .shows = {.silent = 0.15,
               .xid = 0.95,
               .peer_error = 0.3,
               .names_victim = 0.3,
               .names_other = 0.05,
               .xids = {{{119, 75}, {120, 15}, {109, 10}}}},
     .source = "XID; full node reboot, up to 23 h: Delta; shares and median assumed"},
    {.mode = FaultMode::GpuOffBus,
     .scope = ModeScope::Gpu,
     .effect = Effect::KillsProcess,
     .mend = Mend::Reboot,
     .mends = {0.5 * kHour, 1},
     .shows = {.silent = 0.1,
               .xid = 0.95,
               .heartbeat = 0.1,
               .peer_error = 0.9,
               .names_victim = 0.4,
               .names_other = 0.05,
               .xids = {{{79, 80}, {154, 6}, {119, 7}, {31, 7}}}},
     .source = "XID (restart bare metal); PCIe errors come along: Meta RSC, through notes; shares assumed"},
    {.mode = FaultMode::GpuThermalThrottle,
     .scope = ModeScope::Gpu,
     .effect = Effect::Slows,
     .mend = Mend::Repair,
     .slowdown_least = 1.05,
     .slowdown_most = 1.6,
     .mends = {3 * kDay, 1.4},
     .shows = {.silent = 1, .straggling = 0.95},
     .source = "factor and shares assumed; mends as a fan's: Trace"},
    {.mode = FaultMode::GpuPowerThrottle,
     .scope = ModeScope::Gpu,
     .effect = Effect::Slows,
     .mend = Mend::Itself,
     .slowdown_least = 1.1,
     .slowdown_most = 2,
     .lasts = {10 * kMinute, 1},
     .shows = {.silent = 1, .straggling = 0.95},
     .source = "lasts about 10 min: Greyhound (slow computing); factor assumed"},
    {.mode = FaultMode::SilentDataCorruption,
     .scope = ModeScope::Gpu,
     .effect = Effect::CorruptsSilently,
     .mend = Mend::Repair,
     .mends = {3 * kDay, 1.4},
     .shows = {.silent = 1, .hash_mismatch = 0.7},
     .source = "NVIDIA's EUD finds 70%: Robust; a hash check is taken to find as many; mends assumed"},
    {.mode = FaultMode::GpuEarlyLife,
     .scope = ModeScope::Gpu,
     .effect = Effect::KillsProcess,
     .mend = Mend::Repair,
     .mends = {77 * kHour, 1.6},
     .shows = {.silent = 0.08,
               .xid = 0.95,
               .heartbeat = 0.1,
               .peer_error = 0.9,
               .names_victim = 0.3,
               .names_other = 0.05,
               .xids = {{{79, 35}, {48, 20}, {95, 10}, {62, 10}, {143, 10}, {31, 7}}}},
     .source = "mends: slow repairs of GPUs in Trace; shares assumed"},
    {.mode = FaultMode::LooseConnection,
     .scope = ModeScope::Gpu,
     .effect = Effect::Slows,
     .mend = Mend::Itself,
     .slowdown_least = 1.05,
     .slowdown_most = 2,
     .lasts = {kMinute, 1.5},
     .mends = {77 * kHour, 1.6},
     .shows = {.silent = 0.3,
               .xid = 0.6,
               .peer_error = 0.3,
               .names_victim = 0.3,
               .names_other = 0.2,
               .link_event = 0.3,
               .straggling = 0.4,
               .xids = {{{74, 60}, {79, 20}, {80, 20}}}},
     .source =
         "PCIe downgrades are 8.6% of faults: Minder, through notes; all else assumed. It comes back until repaired"},
    {.mode = FaultMode::MisconfiguredAfterRepair,
     .scope = ModeScope::Node,
     .effect = Effect::Slows,
     .mend = Mend::Reboot,
     .slowdown_least = 1.1,
     .slowdown_most = 3,
     .mends = {0.8 * kHour, 1},
     .shows = {.silent = 0.2, .peer_error = 0.6, .names_victim = 0.6, .names_other = 0.1, .straggling = 0.7},
     .source = "wrong GID: 11 of 584, median 0.8 h: Trace; factor and shares assumed"},
    {.mode = FaultMode::HostCrash,
     .scope = ModeScope::Node,
     .effect = Effect::KillsProcess,
     .mend = Mend::Reboot,
     .mends = {15.6 * kHour, 2.3},
     .shows = {.silent = 0.02, .heartbeat = 0.95, .peer_error = 0.8, .names_victim = 0.5, .names_other = 0.05},
     .source = "mends: unknown errors in Trace; shares assumed"},
    {.mode = FaultMode::HostMaintenance,
     .scope = ModeScope::Node,
     .effect = Effect::KillsProcess,
     .mend = Mend::Repair,
     .mends = {73.5 * kHour, 1.4},
     .shows = {.heartbeat = 1, .peer_error = 0.9, .names_victim = 0.5, .names_other = 0.05},
     .source = "mends: fans in Trace; shares assumed"},
    {.mode = FaultMode::HostMemory,
     .scope = ModeScope::Node,
     .effect = Effect::KillsProcess,
     .mend = Mend::Repair,
     .mends = {20.4 * kHour, 1.1},
     .shows = {.silent = 0.05, .heartbeat = 0.6, .peer_error = 0.8, .names_victim = 0.4, .names_other = 0.05},
     .source = "mends: machine checks in Trace (3); shares assumed"},
    {.mode = FaultMode::NicLost,
     .scope = ModeScope::Node,
     .effect = Effect::Stalls,
     .mend = Mend::Reboot,
     .mends = {11.8 * kHour, 3},
     .shows = {.silent = 0.05, .peer_error = 0.95, .names_victim = 0.7, .names_other = 0.1, .link_event = 0.6},
     .source = "mends: NICs in Trace; an error once retries are spent: RDMA; shares assumed"},
    {.mode = FaultMode::NicDegraded,
     .scope = ModeScope::Node,
     .effect = Effect::Slows,
     .mend = Mend::Repair,
     .slowdown_least = 1.2,
     .slowdown_most = 4,
     .mends = {24 * kHour, 1.5},
     .shows = {.silent = 0.8, .link_event = 1, .straggling = 0.9},
     .source =
         "slow communication lasts about 24 min and strikes 40% of jobs: Greyhound; factor is of the NIC, assumed"},
    {.mode = FaultMode::LinkDown,
     .scope = ModeScope::Network,
     .effect = Effect::Stalls,
     .mend = Mend::Repair,
     .mends = {47.4 * kHour, 1.8},
     .shows = {.silent = 0.15, .peer_error = 0.95, .names_victim = 0.55, .names_other = 0.2, .link_event = 0.8},
     .source = "mends: cables in Trace; an error once retries are spent: RDMA; shares assumed"},
    {.mode = FaultMode::LinkFlap,
     .scope = ModeScope::Network,
     .effect = Effect::Stalls,
     .mend = Mend::Itself,
     .lasts = {4, 1.2},
     .shows = {.silent = 0.1, .peer_error = 0.95, .names_victim = 0.55, .names_other = 0.2, .link_event = 1},
     .source = "5,000-60,000 flaps a day in a fleet: HPN; few outlast a queue pair's 30 s: assumed"},
    {.mode = FaultMode::GrayLoss,
     .scope = ModeScope::Network,
     .effect = Effect::Slows,
     .mend = Mend::Repair,
     .loss_least = 1e-5,
     .loss_most = 1e-2,
     .mends = {24 * kHour, 1.5},
     .shows = {.silent = 1, .straggling = 0.9},
     .source = "one direction, hours to days, unseen by 64 B probes: Aegis (NSDI 2025), through notes; shares assumed"},
    {.mode = FaultMode::RateDowngrade,
     .scope = ModeScope::Node,
     .effect = Effect::Slows,
     .mend = Mend::Repair,
     .slowdown_least = 2,
     .slowdown_most = 2,
     .mends = {72 * kHour, 1.5},
     .shows = {.silent = 0.8, .link_event = 1, .straggling = 0.9},
     .source = "half of lanes or width; PCI width 25 and NIC speed 10 of 584, medians of 72 to 233 h: Trace; shares "
               "assumed"},
    {.mode = FaultMode::GidMisconfigured,
     .scope = ModeScope::Network,
     .effect = Effect::Stalls,
     .mend = Mend::Human,
     .mends = {0.8 * kHour, 1},
     .shows = {.silent = 0.05, .peer_error = 1, .names_victim = 0.7, .names_other = 0.1},
     .source = "11 of 584, median 0.8 h: Trace; shares assumed"},
    {.mode = FaultMode::MtuMismatch,
     .scope = ModeScope::Network,
     .effect = Effect::Stalls,
     .mend = Mend::Human,
     .mends = {0.8 * kHour, 1},
     .shows = {.silent = 0.05, .peer_error = 1, .names_victim = 0.5, .names_other = 0.2},
     .source =
         "an error once retries of the first large message are spent: RDMA; mends as a wrong GID; shares assumed"},
    {.mode = FaultMode::PfcMisconfigured,
     .scope = ModeScope::Node,
     .effect = Effect::Slows,
     .mend = Mend::Human,
     .slowdown_least = 1.1,
     .slowdown_most = 3,
     .mends = {0.8 * kHour, 1},
     .shows = {.silent = 0.9, .link_event = 0.5, .straggling = 0.8},
     .source = "congestion drops what should have waited; mends as a wrong GID; all else assumed"},
    {.mode = FaultMode::AcsEnabled,
     .scope = ModeScope::Node,
     .effect = Effect::Slows,
     .mend = Mend::Human,
     .slowdown_least = 1.5,
     .slowdown_most = 4,
     .mends = {0.8 * kHour, 1},
     .shows = {.silent = 1, .straggling = 0.8},
     .source = "NCCL's guide: ACS sends peer-to-peer through the root complex, slow or hanging; factor and shares "
               "assumed"},
    {.mode = FaultMode::SwitchCrash,
     .scope = ModeScope::Leaf,
     .effect = Effect::Stalls,
     .mend = Mend::Reboot,
     .mends = {2 * kHour, 1},
     .shows = {.silent = 0.02, .peer_error = 0.95, .names_victim = 0.4, .names_other = 0.3, .link_event = 0.9},
     .source = "0.051% of leaf switches a month: HPN; hours: assumed; the heartbeats have a network of their own"},
    {.mode = FaultMode::LeafFlap,
     .scope = ModeScope::Leaf,
     .effect = Effect::Stalls,
     .mend = Mend::Itself,
     .lasts = {8, 0.4},
     .shows = {.silent = 0.02, .peer_error = 0.95, .names_victim = 0.3, .names_other = 0.4, .link_event = 1},
     .source = "a leaf or its power: 5 to 15 s, assumed"},
    {.mode = FaultMode::PfcStorm,
     .scope = ModeScope::Leaf,
     .effect = Effect::Stalls,
     .mend = Mend::Itself,
     .lasts = {kMinute, 1},
     .shows = {.silent = 0.1, .peer_error = 0.95, .names_victim = 0.1, .names_other = 0.6, .link_event = 0.3},
     .source = "a NIC that pauses without end, seen in production: Guo et al., SIGCOMM 2016; seconds to minutes and "
               "shares assumed"},
    {.mode = FaultMode::PfcDeadlock,
     .scope = ModeScope::Leaf,
     .effect = Effect::Hangs,
     .mend = Mend::Reboot,
     .mends = {0.5 * kHour, 1},
     .shows = {.silent = 1},
     .source = "does not go away by itself, nor with a restart of servers: Guo et al., SIGCOMM 2016; mends assumed"},
    {.mode = FaultMode::BootstrapFailure,
     .scope = ModeScope::Job,
     .effect = Effect::Hangs,
     .mend = Mend::Itself,
     .lasts = {kMinute, 1},
     .shows = {.silent = 1},
     .source = "EHOSTUNREACH and retries: NCCL pull request 1311; duration assumed"},
    {.mode = FaultMode::StorageOutage,
     .scope = ModeScope::Storage,
     .effect = Effect::Hangs,
     .mend = Mend::Itself,
     .lasts = {30 * kMinute, 1},
     .shows = {.silent = 0.5, .peer_error = 0.8},
     .source = "file systems are among RSC's dominant causes; all numbers assumed"},
    {.mode = FaultMode::SoftwareCrash,
     .scope = ModeScope::Job,
     .effect = Effect::KillsProcess,
     .mend = Mend::ProcessRestart,
     .shows = {.silent = 0.05,
               .xid = 0.6,
               .peer_error = 1,
               .names_victim = 0.1,
               .names_other = 0.25,
               .xids = {{{31, 60}, {13, 25}, {43, 10}, {45, 5}}}},
     .source = "XID 31 and 13 are the application's, mostly: XID, Robust (41 of 62); other shares assumed"},
    {.mode = FaultMode::SoftwareHang,
     .scope = ModeScope::Job,
     .effect = Effect::Hangs,
     .mend = Mend::ProcessRestart,
     .shows = {.silent = 1},
     .source = "hangs were 21 infrastructure to 5 user: Robust"},
    {.mode = FaultMode::UserError,
     .scope = ModeScope::Job,
     .effect = Effect::KillsProcess,
     .mend = Mend::Human,
     .mends = {2 * kHour, 1},
     .shows = {.silent = 0.05,
               .xid = 0.6,
               .peer_error = 1,
               .names_victim = 0.1,
               .names_other = 0.25,
               .xids = {{{31, 60}, {13, 30}, {43, 10}}}},
     .source = "as a software crash, but again after each restart; the human's two hours are assumed"},
}};

constexpr bool in_order() {
  for (std::size_t i = 0; i < kModes.size(); ++i)
    if (kModes[i].mode != static_cast<FaultMode>(i)) return false;
  return true;
}
static_assert(in_order(), "a row is found by its mode");

}  // namespace

const std::array<ModeRow, kFaultModes>& fault_modes() { return kModes; }

const ModeRow& row_of(FaultMode mode) {
  const auto index = static_cast<std::size_t>(mode);
  TY_CHECK(index < kFaultModes, "the mode is one of the enumeration");
  return kModes[index];
}

const char* to_string(ModeScope scope) {
  switch (scope) {
    case ModeScope::Gpu: return "gpu";
    case ModeScope::Node: return "node";
    case ModeScope::Network: return "network";
    case ModeScope::Leaf: return "leaf";
    case ModeScope::Storage: return "storage";
    case ModeScope::Job: return "job";
  }
  return "";
}

const char* to_string(Effect effect) {
  switch (effect) {
    case Effect::KillsProcess: return "kills";
    case Effect::Hangs: return "hangs";
    case Effect::Slows: return "slows";
    case Effect::CorruptsSilently: return "corrupts";
    case Effect::Stalls: return "stalls";
  }
  return "";
}

const char* to_string(Mend mend) {
  switch (mend) {
    case Mend::ProcessRestart: return "process restart";
    case Mend::GpuReset: return "GPU reset";
    case Mend::Reboot: return "reboot";
    case Mend::Repair: return "repair";
    case Mend::Human: return "a human";
    case Mend::Itself: return "itself";
  }
  return "";
}

}  // namespace trainyard::faults
