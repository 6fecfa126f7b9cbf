// The GPU of tests and benchmarks.
#include <cstdio>

#include "kernels/open_device.h"
#include "tests/gpu/twin.h"

namespace trainyard::gpu {

namespace {

struct Gpu {
  std::unique_ptr<kernels::Device> device;
  std::string why_not;
};

Gpu& opened() {
  static Gpu gpu = [] {
    Gpu out;
    Result<std::unique_ptr<kernels::Device>> device = kernels::open_cuda_device(0, 2);
    if (device) {
      out.device = std::move(device).value();
    } else {
      out.why_not = device.problems().front().rule;
    }
    return out;
  }();
  return gpu;
}

}  // namespace

bool gpu_here() {
  static const bool here = [] {
    if (!opened().device) std::fprintf(stderr, "SKIPPED: GPU tests: %s\n", opened().why_not.c_str());
    return opened().device != nullptr;
  }();
  return here;
}

kernels::Device& device() { return *opened().device; }

}  // namespace trainyard::gpu
