// Coverage-guided fuzzing of the scenario reader and of everything that a scenario it accepts goes through
// before a simulation: whatever the bytes, no crash, no hang, no silent failure.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "models/program/program.h"
#include "models/spec/scenario.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace trainyard;
  const Result<Scenario> scenario =
      parse_scenario({reinterpret_cast<const char*>(data), size}, TRAINYARD_SOURCE_DIR "/scenarios/fuzz.json");
  if (!scenario) {
    for (const Problem& problem : scenario.problems())
      TY_CHECK(!to_string(problem).empty() && !problem.rule.empty(), "a problem says what rule it breaks");
    return 0;
  }
  // Lowering is total on what validation accepts; only small ones are worth the time here.
  const Scenario& s = scenario.value();
  const bool small = s.model.num_hidden_layers <= 8 && s.plan.pp * s.plan.virtual_stages <= 8 &&
                     s.plan.micro_batches() <= 16 && (!s.model.moe || s.model.moe->num_local_experts <= 64);
  if (small)
    TY_CHECK(lower(s.model, s.plan).stages.size() == static_cast<std::size_t>(s.plan.pp), "a program has every stage");
  return 0;
}
