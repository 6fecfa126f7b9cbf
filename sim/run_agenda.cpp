#include "sim/run_agenda.h"

#include <algorithm>
#include <utility>

#include "models/base/units.h"

namespace trainyard {

namespace sg4 = simgrid::s4u;

Agenda::Agenda(const std::string& name, sg4::Host* host, World world) : world_(std::move(world)) {
  sg4::Actor::create(name, host, [this] { work(); })->daemonize();
}

void Agenda::at(std::int64_t at_ns, Task task) {
  at_ns = std::max(at_ns, last_ns_);  // what should have been done already is done now
  const bool earliest = entries_.empty() || at_ns < entries_.front().at_ns;
  entries_.push_back({at_ns, next_order_++, std::move(task)});
  std::push_heap(entries_.begin(), entries_.end());
  if (earliest && !working_) wake_->release();
}

void Agenda::work() {
  for (;;) {
    if (entries_.empty()) {
      wake_->acquire();
      continue;
    }
    const std::int64_t at_ns = entries_.front().at_ns;
    if (!sleep_until(at_ns)) continue;
    std::pop_heap(entries_.begin(), entries_.end());
    const Task task = std::move(entries_.back().task);
    entries_.pop_back();
    working_ = true;
    last_ns_ = at_ns;
    world_.advance(at_ns);
    task();
    world_.after();
    working_ = false;
  }
}

bool Agenda::sleep_until(std::int64_t at_ns) {
  if (at_ns < world_.end_ns && world_.idle()) return true;
  const double left_s = static_cast<double>(at_ns) / kNsPerS - (sg4::Engine::get_clock() - origin_s_);
  // Below half a nanosecond SimGrid's clock has arrived as far as its doubles can tell.
  return left_s < 0.5e-9 || wake_->acquire_timeout(left_s);
}

}  // namespace trainyard
