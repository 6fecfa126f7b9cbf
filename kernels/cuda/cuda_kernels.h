// The kernels of kernels.h on one stream of an NVIDIA GPU: cuBLASLt multiplies, cuDNN attends and multiplies by expert,
// and the rest is written here. A file for each group of them, as in kernels/cpu.
//
// Determinism: the same bits for the same operands on the same GPU model and library versions. No kernel adds with
// atomics in an order that may change; cuDNN's deterministic backward is asked for.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cuda/scratch.h"
#include "kernels/kernels.h"

namespace trainyard::kernels::cuda {

class MatmulCache;     // matmul.cpp
class AttentionCache;  // attention.cpp
class GroupedCache;    // grouped_matmul.cpp

class CudaKernels final : public Kernels {
 public:
  explicit CudaKernels(cudaStream_t stream);
  ~CudaKernels() override;

  // --- embedding and positions
  void embedding(const Tensor& tokens, const Tensor& table, double scale, std::int64_t first_row,
                 const Tensor& y) override;
  void embedding_grad(const Tensor& tokens, const Tensor& dy, double scale, std::int64_t first_row,
                      const Tensor& dtable) override;
  void position_add(const Tensor& x, const Tensor& positions, const Tensor& table, const Tensor& y) override;
  void position_grad(const Tensor& positions, const Tensor& dy, const Tensor& dtable) override;

  // --- dense math
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
  void dropout(const DropoutSeed& seed, const Tensor& x, const Tensor& samples, const Tensor& positions,
               const Tensor& y) override;

  // --- attention
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

  // --- mixture of experts
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

  // --- loss
  void xent_max(const Xent& xent, const Tensor& logits, const Tensor& max) override;
  void xent_sum(const Xent& xent, const Tensor& logits, const Tensor& max, const Tensor& labels,
                const Tensor& stats) override;
  void xent_loss(const Xent& xent, const Tensor& max, const Tensor& stats, const Tensor& loss) override;
  void xent_grad(const Xent& xent, const Tensor& logits, const Tensor& max, const Tensor& stats, const Tensor& labels,
                 const Tensor& dlogits) override;

  // --- optimizer and housekeeping
  void zero(const Tensor& x) override;
  void copy(const Tensor& x, const Tensor& y) override;
  void accumulate(const Tensor& x, const Tensor& y) override;
  void squared_norm(const Tensor& grads, const std::vector<Range>& ranges, const Tensor& sum) override;
  void adamw(const Adam& adam, const Tensor& grads, const Tensor& squared_norm, const std::vector<Range>& ranges,
             const Tensor& params, const Tensor& master, const Tensor& m, const Tensor& v) override;
  std::uint64_t hash(const Tensor& x) override;

 private:
  cudaStream_t stream_;
  Scratch scratch_;
  int multiprocessors_ = 0;
  std::unique_ptr<MatmulCache> matmul_;
  std::unique_ptr<AttentionCache> attention_;
  std::unique_ptr<GroupedCache> grouped_;
};

}  // namespace trainyard::kernels::cuda
