// The text dump of small programs, byte for byte. A change here is a change of what runs: look at
// the difference, then renew with TRAINYARD_UPDATE_GOLDENS=1.
#include <catch2/catch.hpp>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "models/program/program.h"
#include "tests/program/tiny_models.h"

using namespace trainyard;

namespace {

void compare_with_golden(const std::string& name, const std::string& text) {
  const std::string path = std::string(TRAINYARD_SOURCE_DIR) + "/tests/program/golden/" + name + ".txt";
  if (std::getenv("TRAINYARD_UPDATE_GOLDENS") != nullptr) std::ofstream(path) << text;
  std::ifstream file(path);
  REQUIRE(file.good());
  std::stringstream golden;
  golden << file.rdbuf();
  std::istringstream now(text);
  std::string expected, got;
  int line = 0;
  while (std::getline(golden, expected)) {
    ++line;
    REQUIRE(std::getline(now, got));
    INFO(path << " line " << line);
    REQUIRE(got == expected);
  }
  CHECK_FALSE(std::getline(now, got));
}

}  // namespace

TEST_CASE("the program of a tiny Llama on one rank", "[program]") {
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.global_batch = 1;
  compare_with_golden("tiny_llama_1", dump(lower(tiny_model(ModelFamily::Llama), plan)));
}

TEST_CASE("the program of a tiny Grok-1 over tp, ep and pp", "[program]") {
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.tp = 2;
  plan.pp = 2;
  plan.dp = 2;
  plan.ep = 2;
  plan.sequence_parallel = true;
  plan.zero_stage = 1;
  plan.moe.buffer_factor = 1.5;
  compare_with_golden("tiny_grok1_tp2_ep2_pp2", dump(lower(tiny_model(ModelFamily::Grok1), plan)));
}
