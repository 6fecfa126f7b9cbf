// Names and rules of FaultSpec.
#include "models/spec/fault_spec.h"

#include <algorithm>
#include <cmath>
#include <set>

#include <fmt/format.h>

#include "models/base/check.h"
#include "models/spec/json_reader.h"

namespace trainyard {

const std::array<const char*, kFaultModes>& fault_mode_names() {
  static constexpr std::array<const char*, kFaultModes> kNames{"gpu_ecc_uncorrectable",
                                                               "gpu_hbm_row_remap",
                                                               "nvlink",
                                                               "gsp_hang",
                                                               "gpu_off_bus",
                                                               "gpu_thermal_throttle",
                                                               "gpu_power_throttle",
                                                               "silent_data_corruption",
                                                               "gpu_early_life",
                                                               "loose_connection",
                                                               "misconfigured_after_repair",
                                                               "host_crash",
                                                               "host_maintenance",
                                                               "host_memory",
                                                               "nic_lost",
                                                               "nic_degraded",
                                                               "link_down",
                                                               "link_flap",
                                                               "gray_loss",
                                                               "rate_downgrade",
                                                               "gid_misconfigured",
                                                               "mtu_mismatch",
                                                               "pfc_misconfigured",
                                                               "acs_enabled",
                                                               "switch_crash",
                                                               "leaf_flap",
                                                               "pfc_storm",
                                                               "pfc_deadlock",
                                                               "bootstrap_failure",
                                                               "storage_outage",
                                                               "software_crash",
                                                               "software_hang",
                                                               "user_error"};
  return kNames;
}

const char* to_string(FaultMode mode) {
  const auto index = static_cast<std::size_t>(mode);
  TY_CHECK(index < kFaultModes, "the mode is one of the enumeration");
  return fault_mode_names()[index];
}

const char* to_string(LinkDirection direction) {
  switch (direction) {
    case LinkDirection::Both: return "both";
    case LinkDirection::Out: return "out";
    case LinkDirection::In: return "in";
  }
  return "";
}

FaultScope scope_of(FaultMode mode) {
  switch (mode) {
    case FaultMode::GpuEccUncorrectable:
    case FaultMode::GpuHbmRowRemap:
    case FaultMode::NvLink:
    case FaultMode::GspHang:
    case FaultMode::GpuOffBus:
    case FaultMode::GpuThermalThrottle:
    case FaultMode::GpuPowerThrottle:
    case FaultMode::SilentDataCorruption:
    case FaultMode::GpuEarlyLife:
    case FaultMode::LooseConnection: return FaultScope::Gpu;
    case FaultMode::MisconfiguredAfterRepair:
    case FaultMode::HostCrash:
    case FaultMode::HostMaintenance:
    case FaultMode::HostMemory:
    case FaultMode::NicLost:
    case FaultMode::NicDegraded:
    case FaultMode::RateDowngrade:
    case FaultMode::PfcMisconfigured:
    case FaultMode::AcsEnabled: return FaultScope::Node;
    case FaultMode::LinkDown:
    case FaultMode::LinkFlap:
    case FaultMode::GrayLoss:
    case FaultMode::GidMisconfigured:
    case FaultMode::MtuMismatch:
    case FaultMode::SwitchCrash:
    case FaultMode::LeafFlap:
    case FaultMode::PfcStorm:
    case FaultMode::PfcDeadlock: return FaultScope::Network;
    case FaultMode::BootstrapFailure:
    case FaultMode::StorageOutage:
    case FaultMode::SoftwareCrash:
    case FaultMode::SoftwareHang:
    case FaultMode::UserError: return FaultScope::Job;
  }
  return FaultScope::Job;
}

FaultMode default_mode(FaultScope scope) {
  switch (scope) {
    case FaultScope::Gpu: return FaultMode::GpuEccUncorrectable;
    case FaultScope::Node: return FaultMode::HostCrash;
    case FaultScope::Network: return FaultMode::LinkDown;
    case FaultScope::Job: return FaultMode::SoftwareCrash;
  }
  return FaultMode::SoftwareCrash;
}

InjectedKind kind_of(FaultMode mode) {
  switch (mode) {
    case FaultMode::GpuThermalThrottle:
    case FaultMode::GpuPowerThrottle: return InjectedKind::GpuSlow;
    case FaultMode::NicDegraded:
    case FaultMode::GrayLoss:
    case FaultMode::RateDowngrade:
    case FaultMode::PfcMisconfigured:
    case FaultMode::AcsEnabled:
    case FaultMode::LooseConnection:  // PCIe: between the GPU and its NIC
    case FaultMode::MisconfiguredAfterRepair: return InjectedKind::NicSlow;
    case FaultMode::LinkDown:
    case FaultMode::LinkFlap:
    case FaultMode::GidMisconfigured:
    case FaultMode::MtuMismatch:
    case FaultMode::SwitchCrash:
    case FaultMode::LeafFlap:
    case FaultMode::PfcStorm: return InjectedKind::LinkDown;
    default: return InjectedKind::NodeCrash;
  }
}

double FaultSpec::total_rate_per_gpu_hour() const {
  double total = 0;
  for (const FaultCause& cause : causes) total += cause.rate_per_gpu_hour;
  return total;
}

namespace {

/// Mean number of nodes in a burst.
double mean_burst_nodes(const FleetModel::Bursts& bursts) {
  double weights = 0, nodes = 0;
  for (std::int64_t n = 2; n <= bursts.max_nodes; ++n) {
    const double weight = std::pow(static_cast<double>(n), -bursts.size_exponent);
    weights += weight;
    nodes += weight * static_cast<double>(n);
  }
  return weights > 0 ? nodes / weights : 0;
}

}  // namespace

double FaultGenerator::faults_per_node_day() const {
  switch (kind) {
    case GeneratorKind::Poisson: return 0;
    case GeneratorKind::Fleet: {
      const double own = fleet.rate_per_node_day * (1 + fleet.lemons.share * (fleet.lemons.factor - 1));
      const double in_bursts = fleet.bursts.per_1000_node_days / 1000 * mean_burst_nodes(fleet.bursts);
      return (own + in_bursts) / (1 - fleet.refailure.probability);
    }
    case GeneratorKind::Trace: {
      const double node_days = static_cast<double>(trace.nodes) * trace.days;
      return node_days > 0 ? static_cast<double>(trace.faults.size()) / node_days : 0;
    }
  }
  return 0;
}

std::vector<std::string> FaultGenerator::class_names() const {
  std::vector<std::string> names;
  if (kind == GeneratorKind::Fleet)
    for (const FleetModel::Class& entry : fleet.classes) names.push_back(entry.name);
  if (kind == GeneratorKind::Trace)
    for (const FaultTrace::Class& entry : trace.classes) names.push_back(entry.name);
  return names;
}

// ---- Rules --------------------------------------------------------------------------------

namespace {

const char* scope_name(FaultScope scope) {
  switch (scope) {
    case FaultScope::Gpu: return "gpu";
    case FaultScope::Node: return "node";
    case FaultScope::Network: return "network";
    case FaultScope::Job: return "job";
  }
  return "";
}

void check_causes(RuleChecker& rule, const std::vector<FaultCause>& causes, std::set<std::string>& names) {
  for (std::size_t i = 0; i < causes.size(); ++i) {
    const FaultCause& cause = causes[i];
    rule.expect(names.insert(cause.name).second, fmt::format("causes[{}].name", i), cause.name,
                "names a cause a second time, and failures are counted by cause", "give each cause its own name");
    rule.expect(cause.rate_per_gpu_hour >= 0 && cause.rate_per_gpu_hour <= 1, fmt::format("causes[{}]", i),
                fmt::format("{:g} per GPU-hour", cause.rate_per_gpu_hour),
                "must strike a GPU from 0 to 1 times an hour", "check count and gpu_hours, or the rate");
    const FaultScope scope = scope_of(cause.effective_mode());
    rule.expect(
        scope == cause.scope, fmt::format("causes[{}].mode", i), to_string(cause.effective_mode()),
        fmt::format("is of scope {}, and this cause is of scope {}", scope_name(scope), scope_name(cause.scope)),
        fmt::format("set \"scope\": \"{}\", or name another mode", scope_name(scope)));
  }
}

void check_injected(RuleChecker& rule, const std::vector<InjectedFault>& injected) {
  for (std::size_t i = 0; i < injected.size(); ++i) {
    const InjectedFault& fault = injected[i];
    const bool slows = fault.kind == InjectedKind::GpuSlow || fault.kind == InjectedKind::NicSlow;
    if (fault.mode == FaultMode::GrayLoss) {
      rule.expect(fault.loss > 0, fmt::format("injected[{}].loss", i), fmt::format("{:g}", fault.loss),
                  "must be above 0 for a link that loses packets", "say which share of them: 1e-4, say");
      rule.expect(fault.factor == 1, fmt::format("injected[{}].factor", i), fmt::format("{:g}", fault.factor),
                  "follows from the loss", "remove it");
      continue;
    }
    rule.expect(fault.loss == 0, fmt::format("injected[{}].loss", i), fmt::format("{:g}", fault.loss),
                "means something only of the mode gray_loss", "remove it, or set \"mode\": \"gray_loss\"");
    rule.expect(fault.direction == LinkDirection::Both || fault.kind == InjectedKind::NicSlow,
                fmt::format("injected[{}].direction", i), to_string(fault.direction),
                "means something only of a NIC that is slow or loses packets", "remove it");
    rule.expect(!slows || fault.factor > 1, fmt::format("injected[{}].factor", i), fmt::format("{:g}", fault.factor),
                "must be above 1 for a device that is slow", "say how many times slower it is");
    rule.expect(slows || fault.factor == 1, fmt::format("injected[{}].factor", i), fmt::format("{:g}", fault.factor),
                "means nothing for a fault that stops its device", "remove it, or use gpu_slow or nic_slow");
  }
}

/// What the classes of a fleet and of a trace have in common.
template <class Class>
void check_classes(RuleChecker& rule, const std::vector<Class>& classes, std::set<std::string>& names) {
  rule.expect(!classes.empty(), "generator.classes", "[]", "must name what strikes", "give one class at least");
  for (std::size_t i = 0; i < classes.size(); ++i) {
    rule.expect(names.insert(classes[i].name).second, fmt::format("generator.classes[{}].name", i), classes[i].name,
                "names a cause a second time, and failures are counted by cause", "give each class its own name");
    rule.expect(scope_of(classes[i].mode) != FaultScope::Job, fmt::format("generator.classes[{}].mode", i),
                to_string(classes[i].mode), "strikes the whole job, and a generator strikes nodes",
                "name a mode of a GPU, node or network, or make it one of the causes");
  }
}

void check_fleet(RuleChecker& rule, const FleetModel& fleet) {
  const std::string at = "generator.";
  rule.expect(fleet.rate_per_node_day > 0, at + "rate_per_node_day", fmt::format("{:g}", fleet.rate_per_node_day),
              "must be positive", "give the faults of a node in a day, or use kind poisson");
  rule.expect(fleet.lemons.share > 0 || fleet.lemons.factor == 1, at + "lemons.factor",
              fmt::format("{:g}", fleet.lemons.factor), "means nothing without a share of lemons",
              "give lemons.share, or remove the factor");
  double weight = 0, burst_weight = 0;
  for (std::size_t i = 0; i < fleet.classes.size(); ++i) {
    weight += fleet.classes[i].weight;
    burst_weight += fleet.classes[i].burst_weight;
  }
  rule.expect(weight > 0, at + "classes", "no weight", "must have a positive weight in sum",
              "give a class a weight above 0");
  rule.expect(fleet.bursts.per_1000_node_days == 0 || burst_weight > 0, at + "classes", "no burst_weight",
              "must have a positive burst_weight in sum, as there are bursts",
              "give a class a burst_weight above 0, or remove the bursts");
}

void check_trace(RuleChecker& rule, const FaultTrace& trace) {
  rule.expect_positive({{"generator.nodes", trace.nodes}});
  rule.expect(trace.days > 0, "generator.days", fmt::format("{:g}", trace.days), "must be positive",
              "say how long was recorded");
  // A broken file of a million faults is not told of a million times.
  for (std::size_t i = 0, wrong = 0; i < trace.faults.size() && wrong < kMaxProblems; ++i) {
    const FaultTrace::Entry& fault = trace.faults[i];
    const bool sound = fault.node >= 0 && fault.node < trace.nodes && fault.start_day >= 0 &&
                       fault.start_day <= fault.end_day && fault.end_day <= trace.days &&
                       fault.class_index < trace.classes.size();
    if (sound) continue;
    ++wrong;
    const std::string at = fmt::format("generator.faults[{}]", i);
    rule.expect(fault.node >= 0 && fault.node < trace.nodes, at, fmt::format("node {}", fault.node),
                fmt::format("is not one of the trace's {} nodes (counted from 0)", trace.nodes),
                "name a node that exists");
    rule.expect(fault.start_day >= 0 && fault.start_day <= fault.end_day && fault.end_day <= trace.days, at,
                fmt::format("days {:g} to {:g}", fault.start_day, fault.end_day),
                fmt::format("must start before it ends, within the trace's {:g} days", trace.days),
                "check start and end");
    rule.expect(fault.class_index < trace.classes.size(), at, fmt::format("class {}", fault.class_index),
                fmt::format("is not one of the {} classes (counted from 0)", trace.classes.size()),
                "name a class that exists");
  }
}

}  // namespace

Problems validate(const FaultSpec& faults, const std::string& path) {
  RuleChecker rule(path);
  std::set<std::string> names;
  check_causes(rule, faults.causes, names);
  check_injected(rule, faults.injected);
  if (faults.generator.kind == GeneratorKind::Fleet) {
    check_classes(rule, faults.generator.fleet.classes, names);
    check_fleet(rule, faults.generator.fleet);
  } else if (faults.generator.kind == GeneratorKind::Trace) {
    check_classes(rule, faults.generator.trace.classes, names);
    check_trace(rule, faults.generator.trace);
  }
  return rule.take();
}

}  // namespace trainyard
