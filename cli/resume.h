// Where a job starts: from its own newest checkpoint, from what it is given, or from nothing.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "exec/corpus.h"
#include "exec/saved_state.h"
#include "models/spec/scenario.h"

namespace trainyard::cli {

/// What checkpoints of the job say that it trains, apart from names, and on which text.
std::string model_id(const ModelSpec& model);
std::string text_id(const exec::Corpus& corpus);

struct Start {
  std::optional<exec::SavedState> state;  // none: initial weights
  std::vector<std::string> notes;         // for the user: what was passed over, what is otherwise than it was
};

/// `from`: a checkpoint or a model folder to start from when the job has no checkpoint of its own; may be empty.
/// `changed`: the job may go on from its own checkpoints although its seed, text or batch is another.
Result<Start> find_start(const std::string& job_file, const Scenario& scenario, const StepProgram& program,
                         const exec::Corpus& corpus, const std::string& from, bool changed);

}  // namespace trainyard::cli
