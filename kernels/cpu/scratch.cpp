#include "kernels/cpu/array.h"

namespace trainyard::kernels::cpu {

namespace {

constexpr std::size_t kAlignment = 64;
// The system gives memory when it is touched: a block that is larger than what is taken of it costs nothing.
constexpr std::size_t kLeastBlockBytes = std::size_t{256} << 20;

}  // namespace

std::byte* Scratch::take_bytes(std::size_t size) {
  const std::size_t rounded = (size + kAlignment - 1) / kAlignment * kAlignment;
  while (top_.block < blocks_.size() && top_.used_bytes + rounded > blocks_[top_.block].size) {
    ++top_.block;
    top_.used_bytes = 0;
  }
  if (top_.block == blocks_.size()) {
    const std::size_t bytes = std::max(rounded, kLeastBlockBytes);
    blocks_.push_back({std::make_unique_for_overwrite<std::byte[]>(bytes + kAlignment), bytes});
  }
  const std::byte* begin = blocks_[top_.block].bytes.get();
  const std::size_t shift = (kAlignment - reinterpret_cast<std::uintptr_t>(begin) % kAlignment) % kAlignment;
  std::byte* taken = blocks_[top_.block].bytes.get() + shift + top_.used_bytes;
  top_.used_bytes += rounded;
  return taken;
}

}  // namespace trainyard::kernels::cpu
