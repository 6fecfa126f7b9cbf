#include "models/base/deflate.h"

#include <array>
#include <utility>

#include <zlib.h>

#include "models/base/check.h"

namespace trainyard {

struct Deflater::Stream {
  z_stream z{};
  std::vector<std::uint8_t> bytes;
  Stream() { TY_CHECK(deflateInit(&z, Z_BEST_SPEED) == Z_OK, "zlib has memory"); }
  ~Stream() { deflateEnd(&z); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  void compress(const std::string& text, int flush) {
    z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));  // zlib only reads it
    z.avail_in = static_cast<uInt>(text.size());
    std::array<std::uint8_t, 16384> out;
    do {
      z.next_out = out.data();
      z.avail_out = static_cast<uInt>(out.size());
      deflate(&z, flush);
      bytes.insert(bytes.end(), out.begin(), out.end() - z.avail_out);
    } while (z.avail_out == 0);
  }
};

Deflater::Deflater() : stream_(std::make_unique<Stream>()) {}

Deflater::~Deflater() {
  if (compressed_.valid()) compressed_.wait();
}

void Deflater::add(std::string_view text) {
  constexpr std::size_t kAtOnce = 1 << 20;
  text_ += text;
  if (text_.size() >= kAtOnce) compress_text(false);
}

std::vector<std::uint8_t> Deflater::take() {
  compress_text(true);
  compressed_.get();
  return std::move(stream_->bytes);
}

void Deflater::compress_text(bool last) {
  if (compressed_.valid()) compressed_.get();
  compressed_ = std::async(std::launch::async, [stream = stream_.get(), text = std::exchange(text_, {}), last] {
    stream->compress(text, last ? Z_FINISH : Z_NO_FLUSH);
  });
}

struct Inflater::Stream {
  z_stream z{};
  Stream() { TY_CHECK(inflateInit(&z) == Z_OK, "zlib has memory"); }
  ~Stream() { inflateEnd(&z); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
};

Inflater::Inflater(const std::vector<std::uint8_t>& bytes) : stream_(std::make_unique<Stream>()) {
  stream_->z.next_in = const_cast<Bytef*>(bytes.data());  // zlib only reads it
  stream_->z.avail_in = static_cast<uInt>(bytes.size());
}

Inflater::~Inflater() = default;

std::optional<std::string> Inflater::line() {
  std::size_t end = text_.find('\n', next_);
  while (end == std::string::npos) {
    if (!refill()) return std::nullopt;
    end = text_.find('\n', next_);
  }
  std::string line = text_.substr(next_, end - next_);
  next_ = end + 1;
  return line;
}

bool Inflater::refill() {
  if (complete_ || broken_) return false;
  std::array<char, 65536> out;
  z_stream& z = stream_->z;
  z.next_out = reinterpret_cast<Bytef*>(out.data());
  z.avail_out = static_cast<uInt>(out.size());
  const int result = inflate(&z, Z_NO_FLUSH);
  complete_ = result == Z_STREAM_END;
  broken_ = !complete_ && (result != Z_OK || z.avail_out == out.size());
  text_.erase(0, next_);
  next_ = 0;
  text_.append(out.data(), out.size() - z.avail_out);
  return !broken_ && (z.avail_out < out.size());
}

}  // namespace trainyard
