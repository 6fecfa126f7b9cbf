#include "cli/step_links.h"

#include <algorithm>
#include <cstring>
#include <map>

#include <fmt/format.h>

#include "models/base/units.h"
#include "sim/platform.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

Platform platform_of(const Job& job) {
  const ClusterSpec& cluster = job.scenario.cluster;
  return Platform(cluster, job.scenario.plan.ranks(), job.cost().nic_payload_rate(cluster.nic_bytes_per_s));
}

double busy_share(const StepLink& link, const StepResult& step) {
  return link.bytes / (link.capacity_bytes_per_s * step.time_s);
}

/// Those who wait for about as long as the one that waits longest.
json longest_wait(const StepResult& step, std::size_t part) {
  const auto longest =
      std::max_element(step.classes.begin(), step.classes.end(),
                       [&](const StepClass& a, const StepClass& b) { return a.part_s[part] < b.part_s[part]; });
  std::int64_t ranks = 0;
  for (const StepClass& its : step.classes) {
    if (its.part_s[part] >= 0.99 * longest->part_s[part]) ranks += its.count;
  }
  return {{"seconds", longest->part_s[part]},
          {"rank", longest->representative},
          {"stage", longest->stage},
          {"ranks", ranks}};
}

json link_of(const Platform& platform, const StepResult& step, std::int32_t link) {
  if (link < 0) return nullptr;
  json out{{"name", platform.name_of(link)}};
  for (const StepLink& its : step.links) {
    if (its.representative == link) out.update({{"alike", its.count}, {"busy", busy_share(its, step)}});
  }
  return out;
}

}  // namespace

std::vector<store::Link> links_of(const Job& job, const StepResult& step) {
  const Platform platform = platform_of(job);
  std::map<int, std::vector<StepLink>> by_tier;
  for (const StepLink& link : step.links) by_tier[platform.tier_of(link.representative)].push_back(link);
  std::vector<store::Link> out;
  for (auto& [tier, links] : by_tier) {
    std::stable_sort(links.begin(), links.end(),
                     [&](const auto& a, const auto& b) { return busy_share(a, step) > busy_share(b, step); });
    const std::string name = tier < 0 ? "nic" : job.scenario.cluster.tiers[static_cast<std::size_t>(tier)].name;
    for (const StepLink& link : links)
      out.push_back({name, platform.name_of(link.representative), link.count, link.capacity_bytes_per_s, link.bytes,
                     busy_share(link, step)});
  }
  return out;
}

json explain(const Job& job, const StepResult& step) {
  const Platform platform = platform_of(job);
  std::vector<json> waits;
  for (std::size_t part = 0; part < kStepPartCount; ++part) {
    const char* name = to_string(static_cast<StepPart>(part));
    if (std::strncmp(name, "exposed_", 8) != 0) continue;
    const json longest = longest_wait(step, part);
    if (longest["seconds"].get<double>() < 1e-3 * step.time_s) continue;
    const auto its = std::find_if(step.classes.begin(), step.classes.end(), [&](const StepClass& c) {
      return c.representative == longest["rank"].get<std::int64_t>();
    });
    waits.push_back({{"part", name},
                     {"seconds", step.part_s[part]},
                     {"longest", longest},
                     {"link", link_of(platform, step, its->slowest_link[part])}});
  }
  std::stable_sort(waits.begin(), waits.end(), [](const json& a, const json& b) {
    return a["seconds"].get<double>() > b["seconds"].get<double>();
  });
  return waits;
}

std::string explain_text(const json& explained, double step_s) {
  std::string out = "\nWhat compute waits for\n";
  if (explained.empty()) return out + "  nothing for a thousandth of the step\n";
  for (const json& wait : explained) {
    const double mean_s = wait["seconds"];
    const json &longest = wait["longest"], &link = wait["link"];
    out += fmt::format("  {}  {} on average, {:.1f}% of the step\n", wait["part"].get<std::string>(),
                       format_duration(mean_s), 100 * mean_s / step_s);
    if (link.is_null())
      out += "    inside nodes\n";
    else if (!link.contains("busy"))
      out += fmt::format("    its slowest link: {}\n", link["name"].get<std::string>());
    else
      out +=
          fmt::format("    its slowest link: {} ({} alike), {:.1f}% busy over the step\n",
                      link["name"].get<std::string>(), format_count(link["alike"]), 100 * link["busy"].get<double>());
    const std::int64_t ranks = longest["ranks"];
    out += fmt::format("    longest, {}: {}rank {} of stage {}\n", format_duration(longest["seconds"]),
                       ranks == 1 ? "" : fmt::format("{} ranks, among them ", format_count(ranks)),
                       longest["rank"].get<std::int64_t>(), longest["stage"].get<std::int64_t>());
  }
  return out;
}

}  // namespace trainyard::cli
