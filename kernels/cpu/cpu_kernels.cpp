#include "kernels/cpu/cpu_kernels.h"

namespace trainyard::kernels::cpu {

CpuKernels::CpuKernels(int threads) : threads_(threads), scratches_(static_cast<std::size_t>(threads)) {
  // Eigen blocks its products by the caches that it finds; the same everywhere gives the same sums everywhere.
  Eigen::setCpuCacheSizes(32 << 10, 512 << 10, 8 << 20);
  Eigen::setNbThreads(threads);
}

}  // namespace trainyard::kernels::cpu

// What a module exports.
extern "C" __attribute__((visibility("default"))) trainyard::kernels::Kernels* trainyard_make_cpu_kernels(int threads) {
  return new trainyard::kernels::cpu::CpuKernels(threads);
}
