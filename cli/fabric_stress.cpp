// trainyard fabric stress: everybody sends at once, and each fault of the fabric where it hurts most.

#include <algorithm>
#include <iostream>
#include <numeric>
#include <set>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/exit_code.h"
#include "cli/fabric.h"
#include "cli/job.h"
#include "cli/step_memo.h"
#include "cli/terminal.h"
#include "models/base/index.h"
#include "models/base/units.h"
#include "models/faults/fault_mode.h"
#include "models/plan/mesh.h"
#include "sim/fabric_load.h"
#include "sim/step_simulator.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

/// SimGrid's time grows with the square of the flows.
constexpr std::int64_t kMostFlows = 1024;

// ---- Everybody sends ----------------------------------------------------------------------

struct Spreading {
  const char* name;
  Routing routing;
  std::int64_t flows;
};
constexpr Spreading kSpreadings[] = {{"adaptive", Routing::Adaptive, 1},
                                     {"ecmp, 1 flow", Routing::Ecmp, 1},
                                     {"ecmp, 2 flows", Routing::Ecmp, 2},
                                     {"ecmp, 4 flows", Routing::Ecmp, 4},
                                     {"ecmp, 16 flows", Routing::Ecmp, 16}};

/// A part of the cluster from its first node on, whole leaves of it.
ClusterSpec sample_of(ClusterSpec cluster) {
  cluster.nodes = std::max<std::int64_t>(2, std::min(cluster.nodes, kMostFlows / cluster.nics_per_node));
  return cluster;
}

Result<json> circles(const Job& job, std::uint64_t seed, Progress& progress) {
  ClusterSpec cluster = sample_of(job.scenario.cluster);
  json out{{"nodes", cluster.nodes}, {"nics", cluster.nodes * cluster.nics_per_node}, {"spread", json::array()}};
  const ClusterSpec& configured = job.scenario.cluster;
  RandomStream random(seed, "circles");
  const std::vector<FabricFlow> flows = random_circles(cluster, cluster.nodes, random);
  for (const Spreading& spreading : kSpreadings) {
    cluster.routing = spreading.routing;
    cluster.flows_per_channel = spreading.flows;
    const double line_rate = cluster.nic_bytes_per_s;
    const Platform platform(cluster, cluster.gpus(), job.cost().nic_payload_rate(line_rate));
    const auto rates = sustained_rates(platform, flows);
    if (!rates) return rates.problems();
    progress.step();
    const double sum = std::accumulate(rates.value().begin(), rates.value().end(), 0.0);
    const double least = *std::min_element(rates.value().begin(), rates.value().end());
    const bool its = configured.routing == spreading.routing &&
                     (spreading.routing == Routing::Adaptive || configured.flows_per_channel == spreading.flows);
    out["spread"].push_back({{"routing", spreading.name},
                             {"configured", its},
                             {"mean_share_of_line_rate", sum / static_cast<double>(flows.size()) / line_rate},
                             {"slowest_share_of_line_rate", least / line_rate}});
  }
  return out;
}

std::string circles_text(const json& report) {
  std::string out =
      fmt::format("Every NIC sends to one other of its rail ({} NICs, the first {} nodes), of line rate\n",
                  format_count(report["nics"]), format_count(report["nodes"]));
  std::vector<std::vector<std::string>> rows;
  for (const json& its : report["spread"]) {
    const double mean = its["mean_share_of_line_rate"];
    rows.push_back({std::string(its["routing"]) + (its["configured"] ? " *" : ""), fmt::format("{:.1f}%", 100 * mean),
                    fmt::format("{:.1f}%", 100 * its["slowest_share_of_line_rate"].get<double>()),
                    fmt::format("{:<20}", bar(mean, 20))});
  }
  return out + table({"routing", "mean", "slowest", ""}, rows) + "  * as this cluster is configured\n";
}

// ---- Faults, and where they hurt most -----------------------------------------------------

