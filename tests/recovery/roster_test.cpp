#include "models/recovery/roster.h"

#include <catch2/catch.hpp>

using namespace trainyard::recovery;

TEST_CASE("A spare at home comes first, but last when the domain itself may be sick") {
  RosterConfig config;
  config.owners = {0, 1, 2, 4, 5, 6};
  config.spares = {{3, Temperature::Hot}, {7, Temperature::Hot}, {8, Temperature::Hot}};
  config.nodes_per_domain = 4;
  Roster roster(config);
  constexpr std::int64_t kNow = 1'000'000'000'000;
  const auto lose = [&](NodeId node, std::int64_t now_ns) {
    const std::int64_t slot = *roster.slot_of(node);
    roster.vacate(node);
    roster.sent_away(node, {1, 1, node}, now_ns);
    return slot;
  };
  const std::int64_t first = lose(5, kNow);
  CHECK(roster.fill(first, Temperature::Hot, kNow) == 7);
  lose(0, kNow);
  const std::int64_t second = lose(1, kNow);
  SECTION("two of a leaf within minutes: the spare elsewhere") {
    CHECK(roster.fill(second, Temperature::Hot, kNow) == 8);
    CHECK(roster.fill(*roster.empty_slots().begin(), Temperature::Hot, kNow) == 3);  // better than none
  }
  SECTION("long ago: the one at home again") {
    CHECK(roster.fill(second, Temperature::Hot, kNow + 3'600'000'000'000) == 3);
  }
}
