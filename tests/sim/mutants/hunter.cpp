// Plays nights with the code that it is linked with, until one goes wrong. Exit code 0: found.
#include <cstdio>
#include <cstdlib>

#include "sim/fuzz/fuzz.h"

int main(int argc, char** argv) {
  using namespace trainyard::fuzz;
  FuzzOptions options;
  options.seeds = argc > 1 ? std::atoll(argv[1]) : 2000;
  options.stop_after = 1;
  const FuzzResult result = fuzz(options);
  if (result.violations.empty()) {
    std::printf("NOT FOUND in %lld nights\n", static_cast<long long>(result.nights));
    return 1;
  }
  const Violation& first = result.violations.front();
  std::printf("seed %llu: %s\n", static_cast<unsigned long long>(first.seed), first.what.c_str());
  return 0;
}
