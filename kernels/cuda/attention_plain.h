// Attention with every option of kernels.h, in f32 or f64, without tensor cores: for what cuDNN cannot do, and to check
// what it does.
#pragma once

#include "kernels/cuda/scratch.h"
#include "kernels/kernels.h"

namespace trainyard::kernels::cuda {

/// As Kernels::attention, for heads of up to 256 and, with ALiBi, up to 256 query heads.
void plain_attention(cudaStream_t stream, Scratch& scratch, const AttentionShape& shape, const Tensor& q,
                     const Tensor& k, const Tensor& v, const Tensor& o, const Tensor& lse);

/// As Kernels::attention_grad. Takes T * hq numbers of scratch.
void plain_attention_grad(cudaStream_t stream, Scratch& scratch, const AttentionShape& shape, const Tensor& dout,
                          const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o, const Tensor& lse,
                          const Tensor& dq, const Tensor& dk, const Tensor& dv);

}  // namespace trainyard::kernels::cuda
