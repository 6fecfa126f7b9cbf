// Matrix products, norms, and what is computed element by element.

#include <cmath>

#include "kernels/cpu/cpu_kernels.h"

namespace trainyard::kernels::cpu {

namespace {

template <class Acc>
using Values = Eigen::Array<Acc, Eigen::Dynamic, 1>;

template <class Acc, class X>
Values<Acc> activate(Act act, const X& x) {
  switch (act) {
    case Act::Silu: return x / (1 + (-x).exp());
    case Act::Gelu: return Acc(0.5) * x * (1 + (x * Acc(M_SQRT1_2)).unaryExpr([](Acc v) { return std::erf(v); }));
    // 1 + tanh(u) = 2 / (1 + exp(-2 u)), which is exact where tanh is near -1.
    case Act::GeluTanh: return x / (1 + (Acc(-2 * std::sqrt(2 / M_PI)) * (x + Acc(0.044715) * x.cube())).exp());
    case Act::SquaredRelu: return x.max(Acc(0)).square();
  }
  TY_CHECK(false, "unknown activation");
}

template <class Acc, class X>
Values<Acc> activate_slope(Act act, const X& x) {
  switch (act) {
    case Act::Silu: {
      const Values<Acc> s = 1 / (1 + (-x).exp());
      return s * (1 + x * (1 - s));
    }
    case Act::Gelu:
      return Acc(0.5) * (1 + (x * Acc(M_SQRT1_2)).unaryExpr([](Acc v) { return std::erf(v); })) +
             x * (Acc(-0.5) * x.square()).exp() * Acc(1 / std::sqrt(2 * M_PI));
    case Act::GeluTanh: {
      const auto c = Acc(std::sqrt(2 / M_PI));
      // As a logistic function of 2 u, whose slope loses no digits where it is near 1.
      const Values<Acc> u = c * (x + Acc(0.044715) * x.cube());
      const Values<Acc> e = (Acc(-2) * u.abs()).exp(), share = 1 / (1 + e);
      return (u < 0).select(e * share, share) +
             x * (e * share.square()) * Acc(2) * c * (1 + Acc(3 * 0.044715) * x.square());
    }
    case Act::SquaredRelu: return 2 * x.max(Acc(0));
  }
  TY_CHECK(false, "unknown activation");
}

// Rows of a buffer that hold data: all, or as many as the counts add up to.
Int valid_rows(Int rows, const Tensor& counts) {
  if (counts.empty()) return rows;
  Int total = 0;
  for (Int i = 0; i < counts.size(); ++i) total += index_below(indices(counts)[i], rows + 1);
  return index_below(total, rows + 1);
}

}  // namespace

void CpuKernels::norm(const NormShape& shape, const Tensor& x, const Tensor& weight, const Tensor& bias,
                      const Tensor& y, const Tensor& rstd, const Tensor& mean) {
  const Int rows = x.dims[0], d = x.dims[1];
  in_precision_of(y, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> in(x, scratch_), w(weight, scratch_);
    const Out<Acc> out(y, scratch_), rstds(rstd, scratch_);
    const ConstRowMap<Acc> weights(w.data(), d);
    const Acc* shift = bias.empty() ? nullptr : In<Acc>(bias, scratch_).data();
    Acc* means = shape.centred ? static_cast<Acc*>(mean.data) : nullptr;
    parallel(rows, kGrain / d, [&](Int begin, Int end, Int) {
      for (Int t = begin; t < end; ++t) {
        const ConstRowMap<Acc> row(in.row(t, d), d);
        const Acc centre = shape.centred ? row.mean() : Acc{0};
        const Acc r = 1 / std::sqrt((row - centre).square().mean() + static_cast<Acc>(shape.eps));
        rstds[t] = r;
        if (means != nullptr) means[t] = centre;
        RowMap<Acc> to(out.row(t, d), d);
        to = (row - centre) * r * weights;
        if (shift != nullptr) to += ConstRowMap<Acc>(shift, d);
      }
    });
  });
}

void CpuKernels::norm_grad(const NormShape& shape, const Tensor& dy, const Tensor& x, const Tensor& weight,
                           const Tensor& rstd, const Tensor& mean, const Tensor& dx, const Tensor& dweight,
                           const Tensor& dbias) {
  const Int rows = x.dims[0], d = x.dims[1];
  in_precision_of(dx, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> grads(dy, scratch_), in(x, scratch_), w(weight, scratch_), rstds(rstd, scratch_);
    const Out<Acc> out(dx, scratch_), dw(dweight, scratch_, true);
    const ConstRowMap<Acc> weights(w.data(), d);
    const auto* means = shape.centred ? static_cast<const Acc*>(mean.data) : nullptr;
    // Each thread sums its rows; the sums are added in the order of the threads.
    Matrix<Acc> weight_sums = Matrix<Acc>::Zero(threads_, d), bias_sums = Matrix<Acc>::Zero(threads_, d);
    parallel(rows, kGrain / d, [&](Int begin, Int end, Int thread) {
      Values<Acc> xhat(d), g(d);
      RowMap<Acc> weight_sum(weight_sums.data() + thread * d, d), bias_sum(bias_sums.data() + thread * d, d);
      for (Int t = begin; t < end; ++t) {
        const ConstRowMap<Acc> row(in.row(t, d), d), grad(grads.row(t, d), d);
        xhat = (row - (means != nullptr ? means[t] : Acc{0})) * rstds[t];
        g = grad * weights;
        const Acc dot = (g * xhat).mean(), sum = shape.centred ? g.mean() : Acc{0};
        weight_sum += grad * xhat;
        if (!dbias.empty()) bias_sum += grad;
        RowMap<Acc>(out.row(t, d), d) = rstds[t] * (g - xhat * dot - sum);
      }
    });
    for (Int thread = 0; thread < threads_; ++thread)
      RowMap<Acc>(dw.data(), d) += ConstRowMap<Acc>(weight_sums.data() + thread * d, d);
    if (dbias.empty()) return;
    const Out<Acc> db(dbias, scratch_, true);
    for (Int thread = 0; thread < threads_; ++thread)
      RowMap<Acc>(db.data(), d) += ConstRowMap<Acc>(bias_sums.data() + thread * d, d);
  });
}

