// Training runs whose step time or MFU was published, predicted. No constant is tuned on any of them: docs/accuracy.md.
#include <catch2/catch.hpp>

#include <nlohmann/json.hpp>

#include "tests/cli/yard.h"

using namespace trainyard::test;

namespace {

struct PublishedRun {
  const char* scenario;
  const char* path;  // of the report
  double measured;
};

}  // namespace

TEST_CASE("published training runs are predicted within 15%", "[cli]") {
  // Grok-1: NVIDIA dgxc-benchmarking 24.11, bf16, seconds a step. Llama 3: arXiv 2407.21783, Table 4, MFU.
  const PublishedRun run = GENERATE(PublishedRun{"grok1-dgxc-512", "/step/time_s", 20.83},
                                    PublishedRun{"grok1-dgxc-1024", "/step/time_s", 21.00},
                                    PublishedRun{"grok1-dgxc-2048", "/step/time_s", 21.09},
                                    PublishedRun{"llama3-405b-table4-row1", "/step/mfu", 0.43},
                                    PublishedRun{"llama3-405b-table4-row2", "/step/mfu", 0.41},
                                    PublishedRun{"llama3-405b-table4-row3", "/step/mfu", 0.38});
  const Yard yard;
  const Outcome outcome =
      yard.run("sim run scenarios/published/" + std::string(run.scenario) + ".json --json --no-store -q");
  REQUIRE(outcome.code == 0);
  const double predicted = nlohmann::json::parse(outcome.out).at(nlohmann::json::json_pointer(run.path)).get<double>();
  INFO(run.scenario << ": " << predicted << " predicted, " << run.measured << " measured");
  CHECK(predicted == Approx(run.measured).epsilon(0.15));
}
