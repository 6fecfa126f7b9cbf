// Text as tokens, one for each byte. Which of them a sample holds is a pure function of seed, step and sample: no plan
// and no resume changes it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "models/base/status.h"

namespace trainyard::exec {

/// Of the byte-level tokenizer.
inline constexpr std::int64_t kByteVocabulary = 256;

class Corpus {
 public:
  /// A file, or a folder: the files below it, by path. They are mapped, or joined in memory.
  static Result<Corpus> open(const std::string& path);

  static Corpus of_text(std::string text);

  [[nodiscard]] std::int64_t bytes() const { return bytes_; }
  /// Of its first and last MiB: tells texts apart without reading all of a long one.
  [[nodiscard]] std::uint32_t checksum() const;

  /// Writes tokens [sequence_length + 1] of a sample of a step. The text is cut into windows of sequence_length (their
  /// last token is the first of the next); each pass over all of them takes them in an order of its own.
  void sample(std::uint64_t seed, std::int64_t step, std::int64_t sample, std::int64_t global_batch,
              std::int64_t sequence_length, std::int32_t* tokens) const;

  /// Windows that it has, which must be one at least.
  [[nodiscard]] std::int64_t windows(std::int64_t sequence_length) const { return (bytes_ - 1) / sequence_length; }

 private:
  std::shared_ptr<const unsigned char> text_;
  std::int64_t bytes_ = 0;
};

/// Where `i` of [0, count) lies in a permutation that `key` picks.
std::uint64_t permuted(std::uint64_t i, std::uint64_t count, std::uint64_t key);

}  // namespace trainyard::exec
