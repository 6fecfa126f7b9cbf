// trainyard fabric show: what the network of a scenario can carry, and what its plan asks of it.

#include <algorithm>
#include <iostream>
#include <map>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/exit_code.h"
#include "cli/fabric.h"
#include "cli/interrupt.h"
#include "cli/job.h"
#include "cli/step_links.h"
#include "cli/terminal.h"
#include "models/base/units.h"
#include "models/plan/mesh.h"
#include "sim/platform.h"
#include "sim/step_simulator.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

constexpr double kBitsPerByte = 8;
constexpr std::size_t kBusiest = 3;  // links shown of each tier

std::string rate_text(double bytes_per_s) {
  double rate = bytes_per_s * kBitsPerByte * 1e-9;
  for (const char* unit : {"Gbit/s", "Tbit/s"}) {
    if (rate < 1e4) return fmt::format("{:.4g} {}", rate, unit);
    rate *= 1e-3;
  }
  return fmt::format("{:.4g} Pbit/s", rate);
}

std::int64_t groups_of(const ClusterSpec& cluster, const FabricTier& tier) {
  return (cluster.nodes + tier.nodes_per_group - 1) / tier.nodes_per_group;
}

/// What may leave a whole group of the tier, over all its rails, at line rate.
double above_group(const ClusterSpec& cluster, std::size_t tier) {
  double share = 1;
  for (std::size_t t = 0; t <= tier; ++t) share /= cluster.tiers[t].oversubscription;
  return static_cast<double>(cluster.tiers[tier].nodes_per_group * cluster.nics_per_node) * cluster.nic_bytes_per_s *
         share;
}

/// Between two halves of the cluster, in one direction: what the half that has fewer groups of the topmost tier that is
/// split can send up, or its NICs.
double bisection_bytes_per_s(const ClusterSpec& cluster) {
  double least = static_cast<double>(cluster.nodes / 2 * cluster.nics_per_node) * cluster.nic_bytes_per_s;
  for (std::size_t t = 0; t < cluster.tiers.size(); ++t) {
    const std::int64_t groups = groups_of(cluster, cluster.tiers[t]);
    if (groups > 1) least = std::min(least, static_cast<double>(groups / 2) * above_group(cluster, t));
  }
  return least;
}

json tiers_of(const ClusterSpec& cluster) {
  json out = json::array();
  for (std::size_t t = 0; t < cluster.tiers.size(); ++t) {
    const FabricTier& tier = cluster.tiers[t];
    const double up = above_group(cluster, t);
    out.push_back({{"name", tier.name},
                   {"groups", groups_of(cluster, tier)},
                   {"rails", t == 0 && cluster.rail_optimized ? cluster.nics_per_node : 1},
                   {"nodes_per_group", tier.nodes_per_group},
                   {"oversubscription", tier.oversubscription},
                   {"up_bytes_per_s", up},
                   {"up_per_gpu_bytes_per_s", up / static_cast<double>(tier.nodes_per_group * cluster.gpus_per_node)}});
  }
  return out;
}

/// What two ranks have in common: 0 a node, then each tier in turn, and last the whole fabric. Leaves of a
/// rail-optimised fabric serve one rail each.
std::size_t meeting_point(const ClusterSpec& cluster, std::int64_t a, std::int64_t b) {
  const std::int64_t x = a / cluster.gpus_per_node, y = b / cluster.gpus_per_node;
  if (x == y) return 0;
  const auto rail = [&](std::int64_t rank) {
    return rank % cluster.gpus_per_node * cluster.nics_per_node / cluster.gpus_per_node;
  };
  for (std::size_t t = 0; t < cluster.tiers.size(); ++t) {
    const bool same_group = x / cluster.tiers[t].nodes_per_group == y / cluster.tiers[t].nodes_per_group;
    const bool same_rail = t > 0 || !cluster.rail_optimized || rail(a) == rail(b);
    if (same_group && same_rail) return t + 1;
  }
  return cluster.tiers.size() + 1;
}

