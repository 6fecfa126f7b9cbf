// cuDNN's C backend, as a graph of operations that is built once and run often. A graph is described by its builder
// (attention_graph.h, grouped_graph.h), asks the library's heuristics for an engine, and is compiled for one GPU.
//
// Nothing up to the compilation needs a GPU: engines can be asked for with the properties of one that is elsewhere, so
// that a machine without can test that graphs are of a form that the library knows.
#pragma once

#include <cudnn.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace trainyard::kernels::cuda {

/// Destroyed with its owner.
class CudnnDescriptor {
 public:
  explicit CudnnDescriptor(cudnnBackendDescriptorType_t type);
  ~CudnnDescriptor();
  CudnnDescriptor(CudnnDescriptor&& other) noexcept : descriptor_(std::exchange(other.descriptor_, nullptr)) {}
  CudnnDescriptor& operator=(CudnnDescriptor&&) = delete;

  [[nodiscard]] cudnnBackendDescriptor_t get() const { return descriptor_; }
  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::int64_t count, const void* values);
  void set(cudnnBackendAttributeName_t name, cudnnBackendDescriptor_t value);
  void set(cudnnBackendAttributeName_t name, std::int64_t value);
  void set(cudnnBackendAttributeName_t name, bool value);
  void set(cudnnBackendAttributeName_t name, cudnnDataType_t value);
  void finalize(const char* what);

 private:
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

/// What graphs are compiled for: the GPU of a handle, or one of which only the properties are known.
class CudnnTarget {
 public:
  explicit CudnnTarget(cudnnHandle_t handle) : handle_(handle) {}
  /// JSON as cuDNN writes it for a device.
  explicit CudnnTarget(const std::string& device_properties);

  /// Each sets the target where the descriptor's kind wants it. A graph of operations needs none without a handle.
  void set_on_operations(CudnnDescriptor& graph) const;
  void set_on_heuristics(CudnnDescriptor& heuristics) const;
  void set_on_plan(CudnnDescriptor& plan) const;

 private:
  cudnnHandle_t handle_ = nullptr;
  std::unique_ptr<CudnnDescriptor> properties_;
};

class CudnnGraph {
 public:
  using Sizes = std::vector<std::int64_t>;

  struct Value {
    cudnnBackendDescriptor_t descriptor = nullptr;
    Sizes dims;
  };
  /// What an operand's number stands for in one run.
  struct Binding {
    std::int64_t operand = 0;
    void* data = nullptr;
  };

  CudnnGraph() = default;
  CudnnGraph(const CudnnGraph&) = delete;
  CudnnGraph& operator=(const CudnnGraph&) = delete;

  // --- values

  /// Memory of the caller's, aligned to 16 bytes; `operand` is a small positive number of the builder's choice.
  Value operand(std::int64_t operand, cudnnDataType_t type, const Sizes& dims, const Sizes& strides);
  /// A value between operations, which need not be in memory; packed unless strides are given.
  Value inner(const Sizes& dims, cudnnDataType_t type = CUDNN_DATA_FLOAT);
  Value inner(const Sizes& dims, const Sizes& strides, cudnnDataType_t type);
  Value constant(float value);

  // --- operations, computed in f32 unless `compute` says otherwise; each returns its result

  Value matmul(const Value& a, const Value& b, const Value& c);
  Value pointwise(cudnnPointwiseMode_t mode, const Value& x, const Value& y, cudnnDataType_t compute = CUDNN_DATA_FLOAT,
                  std::int64_t axis = -1);
  Value pointwise(cudnnPointwiseMode_t mode, const Value& x, const Value& b, const Value& y,
                  cudnnDataType_t compute = CUDNN_DATA_FLOAT, std::int64_t axis = -1);
  /// dx of dy, for an activation of x.
  Value pointwise_grad(cudnnPointwiseMode_t mode, const Value& dy, const Value& x, const Value& dx);
  /// x where the condition holds, else `otherwise`.
  Value select(const Value& condition, const Value& x, const Value& otherwise, const Value& y);
  /// Over the dimensions that are shorter in y.
  Value reduce(cudnnReduceTensorOp_t op, const Value& x, const Value& y);
  Value reshape(const Value& x, const Value& y);
  /// rows[1,R,k] by weights[E,k,n] to y[1,R,n]: those from first_row[e] up to first_row[e + 1] by weights e, and from
  /// the last expert's first row to the end by its.
  Value grouped_matmul(const Value& rows, const Value& weights, const Value& first_row, const Value& y);

  // --- once all operations are there

  /// How many engines there are that say that they can run it. Needs no GPU, but a libcuda, of which the toolkit's stub
  /// is one: engines do not answer without. `without_checks`: those that the heuristics name, unasked.
  int engines(const CudnnTarget& target, bool without_checks = false);
  /// Compiles it for the target by the first engine that can. False: none can.
  bool compile(const CudnnTarget& target);
  [[nodiscard]] std::int64_t workspace_bytes() const { return workspace_bytes_; }
  /// Queues a run on the handle's stream.
  void run(cudnnHandle_t handle, const std::vector<Binding>& bindings, void* workspace) const;

 private:
  CudnnDescriptor& add(cudnnBackendDescriptorType_t type);
  CudnnDescriptor& add_operation(cudnnBackendDescriptorType_t type);
  CudnnDescriptor& tensor(std::int64_t id, cudnnDataType_t type, const Sizes& dims, const Sizes& strides);
  CudnnDescriptor& pointwise_kind(cudnnPointwiseMode_t mode, cudnnDataType_t compute, std::int64_t axis);
  cudnnBackendDescriptor_t operations(const CudnnTarget& target);
  std::vector<CudnnDescriptor> configs(const CudnnTarget& target, cudnnBackendHeurMode_t mode, int* named);

  std::vector<std::unique_ptr<CudnnDescriptor>> descriptors_;
  std::vector<cudnnBackendDescriptor_t> operations_;
  cudnnBackendDescriptor_t operation_graph_ = nullptr;
  std::vector<std::pair<std::int64_t, std::unique_ptr<float>>> constants_;  // by tensor id; cuDNN keeps addresses
  std::int64_t next_id_ = 1000;
  std::unique_ptr<CudnnDescriptor> plan_;
  std::int64_t workspace_bytes_ = 0;
};

}  // namespace trainyard::kernels::cuda
