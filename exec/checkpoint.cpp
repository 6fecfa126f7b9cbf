#include "exec/checkpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "models/base/bf16.h"
#include "models/base/check.h"
#include "models/program/parameters.h"
#include "models/program/shards.h"

namespace trainyard::exec {

namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr char kFormat[] = "trainyard-checkpoint-1";
constexpr char kManifest[] = "manifest.json";
constexpr char kPrefix[] = "step-";
constexpr char kPartial[] = ".partial";

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

Problem not_written(const std::string& file) {
  return {file,
          "",
          "",
          fmt::format("could not be written: {}", std::strerror(errno)),
          "check the folder, its permissions and its free space",
          ProblemKind::MissingCapability};
}

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

// Writes a file and waits until the disk has it.
Problems write_synced(const std::string& file, const std::byte* bytes, std::int64_t count) {
  const int descriptor = ::open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor < 0) return {not_written(file)};
  bool good = true;
  while (count > 0 && good) {
    const ssize_t written = ::write(descriptor, bytes, index(count));
    if (written < 0 && errno == EINTR) continue;
    good = written >= 0;
    if (good) bytes += written, count -= written;
  }
  good = good && ::fdatasync(descriptor) == 0;
  const Problem problem = not_written(file);  // before close() can change errno
  good = ::close(descriptor) == 0 && good;
  return good ? Problems{} : Problems{problem};
}

bool sync_folder(const std::string& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return false;
  const bool good = ::fsync(descriptor) == 0;
  ::close(descriptor);
  return good;
}

std::string folder_name(std::int64_t step) { return fmt::format("{}{:08}", kPrefix, step); }

// --- what a piece is, as text in a safetensors header

std::string describe(const StatePiece& piece) {
  json runs = json::array();
  for (const ElementRuns& run : piece.runs) runs.push_back({run.first, run.count, run.stride, run.repeat});
  return json{{"tensor", piece.tensor}, {"shape", piece.shape}, {"runs", runs}}.dump();
}

struct Described {
  std::string tensor;
  std::vector<std::int64_t> shape;
  std::vector<ElementRuns> runs;
};

// Nothing when the text does not describe `elements` elements inside a tensor.
std::optional<Described> parse_description(const std::string& text, std::int64_t elements) {
  const json value = json::parse(text, nullptr, false);
  if (!value.is_object() || !value.contains("tensor") || !value["tensor"].is_string() || !value.contains("shape") ||
      !value.contains("runs") || !value["shape"].is_array() || !value["runs"].is_array())
    return std::nullopt;
  Described out{value["tensor"].get<std::string>(), {}, {}};
  std::int64_t size = 1, total = 0;
  for (const json& dim : value["shape"]) {
    if (!dim.is_number_unsigned()) return std::nullopt;
    out.shape.push_back(dim.get<std::int64_t>());
    if (__builtin_mul_overflow(size, out.shape.back(), &size)) return std::nullopt;
  }
  for (const json& run : value["runs"]) {
    if (!run.is_array() || run.size() != 4) return std::nullopt;
    if (!std::all_of(run.begin(), run.end(), [](const json& number) { return number.is_number_unsigned(); }))
      return std::nullopt;
    const ElementRuns r{run[0], run[1], run[2], run[3]};
    std::int64_t count = 0, end = 0;
    if (r.repeat < 1 || __builtin_mul_overflow(r.count, r.repeat, &count) || (total += count) > elements ||
        __builtin_mul_overflow(r.stride, r.repeat - 1, &end) || __builtin_add_overflow(end, r.first, &end) ||
        __builtin_add_overflow(end, r.count, &end) || end > size)
      return std::nullopt;
    out.runs.push_back(r);
  }
  if (total != elements) return std::nullopt;
  return out;
}

bool is_whole(const StatePiece& piece) {
  std::int64_t size = 1;
  for (const std::int64_t dim : piece.shape) size *= dim;
  return piece.runs.size() == 1 && piece.runs[0].first == 0 && piece.runs[0].repeat == 1 && piece.elements == size;
}

double number_at(const std::byte* data, Dtype dtype, std::int64_t i) {
  switch (dtype) {
    case Dtype::F64: return reinterpret_cast<const double*>(data)[i];
    case Dtype::F32: return static_cast<double>(reinterpret_cast<const float*>(data)[i]);
    case Dtype::Bf16: return static_cast<double>(bf16_to_float(reinterpret_cast<const std::uint16_t*>(data)[i]));
    case Dtype::I32: return reinterpret_cast<const std::int32_t*>(data)[i];
  }
  return 0;
}

}  // namespace

