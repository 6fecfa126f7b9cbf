// How long ranks take to talk, for trainyard calibrate.
#include <catch2/catch.hpp>

#include "exec/measure.h"

using namespace trainyard;

TEST_CASE("measured communication has every kind at every size", "[exec]") {
  const exec::CommunicationTimes times = exec::measure_communication(2, {256, 1 << 22}).value();
  REQUIRE(times.collectives.size() == 2 * kCollectiveCount);
  for (std::size_t kind = 0; kind < kCollectiveCount; ++kind) {
    const exec::CollectiveTime &small = times.collectives[kind], &large = times.collectives[kCollectiveCount + kind];
    CHECK(small.kind == large.kind);
    CHECK(small.seconds > 0);
    CHECK(large.seconds > 0);
    CHECK(small.bytes == 256);
    CHECK(large.bytes == 1 << 22);
  }
  REQUIRE(times.transfers.size() == 2);
  for (const exec::TransferTime& time : times.transfers) CHECK(time.seconds > 0);
}
