#include "exec/checkpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdio.h>
#include <sys/file.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <thread>

#include "exec/durable_file.h"
#include "exec/safetensors.h"
#include "models/base/check.h"
#include "models/base/index.h"
#include "models/program/parameters.h"

namespace trainyard::exec {

namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr char kFormat[] = "trainyard-checkpoint-2";
constexpr char kPrefix[] = "step-";
constexpr char kPartial[] = ".partial";
constexpr char kLock[] = ".lock";
constexpr int kLockTries = 40;
constexpr std::chrono::milliseconds kLockWait{50};

Problem unsound(const std::string& file, std::string rule) {
  return {file, "", "", std::move(rule), "use another checkpoint"};
}

std::uint32_t crc(const std::byte* bytes, std::int64_t count) {
  return static_cast<std::uint32_t>(
      crc32_z(crc32_z(0, nullptr, 0), reinterpret_cast<const Bytef*>(bytes), index(count)));
}

std::vector<std::uint32_t> block_crcs(const std::byte* bytes, std::int64_t count) {
  std::vector<std::uint32_t> crcs;
  for (std::int64_t at = 0; at < count; at += kCrcBlockBytes)
    crcs.push_back(crc(bytes + at, std::min(kCrcBlockBytes, count - at)));
  return crcs;
}

std::string folder_name(std::int64_t step) { return fmt::format("{}{:08}", kPrefix, step); }

bool is_whole(const StatePiece& piece) {
  std::int64_t size = 1;
  for (const std::int64_t dim : piece.shape) size *= dim;
  return piece.runs.size() == 1 && piece.runs[0].first == 0 && piece.runs[0].repeat == 1 && piece.elements == size;
}

}  // namespace

// --- what a rank writes

RankSnapshot::RankSnapshot(const Rank& rank) : pieces_(pieces_to_save(rank)) {
  const Dtype dtype = state_dtype(rank.program().plan);
  const std::int64_t element_bytes = size_of(dtype);
  std::vector<std::pair<std::string, StoredTensor>> tensors;
  std::map<std::string, std::string> metadata;
  std::set<std::string> used;
  std::int64_t offset = 0;
  for (std::size_t p = 0; p < pieces_.size(); ++p) {
    StatePiece piece = pieces_[p];
    const std::string tensor = piece.tensor;
    for (int kind = 0; kind < kStateKindCount; ++kind) {
      piece.tensor = state_name(tensor, static_cast<StateKind>(kind));
      std::string key = piece.tensor;
      const bool whole = is_whole(piece);
      if (!whole) key += fmt::format("@{}", piece.runs.front().first);
      TY_CHECK(used.insert(key).second, "pieces of a tensor begin at different elements");
      if (!whole) metadata[key] = describe(piece);
      const std::vector<std::int64_t> shape = whole ? piece.shape : std::vector<std::int64_t>{piece.elements};
      tensors.push_back({key, {dtype, shape, offset}});
      copies_.push_back({p, static_cast<StateKind>(kind), offset});
      offset += piece.elements * element_bytes;
    }
  }
  metadata["format"] = "pt";  // as Hugging Face's own writers say
  const std::string header = safetensors_header(tensors, metadata);
  for (Copy& copy : copies_) copy.offset_bytes += static_cast<std::int64_t>(header.size());
  bytes_.resize(header.size() + index(offset));
  std::memcpy(bytes_.data(), header.data(), header.size());
}

void RankSnapshot::take(const Rank& rank) {
  for (const Copy& copy : copies_) {
    read_state(rank, pieces_[copy.piece], copy.kind, bytes_.data() + copy.offset_bytes);
  }
}

Result<ManifestFile> RankSnapshot::write(const std::string& folder, std::int64_t rank) const {
  const auto size = static_cast<std::int64_t>(bytes_.size());
  ManifestFile file{fmt::format("rank-{:05}.safetensors", rank), size, block_crcs(bytes_.data(), size)};
  const Problems problems = write_synced(folder + "/" + file.name, bytes_.data(), size);
  if (!problems.empty()) return problems;
  return file;
}

