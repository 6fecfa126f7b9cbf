// Plays nights with the code that it is linked with, until one goes wrong. Exit code 0: found.
//     hunter NIGHTS [FILE]     FILE: the night, cut down
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include <nlohmann/json.hpp>

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
  if (argc > 2) std::ofstream(argv[2]) << to_json(minimise(draw_night(first.seed))).dump(1) << "\n";
  return 0;
}
