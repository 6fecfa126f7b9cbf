// Step times that outlive the process: what one run simulated, the next one need not.
//
// A cache and nothing else. What cannot be read or written is simulated again.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "models/base/status.h"
#include "store/database.h"

namespace trainyard::store {

class StepTimes {
 public:
  /// Opens or makes the store `file`. `job` names all that the times depend on, the program that simulates included.
  static Result<StepTimes> open(const std::string& file, const std::string& job, double lock_wait_s = 10);

  /// Seconds by state, of this job, when the store was opened.
  [[nodiscard]] const std::map<std::string, double>& known() const { return known_; }
  /// Committed on return. After a first failure it does nothing.
  void add(const std::string& state, double seconds);

  /// The step in which nothing is slow, as plain memory; empty: not known.
  std::vector<std::uint8_t> healthy_step();
  void add_healthy_step(const std::vector<std::uint8_t>& result);

 private:
  StepTimes(Database database, std::string job) : database_(std::move(database)), job_(std::move(job)) {}
  void read();

  Database database_;
  std::string job_;
  std::map<std::string, double> known_;
};

}  // namespace trainyard::store
