// Which part of a campaign this process does, out of what it is told and where it runs.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "models/base/status.h"

namespace trainyard::cli {

/// The `index`-th of `count` shards, counted from 0. One shard is the whole.
struct Shard {
  std::int64_t index = 0, count = 1;
  std::string why;  // "--shard", "Slurm array (SLURM_ARRAY_TASK_ID 3)"; empty when nothing said anything

  [[nodiscard]] bool is_whole() const { return count == 1; }
  /// Whether it does the cell of variation `v` and the k-th seed. Diagonal, so that neither dear variations nor single
  /// seeds pile up in one shard.
  [[nodiscard]] bool has(std::int64_t variation, std::int64_t seed) const {
    return (variation + seed) % count == index;
  }
};

struct ShardOptions {
  std::string shard;                  // "i/n"; empty: not given
  std::optional<std::int64_t> count;  // of shards, where the surroundings only tell the index
};

/// Value of an environment variable, or null.
using Environment = std::function<const char*(const char* name)>;

/// The option, else the first of these that speaks: a Slurm array, a Kubernetes indexed Job, MPI.
Result<Shard> find_shard(const ShardOptions& options, const Environment& environment);

/// The store of a shard: "runs.shard-3-of-16.sqlite" beside "runs.sqlite".
std::string shard_store(const std::string& store_file, const Shard& shard);

}  // namespace trainyard::cli
