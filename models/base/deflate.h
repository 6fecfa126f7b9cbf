// Text that is written line by line and kept compressed (zlib's format). It is compressed on another thread: the one
// that writes has other things to do.
#pragma once

#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace trainyard {

/// Not movable.
class Deflater {
 public:
  Deflater();
  ~Deflater();
  void add(std::string_view text);
  /// All that was added, compressed. Nothing can be added afterwards.
  std::vector<std::uint8_t> take();

 private:
  struct Stream;
  void compress_text(bool last);
  std::unique_ptr<Stream> stream_;
  std::string text_;              // not given to the other thread yet
  std::future<void> compressed_;  // what was given to it before
};

/// Not movable.
class Inflater {
 public:
  /// `bytes` outlives this.
  explicit Inflater(const std::vector<std::uint8_t>& bytes);
  ~Inflater();
  /// The next line, without its end; none at the end, and where the bytes are not what a Deflater gave.
  std::optional<std::string> line();
  /// The end was reached, and nothing was wrong.
  [[nodiscard]] bool complete() const { return complete_ && next_ == text_.size(); }

 private:
  struct Stream;
  bool refill();
  std::unique_ptr<Stream> stream_;
  std::string text_;  // uncompressed, from next_ on not given out yet
  std::size_t next_ = 0;
  bool complete_ = false, broken_ = false;
};

}  // namespace trainyard
