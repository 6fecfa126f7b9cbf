// Matrix products through cuBLASLt.
//
// Our matrices are row-major and cuBLASLt's column-major, which is the transpose: C^T[n,m] = op(B)^T op(A)^T is
// computed, with B as the first factor. Its bias is one for each row of C^T: ours, for each column of C.
//
// The first algorithm that the heuristics name and that sums in one order is taken, for good: what is fastest by the
// clock can change from run to run, and with it the bits.

#include <algorithm>
#include <array>
#include <bit>
#include <compare>
#include <map>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/matmul_cache.h"

namespace trainyard::kernels::cuda {

namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{64} << 20;  // twice what NVIDIA advises for Hopper
constexpr int kCandidates = 16;
constexpr std::uint32_t kMostAlignment = 16;  // no kernel asks for more

cudaDataType_t type_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::Bf16: return CUDA_R_16BF;
    case Dtype::F32: return CUDA_R_32F;
    case Dtype::F64: return CUDA_R_64F;
    case Dtype::I32: break;
  }
  throw std::runtime_error("cuBLASLt: a matrix of indices");
}

std::uint32_t alignment_of(const Tensor& x) {
  if (x.empty()) return kMostAlignment;
  const auto address = reinterpret_cast<std::uintptr_t>(x.data);
  return address % kMostAlignment == 0 ? kMostAlignment : std::uint32_t{1} << std::countr_zero(address);
}

// What tells one plan from another.
struct Shape {
  std::int64_t m = 0, n = 0, k = 0;
  bool trans_a = false, trans_b = false, accumulate = false, bias = false;
  Dtype in = Dtype::F32, out = Dtype::F32;
  std::array<std::uint32_t, 3> alignment{};  // of A, B, and C and the bias, for which there is no preference
  auto operator<=>(const Shape&) const = default;
};

class Layout {
 public:
  Layout(Dtype dtype, std::int64_t rows, std::int64_t columns) {
    check(cublasLtMatrixLayoutCreate(&layout_, type_of(dtype), static_cast<std::uint64_t>(rows),
                                     static_cast<std::uint64_t>(columns), rows),
          "describing a matrix");
  }
  ~Layout() { cublasLtMatrixLayoutDestroy(layout_); }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
  [[nodiscard]] cublasLtMatrixLayout_t get() const { return layout_; }

 private:
  cublasLtMatrixLayout_t layout_ = nullptr;
};

class Preference {
 public:
  Preference() { check(cublasLtMatmulPreferenceCreate(&preference_), "creating preferences"); }
  ~Preference() { cublasLtMatmulPreferenceDestroy(preference_); }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;
  template <class T>
  void set(cublasLtMatmulPreferenceAttributes_t name, T value) {
    check(cublasLtMatmulPreferenceSetAttribute(preference_, name, &value, sizeof value), "setting a preference");
  }
  [[nodiscard]] cublasLtMatmulPreference_t get() const { return preference_; }

 private:
  cublasLtMatmulPreference_t preference_ = nullptr;
};

// Parts of a sum over k may be added up in memory only in the type that they were computed in, and in order.
bool sums_in_order(const cublasLtMatmulAlgo_t& algorithm) {
  std::uint32_t scheme = 0;
  std::size_t written = 0;
  if (cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme, sizeof scheme,
                                           &written) != CUBLAS_STATUS_SUCCESS)
    return true;  // it has no such schemes
  return (scheme & CUBLASLT_REDUCTION_SCHEME_INPLACE) == 0;
}

}  // namespace

