#include "sim/flow_network.h"

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include <simgrid/s4u.hpp>

#include "models/base/check.h"

namespace trainyard {

namespace sg4 = simgrid::s4u;

namespace {

// Listing a link k times in a route gives the flow k shares of it. Long lists cost time, so weights are reduced
// by what they have in common, first along each channel, then across each link.
struct Weights {
  std::vector<std::vector<Crossing>> by_channel;
  std::vector<std::int64_t> channel_divisor;  // the flow is counted in units this much larger
  std::vector<std::int64_t> link_divisor;     // capacity is counted in units this much larger
};

Weights reduced(const Fold& fold) {
  Weights out;
  out.link_divisor.assign(fold.links.size(), 0);
  for (const ChannelClass& channel : fold.channels) {
    std::int64_t common = 0;
    for (const Crossing& crossing : channel.crossings) common = std::gcd(common, crossing.weight);
    out.channel_divisor.push_back(std::max<std::int64_t>(common, 1));
    out.by_channel.push_back(channel.crossings);
    for (Crossing& crossing : out.by_channel.back()) {
      crossing.weight /= out.channel_divisor.back();
      std::int64_t& divisor = out.link_divisor[static_cast<std::size_t>(crossing.link_class)];
      divisor = std::gcd(divisor, crossing.weight);
    }
  }
  for (auto& crossings : out.by_channel) {
    for (Crossing& crossing : crossings)
      crossing.weight /= out.link_divisor[static_cast<std::size_t>(crossing.link_class)];
  }
  return out;
}

}  // namespace

struct FlowNetwork::Impl {
  std::unique_ptr<sg4::Engine> engine;
  sg4::Host* home = nullptr;
  std::vector<std::pair<sg4::Host*, sg4::Host*>> ends;  // by channel class
  std::vector<sg4::Link*> links;                        // by link class; null when nothing crosses it
  Weights weights;
  std::vector<sg4::CommPtr> flows;
  std::vector<std::int64_t> tags;
  std::int64_t started = 0;
};

FlowNetwork::FlowNetwork(const Fold& fold) : impl_(std::make_unique<Impl>()) {
  std::string name = "trainyard", quiet = "--log=root.thresh:warning";
  char* argv[] = {name.data(), quiet.data(), nullptr};
  int argc = 2;
  impl_->engine = std::make_unique<sg4::Engine>(&argc, argv);
  // Plain max-min sharing: none of the TCP corrections, no penalty for round-trip times.
  for (const char* setting :
       {"network/model:CM02", "network/crosstraffic:0", "network/weight-S:0", "network/TCP-gamma:0"}) {
    sg4::Engine::set_config(setting);
  }
  sg4::NetZone* zone = sg4::create_full_zone("fabric");
  impl_->home = zone->create_host("home", 1e9);
  impl_->weights = reduced(fold);
  for (std::size_t l = 0; l < fold.links.size(); ++l) {
    const std::int64_t divisor = impl_->weights.link_divisor[l];
    sg4::Link* link = nullptr;
    if (divisor > 0) {
      link = zone->create_link("link" + std::to_string(l),
                               fold.links[l].capacity_bytes_per_s / static_cast<double>(divisor));
      link->set_latency(0)->seal();
    }
    impl_->links.push_back(link);
  }
  for (std::size_t c = 0; c < fold.channels.size(); ++c) {
    if (fold.channels[c].inside_node) {
      impl_->ends.emplace_back(nullptr, nullptr);
      continue;
    }
    sg4::Host* from = zone->create_host("from" + std::to_string(c), 1e9);
    sg4::Host* to = zone->create_host("to" + std::to_string(c), 1e9);
    std::vector<sg4::LinkInRoute> route;
    for (const Crossing& crossing : impl_->weights.by_channel[c]) {
      route.insert(route.end(), static_cast<std::size_t>(crossing.weight),
                   sg4::LinkInRoute(impl_->links[static_cast<std::size_t>(crossing.link_class)]));
    }
    zone->add_route(from->get_netpoint(), to->get_netpoint(), nullptr, nullptr, route, false);
    impl_->ends.emplace_back(from, to);
  }
  zone->seal();
}

FlowNetwork::~FlowNetwork() = default;

void FlowNetwork::run(const std::function<void()>& conductor) {
  sg4::Actor::create("conductor", impl_->home, [this, &conductor] {
    conductor();
    for (auto& flow : impl_->flows) flow->cancel();
  });
  impl_->engine->run();
}

void FlowNetwork::sleep_until(double time_s) {
  const double left = time_s - sg4::Engine::get_clock();
  if (left > 0) sg4::this_actor::sleep_for(left);
}

void FlowNetwork::start(std::int32_t channel, double bytes, double max_bytes_per_s, std::int64_t tag) {
  const auto& [from, to] = impl_->ends[static_cast<std::size_t>(channel)];
  const auto divisor = static_cast<double>(impl_->weights.channel_divisor[static_cast<std::size_t>(channel)]);
  // The rate must be set before the ends are: from then on this version takes the flow as started.
  sg4::CommPtr flow = sg4::Comm::sendto_init();
  if (max_bytes_per_s > 0) flow->set_rate(max_bytes_per_s * divisor);
  flow->set_source(from)->set_destination(to);
  // SimGrid counts sizes in whole bytes; a flow of less than one still takes its turn.
  flow->set_payload_size(std::max<std::uint64_t>(1, static_cast<std::uint64_t>(bytes * divisor + 0.5)));
  flow->vetoable_start();
  impl_->flows.push_back(std::move(flow));
  impl_->tags.push_back(tag);
  ++impl_->started;
}

std::optional<std::int64_t> FlowNetwork::wait(double time_s, double& now_s) {
  const double left = time_s - sg4::Engine::get_clock();
  const ssize_t ended = left > 0 || std::isinf(time_s)
                            ? sg4::Comm::wait_any_for(impl_->flows, std::isinf(time_s) ? -1 : left)
                            : sg4::Comm::test_any(impl_->flows);
  if (ended < 0) {
    now_s = time_s;
    return std::nullopt;
  }
  now_s = std::min(sg4::Engine::get_clock(), time_s);
  const auto i = static_cast<std::size_t>(ended);
  const std::int64_t tag = impl_->tags[i];
  std::swap(impl_->flows[i], impl_->flows.back());
  std::swap(impl_->tags[i], impl_->tags.back());
  impl_->flows.pop_back();
  impl_->tags.pop_back();
  return tag;
}

std::size_t FlowNetwork::in_flight() const { return impl_->flows.size(); }
std::int64_t FlowNetwork::started() const { return impl_->started; }

void FlowNetwork::set_capacity(std::int32_t link_class, double bytes_per_s) {
  sg4::Link* link = impl_->links[static_cast<std::size_t>(link_class)];
  if (link == nullptr) return;
  const auto divisor = static_cast<double>(impl_->weights.link_divisor[static_cast<std::size_t>(link_class)]);
  // A bandwidth of 0 would remove the constraint; this stalls its flows for all that a run lasts.
  link->set_bandwidth(std::max(bytes_per_s / divisor, 1e-9));
}

}  // namespace trainyard
