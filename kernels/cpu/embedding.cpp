// Tables that are read by row, and dropout, which is read by position.

#include "kernels/cpu/cpu_kernels.h"
#include "models/base/random.h"

namespace trainyard::kernels::cpu {

void CpuKernels::embedding(const Tensor& tokens, const Tensor& table, double scale, std::int64_t first_row,
                           const Tensor& y) {
  const std::int32_t* token = indices(tokens);
  const Int rows = y.dims[0], d = y.dims[1], local = table.dims[0];
  in_precision_of(y, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const Out<Acc> out(y, scratch_);
    // One row at a time: a table of bf16 is large, and few of its rows are read.
    const Int width = table.dtype == Dtype::Bf16 ? 2 : size_of(table.dtype);
    for (Int t = 0; t < rows; ++t) {
      RowMap<Acc> to(out.row(t, d), d);
      const Int row = token[t] - first_row;
      if (row < 0 || row >= local) {
        to.setZero();
        continue;
      }
      const Scratch::Scope inner(scratch_);
      const Tensor entry{static_cast<std::byte*>(table.data) + row * d * width, table.dtype, {d, 1, 1}};
      to = static_cast<Acc>(scale) * ConstRowMap<Acc>(In<Acc>(entry, scratch_).data(), d);
    }
  });
}

void CpuKernels::embedding_grad(const Tensor& tokens, const Tensor& dy, double scale, std::int64_t first_row,
                                const Tensor& dtable) {
  const std::int32_t* token = indices(tokens);
  const Int rows = dy.dims[0], d = dy.dims[1], local = dtable.dims[0];
  in_precision_of(dy, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> in(dy, scratch_);
    const Out<Acc> out(dtable, scratch_, true);
    for (Int t = 0; t < rows; ++t) {
      const Int row = token[t] - first_row;
      if (row < 0 || row >= local) continue;
      RowMap<Acc>(out.row(row, d), d) += static_cast<Acc>(scale) * ConstRowMap<Acc>(in.row(t, d), d);
    }
  });
}

void CpuKernels::position_add(const Tensor& x, const Tensor& positions, const Tensor& table, const Tensor& y) {
  const std::int32_t* position = indices(positions);
  const Int rows = x.dims[0], d = x.dims[1];
  in_precision_of(y, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> in(x, scratch_), entries(table, scratch_);
    const Out<Acc> out(y, scratch_);
    for (Int t = 0; t < rows; ++t) {
      const Int row = index_below(position[t], table.dims[0]);
      RowMap<Acc>(out.row(t, d), d) = ConstRowMap<Acc>(in.row(t, d), d) + ConstRowMap<Acc>(entries.row(row, d), d);
    }
  });
}

void CpuKernels::position_grad(const Tensor& positions, const Tensor& dy, const Tensor& dtable) {
  const std::int32_t* position = indices(positions);
  const Int rows = dy.dims[0], d = dy.dims[1];
  in_precision_of(dy, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> in(dy, scratch_);
    const Out<Acc> out(dtable, scratch_, true);
    for (Int t = 0; t < rows; ++t) {
      const Int row = index_below(position[t], dtable.dims[0]);
      RowMap<Acc>(out.row(row, d), d) += ConstRowMap<Acc>(in.row(t, d), d);
    }
  });
}

void CpuKernels::dropout(const DropoutSeed& seed, const Tensor& x, const Tensor& samples, const Tensor& positions,
                         const Tensor& y) {
  const std::int32_t *sample = indices(samples), *position = indices(positions);
  const Int rows = x.dims[0], d = x.dims[1];
  const auto fold = [](std::uint64_t key, Int part) { return mix64(key ^ static_cast<std::uint64_t>(part)); };
  const std::uint64_t step = mix64(mix64(seed.seed) ^ static_cast<std::uint64_t>(seed.step));
  const std::uint64_t site = fold(fold(step, seed.layer), seed.salt);
  in_precision_of(y, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> in(x, scratch_);
    const Out<Acc> out(y, scratch_);
    const auto scale = static_cast<Acc>(1 / (1 - seed.probability));
    for (Int t = 0; t < rows; ++t) {
      const std::uint64_t row = fold(fold(site, sample[t]), position[t]);
      for (Int c = 0; c < d; ++c) {
        const bool keep = static_cast<double>(fold(row, c) >> 11) * 0x1.0p-53 >= seed.probability;
        out[t * d + c] = keep ? in[t * d + c] * scale : Acc{0};
      }
    }
  });
}

}  // namespace trainyard::kernels::cpu