// --- what a rank writes

RankSnapshot::RankSnapshot(const StepInterpreter& rank) : pieces_(pieces_to_save(rank)) {
  const Dtype dtype = state_dtype(rank.program().plan);
  element_bytes_ = size_of(dtype);
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
      offset += piece.elements * element_bytes_;
    }
  }
  metadata["format"] = "pt";  // as Hugging Face's own writers say
  const std::string header = safetensors_header(tensors, metadata);
  for (Copy& copy : copies_) copy.offset_bytes += static_cast<std::int64_t>(header.size());
  bytes_.resize(header.size() + index(offset));
  std::memcpy(bytes_.data(), header.data(), header.size());
}

void RankSnapshot::take(const StepInterpreter& rank) {
  for (const Copy& copy : copies_) {
    const StatePiece& piece = pieces_[copy.piece];
    std::memcpy(bytes_.data() + copy.offset_bytes, state_at(rank, piece, copy.kind),
                index(piece.elements * element_bytes_));
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

Problems commit_checkpoint(const std::string& folder, const Manifest& manifest, std::int64_t keep) {
  const std::string name = folder + "/" + folder_name(manifest.step), partial = name + kPartial;
  json body{{"format", kFormat},
            {"step", manifest.step},
            {"seed", manifest.seed},
            {"sequence_length", manifest.sequence_length},
            {"global_batch_size", manifest.global_batch},
            {"crc_block_bytes", kCrcBlockBytes},
            {"files", json::array()}};
  for (const ManifestFile& file : manifest.files)
    body["files"].push_back({{"name", file.name}, {"bytes", file.bytes}, {"crc32", file.crcs}});
  const std::string inner = body.dump();
  const std::string text =
      json{{"manifest", inner},
           {"crc32", crc(reinterpret_cast<const std::byte*>(inner.data()), static_cast<std::int64_t>(inner.size()))}}
          .dump() +
      "\n";
  Problems problems = write_synced(partial + "/" + kManifest, reinterpret_cast<const std::byte*>(text.data()),
                                   static_cast<std::int64_t>(text.size()));
  if (!problems.empty()) return problems;
  if (!sync_folder(partial)) return {not_written(partial)};
  std::error_code error;
  fs::remove_all(name, error);  // of an earlier run that went further
  fs::rename(partial, name, error);
  if (error) {
    errno = error.value();
    return {not_written(name)};
  }
  if (!sync_folder(folder)) return {not_written(folder)};
  std::int64_t kept = 0;
  for (const std::string& checkpoint : list_checkpoints(folder)) {
    // What is newer belongs to a run that this one has left behind.
    if (fs::path(checkpoint).filename().string() > folder_name(manifest.step)) continue;
    if (++kept > keep) fs::remove_all(checkpoint, error);
  }
  return {};
}

std::vector<std::string> list_checkpoints(const std::string& folder) {
  std::vector<std::string> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind(kPrefix, 0) == 0 && entry.path().extension() != kPartial) found.push_back(entry.path().string());
  }
  std::sort(found.rbegin(), found.rend());
  return found;
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
  const json body = json::parse(inner, nullptr, false);
  if (!body.is_object() || body.value("format", "") != kFormat) return std::nullopt;
  Manifest manifest{body["step"], body["seed"], body["sequence_length"], body["global_batch_size"], {}};
  for (const json& file : body["files"])
    manifest.files.push_back({file["name"], file["bytes"], file["crc32"].get<std::vector<std::uint32_t>>()});
  return manifest;
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

// --- reading it back

Result<SavedState> SavedState::open(const std::string& path) {
  SavedState state;
  state.path_ = path;
  std::error_code error;
  std::vector<std::string> files;
  if (fs::exists(path + "/" + kManifest, error)) {
    Result<Manifest> manifest = verify_checkpoint(path);
    if (!manifest) return manifest.problems();
    state.manifest_ = manifest.value();
    for (const ManifestFile& file : state.manifest_.files) files.push_back(path + "/" + file.name);
  } else {
    for (const auto& entry : fs::directory_iterator(path, error)) {
      if (entry.path().extension() == ".safetensors") files.push_back(entry.path().string());
    }
    std::sort(files.begin(), files.end());
    if (files.empty())
      return Problem{path, "", "", "is neither a checkpoint nor a folder with *.safetensors", "check the name"};
  }
  for (const std::string& file : files) {
    if (Problems problems = state.add_file(file); !problems.empty()) return problems;
  }
  return state;
}

Problems SavedState::add_file(const std::string& file) {
  Result<Safetensors> opened = Safetensors::open(file);
  if (!opened) return opened.problems();
  files_.push_back(std::move(opened).value());
  const Safetensors& from = files_.back();
  for (const auto& [key, stored] : from.tensors()) {
    Described piece{key, stored.shape, {{0, stored.elements(), 0, 1}}};
    if (const auto text = from.metadata().find(key); text != from.metadata().end()) {
      const auto described = parse_description(text->second, stored.elements());
      if (!described) return {unsound(file, fmt::format("does not say what \"{}\" is a piece of", key))};
      piece = *described;
    }
    Entry& entry = entries_[piece.tensor];
    if (entry.sources.empty()) entry.shape = piece.shape;
    if (entry.shape != piece.shape)
      return {unsound(file, fmt::format("has another shape for \"{}\" than other files", piece.tensor))};
    entry.elements += stored.elements();
    entry.sources.push_back({files_.size() - 1, stored, piece.runs});
  }
  return {};
}

Problems SavedState::fits(const StepProgram& program) const {
  Problems problems;
  std::set<std::string> seen;
  const auto expect = [&](const std::string& name, const std::vector<std::int64_t>& wanted) {
    const auto found = entries_.find(name);
    if (found == entries_.end()) {
      problems.push_back({path_, "", "", fmt::format("has no \"{}\"", name), "load what was saved of this model"});
    } else if (found->second.shape != wanted) {
      problems.push_back({path_, "", fmt::format("[{}]", fmt::join(found->second.shape, ", ")),
                          fmt::format("is the shape of \"{}\", and the model's is [{}]", name, fmt::join(wanted, ", ")),
                          "load what was saved of this model"});
    } else {
      std::int64_t elements = 1;
      for (const std::int64_t dim : wanted) elements *= dim;
      if (found->second.elements != elements)
        problems.push_back({path_, "", "", fmt::format("does not have all of \"{}\"", name), "use another checkpoint"});
    }
  };
  for (const StageProgram& stage : program.stages) {
    for (const Chunk& chunk : stage.chunks) {
      for (const Bucket& bucket : chunk.buckets) {
        for (const Param& param : bucket.params) {
          for (const ParamPart& part : param.parts) {
            for (int kind = 0; kind < (has_moments() ? kStateKindCount : 1); ++kind) {
              const std::string name = state_name(part.name, static_cast<StateKind>(kind));
              if (seen.insert(name).second) expect(name, part.global_shape);
            }
          }
        }
      }
    }
  }
  constexpr std::size_t kShown = 10;
  if (problems.size() > kShown) problems.resize(kShown);
  return problems;
}

std::vector<double> SavedState::tensor(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) return {};
  std::int64_t size = 1;
  for (const std::int64_t dim : found->second.shape) size *= dim;
  std::vector<double> full(index(size));
  for (const Source& source : found->second.sources) {
    const std::byte* data = files_[source.file].data(source.stored);
    std::int64_t at = 0;
    for (const ElementRuns& run : source.runs) {
      for (std::int64_t r = 0; r < run.repeat; ++r) {
        for (std::int64_t i = 0; i < run.count; ++i)
          full[index(run.first + r * run.stride + i)] = number_at(data, source.stored.dtype, at++);
      }
    }
  }
  return full;
}

