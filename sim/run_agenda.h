// An agenda: a SimGrid actor that does things at given times.
//
// Simulated time is kept in int64 nanoseconds beside SimGrid's double seconds: an entry made
// for t runs at exactly t, so that durations add up without rounding and traces hash alike.
// Zero is when the agenda was made, whatever SimGrid's clock says then.
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
  /// Called before each entry runs, with its time (never less than the last one given).
  using Advance = std::function<void(std::int64_t now_ns)>;

  /// Starts the actor as a daemon on the host: it ends with the simulation. `after` is called after each entry. Not
  /// movable.
  Agenda(const std::string& name, simgrid::s4u::Host* host, Advance advance, Task after);
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

  Advance advance_;
  Task after_;
  const double origin_s_ = simgrid::s4u::Engine::get_clock();
  std::vector<Entry> entries_;  // a heap
  std::int64_t next_order_ = 0;
  bool working_ = false;  // looks at its entries again before it sleeps
  simgrid::s4u::SemaphorePtr wake_ = simgrid::s4u::Semaphore::create(0);
};

}  // namespace trainyard
