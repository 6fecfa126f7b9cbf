#include "exec/rank_state.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>

#include "models/base/bf16.h"
#include "models/base/check.h"
#include "models/base/index.h"
#include "models/program/initial_weights.h"
#include "models/program/parameters.h"
#include "models/program/shards.h"

namespace trainyard::exec {

namespace {

using nlohmann::json;

// Whether another rank that holds the same share of the same state saves it.
bool saved_elsewhere(const Rank& rank, const Bucket& bucket, const Param& param) {
  const Coordinates at = rank.mesh().coordinates(rank.rank());
  return rank.mesh().group_index(bucket.sharding.copies, rank.rank()) != 0 || (param.tp_replicated() && at.tp != 0) ||
         param.tied_copy;
}

// Where this rank's share of a bucket's state lies, in the chunk's frame.
std::int64_t state_offset(const Rank& rank, const Bucket& bucket, StateKind kind) {
  return bucket.optimizer_offset_bytes +
         static_cast<std::int64_t>(kind) * optimizer_stride_bytes(bucket, rank.program().plan);
}

void put(std::byte* base, Dtype dtype, std::int64_t i, double value) {
  if (dtype == Dtype::F64) {
    reinterpret_cast<double*>(base)[i] = value;
  } else if (dtype == Dtype::F32) {
    reinterpret_cast<float*>(base)[i] = static_cast<float>(value);
  } else {
    TY_CHECK(dtype == Dtype::Bf16, "weights are floating-point numbers");
    reinterpret_cast<std::uint16_t*>(base)[i] = float_to_bf16(static_cast<float>(value));
  }
}

}  // namespace

std::string state_name(const std::string& tensor, StateKind kind) {
  static constexpr const char* kSuffix[] = {"", ".exp_avg", ".exp_avg_sq"};
  return tensor + kSuffix[static_cast<std::size_t>(kind)];
}

void append_run(std::vector<ElementRuns>& runs, std::int64_t first, std::int64_t count) {
  if (!runs.empty()) {
    ElementRuns& last = runs.back();
    const std::int64_t end = last.first + (last.repeat - 1) * last.stride + last.count;
    if (last.repeat == 1 && end == first) {
      last.count += count;
      return;
    }
    const std::int64_t stride = last.repeat == 1 ? first - last.first : last.stride;
    if (count == last.count && stride > 0 && first == last.first + last.repeat * stride) {
      last.stride = stride;
      ++last.repeat;
      return;
    }
  }
  runs.push_back({first, count, 0, 1});
}

std::vector<StatePiece> pieces_to_save(const Rank& rank) {
  std::vector<StatePiece> pieces;
  const ParamPart* current = nullptr;
  for_each_run(rank.program(), rank.mesh(), rank.rank(),
               [&](std::size_t chunk, const Bucket& bucket, const Param& param, std::int64_t element,
                   const ParamPart& part, std::int64_t global, std::int64_t count) {
                 if (saved_elsewhere(rank, bucket, param)) return;
                 const std::int64_t begin = rank.share_begin(bucket), end = begin + bucket.shard_elements;
                 const std::int64_t first = std::max(begin, element), last = std::min(end, element + count);
                 if (first >= last) return;
                 if (&part != current) {
                   pieces.push_back(
                       {part.name, part.global_shape, static_cast<std::int64_t>(chunk), &bucket, first - begin, 0, {}});
                   current = &part;
                 }
                 pieces.back().elements += last - first;
                 append_run(pieces.back().runs, global + first - element, last - first);
               });
  return pieces;
}

std::string describe(const StatePiece& piece) {
  json runs = json::array();
  for (const ElementRuns& run : piece.runs) runs.push_back({run.first, run.count, run.stride, run.repeat});
  return json{{"tensor", piece.tensor}, {"shape", piece.shape}, {"runs", runs}}.dump();
}

namespace {

// A whole number, and the system's own kind of it.
std::optional<std::int64_t> whole_number(const json& value) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max())
    return std::nullopt;
  return value.get<std::int64_t>();
}

std::optional<ElementRuns> parse_runs(const json& value) {
  if (!value.is_array() || value.size() != 4) return std::nullopt;
  std::array<std::int64_t, 4> numbers{};
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const std::optional<std::int64_t> number = whole_number(value[i]);
    if (!number) return std::nullopt;
    numbers[i] = *number;
  }
  return ElementRuns{numbers[0], numbers[1], numbers[2], numbers[3]};
}

// One past the last element of the runs; nothing when they overlap or no number holds it.
std::optional<std::int64_t> end_of(const ElementRuns& runs) {
  std::int64_t end = 0;
  if (runs.count < 1 || runs.repeat < 1 || (runs.repeat > 1 && runs.stride < runs.count) ||
      __builtin_mul_overflow(runs.stride, runs.repeat - 1, &end) || __builtin_add_overflow(end, runs.first, &end) ||
      __builtin_add_overflow(end, runs.count, &end))
    return std::nullopt;
  return end;
}

}  // namespace

