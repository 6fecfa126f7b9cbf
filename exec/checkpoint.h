// Checkpoints: one folder for each saved step, of safetensors files that ranks write and a manifest that makes it
// whole.
//
//   step-00000200/            appears under this name when all of it is on disk
//     rank-00000.safetensors  pieces of master weights and moments under Hugging Face names; metadata says which
//                             elements of the tensor a piece holds, so that any plan can load what any plan saved
//     manifest.json           written last: step, files, their sizes, a CRC for each block of them; its own CRC
//
// Invariants. (1) A folder without a sound manifest was never a checkpoint. (2) Nothing under a final name changes.
// (3) Data reaches the disk before the manifest, and that before the folder's name. (4) An older checkpoint goes only
// once a newer one is whole.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "exec/rank_state.h"
#include "exec/safetensors.h"
#include "models/base/status.h"

namespace trainyard::exec {

/// A file of a checkpoint as its manifest has it.
struct ManifestFile {
  std::string name;
  std::int64_t bytes = 0;
  std::vector<std::uint32_t> crcs;  // of blocks of kCrcBlockBytes
};
inline constexpr std::int64_t kCrcBlockBytes = std::int64_t{16} << 20;

struct Manifest {
  std::int64_t step = 0;  // optimizer steps taken
  std::uint64_t seed = 0;
  std::int64_t sequence_length = 0, global_batch = 0;
  std::vector<ManifestFile> files;
};

/// What one rank writes. Taking the snapshot is all that training waits for.
class RankSnapshot {
 public:
  explicit RankSnapshot(const StepInterpreter& rank);
  /// Copies the state as it is now.
  void take(const StepInterpreter& rank);
  /// Nothing of the state is this rank's to save.
  [[nodiscard]] bool empty() const { return pieces_.empty(); }
  /// Writes and syncs the snapshot: from another thread, while training goes on.
  [[nodiscard]] Result<ManifestFile> write(const std::string& folder, std::int64_t rank) const;

 private:
  struct Copy {
    std::size_t piece;
    StateKind kind;
    std::int64_t offset_bytes;  // in the file
  };
  std::vector<StatePiece> pieces_;
  std::vector<Copy> copies_;
  std::int64_t element_bytes_ = 4;
  std::vector<std::byte> bytes_;  // the whole file
};

/// Where the checkpoint of `step` is written before it is whole, made empty.
Result<std::string> begin_checkpoint(const std::string& folder, std::int64_t step);
/// Writes the manifest, gives the folder its final name, and removes all but the newest `keep` checkpoints.
Problems commit_checkpoint(const std::string& folder, const Manifest& manifest, std::int64_t keep);

/// Checkpoints in a folder, newest first, by name alone.
std::vector<std::string> list_checkpoints(const std::string& folder);
/// Reads and checks a checkpoint: manifest, sizes, every CRC.
Result<Manifest> verify_checkpoint(const std::string& checkpoint);

/// State that was saved: by a checkpoint, or weights alone by a model folder of Hugging Face's.
class SavedState {
 public:
  /// `path`: a checkpoint (verified), or a folder with *.safetensors and no manifest.
  static Result<SavedState> open(const std::string& path);

  /// The manifest of a checkpoint; of a model folder one with step 0 and no files.
  [[nodiscard]] const Manifest& manifest() const { return manifest_; }
  [[nodiscard]] bool has_moments() const { return !manifest_.files.empty(); }

  /// What is missing or misshapen for this program, before any rank starts.
  [[nodiscard]] Problems fits(const StepProgram& program) const;
  /// Fills the rank's parameters and optimizer state.
  void load(const StepInterpreter& rank) const;

  /// A whole tensor as numbers; empty when it is not there.
  [[nodiscard]] std::vector<double> tensor(const std::string& name) const;
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
