// Seeded random numbers that give the same draws on every machine.
//
// A RandomStream is named: two subsystems with different names never share draws, so adding one
// draw to the fault generator does not move the topology. Samplers are our own, because
// std::*_distribution may differ between standard libraries.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace trainyard {

/// One step of SplitMix64's output function: a bijective 64-bit mixer (Steele et al., 2014).
std::uint64_t mix64(std::uint64_t x);

class RandomStream {
 public:
  /// The stream `name`, number `index`, of the run with seed `seed`.
  RandomStream(std::uint64_t seed, std::string_view name, std::uint64_t index = 0);

  std::uint64_t next_u64();
  /// Uniform in [0, 1), 53 random bits.
  double uniform();
  /// Uniform integer in [0, bound), bound > 0, without modulo bias.
  std::uint64_t below(std::uint64_t bound);
  double exponential(double mean);
  double normal();
  /// exp(N(mu, sigma)).
  double lognormal(double mu, double sigma);
  /// Index drawn with probability proportional to its weight; weights are >= 0 with a positive sum.
  std::size_t categorical(const std::vector<double>& weights);

 private:
  std::uint64_t key_;
  std::uint64_t counter_ = 0;
};

}  // namespace trainyard
