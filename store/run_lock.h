// Which runs of a store have a living writer: advisory locks on a small file beside it. Byte n is locked for as long as
// the writer of run n lives; byte 0 while somebody makes the store or enters a run, which is done one at a time.
//
// The kernel drops a lock when its process dies, however it dies, so "is its writer alive?" never has to trust anything
// that a dead process left behind. They are open-file-description locks: probing them from the writer's own process
// neither hides nor drops them, as POSIX locks would. Forked children inherit such locks, so a fork handler closes the
// descriptor in the child; a sweep's workers do not keep a killed parent's run "running".
#pragma once

#include <cstdint>
#include <string>

#include "models/base/status.h"

namespace trainyard::store {

class RunLock {
 public:
  /// Takes the entrance of the store `store_file` (a canonical path), waiting at most `wait_s` seconds for
  /// another process to leave it. Fails with one Problem, which names that process's id.
  static Result<RunLock> enter(const std::string& store_file, double wait_s);

  /// Locks the run's byte: before others can see that the run exists.
  void hold(std::int64_t run_id);
  /// Lets the next one in.
  void leave_entrance();

  /// Whether a living process holds the run. Never takes a lock, not even for a moment.
  static bool held(const std::string& store_file, std::int64_t run_id);

  RunLock(RunLock&& other) noexcept;
  RunLock& operator=(RunLock&& other) noexcept;
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;
  ~RunLock();

 private:
  RunLock(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}
  void release();

  int descriptor_ = -1;
  std::string path_;
};

}  // namespace trainyard::store