/// Of the pairs of ranks that talk to each other for one reason, which share meets where.
class AxisCrossings {
 public:
  AxisCrossings(const Job& job, const Platform& platform)
      : cluster_(job.scenario.cluster), platform_(platform), mesh_(job.scenario.plan) {}

  /// Each member of a ring and the one in its place on the next node, or a node that holds them all; every
  /// pair of an all-to-all.
  std::vector<double> of_group(Group group) const {
    std::vector<double> pairs(cluster_.tiers.size() + 2, 0);
    const auto meet = [&](std::int64_t a, std::int64_t b) { ++pairs[meeting_point(cluster_, a, b)]; };
    for (std::int64_t rank = 0; rank < mesh_.ranks(); ++rank) {
      if (mesh_.group_index(group, rank) != 0) continue;
      const std::vector<std::int64_t> members = mesh_.members(group, rank);
      if (group != Group::Ep) {
        for_each_ring_hop(platform_, members, meet);
        if (platform_.same_node(members.front(), members.back())) meet(members.front(), members.back());
        continue;
      }
      for (const std::int64_t a : members) {
        for (const std::int64_t b : members) {
          if (a != b) meet(a, b);
        }
      }
    }
    return shares(std::move(pairs));
  }

  std::vector<double> of_pipeline(const ParallelPlan& plan) const {
    std::vector<double> pairs(cluster_.tiers.size() + 2, 0);
    for (std::int64_t rank = 0; rank < mesh_.ranks(); ++rank) {
      Coordinates next = mesh_.coordinates(rank);
      if (++next.pp == plan.pp) {
        if (plan.virtual_stages == 1) continue;
        next.pp = 0;
      }
      ++pairs[meeting_point(cluster_, rank, mesh_.rank(next))];
    }
    return shares(std::move(pairs));
  }

 private:
  static std::vector<double> shares(std::vector<double> pairs) {
    double all = 0;
    for (const double count : pairs) all += count;
    for (double& count : pairs) count = all > 0 ? count / all : 0;
    return pairs;
  }

  const ClusterSpec& cluster_;
  const Platform& platform_;
  Mesh mesh_;
};

std::vector<std::string> meeting_places(const ClusterSpec& cluster) {
  std::vector<std::string> names{"node"};
  for (const FabricTier& tier : cluster.tiers) names.push_back(tier.name);
  names.emplace_back("above");
  return names;
}

json axes_of(const Job& job, const Platform& platform) {
  const ParallelPlan& plan = job.scenario.plan;
  const Mesh mesh(plan);
  const AxisCrossings crossings(job, platform);
  const std::vector<std::string> places = meeting_places(job.scenario.cluster);
  json out = json::array();
  const auto add = [&](const char* name, std::int64_t ranks, const std::vector<double>& shares) {
    json meets = json::array();
    for (std::size_t i = 0; i < places.size(); ++i) meets.push_back({{"place", places[i]}, {"share", shares[i]}});
    out.push_back({{"axis", name}, {"ranks", ranks}, {"meets_in", meets}});
  };
  for (const Group group : {Group::Tp, Group::Cp, Group::Ep, Group::DpCp, Group::Edp}) {
    const bool of_experts = group == Group::Ep || group == Group::Edp;
    if (mesh.group_size(group) < 2 || (of_experts && !job.scenario.model.moe)) continue;
    add(to_string(group), mesh.group_size(group), crossings.of_group(group));
  }
  if (plan.pp > 1) add("pp", plan.pp, crossings.of_pipeline(plan));
  return out;
}

json links_json(const Job& job, const StepResult& step) {
  json out = json::array();
  for (const store::Link& link : links_of(job, step)) {
    out.push_back({{"tier", link.tier},
                   {"link", link.name},
                   {"alike", link.alike},
                   {"capacity_bytes_per_s", link.capacity_bytes_per_s},
                   {"bytes", link.bytes},
                   {"busy", link.busy}});
  }
  return out;
}

