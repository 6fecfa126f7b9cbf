// An agenda: a SimGrid actor that does things at given times.
//
// Simulated time is kept in int64 nanoseconds beside SimGrid's double seconds: an entry made
// for t runs at exactly t, so that durations add up without rounding and traces hash alike.
// Zero is when the agenda was made, whatever SimGrid's clock says then.
//
// While nothing else happens in SimGrid, its clock need not follow: entries run one after the other, and it catches up
// once something is under way there.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include <simgrid/s4u.hpp>

namespace trainyard {

class Agenda {
 public:
  using Task = std::function<void()>;
  struct World {
    /// Called before each entry runs, with its time (never less than the last one given).
    std::function<void(std::int64_t now_ns)> advance;
    /// Called after each.
    Task after;
    /// Nothing is under way in SimGrid but this agenda ...
    std::function<bool()> idle;
    /// ... and what ends the run.
    std::int64_t end_ns = 0;
  };

  /// Starts the actor as a daemon on the host: it ends with the simulation. Not movable.
  Agenda(const std::string& name, simgrid::s4u::Host* host, World world);
  Agenda(const Agenda&) = delete;
  Agenda& operator=(const Agenda&) = delete;

  /// Runs `task` at `at_ns`; entries of equal time run in the order in which they were made.
  void at(std::int64_t at_ns, Task task);

 private:
  struct Entry {
    std::int64_t at_ns;
    std::int64_t order;
    Task task;
    bool operator<(const Entry& other) const {  // a heap keeps the largest on top
      return std::tie(at_ns, order) > std::tie(other.at_ns, other.order);
    }
  };

  void work();
  /// True once the clock stands at `at_ns`; false when an earlier entry came meanwhile.
  bool sleep_until(std::int64_t at_ns);

  World world_;
  const double origin_s_ = simgrid::s4u::Engine::get_clock();
  std::vector<Entry> entries_;  // a heap
  std::int64_t next_order_ = 0;
  std::int64_t last_ns_ = 0;  // of the entry that ran last
  bool working_ = false;      // looks at its entries again before it sleeps
  simgrid::s4u::SemaphorePtr wake_ = simgrid::s4u::Semaphore::create(0);
};

}  // namespace trainyard
