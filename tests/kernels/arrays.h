// Tensors that own their memory, for tests of kernels.
#pragma once

#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "models/base/random.h"

namespace trainyard::kernels::test {

/// Memory that lies as an arena's does: how an element is rounded may depend on its place in a cache line.
template <class T>
struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <class U>
  Aligned(const Aligned<U>& /*other*/) {}  // NOLINT(google-explicit-constructor)
  T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kAlignment)); }
  void deallocate(T* memory, std::size_t /*count*/) { ::operator delete(memory, kAlignment); }
  bool operator==(const Aligned&) const { return true; }
  static constexpr std::align_val_t kAlignment{64};
};

/// In float64.
struct Array {
  std::vector<double, Aligned<double>> values;
  std::array<std::int64_t, 3> dims{1, 1, 1};

  Array() = default;
  Array(std::int64_t a, std::int64_t b = 1, std::int64_t c = 1)  // NOLINT(google-explicit-constructor)
      : values(static_cast<std::size_t>(a * b * c), 0.0), dims{a, b, c} {}
  /// Normal numbers, by name.
  Array(const std::string& name, std::int64_t a, std::int64_t b = 1, std::int64_t c = 1) : Array(a, b, c) {
    RandomStream random(11, name);
    for (double& value : values) value = random.normal();
  }
  [[nodiscard]] Tensor tensor() { return {values.data(), Dtype::F64, dims}; }
};

struct Indices {
  std::vector<std::int32_t> values;
  std::array<std::int64_t, 3> dims{1, 1, 1};

  Indices(std::vector<std::int32_t> v, std::array<std::int64_t, 3> d) : values(std::move(v)), dims(d) {}
  explicit Indices(std::vector<std::int32_t> v)
      : values(std::move(v)), dims{static_cast<std::int64_t>(values.size()), 1, 1} {}
  Indices(std::int64_t a, std::int64_t b) : values(static_cast<std::size_t>(a * b), 0), dims{a, b, 1} {}
  [[nodiscard]] Tensor tensor() { return {values.data(), Dtype::I32, dims}; }
};

}  // namespace trainyard::kernels::test
