#include "sim/flow_network.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <queue>
#include <string>
#include <tuple>
#include <vector>

#include <simgrid/s4u.hpp>

#include "models/base/check.h"
#include "sim/simgrid_engine.h"

namespace trainyard {

namespace sg4 = simgrid::s4u;

namespace {

// SimGrid's sizes are whole numbers; counting in fractions of a byte keeps rounding below a part in 10^14.
constexpr double kUnitsPerByte = 1 << 18;
std::uint64_t whole_units(double units) {
  return static_cast<std::uint64_t>(std::max<long long>(1, std::llround(units)));
}

// Listing a link k times in a route gives the flow k shares of it. Long lists cost time, so weights are reduced by what
// they have in common across each link, its capacity with them. (Never along a channel: fairness is between flows, and
// a flow counted in other units would get another share.)
struct Weights {
  std::vector<std::vector<Crossing>> by_channel;
  std::vector<std::int64_t> link_divisor;  // capacity is counted in units this much larger
};

Weights reduced(const Fold& fold) {
  Weights out;
  out.link_divisor.assign(fold.links.size(), 0);
  for (const ChannelClass& channel : fold.channels) {
    out.by_channel.push_back(channel.crossings);
    for (const Crossing& crossing : channel.crossings) {
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
  sg4::Engine* engine = nullptr;
  sg4::Host* home = nullptr;
  std::vector<std::pair<sg4::Host*, sg4::Host*>> ends;  // by channel class
  std::vector<sg4::Link*> links;                        // by link class; null when nothing crosses it
  Weights weights;
  struct Flow {
    std::int32_t channel;
    std::int64_t tag;
    double rate;         // limit, in the flow's units; 0: none
    double fastest_end;  // no matter what others do, it does not end before
  };
  std::vector<sg4::CommPtr> comms;
  std::vector<Flow> flows;                                    // beside comms
  double earliest = std::numeric_limits<double>::infinity();  // of their fastest ends
  std::vector<sg4::CommPtr> awaited;  // in one call of wait(): flows that may end in time, and where they are above
  std::vector<std::size_t> awaited_flow;
  std::vector<double> fastest;  // by channel class: units/s that its links allow it alone
  // Of channels for collectives: a link of their own that holds them to what their algorithm can do. (A rate
  // set on a comm between two hosts is ignored in this version.)
  // Flows that are alone on all of their links, by number, and when they end; entries whose `ends` has changed since
  // are void.
  struct Lone {
    std::int32_t channel = -1;  // -1: ended, or SimGrid's by now
    std::int64_t tag = 0;
    double rate = 0, limit = 0, ends = 0;
  };
  struct LoneEnd {
    double ends;
    std::size_t lone;
    bool operator>(const LoneEnd& other) const { return std::tie(ends, lone) > std::tie(other.ends, other.lone); }
  };
  std::vector<Lone> lones;
  std::vector<std::size_t> free_lones;
  std::priority_queue<LoneEnd, std::vector<LoneEnd>, std::greater<>> lone_ends;
  std::size_t lone_count = 0;
  double now = 0;
  std::vector<std::int32_t> users;      // by link class: flows under way
  std::vector<std::int64_t> lone_user;  // by link class: the lone flow, or -1
  std::vector<sg4::Link*> limiter;
  std::vector<double> limiter_capacity;
  std::int64_t started = 0;

  void start(const Flow& flow, std::uint64_t units) {
    const auto& [from, to] = ends[static_cast<std::size_t>(flow.channel)];
    const auto channel = static_cast<std::size_t>(flow.channel);
    if (flow.rate > 0 && limiter_capacity[channel] != flow.rate) {
      limiter[channel]->set_bandwidth(flow.rate);  // collectives of one communicator follow one another
      limiter_capacity[channel] = flow.rate;
    }
    sg4::CommPtr comm = sg4::Comm::sendto_init(from, to);
    comm->set_payload_size(units);
    comm->vetoable_start();
    comms.push_back(std::move(comm));
    flows.push_back(flow);
    const double limit = limit_of(flow.channel, flow.rate);
    // A shade early, so that rounding never lets a flow end before its bound.
    flows.back().fastest_end = sg4::Engine::get_clock() + static_cast<double>(units) / limit * (1 - 1e-12);
    earliest = std::min(earliest, flows.back().fastest_end);
  }
  // SimGrid's clock falls behind while nothing is shared.
  void catch_up() const {
    const double left = now - sg4::Engine::get_clock();
    if (left > 0) sg4::this_actor::sleep_for(left);
  }
  // Takes up or gives back the links of a flow of this channel class.
  void occupy(std::int32_t channel, std::int32_t by) {
    for (const Crossing& x : weights.by_channel[static_cast<std::size_t>(channel)])
      users[static_cast<std::size_t>(x.link_class)] += by;
  }
  bool meets_nobody(std::int32_t channel) const {
    const auto& crossings = weights.by_channel[static_cast<std::size_t>(channel)];
    return std::all_of(crossings.begin(), crossings.end(),
                       [&](const Crossing& x) { return users[static_cast<std::size_t>(x.link_class)] == 0; });
  }
  double limit_of(std::int32_t channel, double rate) const {
    const double alone = fastest[static_cast<std::size_t>(channel)];
    return rate > 0 ? std::min(rate, alone) : alone;
  }
  void start_lone(std::int32_t channel, double units, double rate, std::int64_t tag) {
    if (free_lones.empty()) {
      free_lones.push_back(lones.size());
      lones.emplace_back();
    }
    const std::size_t at = free_lones.back();
    free_lones.pop_back();
    const double limit = limit_of(channel, rate);
    lones[at] = {channel, tag, rate, limit, now + units / limit};
    for (const Crossing& x : weights.by_channel[static_cast<std::size_t>(channel)])
      lone_user[static_cast<std::size_t>(x.link_class)] = static_cast<std::int64_t>(at);
    lone_ends.push({lones[at].ends, at});
    ++lone_count;
  }
  // Takes a lone flow out; its links stay occupied.
  Lone release(std::size_t at) {
    const Lone its = lones[at];
    for (const Crossing& x : weights.by_channel[static_cast<std::size_t>(its.channel)])
      lone_user[static_cast<std::size_t>(x.link_class)] = -1;
    lones[at].channel = -1;
    free_lones.push_back(at);
    --lone_count;
    return its;
  }
  // When the first lone flow ends.
  double first_lone_end() {
    while (!lone_ends.empty()) {
      const LoneEnd& top = lone_ends.top();
      const Lone& its = lones[top.lone];
      if (its.channel >= 0 && its.ends == top.ends) return top.ends;
      lone_ends.pop();
    }
    return std::numeric_limits<double>::infinity();
  }
  // Others join it: from now on SimGrid shares its links.
  void share(std::size_t at) {
    const Lone its = release(at);
    start({its.channel, its.tag, its.rate, 0}, whole_units(std::max(0.0, its.ends - now) * its.limit));
  }
  void share_with_all_on(std::int32_t channel) {
    for (const Crossing& x : weights.by_channel[static_cast<std::size_t>(channel)]) {
      const std::int64_t lone = lone_user[static_cast<std::size_t>(x.link_class)];
      if (lone >= 0) share(static_cast<std::size_t>(lone));
    }
  }

  // What each channel class that crosses the link could move if it were alone.
  void find_fastest(std::int32_t link_class) {
    for (std::size_t c = 0; c < fastest.size(); ++c) {
      if (link_class >= 0 && !crosses(static_cast<std::int32_t>(c), link_class)) continue;
      fastest[c] = std::numeric_limits<double>::infinity();
      for (const Crossing& x : weights.by_channel[c]) {
        fastest[c] = std::min(
            fastest[c], links[static_cast<std::size_t>(x.link_class)]->get_bandwidth() / static_cast<double>(x.weight));
      }
    }
  }
  void remove(std::size_t i) {
    std::swap(comms[i], comms.back());
    std::swap(flows[i], flows.back());
    comms.pop_back();
    flows.pop_back();
  }
  void find_earliest() {
    earliest = std::numeric_limits<double>::infinity();
    for (const Flow& flow : flows) earliest = std::min(earliest, flow.fastest_end);
  }
  std::optional<std::int64_t> wait_for_shared(double time_s, double& now_s);
  bool crosses(std::int32_t channel, std::int32_t link_class) const {
    const auto& crossings = weights.by_channel[static_cast<std::size_t>(channel)];
    return std::any_of(crossings.begin(), crossings.end(),
                       [&](const Crossing& x) { return x.link_class == link_class; });
  }
};

FlowNetwork::FlowNetwork(const Fold& fold) : impl_(std::make_unique<Impl>()) {
  impl_->engine = simgrid_engine();
  // Plain max-min sharing: none of the TCP corrections, no penalty for round-trip times. Moments closer than
  // surf/precision (by default a nanosecond) count as one.
  for (const char* setting : {"network/model:CM02", "network/crosstraffic:0", "network/weight-S:0",
                              "network/TCP-gamma:0", "surf/precision:1e-14", "maxmin/precision:1e-9"}) {
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
                               fold.links[l].capacity_bytes_per_s * kUnitsPerByte / static_cast<double>(divisor));
      link->set_latency(0)->seal();
    }
    impl_->links.push_back(link);
  }
  impl_->users.assign(fold.links.size(), 0);
  impl_->lone_user.assign(fold.links.size(), -1);
  impl_->limiter.assign(fold.channels.size(), nullptr);
  impl_->limiter_capacity.assign(fold.channels.size(), 0);
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
    const ChannelKind kind = fold.sorts[static_cast<std::size_t>(fold.channels[c].sort)].kind;
    if (kind == ChannelKind::Ring || kind == ChannelKind::AllToAll) {
      impl_->limiter[c] = zone->create_link("limit" + std::to_string(c), 1e18);
      impl_->limiter[c]->set_latency(0)->seal();
      route.emplace_back(impl_->limiter[c]);
    }
    zone->add_route(from->get_netpoint(), to->get_netpoint(), nullptr, nullptr, route, false);
    impl_->ends.emplace_back(from, to);
  }
  zone->seal();
  impl_->fastest.resize(fold.channels.size());
  impl_->find_fastest(-1);
}

FlowNetwork::~FlowNetwork() = default;

void FlowNetwork::run(const std::function<void()>& conductor) {
  sg4::Actor::create("conductor", impl_->home, [this, &conductor] {
    conductor();
    for (auto& comm : impl_->comms) comm->cancel();
  });
  impl_->engine->run();
}

void FlowNetwork::sleep_until(double time_s) { impl_->now = std::max(impl_->now, time_s); }

void FlowNetwork::start(std::int32_t channel, double bytes, double max_bytes_per_s, std::int64_t tag) {
  const double units = bytes * kUnitsPerByte;
  const double rate = max_bytes_per_s > 0 ? max_bytes_per_s * kUnitsPerByte : 0;
  const bool alone = impl_->meets_nobody(channel);
  if (!alone) {
    impl_->catch_up();
    impl_->share_with_all_on(channel);
  }
  impl_->occupy(channel, 1);
  ++impl_->started;
  if (alone) return impl_->start_lone(channel, static_cast<double>(whole_units(units)), rate, tag);
  impl_->start({channel, tag, rate, 0}, whole_units(units));
}

double FlowNetwork::earliest_end() const { return std::min(impl_->earliest, impl_->first_lone_end()); }

std::optional<std::int64_t> FlowNetwork::wait(double time_s, double& now_s) {
  const double lone_end = impl_->first_lone_end();
  if (!impl_->flows.empty()) {
    if (const auto tag = impl_->wait_for_shared(std::min(time_s, lone_end), now_s)) {
      impl_->now = now_s;
      return tag;
    }
  } else {
    now_s = std::min(time_s, lone_end);
  }
  if (lone_end > time_s || std::isinf(lone_end)) {
    if (!std::isinf(now_s)) impl_->now = std::max(impl_->now, now_s);
    return std::nullopt;
  }
  const Impl::Lone its = impl_->release(impl_->lone_ends.top().lone);
  impl_->lone_ends.pop();
  impl_->occupy(its.channel, -1);
  impl_->now = now_s = lone_end;
  return its.tag;
}

std::optional<std::int64_t> FlowNetwork::Impl::wait_for_shared(double time_s, double& now_s) {
  now_s = time_s;
  if (earliest > time_s) return std::nullopt;
  // SimGrid takes time for each flow that it is asked to wait for; most cannot end in time anyway.
  awaited.clear();
  awaited_flow.clear();
  for (std::size_t i = 0; i < flows.size(); ++i) {
    if (flows[i].fastest_end > time_s) continue;
    awaited.push_back(comms[i]);
    awaited_flow.push_back(i);
  }
  const double left = time_s - sg4::Engine::get_clock();
  const ssize_t ended = left > 0 || std::isinf(time_s)
                            ? sg4::Comm::wait_any_for(awaited, std::isinf(time_s) ? -1 : left)
                            : sg4::Comm::test_any(awaited);
  if (ended < 0) {
    // Flows that share a link are later than they would be alone: what they have left tells by how much at least.
    for (const std::size_t i : awaited_flow) {
      Flow& flow = flows[i];
      flow.fastest_end =
          sg4::Engine::get_clock() + comms[i]->get_remaining() / limit_of(flow.channel, flow.rate) * (1 - 1e-9);
    }
    find_earliest();
    return std::nullopt;
  }
  now_s = std::min(sg4::Engine::get_clock(), time_s);
  const std::size_t flow = awaited_flow[static_cast<std::size_t>(ended)];
  const std::int64_t tag = flows[flow].tag;
  occupy(flows[flow].channel, -1);
  remove(flow);
  find_earliest();
  return tag;
}

std::size_t FlowNetwork::in_flight() const { return impl_->flows.size() + impl_->lone_count; }
std::int64_t FlowNetwork::started() const { return impl_->started; }

void FlowNetwork::set_capacity(std::int32_t link_class, double bytes_per_s) {
  sg4::Link* link = impl_->links[static_cast<std::size_t>(link_class)];
  if (link == nullptr) return;
  impl_->catch_up();
  const auto divisor = static_cast<double>(impl_->weights.link_divisor[static_cast<std::size_t>(link_class)]);
  // A bandwidth of 0 would remove the constraint; this stalls its flows for all that a run lasts.
  link->set_bandwidth(std::max(bytes_per_s * kUnitsPerByte / divisor, 1e-9));
  impl_->find_fastest(link_class);
  if (const std::int64_t lone = impl_->lone_user[static_cast<std::size_t>(link_class)]; lone >= 0) {
    const Impl::Lone its = impl_->release(static_cast<std::size_t>(lone));
    impl_->start_lone(its.channel, std::max(0.0, its.ends - impl_->now) * its.limit, its.rate, its.tag);
  }
  // A flow is bounded for life by what its links had when it started: where that has changed it starts again with
  // what it has left.
  for (std::size_t i = impl_->flows.size(); i-- > 0;) {
    if (!impl_->crosses(impl_->flows[i].channel, link_class)) continue;
    const Impl::Flow flow = impl_->flows[i];
    const double left = impl_->comms[i]->get_remaining();
    impl_->comms[i]->cancel();
    impl_->remove(i);
    impl_->start(flow, whole_units(left));
  }
  impl_->find_earliest();
}

}  // namespace trainyard
