#include "store/step_times.h"

#include <cmath>
#include <utility>

#include "store/run_lock.h"
#include "store/store_file.h"

namespace trainyard::store {

Result<StepTimes> StepTimes::open(const std::string& file, const std::string& job, double lock_wait_s) {
  const std::string canonical = canonical_store_file(file);
  auto lock = RunLock::enter(canonical, lock_wait_s);
  if (!lock) return lock.problems();
  auto database = open_for_writing(canonical);
  if (!database) return database.problems();
  StepTimes times(std::move(database).value(), job);
  times.read();
  if (times.database_.failed()) return times.database_.problems();
  return times;
}

void StepTimes::read() {
  Statement rows = database_.prepare("SELECT state, seconds FROM step_times WHERE job = ?");
  rows.with(job_);
  while (rows.next()) {
    const double seconds = rows.real(1);
    if (std::isfinite(seconds) && seconds > 0) known_[rows.text(0)] = seconds;  // anyone may have edited the store
  }
}

void StepTimes::add(const std::string& state, double seconds) {
  database_.prepare("INSERT OR REPLACE INTO step_times (job, state, seconds) VALUES (?, ?, ?)")
      .with(job_, state, seconds)
      .run();
}

std::vector<std::uint8_t> StepTimes::healthy_step() {
  Statement row = database_.prepare("SELECT result FROM healthy_steps WHERE job = ?");
  row.with(job_);
  return row.next() ? row.blob(0) : std::vector<std::uint8_t>();
}

void StepTimes::add_healthy_step(const std::vector<std::uint8_t>& result) {
  database_.prepare("INSERT OR REPLACE INTO healthy_steps (job, result) VALUES (?, ?)").with(job_, result).run();
}

}  // namespace trainyard::store
