// Operands as the CPU kernels compute with them: f32 for tensors of bf16 and f32, f64 for those of f64.
#pragma once

#include <Eigen/Core>
#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/kernels.h"
#include "models/base/bf16.h"
#include "models/base/check.h"

namespace trainyard::kernels::cpu {

using Int = std::int64_t;

/// Memory for conversions and intermediate results: a stack. What a kernel takes it gives back when it returns, so that
/// a process holds what its hungriest op needs, and after the first step nothing is allocated.
class Scratch {
  // Where the next byte is taken.
  struct Top {
    std::size_t block = 0, used_bytes = 0;
  };

 public:
  template <class T>
  T* take(Int count) {
    return reinterpret_cast<T*>(take_bytes(static_cast<std::size_t>(count) * sizeof(T)));
  }

  /// Gives back, at its end, what was taken since it began.
  class Scope {
   public:
    explicit Scope(Scratch& scratch) : scratch_(scratch), top_(scratch.top_) {}
    ~Scope() { scratch_.top_ = top_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Scratch& scratch_;
    Top top_;
  };

 private:
  struct Block {
    std::unique_ptr<std::byte[]> bytes;
    std::size_t size = 0;
  };
  std::byte* take_bytes(std::size_t size);

  std::vector<Block> blocks_;
  Top top_;
};

template <class Acc>
inline constexpr Dtype kDtypeOf = Dtype::F32;
template <>
inline constexpr Dtype kDtypeOf<double> = Dtype::F64;

inline const std::int32_t* indices(const Tensor& x) {
  TY_CHECK(x.dtype == Dtype::I32, "indices are 32-bit integers");
  return static_cast<const std::int32_t*>(x.data);
}

/// An index that was read from memory.
inline Int index_below(Int value, Int bound) {
  TY_CHECK(value >= 0 && value < bound, "an index in memory is out of range");
  return value;
}

/// A tensor to read, in Acc.
template <class Acc>
class In {
 public:
  In(const Tensor& x, Scratch& scratch) {
    if (x.dtype == kDtypeOf<Acc>) {
      data_ = static_cast<const Acc*>(x.data);
      return;
    }
    TY_CHECK(x.dtype == Dtype::Bf16, "operands of one op are of one precision");
    Acc* copy = scratch.take<Acc>(x.size());
    const auto* from = static_cast<const std::uint16_t*>(x.data);
    for (Int i = 0; i < x.size(); ++i) copy[i] = static_cast<Acc>(bf16_to_float(from[i]));
    data_ = copy;
  }
  [[nodiscard]] const Acc* data() const { return data_; }
  const Acc& operator[](Int i) const { return data_[i]; }
  /// Row `r` of a tensor of so many columns.
  [[nodiscard]] const Acc* row(Int r, Int columns) const { return data_ + r * columns; }

 private:
  const Acc* data_ = nullptr;
};

/// A tensor to write, in Acc; converted back when it goes out of scope. Holds what was there only if `keep`.
template <class Acc>
class Out {
 public:
  Out(const Tensor& x, Scratch& scratch, bool keep = false) : tensor_(x) {
    if (x.dtype == kDtypeOf<Acc>) {
      data_ = static_cast<Acc*>(x.data);
      return;
    }
    TY_CHECK(x.dtype == Dtype::Bf16, "operands of one op are of one precision");
    data_ = scratch.take<Acc>(x.size());
    converted_ = true;
    if (!keep) return;
    const auto* from = static_cast<const std::uint16_t*>(x.data);
    for (Int i = 0; i < x.size(); ++i) data_[i] = static_cast<Acc>(bf16_to_float(from[i]));
  }
  ~Out() {
    if (!converted_) return;
    auto* to = static_cast<std::uint16_t*>(tensor_.data);
    for (Int i = 0; i < tensor_.size(); ++i) to[i] = float_to_bf16(static_cast<float>(data_[i]));
  }
  Out(const Out&) = delete;
  Out& operator=(const Out&) = delete;
  [[nodiscard]] Acc* data() const { return data_; }
  Acc& operator[](Int i) const { return data_[i]; }
  [[nodiscard]] Acc* row(Int r, Int columns) const { return data_ + r * columns; }

 private:
  Tensor tensor_;
  Acc* data_ = nullptr;
  bool converted_ = false;
};

/// Calls f with a zero of the type to compute in.
template <class F>
void in_precision_of(const Tensor& x, F f) {
  if (x.dtype == Dtype::F64) {
    f(double{});
  } else {
    f(float{});
  }
}

template <class Acc>
using Matrix = Eigen::Matrix<Acc, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class Acc>
using MatrixMap = Eigen::Map<Matrix<Acc>>;
template <class Acc>
using ConstMatrixMap = Eigen::Map<const Matrix<Acc>>;
/// With a distance between rows.
template <class Acc>
using StridedMap = Eigen::Map<Matrix<Acc>, 0, Eigen::OuterStride<>>;
template <class Acc>
using ConstStridedMap = Eigen::Map<const Matrix<Acc>, 0, Eigen::OuterStride<>>;
/// One row as an array.
template <class Acc>
using RowMap = Eigen::Map<Eigen::Array<Acc, Eigen::Dynamic, 1>>;
template <class Acc>
using ConstRowMap = Eigen::Map<const Eigen::Array<Acc, Eigen::Dynamic, 1>>;

/// softcap(x) = cap * tanh(x / cap) for every element, in place; nothing for a cap of 0.
template <class Array>
void apply_softcap(Array&& x, double cap) {
  using Acc = typename std::decay_t<Array>::Scalar;
  if (cap > 0) x = static_cast<Acc>(cap) * (x / static_cast<Acc>(cap)).tanh();
}

}  // namespace trainyard::kernels::cpu
