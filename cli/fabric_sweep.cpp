// trainyard fabric sweep: collectives alone on a cluster, by size, as nccl-tests prints them; and beside measured ones.

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/exit_code.h"
#include "cli/fabric.h"
#include "cli/job.h"
#include "cli/terminal.h"
#include "models/base/check.h"
#include "models/base/statistics.h"
#include "models/base/units.h"
#include "sim/collective_flow.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

/// GPUs of an all-to-all: 67 million pairs, a fifth of a second.
constexpr std::int64_t kMostOfPairs = 8192;

Collective collective_named(const std::string& name) {
  for (std::size_t i = 0; i < kCollectiveCount; ++i)
    if (name == to_string(static_cast<Collective>(i))) return static_cast<Collective>(i);
  TY_CHECK(false, "the command line knows the names of collectives");
}

/// Of so many ranks, dense from the first node on.
class Collectives {
 public:
  Collectives(const Job& job, Collective kind, std::int64_t ranks)
      : cluster_(job.scenario.cluster), cost_(of_nccl(job)), kind_(kind), ranks_(ranks) {
    if (ranks <= cluster_.gpus_per_node) return;
    ParallelPlan plan;
    plan.dp = ranks;
    if (kind == Collective::AllToAll) plan.ep = ranks;
    const Platform platform(cluster_, ranks, cost_.nic_payload_rate(cluster_.nic_bytes_per_s));
    fold_ = fold(plan, platform, {}, false);
    const Group group = kind == Collective::AllToAll ? Group::Ep : Group::DpCp;
    for (const ChannelClass& channel : fold_.channels)
      if (fold_.sorts[static_cast<std::size_t>(channel.sort)].group == group) channel_ = &channel;
  }

  /// `bytes` of the larger buffer, as nccl-tests counts them.
  [[nodiscard]] double seconds(double bytes) const {
    if (channel_ == nullptr) return cost_.nvlink_collective_seconds(kind_, ranks_, bytes);
    return alone_seconds(fold_, *channel_, collective_flow(cost_, cluster_, *channel_, kind_, bytes));
  }
  /// What nccl-tests multiplies algorithm bandwidth by.
  [[nodiscard]] double bus_factor() const {
    const auto n = static_cast<double>(ranks_);
    return (kind_ == Collective::AllReduce ? 2 : 1) * (n - 1) / n;
  }

 private:
  /// NCCL itself, not what a training stack makes of it.
  static CostModel of_nccl(const Job& job) {
    StackProfile stack = job.cost().stack();
    stack.collectives_relative = stack.nvlink_relative = 1;
    return CostModel(job.cost().hardware(), stack);
  }

  ClusterSpec cluster_;
  CostModel cost_;
  Collective kind_;
  std::int64_t ranks_;
  Fold fold_;
  const ChannelClass* channel_ = nullptr;
};

json row_of(const Collectives& its, double bytes) {
  const double seconds = its.seconds(bytes);
  return {{"bytes", static_cast<std::int64_t>(bytes)},
          {"seconds", seconds},
          {"algorithm_bytes_per_s", bytes / seconds},
          {"bus_bytes_per_s", bytes / seconds * its.bus_factor()}};
}

std::string sweep_text(const json& report) {
  std::string out;
  for (const json& sweep : report["sweeps"]) {
    out += fmt::format("{} over {} GPUs\n", report["collective"].get<std::string>(), format_count(sweep["gpus"]));
    std::vector<std::vector<std::string>> rows;
    for (const json& row : sweep["rows"])
      rows.push_back({format_bytes(row["bytes"]), format_duration(row["seconds"]),
                      fmt::format("{:.2f}", row["algorithm_bytes_per_s"].get<double>() * 1e-9),
                      fmt::format("{:.2f}", row["bus_bytes_per_s"].get<double>() * 1e-9)});
    out += table({"size", "time", "algorithm GB/s", "bus GB/s"}, rows) + "\n";
  }
  return out;
}

// ---- Beside measured all-reduces ----------------------------------------------------------

/// Sources of a name each, with curves of points; at least one point in all.
bool well_formed(const json& measured) {
  if (!measured.is_object() || !measured.contains("sources") || !measured["sources"].is_array()) return false;
  std::size_t points = 0;
  for (const json& source : measured["sources"]) {
    if (!source.is_object() || !source.contains("name") || !source["name"].is_string() ||
        !source.contains("all_reduce") || !source["all_reduce"].is_array())
      return false;
    for (const json& curve : source["all_reduce"]) {
      if (!curve.is_object() || !curve.contains("gpus") || !curve["gpus"].is_number_integer() ||
          curve["gpus"].get<std::int64_t>() < 2 || curve["gpus"].get<std::int64_t>() > 1'000'000 ||
          !curve.contains("mib_and_bus_gb_per_s") || !curve["mib_and_bus_gb_per_s"].is_array())
        return false;
      for (const json& point : curve["mib_and_bus_gb_per_s"]) {
        const bool good = point.is_array() && point.size() == 2 && point[0].is_number() && point[1].is_number();
        if (!good || !(point[0].get<double>() > 0) || !(point[1].get<double>() > 0)) return false;
        ++points;
      }
    }
  }
  return points > 0;
}

