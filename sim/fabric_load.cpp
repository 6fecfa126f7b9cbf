#include "sim/fabric_load.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>

#include "models/base/check.h"
#include "models/base/index.h"
#include "sim/child_process.h"
#include "sim/flow_network.h"

namespace trainyard {

namespace {

/// Each flow a channel, each link that is crossed a class of its own.
Fold network_of(const Platform& platform, const std::vector<FabricFlow>& flows) {
  Fold out;
  out.sorts = {{ChannelKind::Transfer, Group::World, false}};
  out.flows_per_channel = platform.flows_per_channel();
  std::map<LinkId, std::int32_t> classes;
  for (const FabricFlow& flow : flows) {
    TY_CHECK(!platform.same_node(flow.from, flow.to), "a flow of the fabric leaves its node");
    std::map<LinkId, std::int64_t> weights{{platform.nic_out(flow.from), out.flows_per_channel},
                                           {platform.nic_in(flow.to), out.flows_per_channel}};
    std::vector<LinkId> tier_links;
    platform.append_tier_links(flow.from, flow.to, tier_links);
    for (const LinkId link : tier_links) ++weights[link];
    ChannelClass channel;
    for (const auto& [link, weight] : weights) {
      const auto [entry, is_new] = classes.try_emplace(link, static_cast<std::int32_t>(out.links.size()));
      if (is_new) out.links.push_back({link, 1, platform.capacity(link)});
      channel.crossings.push_back({entry->second, weight});
    }
    out.channels.push_back(std::move(channel));
  }
  return out;
}

/// Who has sent all begins again, until all have once: so nobody ever gets more for want of others.
std::vector<double> rates_here(const Fold& fold, double bytes) {
  FlowNetwork network(fold);
  std::vector<double> rates(fold.channels.size(), 0), began(fold.channels.size(), 0);
  const double each = bytes / static_cast<double>(fold.flows_per_channel);
  network.run([&] {
    double now = 0;
    for (std::size_t c = 0; c < rates.size(); ++c)
      network.start(static_cast<std::int32_t>(c), each, 0, static_cast<std::int64_t>(c));
    for (std::size_t left = rates.size(); left > 0;) {
      const auto ended = network.wait(std::numeric_limits<double>::infinity(), now);
      if (!ended) continue;
      const std::size_t c = index(*ended);
      if (rates[c] == 0) {
        rates[c] = bytes / (now - began[c]);
        --left;
      }
      began[c] = now;
      network.start(static_cast<std::int32_t>(c), each, 0, *ended);
    }
  });
  return rates;
}

}  // namespace

std::vector<FabricFlow> random_circles(const ClusterSpec& cluster, std::int64_t nodes, RandomStream& random) {
  std::vector<FabricFlow> flows;
  const std::int64_t gpus_per_nic = cluster.gpus_per_node / cluster.nics_per_node;
  for (std::int64_t nic = 0; nic < cluster.nics_per_node && nodes > 1; ++nic) {
    std::vector<std::int64_t> circle(index(nodes));
    std::iota(circle.begin(), circle.end(), 0);
    for (std::size_t i = circle.size(); i > 1; --i) std::swap(circle[i - 1], circle[random.below(i)]);
    for (std::size_t i = 0; i < circle.size(); ++i) {
      const std::int64_t device = nic * gpus_per_nic, next = circle[(i + 1) % circle.size()];
      flows.push_back({circle[i] * cluster.gpus_per_node + device, next * cluster.gpus_per_node + device});
    }
  }
  return flows;
}

Result<std::vector<double>> sustained_rates(const Platform& platform, const std::vector<FabricFlow>& flows) {
  if (flows.empty()) return std::vector<double>{};
  const Fold fold = network_of(platform, flows);
  const double bytes = platform.capacity(platform.nic_out(flows.front().from));  // a second's worth
  std::vector<double> rates(flows.size());
  ChildWork work;
  work.work = [&](std::size_t, const Ask&) {
    const std::vector<double> its = rates_here(fold, bytes);
    Bytes out(its.size() * sizeof(double));
    std::memcpy(out.data(), its.data(), out.size());
    return out;
  };
  work.on_result = [&](std::size_t, const Bytes& result) {
    TY_CHECK(result.size() == rates.size() * sizeof(double), "a child sends a rate for each flow");
    std::memcpy(rates.data(), result.data(), result.size());
  };
  if (const Problems problems = in_children(work); !problems.empty()) return problems;
  return rates;
}

}  // namespace trainyard
