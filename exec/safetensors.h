// The safetensors format (github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON header of
// {name: {dtype, shape, data_offsets}}, then the data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "models/base/dtype.h"
#include "models/base/status.h"

namespace trainyard::exec {

struct StoredTensor {
  Dtype dtype = Dtype::F32;
  std::vector<std::int64_t> shape;
  /// From the start of the data; of the file once it has been read.
  std::int64_t offset_bytes = 0;
  [[nodiscard]] std::int64_t elements() const;
};

/// A file, mapped. What its header says lies inside it.
class Safetensors {
 public:
  static Result<Safetensors> open(const std::string& file);

  [[nodiscard]] const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const { return metadata_; }
  [[nodiscard]] const std::byte* data(const StoredTensor& tensor) const { return bytes_.get() + tensor.offset_bytes; }
  [[nodiscard]] const std::byte* bytes() const { return bytes_.get(); }
  [[nodiscard]] std::int64_t size() const { return size_; }
  [[nodiscard]] const std::string& file() const { return file_; }

 private:
  std::string file_;
  std::shared_ptr<const std::byte> bytes_;
  std::int64_t size_ = 0;
  std::map<std::string, StoredTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// Header length and header of a file whose tensors lie where they say; the header is padded so that data starts at a
/// multiple of 64.
std::string safetensors_header(const std::vector<std::pair<std::string, StoredTensor>>& tensors,
                               const std::map<std::string, std::string>& metadata);

}  // namespace trainyard::exec
