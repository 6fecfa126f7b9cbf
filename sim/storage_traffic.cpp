#include "sim/storage_traffic.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "models/base/units.h"

namespace trainyard {

namespace sg4 = simgrid::s4u;

StorageTraffic::StorageTraffic(sg4::Host* host, const ClusterSpec& cluster, std::int64_t job_nodes, double drain_share,
                               Advance advance)
    : host_(host), advance_(std::move(advance)) {
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
  if (write > 0) lane(in).disk = disk;
  if (out && read > 0) lane(*out).disk = disk;
}

bool StorageTraffic::idle() const {
  return std::all_of(lanes_.begin(), lanes_.end(), [](const Lane& its) { return its.loads.empty(); });
}

void StorageTraffic::move(Way way, double bytes, std::int64_t at_ns, Task done) {
  lane(way).loads.push_back({bytes, at_ns, std::move(done)});
  lane(way).wake->release();
}

void StorageTraffic::abandon() {
  for (Lane& its : lanes_) {
    its.loads.clear();
    if (its.moving) its.moving->cancel();
  }
}

void StorageTraffic::remote_down(bool down) {
  for (const Way way : {Way::ToRemote, Way::FromRemote}) {
    Lane& its = lane(way);
    its.paused = down;
    if (down && its.moving) its.moving->cancel();
    if (!down)
      for (std::size_t i = 0; i < its.loads.size(); ++i) its.wake->release();
  }
}

/// The first load may be another one after each sleep.
void StorageTraffic::wait_for_start(Lane& its) {
  while (!its.loads.empty()) {
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
    if (its.loads.empty() || its.paused) continue;
    if (its.disk != nullptr && its.loads.front().bytes >= 1) {
      const auto size = static_cast<sg_size_t>(std::llround(its.loads.front().bytes));
      its.moving = its.writes ? its.disk->write_async(size) : its.disk->read_async(size);
      try {
        its.moving->wait();
      } catch (const simgrid::CancelException&) {
        its.moving = nullptr;
        continue;
      }
      its.moving = nullptr;
    }
    const std::int64_t at_ns = its.loads.front().at_ns;
    const Task done = std::move(its.loads.front().done);
    its.loads.pop_front();
    advance_(std::max(at_ns, to_ns(sg4::Engine::get_clock() - origin_s_)));
    done();
  }
}

}  // namespace trainyard
