// What was saved, by checkpoints or by other tools, read back for any plan, and written for other tools.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "exec/checkpoint.h"
#include "exec/rank_state.h"
#include "exec/safetensors.h"
#include "models/base/status.h"

namespace trainyard::exec {

/// State that was saved: by a checkpoint, or weights alone by a model folder of Hugging Face's.
class SavedState {
 public:
  /// `path`: a checkpoint (verified), or a folder with *.safetensors that is not named as a checkpoint is.
  static Result<SavedState> open(const std::string& path);

  /// The manifest of a checkpoint; of a model folder one with step 0 and no files.
  [[nodiscard]] const Manifest& manifest() const { return manifest_; }
  [[nodiscard]] bool has_moments() const { return !manifest_.files.empty(); }

  /// What is missing or misshapen for this program, before any rank starts.
  [[nodiscard]] Problems fits(const StepProgram& program) const;
  /// Fills the rank's parameters and optimizer state.
  void load(Rank& rank) const;

  /// Elements [first, first + count) of a tensor as numbers; noughts when it is not there.
  [[nodiscard]] std::vector<double> elements(const std::string& name, std::int64_t first, std::int64_t count) const;
  [[nodiscard]] std::vector<std::string> names() const;
  [[nodiscard]] std::vector<std::int64_t> shape(const std::string& name) const;

 private:
  struct Source {
    std::size_t file;
    StoredTensor stored;
    std::vector<ElementRuns> runs;
  };
  struct Entry {
    std::vector<std::int64_t> shape;
    std::vector<Source> sources;
    std::int64_t elements = 0;  // that sources have together
  };
  Problems add_file(const std::string& file);

  std::string path_;
  Manifest manifest_;
  std::vector<Safetensors> files_;
  std::map<std::string, Entry> entries_;
};

/// Writes the weights of a saved state as Hugging Face does: model.safetensors, or several files of at most
/// `max_file_bytes` with an index, beside the given config.json. `folder` appears whole or not at all.
Problems export_model_folder(const SavedState& state, const std::string& config, Dtype dtype, const std::string& folder,
                             std::int64_t max_file_bytes = std::int64_t{5} << 30);

}  // namespace trainyard::exec
