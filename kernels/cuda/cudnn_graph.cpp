#include "kernels/cuda/cudnn_graph.h"

#include "kernels/cuda/error.h"

namespace trainyard::kernels::cuda {

namespace {

CudnnGraph::Sizes packed(const CudnnGraph::Sizes& dims) {
  CudnnGraph::Sizes strides(dims.size(), 1);
  for (std::size_t i = dims.size() - 1; i-- > 0;) strides[i] = strides[i + 1] * dims[i + 1];
  return strides;
}

// Engines say so only where they know; the builders choose forms that have one order of sums.
bool says_nondeterministic(cudnnBackendDescriptor_t config) {
  CudnnDescriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  cudnnBackendDescriptor_t raw = engine.get();
  std::int64_t count = 0;
  if (cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &raw) !=
      CUDNN_STATUS_SUCCESS)
    return false;
  std::vector<cudnnBackendNumericalNote_t> notes(CUDNN_NUMERICAL_NOTE_TYPE_COUNT);
  if (cudnnBackendGetAttribute(engine.get(), CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                               CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &count, notes.data()) != CUDNN_STATUS_SUCCESS)
    return false;
  for (std::int64_t i = 0; i < count; ++i)
    if (notes[static_cast<std::size_t>(i)] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) return true;
  return false;
}

constexpr cudnnBackendHeurMode_t kModes[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK};

}  // namespace

// --- descriptors

CudnnDescriptor::CudnnDescriptor(cudnnBackendDescriptorType_t type) {
  check(cudnnBackendCreateDescriptor(type, &descriptor_), "creating a descriptor");
}

CudnnDescriptor::~CudnnDescriptor() {
  if (descriptor_ != nullptr) cudnnBackendDestroyDescriptor(descriptor_);
}

void CudnnDescriptor::set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::int64_t count,
                          const void* values) {
  check(cudnnBackendSetAttribute(descriptor_, name, type, count, values), "setting an attribute");
}

void CudnnDescriptor::set(cudnnBackendAttributeName_t name, cudnnBackendDescriptor_t value) {
  set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

void CudnnDescriptor::set(cudnnBackendAttributeName_t name, std::int64_t value) {
  set(name, CUDNN_TYPE_INT64, 1, &value);
}

void CudnnDescriptor::set(cudnnBackendAttributeName_t name, bool value) { set(name, CUDNN_TYPE_BOOLEAN, 1, &value); }

void CudnnDescriptor::set(cudnnBackendAttributeName_t name, cudnnDataType_t value) {
  set(name, CUDNN_TYPE_DATA_TYPE, 1, &value);
}

void CudnnDescriptor::finalize(const char* what) { check(cudnnBackendFinalize(descriptor_), what); }

// --- targets

CudnnTarget::CudnnTarget(const std::string& device_properties)
    : properties_(std::make_unique<CudnnDescriptor>(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR)) {
  properties_->set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                   static_cast<std::int64_t>(device_properties.size()), device_properties.data());
  properties_->finalize("reading a device's properties");
}

void CudnnTarget::set_on_operations(CudnnDescriptor& graph) const {
  if (handle_ != nullptr) graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle_);
}

void CudnnTarget::set_on_heuristics(CudnnDescriptor& heuristics) const {
  if (properties_ != nullptr) heuristics.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, properties_->get());
}

void CudnnTarget::set_on_plan(CudnnDescriptor& plan) const {
  if (properties_ != nullptr) {
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, properties_->get());
  } else {
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle_);
  }
}

// --- values

CudnnDescriptor& CudnnGraph::add(cudnnBackendDescriptorType_t type) {
  return *descriptors_.emplace_back(std::make_unique<CudnnDescriptor>(type));
}

CudnnDescriptor& CudnnGraph::tensor(std::int64_t id, cudnnDataType_t type, const Sizes& dims, const Sizes& strides) {
  CudnnDescriptor& t = add(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  const auto rank = static_cast<std::int64_t>(dims.size());
  t.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, id);
  t.set(CUDNN_ATTR_TENSOR_DATA_TYPE, type);
  t.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, std::int64_t{16});
  t.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, rank, dims.data());
  t.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, rank, strides.data());
  return t;
}

CudnnGraph::Value CudnnGraph::operand(std::int64_t operand, cudnnDataType_t type, const Sizes& dims,
                                      const Sizes& strides) {
  CudnnDescriptor& t = tensor(operand, type, dims, strides);
  t.finalize("describing an operand");
  return {t.get(), dims};
}

CudnnGraph::Value CudnnGraph::inner(const Sizes& dims, cudnnDataType_t type) { return inner(dims, packed(dims), type); }