/// Faults that something of is seen within a step.
bool within_step(FaultMode mode) {
  const FaultScope scope = scope_of(mode);
  const bool of_fabric = scope == FaultScope::Network || mode == FaultMode::NicDegraded ||
                         mode == FaultMode::RateDowngrade || mode == FaultMode::PfcMisconfigured ||
                         mode == FaultMode::AcsEnabled;
  return of_fabric && kind_of(mode) != InjectedKind::NodeCrash;
}

InjectedFault fault_of(FaultMode mode, const StressOptions& options) {
  InjectedFault fault;
  fault.mode = mode;
  fault.kind = kind_of(mode);
  if (mode == FaultMode::GrayLoss) fault.loss = options.loss;
  if (fault.kind == InjectedKind::NicSlow && mode != FaultMode::GrayLoss) fault.factor = options.factor;
  if (fault.kind == InjectedKind::LinkDown) fault.duration_s = options.duration_s;
  return fault;
}

/// One rank of each class, classes of every stage in turn, the largest first: all that a fault could tell apart.
std::vector<std::int64_t> targets_of(const StepResult& healthy, std::int64_t most) {
  std::vector<StepClass> classes = healthy.classes;
  std::stable_sort(classes.begin(), classes.end(),
                   [](const StepClass& a, const StepClass& b) { return a.count > b.count; });
  std::vector<std::int64_t> out;
  while (!classes.empty() && (most == 0 || std::ssize(out) < most)) {
    std::set<std::int64_t> stages;
    std::vector<StepClass> rest;
    for (const StepClass& its : classes) {
      const bool full = most > 0 && std::ssize(out) >= most;
      if (!full && stages.insert(its.stage).second) {
        out.push_back(its.representative);
      } else {
        rest.push_back(its);
      }
    }
    classes = std::move(rest);
  }
  return out;
}

std::string parameter_of(const InjectedFault& fault) {
  if (fault.loss > 0) return fmt::format("loss {:g}", fault.loss);
  if (fault.factor > 1) return fmt::format("{:g} times slower", fault.factor);
  return fmt::format("for {}", format_duration(*fault.duration_s));
}

Result<json> search(const Job& job, const StressOptions& options, const StepResult& healthy,
                    const std::vector<std::int64_t>& targets, FaultMode mode, Progress& progress) {
  const Mesh mesh(job.scenario.plan);
  InjectedFault fault = fault_of(mode, options);
  json tried = json::array(), worst;
  for (const std::int64_t rank : targets) {
    fault.node = rank / job.scenario.cluster.gpus_per_node;
    fault.device = rank % job.scenario.cluster.gpus_per_node;
    StepOptions step = step_options(job);
    step.degradations = {fault};
    step.on_wait = [&] { progress.tick(); };
    const Result<StepResult> result = simulate_step(job.program, job.scenario.cluster, job.cost(), step);
    if (!result) return result.problems();
    progress.step();
    const StepResult& its = result.value();
    json entry{{"rank", rank},
               {"node", fault.node},
               {"device", fault.device},
               {"stage", mesh.coordinates(rank).pp},
               {"step_s", its.time_s},
               {"slowdown", its.time_s / healthy.time_s},
               {"error", its.communicator_error}};
    if (worst.is_null() || its.time_s > worst["step_s"].get<double>()) worst = entry;
    tried.push_back(std::move(entry));
  }
  const faults::ModeRow& row = faults::row_of(mode);
  return json{{"mode", to_string(mode)},
              {"parameter", parameter_of(fault)},
              {"shows",
               {{"communicator_error", row.shows.peer_error},
                {"link_event", row.shows.link_event},
                {"straggling", row.shows.straggling}}},
              {"worst", worst},
              {"targets", tried}};
}

std::string cost_text(double slowdown) {
  const double percent = 100 * (slowdown - 1);
  return percent < 0.05 && percent > -0.05 ? "nothing" : fmt::format("{:+.1f}%", percent);
}

