#include "kernels/cpu/cpu_kernels.h"

namespace trainyard::kernels {

namespace cpu {

CpuKernels::CpuKernels() {
  // Eigen blocks its products by the caches that it finds; the same everywhere gives the same sums everywhere.
  Eigen::setCpuCacheSizes(32 << 10, 512 << 10, 8 << 20);
}

}  // namespace cpu

std::unique_ptr<Kernels> cpu_kernels() { return std::make_unique<cpu::CpuKernels>(); }

}  // namespace trainyard::kernels
