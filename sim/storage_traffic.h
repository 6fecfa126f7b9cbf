// Checkpoints on their way: what disks and the remote store move, shared as SimGrid shares it.
//
// A load that is the only one needs no sharing: when it ends is put on the agenda of the run, and SimGrid's clock may
// stay behind. A second load hands the rest of the first to SimGrid.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>

#include <simgrid/s4u.hpp>

#include "models/spec/cluster_spec.h"

namespace trainyard {

class StorageTraffic {
 public:
  enum class Way : std::uint8_t { ToPeers, ToNvme, ToRemote, FromNvme, FromRemote };
  using Task = std::function<void()>;
  struct World {
    /// Called before each task that SimGrid timed runs, with the time; never less than the last one given.
    std::function<void(std::int64_t now_ns)> advance;
    /// Runs a task at a time that is not over.
    std::function<void(std::int64_t at_ns, Task task)> at;
  };

  /// Of `job_nodes` nodes; `drain_share` of their NICs carries copies to peers. Not movable.
  StorageTraffic(simgrid::s4u::Host* host, const ClusterSpec& cluster, std::int64_t job_nodes, double drain_share,
                 World world);
  StorageTraffic(const StorageTraffic&) = delete;
  StorageTraffic& operator=(const StorageTraffic&) = delete;

  /// From `at_ns` on, which SimGrid's clock may not have reached, moves the bytes of the whole job after what is on the
  /// same way already, then runs the task; at once where the cluster has no bandwidth for it.
  void move(Way way, double bytes, std::int64_t at_ns, Task done);
  /// Seconds for so many bytes when nothing else is on its way.
  [[nodiscard]] double alone_s(Way way, double bytes) const {
    return alone_s(lanes_[static_cast<std::size_t>(way)], bytes);
  }
  /// SimGrid has nothing to move.
  [[nodiscard]] bool idle() const { return lone_ != nullptr || empty(); }
  /// Nothing that is on its way will be done.
  void abandon();
  /// The remote store answers nobody: what it was doing begins anew when it is back.
  void remote_down(bool down);

 private:
  struct Load {
    double bytes = 0;
    double left = 0;  // of them, from at_ns on
    std::int64_t at_ns = 0;
    Task done;
  };
  struct Lane {
    simgrid::s4u::Disk* disk = nullptr;  // null: nothing takes time
    double bytes_per_s = 0;              // of a disk
    bool writes = false;
    bool paused = false;
    std::deque<Load> loads;
    simgrid::s4u::IoPtr moving;
    simgrid::s4u::SemaphorePtr wake = simgrid::s4u::Semaphore::create(0);
  };

  Lane& lane(Way way) { return lanes_[static_cast<std::size_t>(way)]; }
  [[nodiscard]] bool empty() const;
  void move_alone(Lane& lane);
  static double alone_s(const Lane& lane, double bytes);
  Lane* end_lone();
  void share(std::int64_t at_ns);
  static void stop_moving(Lane& lane);
  static void finish_first(Lane& lane);
  void add_disk(const std::string& name, double read, double write, Way in, std::optional<Way> out);
  void work(Lane& lane);
  void wait_for_start(Lane& lane);

  simgrid::s4u::Host* host_;
  World world_;
  const double origin_s_ = simgrid::s4u::Engine::get_clock();
  std::array<Lane, 5> lanes_;
  Lane* lone_ = nullptr;        // whose first load is the only one
  std::int64_t lone_turn_ = 0;  // counted up whenever that changes
};

}  // namespace trainyard