std::string fabric_text(const Job& job, const json& report) {
  const ClusterSpec& cluster = job.scenario.cluster;
  std::string out = fmt::format(
      "{}: {} nodes of {} GPUs and {} NICs at {}, {}, {}\n\n", cluster.name, format_count(cluster.nodes),
      cluster.gpus_per_node, cluster.nics_per_node, rate_text(cluster.nic_bytes_per_s),
      cluster.rail_optimized ? "rail-optimised" : "not rail-optimised",
      cluster.routing == Routing::Adaptive ? "adaptive routing"
                                           : fmt::format("ECMP, {} {} a channel", cluster.flows_per_channel,
                                                         cluster.flows_per_channel == 1 ? "flow" : "flows"));
  std::vector<std::vector<std::string>> rows;
  for (const json& tier : report["tiers"]) {
    const auto rails = tier["rails"].get<std::int64_t>();
    rows.push_back({tier["name"], format_count(tier["groups"]) + (rails > 1 ? fmt::format(" x {} rails", rails) : ""),
                    format_count(tier["nodes_per_group"]),
                    fmt::format("{:g}:1", tier["oversubscription"].get<double>()), rate_text(tier["up_bytes_per_s"]),
                    rate_text(tier["up_per_gpu_bytes_per_s"])});
  }
  if (rows.empty()) {
    out += "One switch that never blocks\n";
  } else {
    out += table({"tier", "groups", "nodes each", "oversubscribed", "up, a group", "up, a GPU"}, rows);
  }
  out += fmt::format("Between two halves of it {} each way\n\nWhere those meet who talk to each other ({})\n",
                     rate_text(report["bisection_bytes_per_s"]), job.scenario.plan.name);
  rows.clear();
  for (const json& axis : report["axes"]) {
    std::vector<std::string> row{axis["axis"], format_count(axis["ranks"])};
    for (const json& meets : axis["meets_in"])
      row.push_back(meets["share"] == 0 ? "-" : fmt::format("{:.1f}%", 100 * meets["share"].get<double>()));
    rows.push_back(row);
  }
  std::vector<std::string> header{"axis", "ranks"};
  for (const std::string& place : meeting_places(cluster)) header.push_back(place);
  out += table(header, rows);
  out += fmt::format("\nLinks, over a healthy step of {}\n", format_duration(report["step_s"]));
  rows.clear();
  std::map<std::string, std::size_t> shown;
  for (const json& link : report["links"]) {
    if (shown[link["tier"]]++ >= kBusiest) continue;
    rows.push_back({link["link"], format_count(link["alike"]), rate_text(link["capacity_bytes_per_s"]),
                    format_bytes(link["bytes"]), fmt::format("{:.1f}%", 100 * link["busy"].get<double>()),
                    fmt::format("{:<20}", bar(link["busy"], 20))});
  }
  out += table({"link", "alike", "can carry", "carried", "busy", ""}, rows);
  out += "  tiers whose links never fill up are left out\n";
  return out;
}

int show_fabric(const std::string& file, const Context& context) {
  const Result<Job> prepared = prepare(file);
  if (!prepared) return fail(prepared.problems(), context);
  const Job& job = prepared.value();
  const ClusterSpec& cluster = job.scenario.cluster;
  const CostModel cost = job.cost();
  const Platform platform(cluster, job.scenario.plan.ranks(), cost.nic_payload_rate(cluster.nic_bytes_per_s));
  const Result<StepResult> step = [&] {
    Progress progress("simulating a step", 1, context.quiet ? "none" : context.progress);
    StepOptions options;
    options.on_wait = [&] { progress.tick(); };
    return simulate_step(job.program, cluster, cost, options);
  }();
  if (!step) return fail(step.problems(), context);
  const json report{{"cluster", cluster.name},
                    {"nodes", cluster.nodes},
                    {"routing", cluster.routing == Routing::Adaptive ? "adaptive" : "ecmp"},
                    {"flows_per_channel", cluster.flows_per_channel},
                    {"tiers", tiers_of(cluster)},
                    {"bisection_bytes_per_s", bisection_bytes_per_s(cluster)},
                    {"axes", axes_of(job, platform)},
                    {"step_s", step.value().time_s},
                    {"links", links_json(job, step.value())}};
  std::cout << (context.json ? report.dump(2) + "\n" : fabric_text(job, report));
  return kOk;
}

