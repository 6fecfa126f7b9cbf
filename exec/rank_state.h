// What a rank keeps from step to step, tensor by tensor under Hugging Face names: master weights and Adam's moments.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "exec/rank.h"

namespace trainyard::exec {

enum class StateKind : std::uint8_t { Weight, FirstMoment, SecondMoment };
inline constexpr int kStateKindCount = 3;
/// Hugging Face's name of the weight, with torch's of the moment behind it: "exp_avg", "exp_avg_sq".
std::string state_name(const std::string& tensor, StateKind kind);

/// `repeat` runs of `count` elements, `stride` apart, from `first` on: places in a full tensor, row-major.
struct ElementRuns {
  std::int64_t first = 0, count = 0, stride = 0, repeat = 1;
  [[nodiscard]] std::int64_t elements() const { return count * repeat; }
};
/// Adds `count` elements at `first`, as one more repeat of the last runs where that is what they are.
void append_run(std::vector<ElementRuns>& runs, std::int64_t first, std::int64_t count);

/// One contiguous piece of a rank's optimizer state: where it lies, and which elements of which tensor it holds.
struct StatePiece {
  std::string tensor;
  std::vector<std::int64_t> shape;  // the whole tensor's
  std::int64_t chunk = 0;
  const Bucket* bucket = nullptr;
  std::int64_t share = 0;     // first element, in the rank's share of the bucket
  std::int64_t elements = 0;  // in all runs together
  std::vector<ElementRuns> runs;
};

/// The pieces of state that are this rank's to save: of what several ranks hold alike, the first one's.
std::vector<StatePiece> pieces_to_save(const Rank& rank);

/// What a piece is, as text for a file's header.
std::string describe(const StatePiece& piece);
struct DescribedPiece {
  std::string tensor;
  std::vector<std::int64_t> shape;
  std::vector<ElementRuns> runs;
};
/// Nothing when the text, which may be anybody's, does not describe `elements` elements inside a tensor.
std::optional<DescribedPiece> parse_piece(const std::string& text, std::int64_t elements);

/// The bytes of a piece, to the host.
void read_state(const Rank& rank, const StatePiece& piece, StateKind kind, std::byte* to);

// What follows edits a rank, until its commit(): clear_state first.

/// Sets all parameters and optimizer state to nought, padding included: what reads whole buckets reads that too.
void clear_state(Rank& rank);
/// Sets elements of a bucket from `element` on: the parameters, in their type, and master weights where the share has
/// them.
void put_weights(Rank& rank, std::int64_t chunk, const Bucket& bucket, std::int64_t element,
                 const std::vector<double>& values);

/// The same of a moment.
void put_moments(Rank& rank, std::int64_t chunk, const Bucket& bucket, StateKind kind, std::int64_t element,
                 const std::vector<double>& values);

/// The weights of the first step; moments are nought. Commits.
void initialise(Rank& rank, std::uint64_t seed);

}  // namespace trainyard::exec
