#include "sim/run_result.h"

#include <limits>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

using namespace trainyard;

TEST_CASE("A result survives CBOR unchanged") {
  RunResult result;
  result.seed = 0xffffffffffffffffULL;
  result.policy = "a \"policy\"";
  result.duration_ns = 604800000000000;
  result.healthy_step_s = 0.1;
  result.mean_time_between_failures_s = std::numeric_limits<double>::infinity();
  result.by_cause = {{"gpu", 3, 1}};
  recovery::RecoveryLedger ledger;
  ledger.epoch = 2;
  ledger.attempts = 1;
  ledger.ejected_nodes = {7};
  ledger.spans = {{recovery::Phase::Detect, 1, 5, 9}, {recovery::Phase::FirstStep, 1, 9, 12}};
  result.recoveries = {{ledger, {"gpu"}, 1.0 / 3}};
  result.band_ns[3] = 17;
  result.events = {{-5, RunEventKind::Page, 3, "text"}};
  result.trace_hash = 0x8000000000000001ULL;
  result.spares = {4, 1, 2.5, 0.99, {{0, 4}, {17, 3}}};
  const auto bytes = nlohmann::json::to_cbor(nlohmann::json(result));
  CHECK(nlohmann::json::from_cbor(bytes).get<RunResult>() == result);
}

TEST_CASE("The median of recoveries, odd and even") {
  RunResult result;
  CHECK(result.median_recovery_s() == 0);
  for (const std::int64_t seconds : {90, 300, 100}) {
    recovery::RecoveryLedger ledger;
    ledger.spans = {{recovery::Phase::Detect, 1, 0, seconds * 1'000'000'000}};
    result.recoveries.push_back({ledger, {}, 0});
  }
  CHECK(result.median_recovery_s() == Approx(100));
  result.recoveries.pop_back();
  CHECK(result.median_recovery_s() == Approx(195));
}