// How one shape is computed.
class MatmulCache::Plan {
 public:
  /// `algorithm`: of a shape much like it, taken where it can do this one too.
  Plan(cublasLtHandle_t handle, const Shape& shape, const Tensor& bias, const cublasLtMatmulAlgo_t* algorithm = nullptr)
      : shape_(shape),
        bias_(bias.data),
        b_(shape.in, shape.trans_b ? shape.k : shape.n, shape.trans_b ? shape.n : shape.k),
        a_(shape.in, shape.trans_a ? shape.m : shape.k, shape.trans_a ? shape.k : shape.m),
        c_(shape.out, shape.n, shape.m) {
    // Exact types first; what is less than pedantic is not less exact, but the library's choice may grow.
    const bool f64 = shape.in == Dtype::F64, bf16 = shape.in == Dtype::Bf16;
    const cublasComputeType_t pedantic = f64    ? CUBLAS_COMPUTE_64F_PEDANTIC
                                         : bf16 ? CUBLAS_COMPUTE_32F
                                                : CUBLAS_COMPUTE_32F_PEDANTIC;
    const cublasComputeType_t plain = f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
    if (algorithm != nullptr && adopt(handle, pedantic, *algorithm)) return;
    if (shape.bias && choose(handle, pedantic, true)) return;
    bias_follows_ = shape.bias;
    if (choose(handle, pedantic, false) || choose(handle, plain, false)) return;
    throw std::runtime_error("cuBLASLt: no algorithm for a product of " + std::to_string(shape.m) + " x " +
                             std::to_string(shape.n) + " x " + std::to_string(shape.k));
  }
  ~Plan() {
    if (kind_ != nullptr) cublasLtMatmulDescDestroy(kind_);
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  [[nodiscard]] const cublasLtMatmulAlgo_t& algorithm() const { return algorithm_; }
  /// Whether the bias is still to be added after run().
  [[nodiscard]] bool bias_follows() const { return bias_follows_; }

  void run(cublasLtHandle_t handle, cudaStream_t stream, std::byte* workspace, double alpha, const Tensor& a,
           const Tensor& b, const Tensor& bias, const Tensor& c) {
    if (shape_.bias && !bias_follows_) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.data);
    const auto alpha32 = static_cast<float>(alpha), beta32 = shape_.accumulate ? 1.0F : 0.0F;
    const double beta64 = beta32;
    const bool f64 = shape_.in == Dtype::F64;
    check(cublasLtMatmul(handle, kind_, f64 ? static_cast<const void*>(&alpha) : &alpha32, b.data, b_.get(), a.data,
                         a_.get(), f64 ? static_cast<const void*>(&beta64) : &beta32, c.data, c_.get(), c.data,
                         c_.get(), &algorithm_, workspace, kWorkspaceBytes, stream),
          "multiplying");
  }

 private:
  bool choose(cublasLtHandle_t handle, cublasComputeType_t compute, bool with_bias) {
    describe(compute, with_bias);
    Preference preference;
    preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{kWorkspaceBytes});
    preference.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, shape_.alignment[1]);  // the first factor is B
    preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, shape_.alignment[0]);
    preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, shape_.alignment[2]);
    preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, shape_.alignment[2]);
    std::array<cublasLtMatmulHeuristicResult_t, kCandidates> results{};
    int found = 0;
    if (cublasLtMatmulAlgoGetHeuristic(handle, kind_, b_.get(), a_.get(), c_.get(), c_.get(), preference.get(),
                                       kCandidates, results.data(), &found) != CUBLAS_STATUS_SUCCESS)
      return false;
    for (int i = 0; i < found; ++i) {
      const cublasLtMatmulHeuristicResult_t& result = results[static_cast<std::size_t>(i)];
      if (result.state != CUBLAS_STATUS_SUCCESS || !sums_in_order(result.algo)) continue;
      algorithm_ = result.algo;
      return true;
    }
    return false;
  }

  bool adopt(cublasLtHandle_t handle, cublasComputeType_t compute, const cublasLtMatmulAlgo_t& algorithm) {
    describe(compute, false);
    cublasLtMatmulHeuristicResult_t result{};
    if (cublasLtMatmulAlgoCheck(handle, kind_, b_.get(), a_.get(), c_.get(), c_.get(), &algorithm, &result) !=
            CUBLAS_STATUS_SUCCESS ||
        result.workspaceSize > kWorkspaceBytes)
      return false;
    algorithm_ = algorithm;
    return true;
  }

  void describe(cublasComputeType_t compute, bool with_bias) {
    if (kind_ != nullptr) cublasLtMatmulDescDestroy(kind_);
    kind_ = nullptr;
    check(cublasLtMatmulDescCreate(&kind_, compute, shape_.in == Dtype::F64 ? CUDA_R_64F : CUDA_R_32F),
          "describing a product");
    set(CUBLASLT_MATMUL_DESC_TRANSA, shape_.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, shape_.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (!with_bias) return;
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, static_cast<std::int32_t>(type_of(shape_.out)));
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias_);
  }

  template <class T>
  void set(cublasLtMatmulDescAttributes_t name, T value) {
    check(cublasLtMatmulDescSetAttribute(kind_, name, &value, sizeof value), "describing a product");
  }

  const Shape shape_;
  void* const bias_;  // of the first call: there must be one when an algorithm is chosen
  const Layout b_, a_, c_;
  cublasLtMatmulDesc_t kind_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_{};
  bool bias_follows_ = false;
};

