#include "models/base/status.h"

namespace trainyard {

std::string to_string(const Problem& problem) {
  std::string where = problem.file;
  if (!problem.path.empty()) where += (where.empty() ? "" : ": ") + problem.path;
  if (!problem.value.empty()) where += (where.empty() ? "" : " = ") + problem.value;
  std::string text = (where.empty() ? "" : where + ": ") + problem.rule;
  if (!problem.fix.empty()) text += " (fix: " + problem.fix + ")";
  return text;
}

}  // namespace trainyard
