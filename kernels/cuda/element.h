// Elements of operands as kernels compute with them, and several of them in one access to memory.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <type_traits>

#include "kernels/kernels.h"

namespace trainyard::kernels::cuda {

using bf16 = __nv_bfloat16;

/// What operands stored as T are computed in.
template <class T>
using AccOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// To the nearest, ties to even.
template <class To, class From>
__device__ inline To convert(From x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else if constexpr (std::is_same_v<From, bf16>) {
    return static_cast<To>(__bfloat162float(x));
  } else if constexpr (std::is_same_v<To, bf16>) {
    return __float2bfloat16_rn(static_cast<float>(x));
  } else {
    return static_cast<To>(x);
  }
}

/// Read and written in one access where it is no longer than 16 bytes.
template <class T, int Width>
struct alignas(sizeof(T) * Width) Vec {
  T x[Width];
};

template <class T, int Width>
__device__ inline Vec<T, Width> load(const T* from) {
  return *reinterpret_cast<const Vec<T, Width>*>(from);
}

template <class T, int Width>
__device__ inline void store(T* to, const Vec<T, Width>& vec) {
  *reinterpret_cast<Vec<T, Width>*>(to) = vec;
}

/// An index that was read from memory. A wrong one can only come from a bug: it stops the kernel and fails the device.
__device__ inline std::int64_t index_below(std::int64_t value, std::int64_t bound) {
  if (value < 0 || value >= bound) __trap();
  return value;
}

inline bool aligned(std::initializer_list<const void*> pointers, std::int64_t bytes) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<std::uintptr_t>(pointer) % static_cast<std::uintptr_t>(bytes) != 0) return false;
  }
  return true;
}

/// Stands for a type in an argument.
template <class T>
struct Type {
  using type = T;
};
template <class Tag>
using TypeOf = typename Tag::type;

/// Calls f with the storage type.
template <class F>
void with_type(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::Bf16: return f(Type<bf16>{});
    case Dtype::F32: return f(Type<float>{});
    case Dtype::F64: return f(Type<double>{});
    case Dtype::I32: break;
  }
  throw std::invalid_argument("a kernel was asked to compute with integers");
}

/// Calls f with the storage type of an operand that is computed with in Acc.
template <class Acc, class F>
void with_type_beside(Dtype dtype, F f) {
  if (dtype == Dtype::Bf16) return f(Type<bf16>{});
  if ((dtype == Dtype::F64) != std::is_same_v<Acc, double> || dtype == Dtype::I32)
    throw std::invalid_argument("operands of one op are of one precision");
  f(Type<Acc>{});
}

template <class T>
T* data_of(const Tensor& x) {
  return static_cast<T*>(x.data);
}

}  // namespace trainyard::kernels::cuda
