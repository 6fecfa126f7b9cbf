// Scenario files that are broken on purpose, and what is said of them.
#pragma once

#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "models/spec/scenario.h"

namespace trainyard::testing {

inline const std::string kScenarios = std::string(TRAINYARD_SOURCE_DIR) + "/scenarios/";

inline std::string replaced(std::string text, const std::string& what, const std::string& with) {
  const std::size_t at = text.find(what);
  REQUIRE(at != std::string::npos);
  return text.replace(at, what.size(), with);
}

/// All problems as one text, or "" when the scenario is fine. Each says what is wrong and what to do.
inline std::string all_problems(const Result<Scenario>& scenario) {
  if (scenario) return "";
  std::string all;
  for (const Problem& problem : scenario.problems()) {
    CHECK_FALSE(problem.rule.empty());
    CHECK_FALSE(problem.fix.empty());
    all += to_string(problem) + "\n";
  }
  return all;
}

}  // namespace trainyard::testing
