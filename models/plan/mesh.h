// Rank <-> coordinates on the mesh, and the communicator groups that follow.
#pragma once

#include <cstdint>
#include <vector>

#include "models/plan/parallel_plan.h"

namespace trainyard {

/// A communicator group that a rank belongs to.
enum class Group : std::uint8_t {
  Tp,         // tensor parallel
  Cp,         // context parallel
  Ep,         // expert parallel
  DpCp,       // all ranks that hold the same dense parameters: dp x cp
  Edp,        // all ranks that hold the same expert parameters: dp x cp / ep
  Pp,         // pipeline neighbours: point-to-point
  Embedding,  // first and last stage, where the embedding is tied
  World,
  // Under hybrid sharding; else one rank.
  DpCpShard,  // of DpCp, the ranks that one copy is sharded over: zero_shard_size of them, one after the other
  DpCpCopy,   // of DpCp, the ranks that hold the same shard: one of each DpCpShard
  EdpShard,   // the same of Edp
  EdpCopy,
};
inline constexpr int kGroupCount = 12;
const char* to_string(Group group);

struct Coordinates {
  std::int64_t tp = 0, cp = 0, pp = 0, dp = 0;
  bool operator==(const Coordinates&) const = default;
};

/// Pure arithmetic on ranks; holds no per-rank tables.
class Mesh {
 public:
  explicit Mesh(const ParallelPlan& plan);

  [[nodiscard]] std::int64_t ranks() const { return tp_ * cp_ * pp_ * dp_; }
  [[nodiscard]] Coordinates coordinates(std::int64_t rank) const;
  [[nodiscard]] std::int64_t rank(const Coordinates& at) const;

  [[nodiscard]] std::int64_t group_size(Group group) const;
  /// This rank's position in its group.
  [[nodiscard]] std::int64_t group_index(Group group, std::int64_t rank) const;
  /// Members of the group that `rank` belongs to, in group order. For Embedding, ranks of middle
  /// stages have an empty group.
  [[nodiscard]] std::vector<std::int64_t> members(Group group, std::int64_t rank) const;

 private:
  // What a group falls into under hybrid sharding.
  struct Blocks {
    std::int64_t size = 1, count = 1;
  };
  static Blocks blocks(const ParallelPlan& plan, std::int64_t group_size);

  std::int64_t tp_, cp_, ep_, pp_, dp_;
  Blocks dense_, expert_;
  bool dp_before_pp_;
};

/// How the state of parameters that all ranks of `group` (DpCp or Edp) hold is spread over them: one copy over the
/// ranks of `shards`, and the same shard on all ranks of `copies`. One of them is the whole group unless sharding is
/// hybrid.
struct Sharding {
  Group shards, copies;
};
Sharding sharding(const ParallelPlan& plan, Group group);

}  // namespace trainyard