std::vector<std::string> SavedState::names() const {
  std::vector<std::string> names;
  for (const auto& entry : entries_) names.push_back(entry.first);
  return names;
}

std::vector<std::int64_t> SavedState::shape(const std::string& name) const { return entries_.at(name).shape; }

void SavedState::load(const StepInterpreter& rank) const {
  clear_state(rank);
  const ParamPart* current = nullptr;
  std::array<std::vector<double>, kStateKindCount> full;
  for_each_run(rank.program(), rank.mesh(), rank.rank(),
               [&](std::size_t chunk_index, const Bucket& bucket, const Param&, std::int64_t element,
                   const ParamPart& part, std::int64_t global, std::int64_t count) {
                 const auto chunk = static_cast<std::int64_t>(chunk_index);
                 if (&part != current) {
                   for (std::size_t k = 0; k < full.size(); ++k)
                     full[k] = tensor(state_name(part.name, static_cast<StateKind>(k)));
                   current = &part;
                 }
                 const auto run = [&](const std::vector<double>& whole) {
                   return std::vector<double>(whole.begin() + global, whole.begin() + global + count);
                 };
                 put_weights(rank, chunk, bucket, element, run(full[0]));
                 if (!has_moments()) return;
                 for (const StateKind kind : {StateKind::FirstMoment, StateKind::SecondMoment})
                   put_moments(rank, chunk, bucket, kind, element, run(full[static_cast<std::size_t>(kind)]));
               });
}

