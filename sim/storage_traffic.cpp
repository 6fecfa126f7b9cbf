#include "sim/storage_traffic.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "models/base/units.h"

namespace trainyard {

namespace sg4 = simgrid::s4u;

StorageTraffic::StorageTraffic(sg4::Host* host, const ClusterSpec& cluster, std::int64_t job_nodes, double drain_share,
                               World world)
    : host_(host), world_(std::move(world)) {
  const auto nodes = static_cast<double>(job_nodes);
  const StorageSpec& storage = cluster.storage;
  const double nics = cluster.nic_bytes_per_s * static_cast<double>(cluster.nics_per_node);
  add_disk("peers", 0, nodes * nics * drain_share, Way::ToPeers, std::nullopt);
  add_disk("nvme", nodes * storage.nvme_read_bytes_per_s, nodes * storage.nvme_write_bytes_per_s, Way::ToNvme,
           Way::FromNvme);
  add_disk("remote", storage.remote_read_bytes_per_s, storage.remote_write_bytes_per_s, Way::ToRemote, Way::FromRemote);
  for (Lane& its : lanes_) sg4::Actor::create("storage", host, [this, &its] { work(its); })->daemonize();
}

/// A bandwidth of 0 is no limit: then nothing is asked of the disk in that direction.
void StorageTraffic::add_disk(const std::string& name, double read, double write, Way in, std::optional<Way> out) {
  lane(in).writes = true;
  if (read <= 0 && write <= 0) return;
  sg4::Disk* disk = host_->create_disk(name, read > 0 ? read : write, write > 0 ? write : read);
  disk->seal();
  const auto limit = [&](Way way, double bytes_per_s) {
    if (bytes_per_s > 0) lane(way).disk = disk;
    lane(way).bytes_per_s = bytes_per_s;
  };
  limit(in, write);
  if (out) limit(*out, read);
}

bool StorageTraffic::empty() const {
  return std::all_of(lanes_.begin(), lanes_.end(), [](const Lane& its) { return its.loads.empty(); });
}

void StorageTraffic::move(Way way, double bytes, std::int64_t at_ns, Task done) {
  Lane& its = lane(way);
  const bool alone = empty() && !its.paused;
  if (lone_ != nullptr) share(at_ns);
  its.loads.push_back({std::round(bytes), std::round(bytes), at_ns, std::move(done)});
  if (alone)
    move_alone(its);
  else
    its.wake->release();
}

void StorageTraffic::move_alone(Lane& its) {
  lone_ = &its;
  const Load& load = its.loads.front();
  const std::int64_t end_ns = load.at_ns + to_ns(alone_s(its, load.bytes));
  world_.at(end_ns, [this, &its, turn = ++lone_turn_] {
    if (turn != lone_turn_) return;
    end_lone();
    finish_first(its);
  });
}

double StorageTraffic::alone_s(const Lane& its, double bytes) {
  return its.disk != nullptr ? bytes / its.bytes_per_s : 0;
}

StorageTraffic::Lane* StorageTraffic::end_lone() {
  ++lone_turn_;
  return std::exchange(lone_, nullptr);
}

/// What was alone is not from now on: SimGrid moves the rest of it.
void StorageTraffic::share(std::int64_t at_ns) {
  Load& load = lone_->loads.front();
  const double moved = lone_->bytes_per_s * static_cast<double>(at_ns - load.at_ns) / kNsPerS;
  load.left = std::max(0.0, std::round(load.bytes - moved));
  load.at_ns = at_ns;
  end_lone()->wake->release();
}

void StorageTraffic::abandon() {
  end_lone();
  for (Lane& its : lanes_) {
    its.loads.clear();
    stop_moving(its);
  }
}

void StorageTraffic::remote_down(bool down) {
  if (down && (lone_ == &lane(Way::ToRemote) || lone_ == &lane(Way::FromRemote))) end_lone();
  for (const Way way : {Way::ToRemote, Way::FromRemote}) {
    Lane& its = lane(way);
    its.paused = down;
    if (down) stop_moving(its);
    if (!its.loads.empty()) its.loads.front().left = its.loads.front().bytes;
    // Counted first: whoever is woken takes loads off the queue.
    if (!down)
      for (std::size_t pending = its.loads.size(); pending > 0; --pending) its.wake->release();
  }
}

/// Once: whoever waits for it finds out when SimGrid next runs, which may be after much else.
void StorageTraffic::stop_moving(Lane& its) {
  if (its.moving) std::exchange(its.moving, nullptr)->cancel();
}

/// The first load may be another one after each sleep.
void StorageTraffic::wait_for_start(Lane& its) {
  while (!its.loads.empty() && lone_ != &its) {
    const double left_s =
        static_cast<double>(its.loads.front().at_ns) / kNsPerS - (sg4::Engine::get_clock() - origin_s_);
    if (left_s < 0.5e-9) return;
    sg4::this_actor::sleep_for(left_s);
  }
}

void StorageTraffic::work(Lane& its) {
  for (;;) {
    its.wake->acquire();
    wait_for_start(its);
    if (its.loads.empty() || its.paused || lone_ == &its) continue;
    if (its.disk != nullptr && its.loads.front().left >= 1) {
      const auto size = static_cast<sg_size_t>(its.loads.front().left);
      const sg4::IoPtr moving = its.writes ? its.disk->write_async(size) : its.disk->read_async(size);
      its.moving = moving;
      try {
        moving->wait();
      } catch (const simgrid::CancelException&) {  // stop_moving()
      }
      if (its.moving != moving) continue;
      its.moving = nullptr;
    }
    const std::int64_t now_ns = std::max(its.loads.front().at_ns, to_ns(sg4::Engine::get_clock() - origin_s_));
    world_.advance(now_ns);
    finish_first(its);
  }
}

void StorageTraffic::finish_first(Lane& its) {
  const Task done = std::move(its.loads.front().done);
  its.loads.pop_front();
  done();
}

}  // namespace trainyard
