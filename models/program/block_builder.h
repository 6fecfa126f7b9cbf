// Builds one Block: appends ops in launch order, derives their dependencies from the tensors
// they touch, counts their FLOPs and bytes, and packs transient tensors.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "models/program/program.h"

namespace trainyard {

class BlockBuilder {
 public:
  BlockBuilder(BlockKind kind, std::string name);

  /// A tensor that the packer will place.
  TensorId transient(std::string name, Dtype dtype, Shape shape);
  /// A tensor at a known offset of a role's frame; asking twice for the same one gives the same id.
  TensorId placed(const std::string& name, Dtype dtype, Shape shape, Role role, std::int64_t offset_bytes);
  /// A part of a transient tensor, `offset_bytes` into it.
  TensorId view(TensorId base, std::string name, Shape shape, std::int64_t offset_bytes);

  /// Appends an op. `in` and `out` must be set; FLOPs, bytes and dependencies by data are filled here. It may bring
  /// dependencies of its own.
  OpId add(Op op);

  [[nodiscard]] const Tensor& tensor(TensorId id) const { return block_.tensors[static_cast<std::size_t>(id)]; }
  [[nodiscard]] std::size_t op_count() const { return block_.ops.size(); }
  /// The last op on the compute stream so far, or -1.
  [[nodiscard]] OpId last_compute_op() const { return last_compute_op_; }

  /// Joins comm ops that still use transient memory, packs, and returns the block.
  Block finish();

 private:
  struct Access {
    std::vector<OpId> writers;  // the last op to write on each stream that did
    std::vector<OpId> readers;  // ops that read since then
  };

  [[nodiscard]] TensorId storage_of(TensorId id) const;
  void depend_on(Op& op, OpId earlier) const;
  void join_open_transients();
  void pack_transients();

  Block block_;
  OpId last_host_sync_ = -1, last_compute_op_ = -1;
  std::vector<TensorId> base_;             // of a view, or the tensor itself
  std::vector<Access> accesses_;           // by storage
  std::vector<TensorId> bucket_views_[2];  // placed tensors of Params and of Grads
  std::map<std::pair<Role, std::pair<std::int64_t, std::string>>, TensorId> placed_;
};

/// Alignment of every tensor and frame: a CUDA allocation's, and enough for any vector load.
inline constexpr std::int64_t kAlignBytes = 256;
inline std::int64_t align(std::int64_t bytes) { return (bytes + kAlignBytes - 1) / kAlignBytes * kAlignBytes; }

/// Operands of `kind` that are accumulated into, so read as well as written.
bool accumulates(const Op& op, std::size_t out_index);

/// One interval of a packing problem: memory is held over [begin, end], both included.
struct Interval {
  std::int64_t begin = 0, end = 0, bytes = 0;
};
/// Offsets that keep intervals which overlap in time apart in space: best fit in order of
/// beginning. Returns offsets in the order given, and the total size last.
std::vector<std::int64_t> pack(const std::vector<Interval>& intervals);

}  // namespace trainyard
