#include "cli/shard.h"

#include <charconv>
#include <filesystem>

#include <fmt/format.h>

namespace trainyard::cli {

namespace {

constexpr std::int64_t kMaxShards = 1'000'000;
constexpr char kCountVariable[] = "TRAINYARD_SHARD_COUNT";

std::optional<std::int64_t> number(const std::string& text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size() && value >= 0;
  return whole ? std::optional(value) : std::nullopt;
}

Result<Shard> from_option(const std::string& text) {
  const std::size_t slash = text.find('/');
  const auto index = number(text.substr(0, slash));
  const std::int64_t count = slash == std::string::npos ? 0 : number(text.substr(slash + 1)).value_or(0);
  if (!index || count < 1 || count > kMaxShards)
    return Problem{"", "--shard", text, "must be i/n", "write 0/4, 1/4, 2/4 and 3/4 for four shards"};
  if (*index >= count)
    return Problem{"", "--shard", text,
                   fmt::format("shards are counted from 0: the last of {0} is {1}/{0}", count, count - 1),
                   "count from 0"};
  return Shard{*index, count, "--shard"};
}

class Surroundings {
 public:
  Surroundings(const ShardOptions& options, const Environment& environment)
      : options_(options), environment_(environment) {}

  Result<Shard> find() const {
    if (has("SLURM_ARRAY_TASK_ID")) return slurm();
    if (has("JOB_COMPLETION_INDEX")) return kubernetes();
    if (has("OMPI_COMM_WORLD_RANK")) return ranks("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE");
    if (has("PMI_RANK")) return ranks("PMI_RANK", "PMI_SIZE");
    return Shard{};
  }

 private:
  [[nodiscard]] bool has(const char* name) const {
    const char* value = environment_(name);
    return value != nullptr && *value != '\0';
  }
  [[nodiscard]] std::optional<std::int64_t> value(const char* name) const {
    return has(name) ? number(environment_(name)) : std::nullopt;
  }
  [[nodiscard]] std::string shown(const char* name) const { return has(name) ? environment_(name) : ""; }

  // The count that the user gave, else that of `variable`.
  [[nodiscard]] std::optional<std::int64_t> count(const char* variable) const {
    if (options_.count) return options_.count;
    if (has(kCountVariable)) return value(kCountVariable);
    return variable != nullptr ? value(variable) : std::nullopt;
  }

  [[nodiscard]] Result<Shard> checked(std::optional<std::int64_t> index, std::optional<std::int64_t> count,
                                      const char* variable, const std::string& where) const {
    const std::string why = fmt::format("{} ({} {})", where, variable, shown(variable));
    if (!count)
      return Problem{"", variable, shown(variable),
                     fmt::format("is set by a {}, which does not say of how many", where),
                     fmt::format("give --shards N or {}; or --shard 0/1 for all of it", kCountVariable)};
    if (!index || *count < 1 || *count > kMaxShards || *index >= *count)
      return Problem{"", variable, shown(variable), fmt::format("is no index of {} shards, counted from 0", *count),
                     "give --shard i/n"};
    return Shard{*index, *count, why};
  }

  // Arrays may begin anywhere and take steps: --array=10-40:10.
  [[nodiscard]] Result<Shard> slurm() const {
    std::optional<std::int64_t> index = value("SLURM_ARRAY_TASK_ID");
    const std::int64_t first = value("SLURM_ARRAY_TASK_MIN").value_or(0);
    const std::int64_t step = std::max<std::int64_t>(value("SLURM_ARRAY_TASK_STEP").value_or(1), 1);
    if (index) index = *index >= first ? std::optional((*index - first) / step) : std::nullopt;
    return checked(index, count("SLURM_ARRAY_TASK_COUNT"), "SLURM_ARRAY_TASK_ID", "Slurm array");
  }
  [[nodiscard]] Result<Shard> kubernetes() const {
    return checked(value("JOB_COMPLETION_INDEX"), count(nullptr), "JOB_COMPLETION_INDEX", "Kubernetes indexed Job");
  }
  [[nodiscard]] Result<Shard> ranks(const char* rank, const char* size) const {
    return checked(value(rank), count(size), rank, "MPI launch");
  }

  const ShardOptions& options_;
  const Environment& environment_;
};

}  // namespace

Result<Shard> find_shard(const ShardOptions& options, const Environment& environment) {
  if (!options.shard.empty()) return from_option(options.shard);
  return Surroundings(options, environment).find();
}

std::string shard_store(const std::string& store_file, const Shard& shard) {
  if (shard.is_whole()) return store_file;
  std::filesystem::path path = store_file;
  const std::string extension = path.extension().string();
  path.replace_extension();
  return fmt::format("{}.shard-{}-of-{}{}", path.string(), shard.index, shard.count, extension);
}

}  // namespace trainyard::cli
