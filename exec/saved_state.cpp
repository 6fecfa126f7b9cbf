#include "exec/saved_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "exec/durable_file.h"
#include "models/base/bf16.h"
#include "models/base/index.h"
#include "models/program/parameters.h"
#include "models/program/shards.h"

namespace trainyard::exec {

namespace {

using nlohmann::json;
namespace fs = std::filesystem;

Problem unsound(const std::string& file, std::string rule) {
  return {file, "", "", std::move(rule), "use another checkpoint"};
}

// Files of other tools need not be aligned.
template <class Number>
Number stored(const std::byte* data, std::int64_t i) {
  Number number{};
  std::memcpy(&number, data + i * static_cast<std::int64_t>(sizeof number), sizeof number);
  return number;
}

double number_at(const std::byte* data, Dtype dtype, std::int64_t i) {
  switch (dtype) {
    case Dtype::F64: return stored<double>(data, i);
    case Dtype::F32: return static_cast<double>(stored<float>(data, i));
    case Dtype::Bf16: return static_cast<double>(bf16_to_float(stored<std::uint16_t>(data, i)));
    case Dtype::I32: return stored<std::int32_t>(data, i);
  }
  return 0;
}

}  // namespace

Result<SavedState> SavedState::open(const std::string& path) {
  SavedState state;
  state.path_ = path;
  std::error_code error;
  std::vector<std::string> files;
  // A folder that is named as a checkpoint and has no manifest was never one: its weights are nobody's.
  if (checkpoint_step(path) || fs::exists(path + "/" + kManifest, error)) {
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
    DescribedPiece piece{key, stored.shape, {{0, stored.elements(), 0, 1}}};
    if (const auto text = from.metadata().find(key); text != from.metadata().end()) {
      const auto described = parse_piece(text->second, stored.elements());
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
      if (found->second.elements > elements)
        problems.push_back({path_, "", "", fmt::format("has more than one \"{}\"", name),
                            "remove the *.safetensors that do not belong to the model"});
      if (found->second.elements < elements)
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

std::vector<double> SavedState::elements(const std::string& name, std::int64_t first, std::int64_t count) const {
  std::vector<double> out(index(count));
  const auto found = entries_.find(name);
  if (found == entries_.end()) return out;
  for (const Source& source : found->second.sources) {
    const std::byte* data = files_[source.file].data(source.stored);
    std::int64_t run_begin = 0;  // in the source
    for (const ElementRuns& run : source.runs) {
      // The repeats that reach into what is wanted.
      const std::int64_t stride = std::max<std::int64_t>(run.stride, 1);
      const std::int64_t after = first - run.first - run.count;  // a repeat that begins here or before ends too early
      const std::int64_t from = after < 0 ? 0 : after / stride + 1;
      const std::int64_t reach = first + count - 1 - run.first;
      const std::int64_t to = reach < 0 ? 0 : std::min(run.repeat, reach / stride + 1);
      for (std::int64_t r = from; r < to; ++r) {
        const std::int64_t place = run.first + r * run.stride;  // of the repeat, in the tensor
        const std::int64_t begin = std::max(first, place), end = std::min(first + count, place + run.count);
        const std::int64_t at = run_begin + r * run.count + begin - place;
        for (std::int64_t i = 0; i < end - begin; ++i)
          out[index(begin - first + i)] = number_at(data, source.stored.dtype, at + i);
      }
      run_begin += run.elements();
    }
  }
  return out;
}

std::vector<std::string> SavedState::names() const {
  std::vector<std::string> names;
  for (const auto& entry : entries_) names.push_back(entry.first);
  return names;
}

std::vector<std::int64_t> SavedState::shape(const std::string& name) const { return entries_.at(name).shape; }

void SavedState::load(Rank& rank) const {
  clear_state(rank);
  // Runs come straight from the files, a stretch at a time, so that a rank needs no more memory than it does to train.
  // Of a tensor that is stored transposed every run is one element: it is read whole.
  constexpr std::int64_t kAtOnce = std::int64_t{1} << 16;
  const ParamPart* current = nullptr;
  std::array<std::vector<double>, kStateKindCount> whole;
  for_each_run(rank.program(), rank.mesh(), rank.rank(),
               [&](std::size_t chunk_index, const Bucket& bucket, const Param&, std::int64_t element,
                   const ParamPart& part, std::int64_t global, std::int64_t count) {
                 const auto chunk = static_cast<std::int64_t>(chunk_index);
                 if (&part != current) whole = {};
                 current = &part;
                 const auto values = [&](StateKind kind, std::int64_t first, std::int64_t n) {
                   const std::string name = state_name(part.name, kind);
                   if (!part.transposed) return elements(name, first, n);
                   std::vector<double>& all = whole[static_cast<std::size_t>(kind)];
                   if (all.empty()) all = elements(name, 0, part.global_shape[0] * part.global_shape[1]);
                   return std::vector<double>(all.begin() + first, all.begin() + first + n);
                 };
                 for (std::int64_t done = 0; done < count; done += kAtOnce) {
                   const std::int64_t first = global + done, n = std::min(kAtOnce, count - done);
                   put_weights(rank, chunk, bucket, element + done, values(StateKind::Weight, first, n));
                   if (!has_moments()) continue;
                   for (const StateKind kind : {StateKind::FirstMoment, StateKind::SecondMoment})
                     put_moments(rank, chunk, bucket, kind, element + done, values(kind, first, n));
                 }
               });
  rank.commit();
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
    for (const double value : state.elements(entry.first, 0, entry.second.elements()))
      append_number(bytes, dtype, value);
  }
  return write_synced(name, bytes.data(), static_cast<std::int64_t>(bytes.size()));
}

}  // namespace

Problems export_model_folder(const SavedState& state, const std::string& config, Dtype dtype, const std::string& to,
                             std::int64_t max_file_bytes) {
  std::string folder = to;  // "model/" is "model", beside which it is made
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  std::error_code error;
  if (fs::exists(folder, error))
    return {{folder, "", "", "is there already", "name another folder, or remove it first"}};
  const std::string partial = folder + ".partial";
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
  Problems problems = write_synced(partial + "/config.json", config);
  if (problems.empty() && files.size() > 1)
    problems = write_synced(partial + "/model.safetensors.index.json",
                            json{{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}}.dump(2) + "\n");
  if (!problems.empty()) return problems;
  fs::rename(partial, folder, error);
  if (!error && sync_folder(partial.substr(0, partial.find_last_of('/') + 1) + ".")) return {};
  errno = error ? error.value() : errno;
  return {not_written(folder)};
}

}  // namespace trainyard::exec
