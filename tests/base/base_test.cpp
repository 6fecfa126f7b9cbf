#include <catch2/catch.hpp>

#include <cmath>
#include <set>

#include "models/base/alibi.h"
#include "models/base/random.h"
#include "models/base/units.h"

using namespace trainyard;

TEST_CASE("a stream is reproducible, and its name and index set it apart") {
  RandomStream a(7, "faults"), same(7, "faults"), other_name(7, "noise"), other_index(7, "faults", 1),
      other_seed(8, "faults");
  std::set<std::uint64_t> firsts;
  const auto first = a.next_u64();
  CHECK(first == same.next_u64());
  for (RandomStream* stream : {&other_name, &other_index, &other_seed}) firsts.insert(stream->next_u64());
  firsts.insert(first);
  CHECK(firsts.size() == 4);
}

TEST_CASE("ALiBi's slopes are those of the paper") {
  CHECK(alibi_slope(0, 8) == 0.5);
  CHECK(alibi_slope(7, 8) == 1.0 / 256);
  CHECK(alibi_slope(0, 16) == Approx(std::sqrt(0.5)));
  // 12 heads: those of 8, then the first, third, fifth and seventh of 16.
  CHECK(alibi_slope(7, 12) == 1.0 / 256);
  for (int i = 0; i < 4; ++i) CHECK(alibi_slope(8 + i, 12) == alibi_slope(2 * i, 16));
}

TEST_CASE("draws do not change between releases") {
  // A golden of the generator: changing it changes every published trace hash.
  RandomStream stream(1, "golden");
  CHECK(stream.next_u64() == 0xcde5ee79f4224aa5ULL);
}

TEST_CASE("samplers have the moments they promise") {
  RandomStream stream(3, "moments");
  const int n = 200000;
  double sum_exponential = 0, sum_normal = 0, sum_normal_squared = 0, sum_uniform = 0;
  for (int i = 0; i < n; ++i) {
    sum_exponential += stream.exponential(2.5);
    const double z = stream.normal();
    sum_normal += z;
    sum_normal_squared += z * z;
    sum_uniform += stream.uniform();
  }
  CHECK(sum_exponential / n == Approx(2.5).epsilon(0.01));
  CHECK(std::fabs(sum_normal / n) < 0.01);
  CHECK(sum_normal_squared / n == Approx(1).epsilon(0.01));
  CHECK(sum_uniform / n == Approx(0.5).epsilon(0.01));
}

TEST_CASE("categorical follows its weights, and never draws a zero weight") {
  RandomStream stream(3, "categorical");
  std::vector<int> hits(3);
  for (int i = 0; i < 30000; ++i) ++hits[stream.categorical({1, 0, 3})];
  CHECK(hits[1] == 0);
  CHECK(hits[2] / 30000.0 == Approx(0.75).epsilon(0.02));
}

TEST_CASE("quantities print as people write them") {
  CHECK(format_duration(1.44) == "1.44 s");
  CHECK(format_duration(0.0231) == "23.1 ms");
  CHECK(format_duration(7 * 86400) == "7 d 0 h");
  CHECK(format_duration(5400) == "1 h 30 min");
  CHECK(format_bytes(62.3 * kGiB) == "62.3 GiB");
  CHECK(format_count(98304) == "98,304");
  CHECK(format_count(-1000) == "-1,000");
}

TEST_CASE("more seconds than nanoseconds can count are a century") {
  CHECK(trainyard::to_ns(1.5) == 1'500'000'000);
  CHECK(trainyard::to_ns(1e300) > 3'000'000'000'000'000'000);
  CHECK(trainyard::to_ns(-1e300) < -3'000'000'000'000'000'000);
}