void CpuKernels::matmul(const Gemm& gemm, const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& c) {
  in_precision_of(c, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> left(a, scratch_), right(b, scratch_);
    const Out<Acc> out(c, scratch_, gemm.accumulate);
    const ConstMatrixMap<Acc> A(left.data(), gemm.trans_a ? gemm.k : gemm.m, gemm.trans_a ? gemm.m : gemm.k);
    const ConstMatrixMap<Acc> B(right.data(), gemm.trans_b ? gemm.n : gemm.k, gemm.trans_b ? gemm.k : gemm.n);
    MatrixMap<Acc> C(out.data(), gemm.m, gemm.n);
    if (!gemm.accumulate) C.setZero();
    const auto alpha = static_cast<Acc>(gemm.alpha);
    if (gemm.trans_a && gemm.trans_b) {
      C.noalias() += alpha * A.transpose() * B.transpose();
    } else if (gemm.trans_a) {
      C.noalias() += alpha * A.transpose() * B;
    } else if (gemm.trans_b) {
      C.noalias() += alpha * A * B.transpose();
    } else {
      C.noalias() += alpha * A * B;
    }
    if (bias.empty()) return;
    C.array().rowwise() += ConstRowMap<Acc>(In<Acc>(bias, scratch_).data(), gemm.n).transpose();
  });
}

void CpuKernels::bias_add(const Tensor& x, const Tensor& bias, const Tensor& y) {
  const Int n = bias.size(), rows = x.size() / n;
  in_precision_of(y, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> in(x, scratch_), shift(bias, scratch_);
    const Out<Acc> out(y, scratch_);
    parallel(rows, kGrain / n, [&](Int begin, Int end, Int) {
      for (Int t = begin; t < end; ++t)
        RowMap<Acc>(out.row(t, n), n) = ConstRowMap<Acc>(in.row(t, n), n) + ConstRowMap<Acc>(shift.data(), n);
    });
  });
}

void CpuKernels::bias_grad(const Tensor& dy, const Tensor& dbias) {
  const Int n = dbias.size(), rows = dy.size() / n;
  in_precision_of(dy, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> grads(dy, scratch_);
    const Out<Acc> out(dbias, scratch_, true);
    parallel(n, kGrain / std::max<Int>(rows, 1), [&](Int begin, Int end, Int) {
      RowMap<Acc> sum(out.data() + begin, end - begin);
      for (Int t = 0; t < rows; ++t) sum += ConstRowMap<Acc>(grads.row(t, n) + begin, end - begin);
    });
  });
}

void CpuKernels::activation(Act act, bool gated, const Tensor& h, const Tensor& counts, const Tensor& a) {
  const Int f = a.dims[1], width = gated ? 2 * f : f, rows = valid_rows(a.dims[0], counts);
  in_precision_of(a, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> in(h, scratch_);
    const Out<Acc> out(a, scratch_);
    parallel(rows, kGrain / width, [&](Int begin, Int end, Int) {
      for (Int t = begin; t < end; ++t) {
        RowMap<Acc> to(out.row(t, f), f);
        to = activate<Acc>(act, ConstRowMap<Acc>(in.row(t, width), f));
        if (gated) to *= ConstRowMap<Acc>(in.row(t, width) + f, f);
      }
    });
  });
}

void CpuKernels::activation_grad(Act act, bool gated, const Tensor& da, const Tensor& h, const Tensor& counts,
                                 const Tensor& dh) {
  const Int f = da.dims[1], width = gated ? 2 * f : f, rows = valid_rows(da.dims[0], counts);
  in_precision_of(dh, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> grads(da, scratch_), in(h, scratch_);
    const Out<Acc> out(dh, scratch_);
    parallel(rows, kGrain / width, [&](Int begin, Int end, Int) {
      for (Int t = begin; t < end; ++t) {
        const ConstRowMap<Acc> grad(grads.row(t, f), f), gate(in.row(t, width), f);
        RowMap<Acc> to(out.row(t, width), f);
        to = grad * activate_slope<Acc>(act, gate);
        if (!gated) continue;
        to *= ConstRowMap<Acc>(in.row(t, width) + f, f);
        RowMap<Acc>(out.row(t, width) + f, f) = grad * activate<Acc>(act, gate);
      }
    });
  });
}

void CpuKernels::add(const Tensor& a, const Tensor& b, const Tensor& c) {
  in_precision_of(c, [&](auto zero) {
    using Acc = decltype(zero);
    const Scratch::Scope scope(scratch_);
    const In<Acc> left(a, scratch_), right(b, scratch_);
    const Out<Acc> out(c, scratch_);
    parallel(c.size(), kGrain, [&](Int begin, Int end, Int) {
      RowMap<Acc>(out.data() + begin, end - begin) =
          ConstRowMap<Acc>(left.data() + begin, end - begin) + ConstRowMap<Acc>(right.data() + begin, end - begin);
    });
  });
}

}  // namespace trainyard::kernels::cpu
