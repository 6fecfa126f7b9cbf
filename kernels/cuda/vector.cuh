// What kernels that move memory share: loads and stores of 16 bytes that convert to and from the type to compute in,
// sums over a block in a fixed order, and the choice of a kernel by storage.
//
// N is how many elements a thread moves at once: kLanes, or 1 where pointers or the length of a row allow no more.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <type_traits>

#include "kernels/kernels.h"
#include "models/base/check.h"

namespace trainyard::kernels::cuda {

using Int = std::int64_t;
using Bf16 = __nv_bfloat16;

// --- types

/// What elements of storage S are computed in.
template <class S>
using Acc = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <class S>
inline constexpr Dtype kStorage = std::is_same_v<S, Bf16>    ? Dtype::Bf16
                                  : std::is_same_v<S, float> ? Dtype::F32
                                                             : Dtype::F64;
template <class S>
inline constexpr int kLanes = 16 / static_cast<int>(sizeof(S));

/// The elements of a tensor of this storage; null if it is empty.
template <class S>
S* elements(const Tensor& x) {
  TY_CHECK(x.empty() || x.dtype == kStorage<S>, "operands of one op are of one precision");
  return static_cast<S*>(x.data);
}

inline const std::int32_t* index_elements(const Tensor& x) {
  TY_CHECK(x.empty() || x.dtype == Dtype::I32, "indices are 32-bit integers");
  return static_cast<const std::int32_t*>(x.data);
}

// --- choice of a kernel, by values whose types say it

template <class T>
struct Type {
  using type = T;
};
template <int N>
using Number = std::integral_constant<int, N>;

/// Calls f(Type<S>).
template <class F>
void with_storage(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::Bf16: return f(Type<Bf16>{});
    case Dtype::F32: return f(Type<float>{});
    case Dtype::F64: return f(Type<double>{});
    case Dtype::I32: break;
  }
  TY_CHECK(false, "indices are not computed with");
}

/// Calls f(Type<O>) for what gradients of storage S are accumulated in: S, or what it is computed in.
template <class S, class F>
void with_gradient(Dtype dtype, F f) {
  if (dtype == kStorage<S>) return f(Type<S>{});
  f(Type<Acc<S>>{});
}

/// Calls f(Number<N>): kLanes if rows of `length` elements at all these addresses can be moved 16 bytes at a time.
template <class S, class F>
void with_lanes(Int length, std::initializer_list<const void*> addresses, F f) {
  const bool aligned = std::all_of(addresses.begin(), addresses.end(), [](const void* address) {
    return reinterpret_cast<std::uintptr_t>(address) % 16 == 0;
  });
  if (aligned && length % kLanes<S> == 0) return f(Number<kLanes<S>>{});
  f(Number<1>{});
}

// --- launch sizes

inline Int divide_up(Int a, Int b) { return (a + b - 1) / b; }
inline unsigned blocks_for(Int count, Int each) { return static_cast<unsigned>(divide_up(count, each)); }
/// Threads, in whole warps, for so many pieces of work.
inline unsigned threads_for(Int count, Int most) {
  return static_cast<unsigned>(std::clamp<Int>(divide_up(count, 32) * 32, 32, most));
}

// --- memory

/// N elements in the type to compute in.
template <class A, int N>
struct Lanes {
  A at[N];
};

/// N elements as they lie in memory: half the registers of Lanes for bf16, so this is what waits.
template <class S, int N>
struct Pack {
  static_assert(N * sizeof(S) % 16 == 0);
  uint4 raw[N * sizeof(S) / 16];
};
template <class S>
struct Pack<S, 1> {
  S raw;
};

template <int N, class S>
__device__ __forceinline__ Pack<S, N> fetch(const S* from) {
  Pack<S, N> pack;
  if constexpr (N == 1) {
    pack.raw = *from;
  } else {
#pragma unroll
    for (int i = 0; i < static_cast<int>(N * sizeof(S) / 16); ++i)
      pack.raw[i] = reinterpret_cast<const uint4*>(from)[i];
  }
  return pack;
}

