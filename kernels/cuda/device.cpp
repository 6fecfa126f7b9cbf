// The plug-in's door: a GPU as kernels/device.h has it.

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <cudnn.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/plugin.h"
#include "kernels/device.h"

namespace trainyard::kernels::cuda {

namespace {

std::string version(long number, long major, long minor) {
  return std::to_string(number / major) + "." + std::to_string(number % major / minor);
}

std::string runtime_versions() {
  int runtime = 0, driver = 0;
  check(cudaRuntimeGetVersion(&runtime), "asking for the runtime's version");
  check(cudaDriverGetVersion(&driver), "asking for the driver's version");
  return "CUDA " + version(runtime, 1000, 10) + " (driver for " + version(driver, 1000, 10) + "), cuBLASLt " +
         version(static_cast<long>(cublasLtGetVersion()), 10000, 100) + ", cuDNN " +
         version(static_cast<long>(cudnnGetVersion()), 10000, 100);
}

class CudaDevice final : public Device {
 public:
  CudaDevice(int ordinal, int streams) : ordinal_(ordinal) {
    int count = 0;
    check(cudaGetDeviceCount(&count), "counting GPUs");
    if (ordinal >= count) throw std::runtime_error("there are " + std::to_string(count));
    check(cudaSetDevice(ordinal), "choosing the GPU");
    // Others wait for what the first stream is not: a collective that is ready goes before the next kernel's blocks.
    int least = 0, greatest = 0;
    check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "asking for priorities");
    for (int i = 0; i < streams; ++i) {
      cudaStream_t stream = nullptr;
      check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, i == 0 ? least : greatest),
            "creating a stream");
      streams_.push_back(stream);
    }
    kernels_.resize(streams_.size());
  }
  ~CudaDevice() override {
    cudaSetDevice(ordinal_);
    cudaDeviceSynchronize();
    kernels_.clear();
    for (cudaGraphExec_t graph : graphs_) {
      if (graph != nullptr) cudaGraphExecDestroy(graph);
    }
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
    for (cudaStream_t stream : streams_) cudaStreamDestroy(stream);
  }

  DeviceInfo info() const override {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, ordinal_), "asking what the GPU is");
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "asking for free memory");
    DeviceInfo info;
    info.name = properties.name;
    info.ordinal = ordinal_;
    info.multiprocessors = properties.multiProcessorCount;
    info.compute_capability = properties.major * 10 + properties.minor;
    info.memory_bytes = static_cast<std::int64_t>(total);
    info.free_bytes = static_cast<std::int64_t>(free);
    info.runtime = runtime_versions();
    return info;
  }

  std::byte* allocate(std::int64_t bytes) override {
    void* memory = nullptr;
    check(cudaMalloc(&memory, static_cast<std::size_t>(bytes)), "allocating device memory");
    return static_cast<std::byte*>(memory);
  }
  void release(std::byte* memory) override { check(cudaFree(memory), "freeing device memory"); }
  std::byte* allocate_host(std::int64_t bytes) override {
    void* memory = nullptr;
    check(cudaMallocHost(&memory, static_cast<std::size_t>(bytes)), "allocating pinned host memory");
    return static_cast<std::byte*>(memory);
  }
  void release_host(std::byte* memory) override { check(cudaFreeHost(memory), "freeing pinned host memory"); }
  void copy_to_device(std::byte* to, const std::byte* from, std::int64_t bytes, int stream) override {
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice, at(stream)),
          "copying to the device");
  }
  void copy_to_host(std::byte* to, const std::byte* from, std::int64_t bytes, int stream) override {
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost, at(stream)),
          "copying to the host");
  }
  void fill(std::byte* to, std::uint8_t value, std::int64_t bytes, int stream) override {
    check(cudaMemsetAsync(to, value, static_cast<std::size_t>(bytes), at(stream)), "filling device memory");
  }

  Kernels& kernels(int stream) override {
    std::unique_ptr<CudaKernels>& its = kernels_.at(static_cast<std::size_t>(stream));
    if (!its) its = std::make_unique<CudaKernels>(at(stream));
    return *its;
  }
  void* native_stream(int stream) override { return at(stream); }
  void synchronize(int stream) override { check(cudaStreamSynchronize(at(stream)), "waiting for a stream"); }
  void synchronize() override { check(cudaDeviceSynchronize(), "waiting for the GPU"); }

  Event create_event() override {
    cudaEvent_t event = nullptr;
    check(cudaEventCreate(&event), "creating an event");
    events_.push_back(event);
    return static_cast<Event>(events_.size() - 1);
  }
  void record(Event event, int stream) override { check(cudaEventRecord(at_event(event), at(stream)), "an event"); }
  void wait(int stream, Event event) override {
    check(cudaStreamWaitEvent(at(stream), at_event(event)), "waiting for an event");
  }
  bool finished(Event event) override {
    const cudaError_t result = cudaEventQuery(at_event(event));
    if (result == cudaErrorNotReady) return false;
    check(result, "asking whether an event is over");
    return true;
  }
  double seconds_between(Event begin, Event end) override {
    check(cudaEventSynchronize(at_event(end)), "waiting for an event");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, at_event(begin), at_event(end)), "the time between events");
    return static_cast<double>(ms) / 1e3;
  }

  void begin_capture(int stream) override {
    check(cudaStreamBeginCapture(at(stream), cudaStreamCaptureModeThreadLocal), "capturing a graph");
  }
  Graph end_capture(int stream) override {
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(at(stream), &graph), "ending the capture of a graph");
    cudaGraphExec_t instance = nullptr;
    const cudaError_t result = cudaGraphInstantiate(&instance, graph, 0);
    cudaGraphDestroy(graph);
    check(result, "instantiating a graph");
    graphs_.push_back(instance);
    return static_cast<Graph>(graphs_.size() - 1);
  }
  void launch(Graph graph, int stream) override {
    check(cudaGraphLaunch(graphs_.at(static_cast<std::size_t>(graph)), at(stream)), "launching a graph");
  }
  void release_graph(Graph graph) override {
    check(cudaGraphExecDestroy(std::exchange(graphs_.at(static_cast<std::size_t>(graph)), nullptr)), "freeing a graph");
  }

 private:
  cudaStream_t at(int stream) const { return streams_.at(static_cast<std::size_t>(stream)); }
  cudaEvent_t at_event(Event event) const { return events_.at(static_cast<std::size_t>(event)); }

  int ordinal_;
  std::vector<cudaStream_t> streams_;
  std::vector<cudaEvent_t> events_;
  std::vector<cudaGraphExec_t> graphs_;
  std::vector<std::unique_ptr<CudaKernels>> kernels_;  // by stream, made when first asked for
};

}  // namespace

}  // namespace trainyard::kernels::cuda

using trainyard::kernels::Device;

extern "C" __attribute__((visibility("default"))) Device* trainyard_open_cuda_device(int ordinal, int streams,
                                                                                     char* problem, int problem_size) {
  try {
    return new trainyard::kernels::cuda::CudaDevice(ordinal, streams);
  } catch (const std::exception& error) {
    std::snprintf(problem, static_cast<std::size_t>(problem_size), "%s", error.what());
    return nullptr;
  }
}
