#include "models/base/status.h"

namespace trainyard {

std::string to_string(const Problem& problem) {
  std::string text = problem.file.empty() ? std::string("input") : problem.file;
  if (!problem.path.empty()) text += ": " + problem.path;
  if (!problem.value.empty()) text += " = " + problem.value;
  text += ": " + problem.rule;
  if (!problem.fix.empty()) text += " (fix: " + problem.fix + ")";
  return text;
}

}  // namespace trainyard