std::optional<DescribedPiece> parse_piece(const std::string& text, std::int64_t elements) {
  const json value = json::parse(text, nullptr, false);
  if (!value.is_object() || !value.contains("tensor") || !value["tensor"].is_string() || !value.contains("shape") ||
      !value.contains("runs") || !value["shape"].is_array() || !value["runs"].is_array())
    return std::nullopt;
  DescribedPiece out{value["tensor"].get<std::string>(), {}, {}};
  std::int64_t size = 1, total = 0;
  for (const json& dim : value["shape"]) {
    const std::optional<std::int64_t> number = whole_number(dim);
    if (!number || __builtin_mul_overflow(size, *number, &size)) return std::nullopt;
    out.shape.push_back(*number);
  }
  for (const json& run : value["runs"]) {
    const std::optional<ElementRuns> runs = parse_runs(run);
    const std::optional<std::int64_t> end = runs ? end_of(*runs) : std::nullopt;
    // Runs that do not overlap and end inside the tensor have fewer elements than it, so nothing overflows.
    if (!end || *end > size || __builtin_add_overflow(total, runs->elements(), &total)) return std::nullopt;
    out.runs.push_back(*runs);
  }
  if (total != elements) return std::nullopt;
  return out;
}

void read_state(const Rank& rank, const StatePiece& piece, StateKind kind, std::byte* to) {
  const std::int64_t element_bytes = size_of(state_dtype(rank.program().plan));
  rank.read(Role::Optimizer, piece.chunk, state_offset(rank, *piece.bucket, kind) + piece.share * element_bytes, to,
            piece.elements * element_bytes);
}

void put_weights(Rank& rank, std::int64_t chunk, const Bucket& bucket, std::int64_t element,
                 const std::vector<double>& values) {
  const ParallelPlan& plan = rank.program().plan;
  std::byte* params = rank.edit(Role::Params, chunk) + bucket.param_offset_bytes;
  std::byte* masters = rank.edit(Role::Optimizer, chunk) + state_offset(rank, bucket, StateKind::Weight);
  const std::int64_t begin = rank.share_begin(bucket);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::int64_t at = element + static_cast<std::int64_t>(i), share = at - begin;
    const bool mine = share >= 0 && share < bucket.shard_elements;
    if (!params_sharded(bucket, plan)) {
      put(params, param_dtype(plan), at, values[i]);
    } else if (mine) {
      put(params, param_dtype(plan), share, values[i]);
    }
    if (mine) put(masters, state_dtype(plan), share, values[i]);
  }
}

void put_moments(Rank& rank, std::int64_t chunk, const Bucket& bucket, StateKind kind, std::int64_t element,
                 const std::vector<double>& values) {
  std::byte* moments = rank.edit(Role::Optimizer, chunk) + state_offset(rank, bucket, kind);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::int64_t share = element + static_cast<std::int64_t>(i) - rank.share_begin(bucket);
    if (share >= 0 && share < bucket.shard_elements) put(moments, state_dtype(rank.program().plan), share, values[i]);
  }
}

namespace {

// Of this rank, where all of them share a machine.
std::size_t threads_of(const Rank& rank) {
  const auto ranks = static_cast<unsigned>(rank.mesh().ranks());
  return std::max(1U, std::thread::hardware_concurrency() / ranks);
}

// On each thread with its number, this one included.
void on_threads(std::size_t threads, const std::function<void(std::size_t)>& work) {
  std::vector<std::thread> others;
  for (std::size_t t = 1; t < threads; ++t) others.emplace_back([&work, t] { work(t); });
  work(0);
  for (std::thread& other : others) other.join();
}

}  // namespace

void clear_state(Rank& rank) {
  const std::size_t threads = threads_of(rank);
  for (const Frame& frame : rank.stage().frames) {
    if (frame.role != Role::Params && frame.role != Role::Optimizer) continue;
    std::byte* const bytes = rank.edit(frame.role, frame.chunk);
    const std::size_t size = index(frame.bytes);
    // Touching memory for the first time is what takes long.
    on_threads(threads, [&](std::size_t t) {
      const std::size_t begin = size * t / threads, end = size * (t + 1) / threads;
      std::memset(bytes + begin, 0, end - begin);
    });
  }
}

namespace {

// Of all runs of the rank's weights every `threads`-th, from `first` on: runs do not overlap.
void initialise_part(Rank& rank, std::uint64_t seed, std::size_t first, std::size_t threads) {
  std::size_t run = 0;
  std::vector<double> values;
  for_each_run(rank.program(), rank.mesh(), rank.rank(),
               [&](std::size_t chunk, const Bucket& bucket, const Param& param, std::int64_t element,
                   const ParamPart& part, std::int64_t global, std::int64_t count) {
                 if (run++ % threads != first) return;
                 const InitialWeights weights(rank.program().model, param, part, seed);
                 values.clear();
                 for (std::int64_t i = 0; i < count; ++i) values.push_back(weights.at(global + i));
                 put_weights(rank, static_cast<std::int64_t>(chunk), bucket, element, values);
               });
}

}  // namespace

void initialise(Rank& rank, std::uint64_t seed) {
  clear_state(rank);  // also finds all memory that is edited: from here on nothing of it moves
  const std::size_t threads = threads_of(rank);
  on_threads(threads, [&](std::size_t t) { initialise_part(rank, seed, t, threads); });
  rank.commit();
}

}  // namespace trainyard::exec