json compare(const Job& job, const json& measured) {
  std::map<std::int64_t, Collectives> by_gpus;
  json out = json::array();
  std::vector<double> all, held_aside;
  for (const json& source : measured["sources"]) {
    std::vector<double> its;
    std::int64_t rows = 0;
    for (const json& curve : source["all_reduce"]) {
      const std::int64_t gpus = curve["gpus"];
      const Collectives& here = by_gpus.try_emplace(gpus, job, Collective::AllReduce, gpus).first->second;
      for (const json& point : curve["mib_and_bus_gb_per_s"]) {
        const double bytes = point[0].get<double>() * (1 << 20);
        const double measured_s = bytes * here.bus_factor() / (point[1].get<double>() * 1e9);
        const double error = std::fabs(here.seconds(bytes) / measured_s - 1);
        its.push_back(error);
        all.push_back(error);
        if (!curve.contains("fitted_on") || curve["fitted_on"] != true) held_aside.push_back(error);
        ++rows;
      }
    }
    out.push_back({{"source", source["name"]}, {"rows", rows}, {"median_abs_error", median(its)}});
  }
  return {{"by_source", out},
          {"rows", all.size()},
          {"median_abs_error", median(all)},
          {"held_aside_rows", held_aside.size()},
          {"held_aside_median_abs_error", median(held_aside)},
          {"held_aside_p90_abs_error", held_aside.empty() ? 0 : percentile(held_aside, 0.9)}};
}

std::string compare_text(const json& report) {
  std::vector<std::vector<std::string>> rows;
  for (const json& its : report["by_source"])
    rows.push_back({its["source"], format_count(its["rows"]),
                    fmt::format("{:.1f}%", 100 * its["median_abs_error"].get<double>())});
  return table({"measured all-reduces over nodes", "rows", "median error of time"}, rows) +
         fmt::format("  of the {} rows that nothing was fitted on: median {:.1f}%, 90th percentile {:.1f}%\n",
                     format_count(report["held_aside_rows"]), 100 * report["held_aside_median_abs_error"].get<double>(),
                     100 * report["held_aside_p90_abs_error"].get<double>());
}

}  // namespace

int sweep_fabric(const SweepOptions& options, const Context& context) {
  const Result<Job> prepared = prepare(options.file);
  if (!prepared) return fail(prepared.problems(), context);
  const Job& job = prepared.value();
  if (!options.measured.empty()) {
    std::error_code error;
    std::ifstream file(options.measured);
    if (!file || std::filesystem::is_directory(options.measured, error))
      return fail(
          Problems{{options.measured, "", "", "cannot be read", "name a file like scenarios/measured/nccl.json"}},
          context);
    const json measured = json::parse(file, nullptr, false);
    if (!well_formed(measured))
      return fail(Problems{{options.measured, "", "", "is no list of measured all-reduces",
                            "use scenarios/measured/nccl.json, or write one like it"}},
                  context);
    const json report = compare(job, measured);
    std::cout << (context.json ? report.dump(2) + "\n" : compare_text(report));
    return kOk;
  }
  if (options.least_bytes < 1 || options.most_bytes < options.least_bytes)
    return fail(Problems{{"", "--from, --to", fmt::format("{:.0f}, {:.0f}", options.least_bytes, options.most_bytes),
                          "must be sizes of a byte at least, the smaller one first", "as --from 1KiB --to 8GiB"}},
                context);
  std::vector<std::int64_t> gpus = options.gpus;
  if (gpus.empty()) gpus = {job.scenario.cluster.gpus_per_node, 4 * job.scenario.cluster.gpus_per_node};
  json report{{"cluster", job.scenario.cluster.name}, {"collective", options.collective}, {"sweeps", json::array()}};
  for (const std::int64_t ranks : gpus) {
    const bool pairwise = options.collective == "all_to_all";
    const std::int64_t most =
        std::min(job.scenario.cluster.gpus(), pairwise ? kMostOfPairs : job.scenario.cluster.gpus());
    if (ranks > most || ranks < 2)
      return fail(Problems{{"", "--gpus", std::to_string(ranks),
                            fmt::format("must be 2 to {}: {}", most,
                                        most < job.scenario.cluster.gpus() ? "an all-to-all is looked at pair by pair"
                                                                           : "as many as the cluster has"),
                            "ask for fewer"}},
                  context);
    const Collectives its(job, collective_named(options.collective), ranks);
    json rows = json::array();
    for (double bytes = options.least_bytes; bytes <= options.most_bytes * 1.001; bytes *= 2)
      rows.push_back(row_of(its, bytes));
    report["sweeps"].push_back({{"gpus", ranks}, {"rows", rows}});
  }
  std::cout << (context.json ? report.dump(2) + "\n" : sweep_text(report));
  return kOk;
}

}  // namespace trainyard::cli