CudnnGraph::Value CudnnGraph::inner(const Sizes& dims, const Sizes& strides, cudnnDataType_t type) {
  CudnnDescriptor& t = tensor(next_id_++, type, dims, strides);
  t.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, true);
  t.finalize("describing a value");
  return {t.get(), dims};
}

CudnnGraph::Value CudnnGraph::constant(float value) {
  constants_.emplace_back(next_id_, std::make_unique<float>(value));
  CudnnDescriptor& t = tensor(next_id_++, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1});
  t.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, true);
  t.finalize("describing a constant");
  return {t.get(), {1, 1, 1, 1}};
}

// --- operations

CudnnDescriptor& CudnnGraph::add_operation(cudnnBackendDescriptorType_t type) {
  CudnnDescriptor& operation = add(type);
  operations_.push_back(operation.get());
  return operation;
}

CudnnGraph::Value CudnnGraph::matmul(const Value& a, const Value& b, const Value& c) {
  CudnnDescriptor& kind = add(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  kind.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT);
  kind.finalize("describing a matrix product");
  CudnnDescriptor& o = add_operation(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  o.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, kind.get());
  o.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, a.descriptor);
  o.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, b.descriptor);
  o.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, c.descriptor);
  o.finalize("adding a matrix product");
  return c;
}

CudnnDescriptor& CudnnGraph::pointwise_kind(cudnnPointwiseMode_t mode, cudnnDataType_t compute, std::int64_t axis) {
  CudnnDescriptor& kind = add(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  kind.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
  kind.set(CUDNN_ATTR_POINTWISE_MATH_PREC, compute);
  if (axis >= 0) kind.set(CUDNN_ATTR_POINTWISE_AXIS, axis);
  kind.finalize("describing a pointwise operation");
  return kind;
}

CudnnGraph::Value CudnnGraph::pointwise(cudnnPointwiseMode_t mode, const Value& x, const Value& y,
                                        cudnnDataType_t compute, std::int64_t axis) {
  return pointwise(mode, x, {}, y, compute, axis);
}

CudnnGraph::Value CudnnGraph::pointwise(cudnnPointwiseMode_t mode, const Value& x, const Value& b, const Value& y,
                                        cudnnDataType_t compute, std::int64_t axis) {
  CudnnDescriptor& kind = pointwise_kind(mode, compute, axis);
  CudnnDescriptor& o = add_operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  o.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, kind.get());
  o.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x.descriptor);
  if (b.descriptor != nullptr) o.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b.descriptor);
  o.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y.descriptor);
  o.finalize("adding a pointwise operation");
  return y;
}

CudnnGraph::Value CudnnGraph::pointwise_grad(cudnnPointwiseMode_t mode, const Value& dy, const Value& x,
                                             const Value& dx) {
  CudnnDescriptor& kind = pointwise_kind(mode, CUDNN_DATA_FLOAT, -1);
  CudnnDescriptor& o = add_operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  o.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, kind.get());
  o.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x.descriptor);
  o.set(CUDNN_ATTR_OPERATION_POINTWISE_DYDESC, dy.descriptor);
  o.set(CUDNN_ATTR_OPERATION_POINTWISE_DXDESC, dx.descriptor);
  o.finalize("adding a pointwise gradient");
  return dx;
}

CudnnGraph::Value CudnnGraph::select(const Value& condition, const Value& x, const Value& otherwise, const Value& y) {
  CudnnDescriptor& kind = pointwise_kind(CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, -1);
  CudnnDescriptor& o = add_operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  o.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, kind.get());
  o.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x.descriptor);
  o.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, otherwise.descriptor);
  o.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, condition.descriptor);
  o.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y.descriptor);
  o.finalize("adding a selection");
  return y;
}

CudnnGraph::Value CudnnGraph::reduce(cudnnReduceTensorOp_t op, const Value& x, const Value& y) {
  CudnnDescriptor& kind = add(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  kind.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
  kind.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &op);
  kind.finalize("describing a reduction");
  CudnnDescriptor& o = add_operation(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  o.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, kind.get());
  o.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x.descriptor);
  o.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y.descriptor);
  o.finalize("adding a reduction");
  return y;
}

CudnnGraph::Value CudnnGraph::reshape(const Value& x, const Value& y) {
  CudnnDescriptor& o = add_operation(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  o.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x.descriptor);
  o.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y.descriptor);
  o.finalize("adding a reshape");
  return y;
}

