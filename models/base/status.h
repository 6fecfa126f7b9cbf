// What is wrong with something a user gave us, said so that they can mend it.
//
// A Problem names the file, the JSON path in it, the value found, the rule it breaks and a fix.
// Readers and validators collect all problems before they give up; nothing throws across
// folder borders.
#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "models/base/check.h"

namespace trainyard {

/// What kind of trouble a Problem is: it decides the exit code of a command.
enum class ProblemKind {
  Input,              // the text or a value is wrong (exit code 2)
  Infeasible,         // a well-formed plan that cannot run, such as out of memory (exit code 3)
  MissingCapability,  // this build or machine lacks what was asked for (exit code 4)
  Failed,             // a job that was under way ended before its end (exit code 5)
  Stopped,            // nothing is wrong: someone asked us to stop (exit code 130)
};

struct Problem {
  std::string file;   // as the user wrote it; empty when it came from nowhere
  std::string path;   // JSON path such as "$.plan.tp"; empty for the whole file
  std::string value;  // what was found there, shortened
  std::string rule;   // what must hold, one clause
  std::string fix;    // what to do about it, one clause
  ProblemKind kind = ProblemKind::Input;
};

using Problems = std::vector<Problem>;

/// "file: $.path = value: rule (fix)", on one line.
std::string to_string(const Problem& problem);

/// Either a value or the problems that kept us from making one.
template <class T>
class Result {
 public:
  Result(T value) : content_(std::move(value)) {}              // NOLINT(google-explicit-constructor)
  Result(Problems problems) : content_(std::move(problems)) {  // NOLINT(google-explicit-constructor)
    TY_CHECK(!std::get<Problems>(content_).empty(), "a failed Result needs a problem");
  }
  Result(Problem problem) : content_(Problems{std::move(problem)}) {}  // NOLINT(google-explicit-constructor)

  [[nodiscard]] bool ok() const { return std::holds_alternative<T>(content_); }
  explicit operator bool() const { return ok(); }

  [[nodiscard]] const T& value() const& {
    TY_CHECK(ok(), "value() of a failed Result");
    return std::get<T>(content_);
  }
  [[nodiscard]] T&& value() && {
    TY_CHECK(ok(), "value() of a failed Result");
    return std::get<T>(std::move(content_));
  }
  [[nodiscard]] const Problems& problems() const {
    TY_CHECK(!ok(), "problems() of a successful Result");
    return std::get<Problems>(content_);
  }

 private:
  std::variant<T, Problems> content_;
};

}  // namespace trainyard
