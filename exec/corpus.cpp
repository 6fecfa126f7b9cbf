#include "exec/corpus.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "models/base/random.h"

namespace trainyard::exec {

namespace {

namespace fs = std::filesystem;

Problem unreadable(const std::string& path, const std::string& why) {
  return {path, "", "", "cannot be read as text to train on: " + why, "name a file of text, or a folder of them"};
}

}  // namespace

Result<Corpus> Corpus::open(const std::string& path) {
  Corpus corpus;
  std::error_code error;
  if (fs::is_directory(path, error)) {
    std::vector<std::string> files;
    for (fs::recursive_directory_iterator it(path, error), end; it != end && !error; it.increment(error)) {
      if (it->is_regular_file()) files.push_back(it->path().string());
    }
    if (error) return unreadable(path, error.message());
    if (files.empty()) return unreadable(path, "the folder has no files");
    std::sort(files.begin(), files.end());
    std::string text;
    for (const std::string& file : files) {
      std::ifstream in(file, std::ios::binary);
      text.append(std::istreambuf_iterator<char>(in), {});
      if (in.bad() || !in.is_open()) return unreadable(file, std::strerror(errno));
    }
    return of_text(std::move(text));
  }
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe is refused, not waited for
  struct stat status {};
  if (file < 0 || ::fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
    const std::string why = file < 0 ? std::strerror(errno) : "it is not a regular file";
    if (file >= 0) ::close(file);
    return unreadable(path, why);
  }
  corpus.bytes_ = status.st_size;
  const auto size = static_cast<std::size_t>(status.st_size);
  void* mapped = size == 0 ? nullptr : ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file, 0);
  ::close(file);
  if (mapped == MAP_FAILED) return unreadable(path, std::strerror(errno));
  corpus.text_ = {static_cast<const unsigned char*>(mapped), [size](const unsigned char* text) {
                    if (size > 0) ::munmap(const_cast<unsigned char*>(text), size);
                  }};
  return corpus;
}

Corpus Corpus::of_text(std::string text) {
  Corpus corpus;
  corpus.bytes_ = static_cast<std::int64_t>(text.size());
  const auto owned = std::make_shared<const std::string>(std::move(text));
  corpus.text_ = {owned, reinterpret_cast<const unsigned char*>(owned->data())};
  return corpus;
}

std::uint32_t Corpus::checksum() const {
  const std::int64_t end = std::min<std::int64_t>(bytes_, std::int64_t{1} << 20);
  const auto size = static_cast<std::size_t>(end);
  const auto head = crc32_z(crc32_z(0, nullptr, 0), text_.get(), size);
  return static_cast<std::uint32_t>(crc32_z(head, text_.get() + bytes_ - end, size));
}

// A Feistel network over the next even number of bits, walked until it lands inside.
std::uint64_t permuted(std::uint64_t i, std::uint64_t count, std::uint64_t key) {
  const int half = std::max(1, (static_cast<int>(std::bit_width(count - 1)) + 1) / 2);
  const std::uint64_t mask = (std::uint64_t{1} << half) - 1;
  constexpr std::uint64_t kRounds = 4;
  do {
    std::uint64_t left = i >> half, right = i & mask;
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      const std::uint64_t mixed = left ^ (mix64(key ^ mix64(right * kRounds + round)) & mask);
      left = right;
      right = mixed;
    }
    i = left << half | right;
  } while (i >= count);
  return i;
}

void Corpus::sample(std::uint64_t seed, std::int64_t step, std::int64_t sample, std::int64_t global_batch,
                    std::int64_t sequence_length, std::int32_t* tokens) const {
  const auto count = static_cast<std::uint64_t>(windows(sequence_length));
  const auto serial = static_cast<std::uint64_t>(step * global_batch + sample);
  const std::uint64_t key = RandomStream(seed, "corpus", serial / count).next_u64();
  const auto window = static_cast<std::int64_t>(permuted(serial % count, count, key));
  const unsigned char* from = text_.get() + window * sequence_length;
  std::copy(from, from + sequence_length + 1, tokens);
}

}  // namespace trainyard::exec