// --- a model folder for other tools

namespace {

// One file's tensors, by name, and the bytes of their data.
struct ExportFile {
  std::vector<std::pair<std::string, StoredTensor>> tensors;
  std::int64_t bytes = 0;
};

void append_number(std::vector<std::byte>& bytes, Dtype dtype, double value) {
  const auto append = [&](auto number) {
    const auto* from = reinterpret_cast<const std::byte*>(&number);
    bytes.insert(bytes.end(), from, from + sizeof number);
  };
  if (dtype == Dtype::Bf16) {
    append(float_to_bf16(static_cast<float>(value)));
  } else if (dtype == Dtype::F32) {
    append(static_cast<float>(value));
  } else {
    append(value);
  }
}

Problems write_export_file(const SavedState& state, const ExportFile& file, Dtype dtype, const std::string& name) {
  const std::string header = safetensors_header(file.tensors, {{"format", "pt"}});
  std::vector<std::byte> bytes(reinterpret_cast<const std::byte*>(header.data()),
                               reinterpret_cast<const std::byte*>(header.data()) + header.size());
  bytes.reserve(header.size() + index(file.bytes));
  for (const auto& entry : file.tensors) {
    for (const double value : state.tensor(entry.first)) append_number(bytes, dtype, value);
  }
  return write_synced(name, bytes.data(), static_cast<std::int64_t>(bytes.size()));
}

Problems write_text(const std::string& name, const std::string& text) {
  return write_synced(name, reinterpret_cast<const std::byte*>(text.data()), static_cast<std::int64_t>(text.size()));
}

}  // namespace

Problems export_model_folder(const SavedState& state, const std::string& config, Dtype dtype, const std::string& folder,
                             std::int64_t max_file_bytes) {
  std::error_code error;
  if (fs::exists(folder, error))
    return {{folder, "", "", "is there already", "name another folder, or remove it first"}};
  const std::string partial = folder + kPartial;
  fs::remove_all(partial, error);
  fs::create_directories(partial, error);
  if (error) {
    errno = error.value();
    return {not_written(partial)};
  }
  std::vector<ExportFile> files(1);
  for (const std::string& name : state.names()) {
    if (name.size() > 8 && (name.ends_with(".exp_avg") || name.ends_with(".exp_avg_sq"))) continue;
    StoredTensor tensor{dtype, state.shape(name), 0};
    const std::int64_t bytes = tensor.elements() * size_of(dtype);
    if (files.back().bytes > 0 && files.back().bytes + bytes > max_file_bytes) files.emplace_back();
    tensor.offset_bytes = files.back().bytes;
    files.back().bytes += bytes;
    files.back().tensors.emplace_back(name, tensor);
  }
  json weight_map = json::object();
  std::int64_t total = 0;
  for (std::size_t i = 0; i < files.size(); ++i) {
    const std::string name =
        files.size() == 1 ? "model.safetensors" : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, files.size());
    if (Problems problems = write_export_file(state, files[i], dtype, partial + "/" + name); !problems.empty())
      return problems;
    total += files[i].bytes;
    for (const auto& entry : files[i].tensors) weight_map[entry.first] = name;
  }
  Problems problems = write_text(partial + "/config.json", config);
  if (problems.empty() && files.size() > 1)
    problems = write_text(partial + "/model.safetensors.index.json",
                          json{{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}}.dump(2) + "\n");
  if (!problems.empty()) return problems;
  fs::rename(partial, folder, error);
  if (!error && sync_folder(partial.substr(0, partial.find_last_of('/') + 1) + ".")) return {};
  errno = error ? error.value() : errno;
  return {not_written(folder)};
}

}  // namespace trainyard::exec
