// Picks the kernels that were compiled for the newest instruction set this processor has.

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <optional>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/module.h"

namespace trainyard::kernels {

namespace {

// By the instructions that tell the levels of the x86-64 psABI apart; not every compiler can be asked for those.
bool supported(const std::string& set) {
#if defined(__x86_64__)
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (set == "v3") return v3;
  if (set == "v4")
    return v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
#endif
  return set == "baseline";
}

struct Choice {
  std::string set = "baseline";
  MakeKernels make = trainyard_make_cpu_kernels;
  PeakFlops peak_flops = trainyard_cpu_peak_flops;
};

std::optional<Choice> open_module(const std::string& set) {
  for (const std::string& folder : module_folders(TRAINYARD_KERNELS_DIR)) {
    void* module = dlopen(fmt::format("{}/trainyard_kernels_{}.so", folder, set).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (module == nullptr) continue;
    void *make = dlsym(module, kMakeKernelsSymbol), *peak = dlsym(module, kPeakFlopsSymbol);
    if (make != nullptr && peak != nullptr)
      return Choice{set, reinterpret_cast<MakeKernels>(make), reinterpret_cast<PeakFlops>(peak)};
  }
  return std::nullopt;
}

const Choice& choice() {
  static const Choice chosen = [] {
    const char* wanted = std::getenv("TRAINYARD_CPU");
    for (const char* set : {"v4", "v3"}) {
      if (!supported(set) || (wanted != nullptr && wanted != std::string(set))) continue;
      if (const std::optional<Choice> found = open_module(set)) return *found;
    }
    return Choice{};
  }();
  return chosen;
}

}  // namespace

std::string cpu_instruction_set() { return choice().set; }

double cpu_peak_flops() { return choice().peak_flops(); }

std::unique_ptr<Kernels> cpu_kernels(int threads) { return std::unique_ptr<Kernels>(choice().make(threads)); }

}  // namespace trainyard::kernels