// --- the folder

Result<FolderLock> FolderLock::take(const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  const std::string file = folder + "/" + kLock;
  FolderLock lock;
  lock.descriptor_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock.descriptor_ < 0) return not_written(file);
  // Ranks of a launcher that was killed hold the lock with it, and outlive it by a moment.
  for (int tries = 0; ::flock(lock.descriptor_, LOCK_EX | LOCK_NB) != 0; ++tries) {
    if (errno != EWOULDBLOCK) return not_written(file);
    if (tries == kLockTries)
      return Problem{folder, "", "", "is where another job that runs now keeps its checkpoints",
                     "give this job a folder of its own (--checkpoints), or stop the other"};
    std::this_thread::sleep_for(kLockWait);
  }
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind(kPrefix, 0) == 0 && name.ends_with(kPartial)) fs::remove_all(entry.path(), error);
  }
  return lock;
}

FolderLock& FolderLock::operator=(FolderLock&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

FolderLock::~FolderLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Result<std::string> begin_checkpoint(const std::string& folder, std::int64_t step) {
  const std::string partial = folder + "/" + folder_name(step) + kPartial;
  std::error_code error;
  fs::remove_all(partial, error);
  fs::create_directories(partial, error);
  if (error) {
    errno = error.value();
    return not_written(partial);
  }
  return partial;
}

namespace {

std::string manifest_text(const Manifest& manifest) {
  json body{{"format", kFormat},
            {"step", manifest.step},
            {"seed", manifest.seed},
            {"sequence_length", manifest.sequence_length},
            {"global_batch_size", manifest.global_batch},
            {"model", manifest.model},
            {"text", manifest.text},
            {"crc_block_bytes", kCrcBlockBytes},
            {"files", json::array()}};
  for (const ManifestFile& file : manifest.files)
    body["files"].push_back({{"name", file.name}, {"bytes", file.bytes}, {"crc32", file.crcs}});
  const std::string inner = body.dump();
  return json{{"manifest", inner},
              {"crc32", crc(reinterpret_cast<const std::byte*>(inner.data()), static_cast<std::int64_t>(inner.size()))}}
             .dump() +
         "\n";
}

// Gives a folder its final name. What has that name already, from an earlier run that went further, changes places with
// it, so that there is a whole one at every moment.
bool rename_folder(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) == 0) return true;
  if (errno != ENOTEMPTY && errno != EEXIST) return false;
  std::error_code ignored;
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) {
    fs::remove_all(from, ignored);
    return true;
  }
  // This file system cannot exchange.
  const std::string aside = to + ".old" + kPartial;
  fs::remove_all(aside, ignored);
  if (::rename(to.c_str(), aside.c_str()) != 0 || ::rename(from.c_str(), to.c_str()) != 0) return false;
  fs::remove_all(aside, ignored);
  return true;
}

}  // namespace

Problems commit_checkpoint(const std::string& folder, const Manifest& manifest, std::int64_t keep) {
  const std::string name = folder + "/" + folder_name(manifest.step), partial = name + kPartial;
  Problems problems = write_synced(partial + "/" + kManifest, manifest_text(manifest));
  if (!problems.empty()) return problems;
  if (!sync_folder(partial)) return {not_written(partial)};
  if (!rename_folder(partial, name)) return {not_written(name)};
  if (!sync_folder(folder)) return {not_written(folder)};
  std::int64_t kept = 0;
  for (const std::string& checkpoint : list_checkpoints(folder)) {
    // What is newer belongs to a run that this one has left behind.
    if (*checkpoint_step(checkpoint) > manifest.step) continue;
    std::error_code ignored;
    if (++kept > keep) fs::remove_all(checkpoint, ignored);
  }
  return {};
}

