// The hash of a buffer that every device gives alike. A serial hash would leave a GPU idle, so that this one is a sum:
// 8-byte words, little-endian, the last filled with zeros, are mixed with their places and added modulo 2^64, in any
// order. Against accidents, not against malice.
#pragma once

#include <cstdint>

namespace trainyard::kernels {

/// SplitMix64's output function: a bijection.
constexpr std::uint64_t hash_mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

/// What word number `index` adds to the sum.
constexpr std::uint64_t hash_word(std::uint64_t word, std::uint64_t index) {
  return hash_mix(word ^ ((index + 1) * 0x9e3779b97f4a7c15U));
}

/// Of the sum of all words and the length, which tells zeros at the end from nothing.
constexpr std::uint64_t hash_finish(std::uint64_t sum, std::uint64_t bytes) { return hash_mix(sum ^ hash_mix(bytes)); }

}  // namespace trainyard::kernels
