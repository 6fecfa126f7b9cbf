// What one thread can do at most: fused multiply-adds on registers alone.

#include <chrono>

#include "kernels/cpu/cpu_kernels.h"

extern "C" __attribute__((visibility("default"))) double trainyard_cpu_peak_flops() {
  using Packet = Eigen::internal::packet_traits<float>::type;
  constexpr int kChains = 12, kRounds = 200'000, kLanes = Eigen::internal::packet_traits<float>::size;
  double best = 0;
  volatile float sink = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    Packet sums[kChains];
    for (int c = 0; c < kChains; ++c) sums[c] = Eigen::internal::pset1<Packet>(static_cast<float>(c));
    const Packet a = Eigen::internal::pset1<Packet>(0.999F), b = Eigen::internal::pset1<Packet>(1e-3F);
    const auto begin = std::chrono::steady_clock::now();
    for (int round = 0; round < kRounds; ++round) {
      for (int c = 0; c < kChains; ++c) sums[c] = Eigen::internal::pmadd(sums[c], a, b);
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    for (int c = 0; c < kChains; ++c) sink = sink + Eigen::internal::pfirst(sums[c]);
    best = std::max(best, 2.0 * kLanes * kChains * kRounds / seconds);
  }
  return best;
}
