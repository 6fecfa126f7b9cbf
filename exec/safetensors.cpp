#include "exec/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

namespace trainyard::exec {

namespace {

using nlohmann::json;

constexpr std::int64_t kLengthBytes = 8;
constexpr std::int64_t kAlignment = 64;
constexpr std::int64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit

const char* name_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::Bf16: return "BF16";
    case Dtype::F32: return "F32";
    case Dtype::F64: return "F64";
    case Dtype::I32: return "I32";
  }
  return "";
}

std::optional<Dtype> dtype_of(const std::string& name) {
  for (const Dtype dtype : {Dtype::Bf16, Dtype::F32, Dtype::F64, Dtype::I32}) {
    if (name == name_of(dtype)) return dtype;
  }
  return std::nullopt;
}

Problem damaged(const std::string& file, std::string rule) {
  return {file, "", "", "is not a sound safetensors file: " + std::move(rule), "copy or save it again"};
}

// One tensor of a header, or why it is none.
std::optional<std::string> read_tensor(const json& entry, std::int64_t data_bytes, StoredTensor& out) {
  if (!entry.is_object() || !entry.contains("dtype") || !entry["dtype"].is_string() || !entry.contains("shape") ||
      !entry["shape"].is_array() || !entry.contains("data_offsets") || !entry["data_offsets"].is_array() ||
      entry["data_offsets"].size() != 2)
    return "must have dtype, shape and data_offsets";
  const auto dtype = dtype_of(entry["dtype"].get<std::string>());
  if (!dtype)
    return "is of type " + entry["dtype"].get<std::string>() +
           ", where BF16, F32, F64 and I32 are known: convert it to bfloat16";
  out.dtype = *dtype;
  std::int64_t bytes = size_of(*dtype);
  for (const json& dim : entry["shape"]) {
    if (!dim.is_number_unsigned() || dim.get<std::uint64_t>() > static_cast<std::uint64_t>(data_bytes))
      return "has a dimension that its data cannot fill";
    out.shape.push_back(dim.get<std::int64_t>());
    if (__builtin_mul_overflow(bytes, out.shape.back(), &bytes)) return "is larger than any file";
  }
  const json &begin = entry["data_offsets"][0], &end = entry["data_offsets"][1];
  if (!begin.is_number_unsigned() || !end.is_number_unsigned() ||
      end.get<std::uint64_t>() > static_cast<std::uint64_t>(data_bytes) ||
      begin.get<std::uint64_t>() > end.get<std::uint64_t>())
    return "lies outside the file";
  out.offset_bytes = begin.get<std::int64_t>();
  if (end.get<std::int64_t>() - out.offset_bytes != bytes) return "has another size than its shape says";
  return std::nullopt;
}

}  // namespace

std::int64_t StoredTensor::elements() const {
  std::int64_t count = 1;
  for (const std::int64_t dim : shape) count *= dim;
  return count;
}

Result<Safetensors> Safetensors::open(const std::string& file) {
  const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status {};
  if (descriptor < 0 || ::fstat(descriptor, &status) != 0) {
    const Problem problem{file, "", "", std::string("cannot be read: ") + std::strerror(errno), "check the name"};
    if (descriptor >= 0) ::close(descriptor);
    return problem;
  }
  Safetensors out;
  out.file_ = file;
  out.size_ = status.st_size;
  const auto size = static_cast<std::size_t>(status.st_size);
  void* mapped =
      size == 0 || !S_ISREG(status.st_mode) ? MAP_FAILED : ::mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0);
  ::close(descriptor);
  if (mapped == MAP_FAILED || out.size_ < kLengthBytes) return damaged(file, "it is too short");
  out.bytes_ = {static_cast<const std::byte*>(mapped),
                [size](const std::byte* bytes) { ::munmap(const_cast<std::byte*>(bytes), size); }};
  std::uint64_t length = 0;
  std::memcpy(&length, out.bytes_.get(), sizeof length);
  if (length > static_cast<std::uint64_t>(std::min(out.size_ - kLengthBytes, kMaxHeaderBytes)))
    return damaged(file, "its header is longer than the file");
  const std::int64_t data_begin = kLengthBytes + static_cast<std::int64_t>(length);
  const char* text = reinterpret_cast<const char*>(out.bytes_.get()) + kLengthBytes;
  const json header = json::parse(text, text + length, nullptr, false);
  if (!header.is_object()) return damaged(file, "its header is not a JSON object");
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      for (const auto& [key, value] : entry.items()) {
        if (value.is_string()) out.metadata_[key] = value.get<std::string>();
      }
      continue;
    }
    StoredTensor tensor;
    if (const auto why = read_tensor(entry, out.size_ - data_begin, tensor))
      return damaged(file, fmt::format("tensor \"{}\" {}", name, *why));
    tensor.offset_bytes += data_begin;
    out.tensors_[name] = tensor;
  }
  return out;
}

std::string safetensors_header(const std::vector<std::pair<std::string, StoredTensor>>& tensors,
                               const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {
        {"dtype", name_of(tensor.dtype)},
        {"shape", tensor.shape},
        {"data_offsets", {tensor.offset_bytes, tensor.offset_bytes + tensor.elements() * size_of(tensor.dtype)}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + kLengthBytes + kAlignment - 1) / kAlignment * kAlignment - kLengthBytes, ' ');
  const std::uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text;
}

}  // namespace trainyard::exec
