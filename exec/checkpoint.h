// Checkpoints: one folder for each saved step, of safetensors files that ranks write and a manifest that makes it
// whole.
//
//   step-00000200/            appears under this name when all of it is on disk
//     rank-00000.safetensors  pieces of master weights and moments under Hugging Face names; metadata says which
//                             elements of the tensor a piece holds, so that any plan can load what any plan saved
//     manifest.json           written last: step, files, their sizes, a CRC for each block of them; its own CRC
//
// Who writes into a folder holds its lock, a file beside them: one job at a time.
//
// Invariants. (1) A folder without a sound manifest was never a checkpoint. (2) Nothing under a final name changes.
// (3) Data reaches the disk before the manifest, and that before the folder's name. (4) An older checkpoint goes only
// once a newer one is whole.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "exec/rank_state.h"
#include "models/base/status.h"

namespace trainyard::exec {

/// A file of a checkpoint as its manifest has it.
struct ManifestFile {
  std::string name;
  std::int64_t bytes = 0;
  std::vector<std::uint32_t> crcs;  // of blocks of kCrcBlockBytes
};
inline constexpr char kManifest[] = "manifest.json";
inline constexpr std::int64_t kCrcBlockBytes = std::int64_t{16} << 20;

struct Manifest {
  std::int64_t step = 0;  // optimizer steps taken
  std::uint64_t seed = 0;
  std::int64_t sequence_length = 0, global_batch = 0;
  std::string model, text;  // what was trained, on what: as TrainingJob names them; empty: unknown
  std::vector<ManifestFile> files;
};

/// What one rank writes. Taking the snapshot is all that training waits for.
class RankSnapshot {
 public:
  explicit RankSnapshot(const Rank& rank);
  /// Copies the state as it is now.
  void take(const Rank& rank);
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
  std::vector<std::byte> bytes_;  // the whole file
};

/// The right to write checkpoints into a folder, which one job has at a time, until it ends however it ends.
class FolderLock {
 public:
  /// Makes the folder where there is none, and removes what earlier jobs left half written.
  static Result<FolderLock> take(const std::string& folder);
  FolderLock(FolderLock&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  FolderLock& operator=(FolderLock&& other) noexcept;
  ~FolderLock();

 private:
  FolderLock() = default;
  int descriptor_ = -1;
};

/// Where the checkpoint of `step` is written before it is whole, made empty.
Result<std::string> begin_checkpoint(const std::string& folder, std::int64_t step);
/// Writes the manifest, gives the folder its final name, and removes all but the newest `keep` checkpoints.
Problems commit_checkpoint(const std::string& folder, const Manifest& manifest, std::int64_t keep);

/// The step of a checkpoint, by its name alone: "step-00000200"; nothing for any other name.
std::optional<std::int64_t> checkpoint_step(const std::string& path);
/// Checkpoints in a folder, newest first, by name alone.
std::vector<std::string> list_checkpoints(const std::string& folder);
/// Reads and checks a checkpoint: manifest, sizes, every CRC.
Result<Manifest> verify_checkpoint(const std::string& checkpoint);

}  // namespace trainyard::exec