std::string faults_text(const json& report) {
  std::string out = fmt::format(
      "\nOne fault at a time, of {} parts that differ (of {}), where it hurts most; a healthy step takes {}\n",
      format_count(report["targets_tried"]), format_count(report["targets"]), format_duration(report["step_s"]));
  std::vector<std::vector<std::string>> rows;
  for (const json& its : report["faults"]) {
    const json& worst = its["worst"];
    double least = worst["slowdown"];
    for (const json& target : its["targets"]) least = std::min(least, target["slowdown"].get<double>());
    const std::string error = worst["error"];
    rows.push_back({its["mode"], its["parameter"],
                    fmt::format("node {}, NIC of GPU {} (stage {})", worst["node"].get<std::int64_t>(),
                                worst["device"].get<std::int64_t>(), worst["stage"].get<std::int64_t>()),
                    error.empty() ? format_duration(worst["step_s"]) : "never",
                    error.empty() ? cost_text(worst["slowdown"]) : "communicator error", cost_text(least)});
  }
  return out + table({"fault", "", "worst at", "step", "costs", "at best"}, rows);
}

}  // namespace

Result<std::vector<FaultMode>> stress_modes(const std::vector<std::string>& names) {
  if (names.empty())
    return std::vector<FaultMode>{FaultMode::GrayLoss, FaultMode::RateDowngrade, FaultMode::LinkFlap,
                                  FaultMode::LeafFlap, FaultMode::SwitchCrash};
  std::vector<FaultMode> modes;
  std::vector<std::string> known;
  for (std::size_t i = 0; i < kFaultModes; ++i)
    if (within_step(static_cast<FaultMode>(i))) known.emplace_back(fault_mode_names()[i]);
  for (const std::string& name : names) {
    const auto found = std::find(fault_mode_names().begin(), fault_mode_names().end(), name);
    const auto mode = static_cast<FaultMode>(found - fault_mode_names().begin());
    if (found == fault_mode_names().end() || !within_step(mode))
      return Problem{"", "--fault", name, "is no fault of the fabric that shows within a step",
                     fmt::format("use one of {}", fmt::join(known, ", "))};
    modes.push_back(mode);
  }
  return modes;
}

int stress_fabric(const StressOptions& options, const Context& context) {
  const Result<std::vector<FaultMode>> modes = stress_modes(options.faults);
  if (!modes) return fail(modes.problems(), context);
  const Result<Job> prepared = prepare(options.file);
  if (!prepared) return fail(prepared.problems(), context);
  const Job& job = prepared.value();
  const std::string mode = context.quiet ? "none" : context.progress;
  Result<json> traffic = [&] {
    Progress progress("sending", std::size(kSpreadings), mode);
    return circles(job, options.seed, progress);
  }();
  if (!traffic) return fail(traffic.problems(), context);
  const Result<StepResult> healthy = [&] {
    Progress progress("simulating a step", 1, mode);
    StepOptions step;
    step.on_wait = [&] { progress.tick(); };
    return simulate_step(job.program, job.scenario.cluster, job.cost(), step);
  }();
  if (!healthy) return fail(healthy.problems(), context);
  const std::vector<std::int64_t> targets = targets_of(healthy.value(), options.targets);
  json report{{"cluster", job.scenario.cluster.name},
              {"seed", options.seed},
              {"everybody_sends", traffic.value()},
              {"step_s", healthy.value().time_s},
              {"targets", healthy.value().classes.size()},
              {"targets_tried", targets.size()},
              {"faults", json::array()}};
  Progress progress("breaking things", modes.value().size() * targets.size(), mode);
  for (const FaultMode its : modes.value()) {
    Result<json> found = search(job, options, healthy.value(), targets, its, progress);
    if (!found) return fail(found.problems(), context);
    report["faults"].push_back(std::move(found).value());
  }
  std::cout << (context.json ? report.dump(2) + "\n" : circles_text(report["everybody_sends"]) + faults_text(report));
  return kOk;
}

}  // namespace trainyard::cli