void add_sweep(CLI::App& fabric, Context& context, const char* examples) {
  auto options = std::make_shared<SweepOptions>();
  CLI::App* sweep =
      add_command(fabric, "sweep", "Collectives alone on the cluster, by size, as nccl-tests prints them", examples);
  sweep->add_option("scenario", options->file, "Scenario file, for its cluster")->required();
  sweep->add_option("--collective", options->collective, "Which")
      ->check(CLI::IsMember({"all_reduce", "all_gather", "reduce_scatter", "all_to_all"}))
      ->capture_default_str();
  sweep->add_option("--gpus", options->gpus, "How many, dense from the first node on (default: one node, and four)")
      ->delimiter(',');
  sweep->add_option("--from", options->least_bytes, "Smallest size, bytes")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str();
  sweep->add_option("--to", options->most_bytes, "Largest size, bytes (default: 8 GiB)")
      ->transform(CLI::AsSizeValue(false));
  sweep->add_option("--measured", options->measured,
                    "Compare with measured all-reduces instead: scenarios/measured/nccl.json");
  sweep->callback(
      [options, &context] { context.run = [options, &context] { return sweep_fabric(*options, context); }; });
}

}  // namespace

void add_fabric(CLI::App& app, Context& context) {
  const char* examples =
      "  trainyard fabric show scenarios/01-grok1-100k-week.json\n"
      "  trainyard fabric stress scenarios/tiny/grok1-a-day.json      # where does which fault hurt most?\n"
      "  trainyard fabric sweep scenarios/01-grok1-100k-week.json --collective all_gather --gpus 8,64,1024\n"
      "  trainyard fabric stress my.json --fault gray_loss --loss 1e-4 --targets 0\n"
      "  trainyard fabric show my.json --json | jq '.links[0]'        # the busiest NIC";
  CLI::App* fabric = add_command(app, "fabric", "The network: what it can carry, and what a plan asks of it", examples);
  fabric->require_subcommand(1);
  auto file = std::make_shared<std::string>();
  CLI::App* show = add_command(
      *fabric, "show", "Tiers, bisection, which axis of the plan crosses which tier, and the busiest links of a step",
      examples);
  show->add_option("scenario", *file, "Scenario file")->required();
  show->callback([file, &context] { context.run = [file, &context] { return show_fabric(*file, context); }; });

  add_sweep(*fabric, context, examples);
  auto options = std::make_shared<StressOptions>();
  CLI::App* stress =
      add_command(*fabric, "stress",
                  "Everybody sends at once; and each fault of the fabric, at the part that it hurts most", examples);
  stress->add_option("scenario", options->file, "Scenario file")->required();
  stress->add_option("--fault", options->faults, "Fault modes to try (docs/rdma.md); some of each kind if left out");
  stress->add_option("--targets", options->targets, "Parts to try each on; 0: all that differ from one another")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1'000'000}))
      ->capture_default_str();
  stress->add_option("--loss", options->loss, "Share of packets that gray_loss loses")
      ->check(CLI::Range(1e-9, 0.5))
      ->capture_default_str();
  stress->add_option("--factor", options->factor, "How many times slower what is slow is")
      ->check(CLI::Range(1.001, 1e6))
      ->capture_default_str();
  stress->add_option("--duration", options->duration_s, "Seconds that a link is down")
      ->check(CLI::Range(1e-9, 1e6))
      ->capture_default_str();
  stress->add_option("--seed", options->seed, "Of who sends to whom")->capture_default_str();
  stress->callback([options, &context] {
    context.run = [options, &context] {
      end_in_order_on_signals();
      return stress_fabric(*options, context);
    };
  });
}

}  // namespace trainyard::cli