CudnnGraph::Value CudnnGraph::grouped_matmul(const Value& rows, const Value& weights, const Value& first_row,
                                             const Value& y) {
  CudnnDescriptor& o = add_operation(CUDNN_BACKEND_OPERATION_MOE_GROUPED_MATMUL_DESCRIPTOR);
  const cudnnMoeGroupedMatmulMode_t mode = CUDNN_MOE_GROUPED_MATMUL_MODE_NONE;
  o.set(CUDNN_ATTR_OPERATION_MOE_GROUPED_MATMUL_MODE, CUDNN_TYPE_MOE_GROUPED_MATMUL_MODE, 1, &mode);
  o.set(CUDNN_ATTR_OPERATION_MOE_GROUPED_MATMUL_MATH_PREC, CUDNN_DATA_FLOAT);
  o.set(CUDNN_ATTR_OPERATION_MOE_GROUPED_MATMUL_TOKEN_DESC, rows.descriptor);
  o.set(CUDNN_ATTR_OPERATION_MOE_GROUPED_MATMUL_WEIGHT_DESC, weights.descriptor);
  o.set(CUDNN_ATTR_OPERATION_MOE_GROUPED_MATMUL_FIRST_TOKEN_OFFSET_DESC, first_row.descriptor);
  o.set(CUDNN_ATTR_OPERATION_MOE_GROUPED_MATMUL_OUTPUT_DESC, y.descriptor);
  o.finalize("adding a grouped matrix product");
  return y;
}

// --- engines and plans

cudnnBackendDescriptor_t CudnnGraph::operations(const CudnnTarget& target) {
  if (operation_graph_ != nullptr) return operation_graph_;
  CudnnDescriptor& graph = add(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  target.set_on_operations(graph);
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<std::int64_t>(operations_.size()),
            operations_.data());
  graph.finalize("a graph of operations");
  return operation_graph_ = graph.get();
}

// Configurations of engines that can run the graph, best first; `named`: how many the heuristics had thought of.
std::vector<CudnnDescriptor> CudnnGraph::configs(const CudnnTarget& target, cudnnBackendHeurMode_t mode, int* named) {
  std::vector<CudnnDescriptor> found;
  *named = 0;
  CudnnDescriptor& heuristics = add(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, operations(target));
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
  target.set_on_heuristics(heuristics);
  if (cudnnBackendFinalize(heuristics.get()) != CUDNN_STATUS_SUCCESS) return found;
  std::int64_t count = 0;
  check(cudnnBackendGetAttribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0,
                                 &count, nullptr),
        "counting engines");
  *named = static_cast<int>(count);
  std::vector<cudnnBackendDescriptor_t> raw;
  for (std::int64_t i = 0; i < count; ++i) raw.push_back(found.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR).get());
  if (count == 0) return found;
  check(cudnnBackendGetAttribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, count,
                                 &count, raw.data()),
        "asking for engines");
  while (found.size() > static_cast<std::size_t>(count)) found.pop_back();
  return found;
}

int CudnnGraph::engines(const CudnnTarget& target, bool without_checks) {
  int total = 0;
  for (const cudnnBackendHeurMode_t mode : kModes) {
    int named = 0;
    const auto able = static_cast<int>(configs(target, mode, &named).size());
    total += without_checks ? named : able;
  }
  return total;
}

bool CudnnGraph::compile(const CudnnTarget& target) {
  for (const cudnnBackendHeurMode_t mode : kModes) {
    int named = 0;
    for (CudnnDescriptor& config : configs(target, mode, &named)) {
      if (says_nondeterministic(config.get())) continue;
      auto plan = std::make_unique<CudnnDescriptor>(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
      plan->set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config.get());
      target.set_on_plan(*plan);
      if (cudnnBackendFinalize(plan->get()) != CUDNN_STATUS_SUCCESS) continue;
      std::int64_t count = 0;
      check(cudnnBackendGetAttribute(plan->get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count,
                                     &workspace_bytes_),
            "asking for the size of a workspace");
      descriptors_.push_back(std::make_unique<CudnnDescriptor>(std::move(config)));
      plan_ = std::move(plan);
      return true;
    }
  }
  return false;
}

void CudnnGraph::run(cudnnHandle_t handle, const std::vector<Binding>& bindings, void* workspace) const {
  std::vector<std::int64_t> ids;
  std::vector<void*> data;
  for (const Binding& binding : bindings) {
    ids.push_back(binding.operand);
    data.push_back(binding.data);
  }
  for (const auto& [id, value] : constants_) {
    ids.push_back(id);
    data.push_back(value.get());
  }
  const auto count = static_cast<std::int64_t>(ids.size());
  CudnnDescriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, ids.data());
  pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, data.data());
  pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
  pack.finalize("binding operands");
  check(cudnnBackendExecute(handle, plan_->get(), pack.get()), "running a graph");
}

}  // namespace trainyard::kernels::cuda
