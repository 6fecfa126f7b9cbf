#include "models/recovery/ledger.h"

#include <numeric>

#include <catch2/catch.hpp>

using namespace trainyard::recovery;

TEST_CASE("Spans follow one another without gaps and sum to the total") {
  LedgerBook book;
  book.open(100, 700, Phase::Decide);
  book.enter(760, Phase::Fence);
  book.enter(770, Phase::Allocate);
  book.enter(800, Phase::Decide);  // a second failure
  book.enter(860, Phase::Fence);
  book.ejected(7);
  const RecoveryLedger ledger = book.close(870, 3, 42);
  REQUIRE(ledger.spans.size() == 6);
  for (std::size_t i = 1; i < ledger.spans.size(); ++i) CHECK(ledger.spans[i].begin_ns == ledger.spans[i - 1].end_ns);
  CHECK(ledger.attempts == 2);
  CHECK(ledger.spans[3].attempt == 1);
  CHECK(ledger.spans[4].attempt == 2);
  CHECK(ledger.total_s() == Approx(770e-9));
  const auto seconds = ledger.phase_s();
  CHECK(std::accumulate(seconds.begin(), seconds.end(), 0.0) == Approx(ledger.total_s()));
  CHECK(seconds[static_cast<std::size_t>(Phase::Decide)] == Approx(120e-9));
  CHECK(seconds[static_cast<std::size_t>(Phase::Allocate)] == Approx(30e-9));
  CHECK(ledger.epoch == 3);
  CHECK(ledger.restored_step == 42);
  CHECK(ledger.ejected_nodes == std::vector<std::int64_t>{7});
}

TEST_CASE("A phase passed through at once leaves no span") {
  LedgerBook book;
  book.open(0, 10, Phase::Decide);
  book.enter(10, Phase::Fence);
  book.enter(20, Phase::Allocate);
  book.enter(20, Phase::ProcessStart);
  const RecoveryLedger ledger = book.close(30, 2, 0);
  REQUIRE(ledger.spans.size() == 3);
  CHECK(ledger.spans[1].phase == Phase::Fence);
  CHECK(ledger.spans[2].phase == Phase::ProcessStart);
}
