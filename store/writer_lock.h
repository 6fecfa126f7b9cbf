// Who writes a store: an advisory lock on a small file beside it, held for as long as the writer lives.
//
// The kernel drops the lock when the writer dies, however it dies, so "is there a living writer?" never
// has to trust anything that a dead process left behind. The lock is an open-file-description lock:
// probing it from the writer's own process neither hides nor drops it, as POSIX locks would. Forked
// children inherit such locks, so a fork handler closes the descriptor in the child; a sweep's workers
// do not keep a killed parent's run "running".
#pragma once

#include <string>

#include "models/base/status.h"

namespace trainyard::store {

class WriterLock {
 public:
  /// Takes the lock of the store `store_file` (a canonical path), waiting at most `wait_s` seconds for
  /// another writer. Fails with one Problem, which names the other writer's process id.
  static Result<WriterLock> acquire(const std::string& store_file, double wait_s);

  /// Whether a living process holds the lock. Never takes it, not even for a moment.
  static bool held(const std::string& store_file);

  WriterLock(WriterLock&& other) noexcept;
  WriterLock& operator=(WriterLock&& other) noexcept;
  WriterLock(const WriterLock&) = delete;
  WriterLock& operator=(const WriterLock&) = delete;
  ~WriterLock();

 private:
  WriterLock(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}
  void release();

  int descriptor_ = -1;
  std::string path_;
};

}  // namespace trainyard::store
