#include "kernels/cpu/array.h"

namespace trainyard::kernels::cpu {

namespace {

constexpr std::size_t kAlignment = 64;

}  // namespace

std::byte* Scratch::take_bytes(std::size_t size) {
  if (used_ == blocks_.size()) blocks_.emplace_back();
  Block& block = blocks_[used_++];
  if (block.size < size + kAlignment) {
    block.bytes = std::make_unique<std::byte[]>(size + kAlignment);
    block.size = size + kAlignment;
  }
  const auto address = reinterpret_cast<std::uintptr_t>(block.bytes.get());
  return block.bytes.get() + (kAlignment - address % kAlignment) % kAlignment;
}

}  // namespace trainyard::kernels::cpu
