// TrainingSpec: what `trainyard exec run` trains on, for how long, and where it keeps what it has learnt. The simulator
// needs none of it.
#pragma once

#include <cstdint>
#include <string>

#include "models/base/status.h"

namespace trainyard {

struct CheckpointSpec {
  /// Folder of the job's checkpoints; empty: none are written.
  std::string folder;
  /// Steps between two; 0: only one, at the end.
  std::int64_t every_steps = 0;
  /// How many are kept, newest first.
  std::int64_t keep = 2;
};

struct TrainingSpec {
  /// A file of any text: each byte is a token.
  std::string data;
  /// Optimizer steps in all, those before a resume included.
  std::int64_t steps = 0;
  CheckpointSpec checkpoint;
};

}  // namespace trainyard
