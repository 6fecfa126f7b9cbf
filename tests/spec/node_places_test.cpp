// Where spares stand among a job's nodes.
#include <algorithm>
#include <vector>

#include <catch2/catch.hpp>

#include "models/base/random.h"
#include "models/spec/node_places.h"

using namespace trainyard;

TEST_CASE("Every leaf holds a like share of the spares, and the job keeps its order") {
  RandomStream random(1, "places");
  for (int i = 0; i < 300; ++i) {
    const auto job = static_cast<std::int64_t>(1 + random.below(400));
    const auto spares = static_cast<std::int64_t>(random.below(80));
    const auto leaf = static_cast<std::int64_t>(1 + random.below(40));
    INFO(job << " nodes, " << spares << " spares, leaves of " << leaf);
    std::vector<std::int64_t> places = places_with_spares_per_leaf(job, spares, leaf);
    CHECK(std::is_sorted(places.begin(), places.begin() + job));
    const std::int64_t leaves = (job + spares + leaf - 1) / leaf;
    std::vector<std::int64_t> held(static_cast<std::size_t>(leaves));
    for (std::int64_t spare = job; spare < job + spares; ++spare)
      ++held.at(static_cast<std::size_t>(place_of(places, spare) / leaf));
    held.pop_back();  // the last leaf may be too small for its share
    if (!held.empty() && *std::max_element(held.begin(), held.end()) < leaf) {
      const auto [least, most] = std::minmax_element(held.begin(), held.end());
      CHECK(*most - *least <= 1);
    }
    std::sort(places.begin(), places.end());
    for (std::size_t place = 0; place < places.size(); ++place) REQUIRE(places[place] == std::int64_t(place));
  }
}

TEST_CASE("The first few spares stand far from each other") {
  const std::vector<std::int64_t> places = places_with_spares_per_leaf(224, 32, 16);  // 16 leaves, two spares each
  std::vector<std::int64_t> quarters;
  for (std::int64_t spare = 224; spare < 228; ++spare) quarters.push_back(place_of(places, spare) / 64);
  std::sort(quarters.begin(), quarters.end());
  CHECK(quarters == std::vector<std::int64_t>{0, 1, 2, 3});
}

TEST_CASE("Without spares, and for nodes that nobody placed, the place is the number") {
  const std::vector<std::int64_t> places = places_with_spares_per_leaf(5, 0, 2);
  CHECK(places == std::vector<std::int64_t>{0, 1, 2, 3, 4});
  CHECK(place_of(places, 7) == 7);
  CHECK(place_of({}, 3) == 3);
}