struct MatmulCache::Plans {
  std::map<Shape, std::unique_ptr<Plan>> by_shape;
  std::map<Shape, cublasLtMatmulAlgo_t> by_coarse_shape;
};

MatmulCache::MatmulCache() : plans_(std::make_unique<Plans>()) {
  check(cublasLtCreate(&handle_), "starting");
  void* workspace = nullptr;
  check(cudaMalloc(&workspace, kWorkspaceBytes), "allocating cuBLASLt's workspace");
  workspace_ = static_cast<std::byte*>(workspace);
}

MatmulCache::~MatmulCache() {
  plans_.reset();
  cudaFree(workspace_);
  cublasLtDestroy(handle_);
}

bool MatmulCache::run(cudaStream_t stream, const Gemm& gemm, const Tensor& a, const Tensor& b, const Tensor& bias,
                      const Tensor& c) {
  const bool fused_bias = !bias.empty() && bias.dtype == c.dtype;
  const Shape shape{gemm.m,       gemm.n,
                    gemm.k,       gemm.trans_a,
                    gemm.trans_b, gemm.accumulate,
                    fused_bias,   a.dtype,
                    c.dtype,      {alignment_of(a), alignment_of(b), std::min(alignment_of(c), alignment_of(bias))}};
  std::unique_ptr<Plan>& plan = plans_->by_shape[shape];
  if (plan == nullptr) plan = std::make_unique<Plan>(handle_, shape, bias);
  plan->run(handle_, stream, workspace_, gemm.alpha, a, b, bias, c);
  return bias.empty() || (fused_bias && !plan->bias_follows());
}

void MatmulCache::run_once(cudaStream_t stream, const Gemm& gemm, const Tensor& a, const Tensor& b, const Tensor& c) {
  constexpr std::int64_t kCoarse = 256;
  const Shape shape{
      gemm.m,          gemm.n, gemm.k,  gemm.trans_a, gemm.trans_b,
      gemm.accumulate, false,  a.dtype, c.dtype,      {alignment_of(a), alignment_of(b), alignment_of(c)}};
  Shape coarse = shape;
  coarse.m = (shape.m + kCoarse - 1) / kCoarse;
  coarse.k = (shape.k + kCoarse - 1) / kCoarse;
  const auto known = plans_->by_coarse_shape.find(coarse);
  Plan plan(handle_, shape, {}, known == plans_->by_coarse_shape.end() ? nullptr : &known->second);
  if (known == plans_->by_coarse_shape.end()) plans_->by_coarse_shape.emplace(coarse, plan.algorithm());
  plan.run(handle_, stream, workspace_, gemm.alpha, a, b, {}, c);
}

// Operands of both types, as where a router's logits have their gradients: all of them in f32, in scratch memory.
void CudaKernels::matmul(const Gemm& gemm, const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& c) {
  if (gemm.m == 0 || gemm.n == 0) return;
  if (a.dtype == b.dtype && (c.dtype == a.dtype || (a.dtype == Dtype::Bf16 && c.dtype == Dtype::F32))) {
    if (!matmul_->run(stream_, gemm, a, b, bias, c)) bias_add(c, bias, c);
    return;
  }
  std::array<Tensor, 3> wide{a, b, c};
  std::int64_t bytes = 0;
  for (const Tensor& x : wide) bytes += x.dtype == Dtype::F32 ? 0 : (x.size() * 4 + 255) / 256 * 256;
  std::byte* memory = scratch_.take(bytes);
  for (Tensor& x : wide) {
    if (x.dtype == Dtype::F32) continue;
    x.dtype = Dtype::F32;
    x.data = memory;
    memory += (x.size() * 4 + 255) / 256 * 256;
  }
  const auto& [wide_a, wide_b, wide_c] = wide;
  if (a.dtype != Dtype::F32) copy(a, wide_a);
  if (b.dtype != Dtype::F32) copy(b, wide_b);
  if (c.dtype != Dtype::F32 && gemm.accumulate) copy(c, wide_c);
  matmul_->run(stream_, gemm, wide_a, wide_b, {}, wide_c);
  if (c.dtype != Dtype::F32) copy(wide_c, c);
  if (!bias.empty()) bias_add(c, bias, c);
}

}  // namespace trainyard::kernels::cuda