std::optional<std::int64_t> checkpoint_step(const std::string& path) {
  fs::path named = path;
  if (!named.has_filename()) named = named.parent_path();  // "step-00000200/"
  const std::string name = named.filename().string();
  constexpr std::size_t kFirst = sizeof kPrefix - 1, kMostDigits = 18;
  if (name.rfind(kPrefix, 0) != 0 || name.size() == kFirst || name.size() > kFirst + kMostDigits) return std::nullopt;
  if (name.find_first_not_of("0123456789", kFirst) != std::string::npos) return std::nullopt;
  return std::stoll(name.substr(kFirst));
}

std::vector<std::string> list_checkpoints(const std::string& folder) {
  std::vector<std::pair<std::int64_t, std::string>> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string path = entry.path().string();
    if (const std::optional<std::int64_t> step = checkpoint_step(path)) found.emplace_back(*step, path);
  }
  std::sort(found.rbegin(), found.rend());
  std::vector<std::string> paths;
  for (auto& entry : found) paths.push_back(std::move(entry.second));
  return paths;
}

namespace {

// The manifest, if its text is what was written.
std::optional<Manifest> parse_manifest(const std::string& text) {
  const json outer = json::parse(text, nullptr, false);
  if (!outer.is_object() || !outer.contains("manifest") || !outer["manifest"].is_string() || !outer.contains("crc32"))
    return std::nullopt;
  const std::string inner = outer["manifest"].get<std::string>();
  if (outer["crc32"] != crc(reinterpret_cast<const std::byte*>(inner.data()), static_cast<std::int64_t>(inner.size())))
    return std::nullopt;
  try {  // a sound CRC does not mean that we wrote it
    const json body = json::parse(inner);
    if (body.at("format") != kFormat) return std::nullopt;
    Manifest manifest{body.at("step"),
                      body.at("seed"),
                      body.at("sequence_length"),
                      body.at("global_batch_size"),
                      body.at("model"),
                      body.at("text"),
                      {}};
    for (const json& file : body.at("files"))
      manifest.files.push_back({file.at("name"), file.at("bytes"), file.at("crc32").get<std::vector<std::uint32_t>>()});
    const bool all_checked = std::all_of(manifest.files.begin(), manifest.files.end(), [](const ManifestFile& file) {
      return file.bytes >= 0 && file.bytes / kCrcBlockBytes + (file.bytes % kCrcBlockBytes > 0 ? 1 : 0) ==
                                    static_cast<std::int64_t>(file.crcs.size());
    });
    return all_checked && manifest.step >= 0 ? std::optional(manifest) : std::nullopt;
  } catch (const json::exception&) {
    return std::nullopt;
  }
}

}  // namespace

Result<Manifest> verify_checkpoint(const std::string& checkpoint) {
  const std::string file = checkpoint + "/" + kManifest;
  std::ifstream in(file, std::ios::binary);
  if (!in) return unsound(file, "is missing: the checkpoint was never whole");
  const std::optional<Manifest> manifest = parse_manifest(std::string(std::istreambuf_iterator<char>(in), {}));
  if (!manifest) return unsound(file, "is damaged");
  for (const ManifestFile& wanted : manifest->files) {
    const std::string name = checkpoint + "/" + wanted.name;
    std::error_code error;
    const auto size = fs::file_size(name, error);
    if (error) return unsound(name, "is missing");
    if (static_cast<std::int64_t>(size) != wanted.bytes)
      return unsound(name, fmt::format("has {} bytes where {} were written", size, wanted.bytes));
    // The header may be what is damaged, so bytes come before their meaning.
    std::ifstream data(name, std::ios::binary);
    std::vector<std::byte> block(index(std::min(kCrcBlockBytes, wanted.bytes)));
    for (std::size_t i = 0; i < wanted.crcs.size(); ++i) {
      const std::int64_t at = static_cast<std::int64_t>(i) * kCrcBlockBytes;
      const std::int64_t count = std::min(kCrcBlockBytes, wanted.bytes - at);
      data.read(reinterpret_cast<char*>(block.data()), count);
      if (!data || crc(block.data(), count) != wanted.crcs[i])
        return unsound(name, fmt::format("is damaged between byte {} and byte {}", at, at + count));
    }
  }
  return *manifest;
}

}  // namespace trainyard::exec