/// The elements in 16 bytes.
template <class S>
__device__ __forceinline__ void unpack_16(const uint4& raw, Acc<S>* to) {
  const unsigned word[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < kLanes<S>; ++i) {
    if constexpr (std::is_same_v<S, Bf16>) {
      to[i] = __uint_as_float(i % 2 == 0 ? word[i / 2] << 16 : word[i / 2] & 0xffff0000U);
    } else if constexpr (std::is_same_v<S, float>) {
      to[i] = __uint_as_float(word[i]);
    } else {
      to[i] = __hiloint2double(static_cast<int>(word[2 * i + 1]), static_cast<int>(word[2 * i]));
    }
  }
}

template <class S>
__device__ __forceinline__ uint4 pack_16(const Acc<S>* from) {
  unsigned word[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<S, Bf16>) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
      memcpy(&word[i], &pair, sizeof pair);
    } else if constexpr (std::is_same_v<S, float>) {
      word[i] = __float_as_uint(from[i]);
    } else {
      word[i] = static_cast<unsigned>(i % 2 == 0 ? __double2loint(from[i / 2]) : __double2hiint(from[i / 2]));
    }
  }
  return {word[0], word[1], word[2], word[3]};
}

template <class S, int N>
__device__ __forceinline__ Lanes<Acc<S>, N> unpack(const Pack<S, N>& pack) {
  Lanes<Acc<S>, N> lanes;
  if constexpr (N == 1) {
    lanes.at[0] = static_cast<Acc<S>>(pack.raw);
  } else {
#pragma unroll
    for (int i = 0; i < N / kLanes<S>; ++i) unpack_16<S>(pack.raw[i], lanes.at + i * kLanes<S>);
  }
  return lanes;
}

template <int N, class S>
__device__ __forceinline__ Lanes<Acc<S>, N> load(const S* from) {
  return unpack(fetch<N>(from));
}

template <class S, int N>
__device__ __forceinline__ void store(S* to, const Lanes<Acc<S>, N>& lanes) {
  if constexpr (N == 1) {
    if constexpr (std::is_same_v<S, Bf16>) {
      *to = __float2bfloat16_rn(lanes.at[0]);
    } else {
      *to = lanes.at[0];
    }
  } else {
    // Said outright: an assignment may be taken apart into words.
#pragma unroll
    for (int i = 0; i < N / kLanes<S>; ++i)
      __stwb(reinterpret_cast<uint4*>(to) + i, pack_16<S>(lanes.at + i * kLanes<S>));
  }
}

// --- sums over a block

struct Sum {
  template <class A>
  static __device__ __forceinline__ A none() {
    return A{0};
  }
  template <class A>
  static __device__ __forceinline__ A of(A a, A b) {
    return a + b;
  }
};
struct Max {
  template <class A>
  static __device__ __forceinline__ A none() {
    return -std::numeric_limits<A>::infinity();
  }
  template <class A>
  static __device__ __forceinline__ A of(A a, A b) {
    return a > b ? a : b;
  }
};

/// Every lane gets the same bits: at each step a lane and its partner add the same two values.
template <class Op, class A>
__device__ __forceinline__ A warp_reduce(A value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = Op::of(value, __shfl_xor_sync(0xffffffffU, value, distance));
  }
  return value;
}

/// Count values of every thread of a block of whole warps, reduced for all of them, once or again and again. Two
/// buffers in turn, so that one barrier is enough: who writes a buffer has passed the barrier after which the other
/// was written, and all have read this one before that.
template <class Op, class A, int Count>
class BlockReduce {
 public:
  __device__ __forceinline__ void operator()(A (&values)[Count]) {
    __shared__ A shared[2][Count][32];
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int warps = static_cast<int>(blockDim.x) / 32;
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      values[i] = warp_reduce<Op>(values[i]);
      if (lane == 0) shared[turn_][i][warp] = values[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      values[i] = warp_reduce<Op>(lane < warps ? shared[turn_][i][lane] : Op::template none<A>());
    }
    turn_ ^= 1;
  }

 private:
  int turn_ = 0;
};

}  // namespace trainyard::kernels::cuda
