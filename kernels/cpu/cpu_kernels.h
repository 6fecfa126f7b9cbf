// The CPU implementation, one file for each group of kernels.
#pragma once

#include <algorithm>
#include <map>
#include <vector>

#include "kernels/cpu/array.h"
#include "kernels/kernels.h"

namespace trainyard::kernels::cpu {

/// Cosines and sines of rope by position, in f64 because positions are large; computed once.
class RopeTable {
 public:
  void grow(double theta, Int dim, Int positions);
  /// Of a position: dim / 2 cosines, then as many sines.
  [[nodiscard]] const double* at(Int position) const { return angles_.data() + position * 2 * half_; }

 private:
  Int half_ = 0;
  std::vector<double> angles_;
};

/// Elements that are worth a thread of their own.
inline constexpr Int kGrain = 16384;

class CpuKernels final : public Kernels {
 public:
  explicit CpuKernels(int threads);

  // embedding.cpp
  void embedding(const Tensor& tokens, const Tensor& table, double scale, std::int64_t first_row,
                 const Tensor& y) override;
  void embedding_grad(const Tensor& tokens, const Tensor& dy, double scale, std::int64_t first_row,
                      const Tensor& dtable) override;
  void position_add(const Tensor& x, const Tensor& positions, const Tensor& table, const Tensor& y) override;
  void position_grad(const Tensor& positions, const Tensor& dy, const Tensor& dtable) override;
  void dropout(const DropoutSeed& seed, const Tensor& x, const Tensor& samples, const Tensor& positions,
               const Tensor& y) override;

  // dense.cpp
  void norm(const NormShape& shape, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y,
            const Tensor& rstd, const Tensor& mean) override;
  void norm_grad(const NormShape& shape, const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                 const Tensor& mean, const Tensor& dx, const Tensor& dweight, const Tensor& dbias) override;
  void matmul(const Gemm& gemm, const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& c) override;
  void bias_add(const Tensor& x, const Tensor& bias, const Tensor& y) override;
  void bias_grad(const Tensor& dy, const Tensor& dbias) override;
  void activation(Act act, bool gated, const Tensor& h, const Tensor& counts, const Tensor& a) override;
  void activation_grad(Act act, bool gated, const Tensor& da, const Tensor& h, const Tensor& counts,
                       const Tensor& dh) override;
  void add(const Tensor& a, const Tensor& b, const Tensor& c) override;

  // attention.cpp
  void split_qkv(const Heads& heads, double rope_theta, const Tensor& qkv, const Tensor& positions, const Tensor& q,
                 const Tensor& k, const Tensor& v) override;
  void merge_qkv_grad(const Heads& heads, double rope_theta, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                      const Tensor& positions, const Tensor& dqkv) override;
  void attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                 const Tensor& lse) override;
  void attention_merge(const Heads& heads, const std::vector<Tensor>& parts, const Tensor& o,
                       const Tensor& lse) override;
  void attention_grad(const AttentionShape& shape, const Tensor& dout, const Tensor& q, const Tensor& k,
                      const Tensor& v, const Tensor& o, const Tensor& lse, const Tensor& dq, const Tensor& dk,
                      const Tensor& dv) override;

  // experts.cpp
  void router(bool renormalize, const Tensor& logits, const Tensor& probs, const Tensor& experts,
              const Tensor& softmax) override;
  void router_grad(bool renormalize, const Tensor& dprobs, const Tensor& experts, const Tensor& softmax,
                   const Tensor& dlogits) override;
  void permute(const Tensor& x, const Tensor& experts, const Tensor& rows, const Tensor& row_map,
               const Tensor& counts) override;
  void permute_grad(const Tensor& drows, const Tensor& row_map, const Tensor& dx) override;
  void unpermute(const Tensor& rows, const Tensor& row_map, const Tensor& probs, const Tensor& y) override;
  void unpermute_grad(const Tensor& dy, const Tensor& rows, const Tensor& row_map, const Tensor& probs,
                      const Tensor& drows, const Tensor& dprobs) override;
  void sort_by_expert(const ExpertRows& shape, const Tensor& rows, const Tensor& counts, const Tensor& sorted) override;
  void grouped_matmul(const Gemm& gemm, const Tensor& a, const Tensor& w, const Tensor& counts,
                      const Tensor& c) override;
  void grouped_matmul_wgrad(const Gemm& gemm, const Tensor& dy, const Tensor& x, const Tensor& counts,
                            const Tensor& dw) override;

  // loss.cpp
  void xent_max(const Xent& xent, const Tensor& logits, const Tensor& max) override;
  void xent_sum(const Xent& xent, const Tensor& logits, const Tensor& max, const Tensor& labels,
                const Tensor& stats) override;
  void xent_loss(const Xent& xent, const Tensor& max, const Tensor& stats, const Tensor& loss) override;
  void xent_grad(const Xent& xent, const Tensor& logits, const Tensor& max, const Tensor& stats, const Tensor& labels,
                 const Tensor& dlogits) override;

  // optimizer.cpp
  void zero(const Tensor& x) override;
  void copy(const Tensor& x, const Tensor& y) override;
  void accumulate(const Tensor& x, const Tensor& y) override;
  void squared_norm(const Tensor& grads, const std::vector<Range>& ranges, const Tensor& sum) override;
  void adamw(const Adam& adam, const Tensor& grads, const Tensor& squared_norm, const std::vector<Range>& ranges,
             const Tensor& params, const Tensor& master, const Tensor& m, const Tensor& v) override;
  std::uint64_t hash(const Tensor& x) override;

 private:
  /// Calls f(begin, end, thread) for as many stretches of [0, count) as there are threads, or fewer where there is
  /// little to do: each takes `grain` at least.
  template <class F>
  void parallel(Int count, Int grain, F f) const {
    const Int parts = std::clamp<Int>(count / std::max<Int>(grain, 1), 1, threads_);
    if (parts == 1) return f(Int{0}, count, Int{0});
#pragma omp parallel for num_threads(static_cast <int>(parts)) schedule(static)
    for (Int part = 0; part < parts; ++part) f(count * part / parts, count * (part + 1) / parts, part);
  }

  /// With the angles of these positions.
  const RopeTable& rope_table(double theta, Int dim, const Tensor& positions);

  int threads_;
  std::map<std::pair<double, Int>, RopeTable> rope_tables_;  // by base and head size
  Scratch scratch_;                                          // of the calling thread, outside parallel()
  std::vector<Scratch> scratches_;                           // by thread, inside it
};

}  // namespace trainyard::kernels::cpu

namespace trainyard::kernels {

/// What a module of kernels for one instruction set exports.
using MakeKernels = Kernels* (*)(int threads);
using PeakFlops = double (*)();
inline constexpr char kMakeKernelsSymbol[] = "trainyard_make_cpu_kernels";
inline constexpr char kPeakFlopsSymbol[] = "trainyard_cpu_peak_flops";

}  // namespace trainyard::kernels

extern "C" trainyard::kernels::Kernels* trainyard_make_cpu_kernels(int threads);
extern "C" double trainyard_cpu_peak_flops();
