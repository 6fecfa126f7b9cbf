// Reads JSON with comments into plain structs, and collects everything that is wrong with it.
//
// An ObjectReader is asked for each key that its object may have; keys nobody asked for are
// refused with a did-you-mean. All problems carry the file and the JSON path.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "models/base/status.h"

namespace trainyard {

/// Files larger than this are refused unread: no spec comes near it.
inline constexpr std::int64_t kMaxSpecBytes = std::int64_t{16} << 20;
inline constexpr int kMaxSpecDepth = 64;
/// Values in one file, and problems listed of it: broken machine-made input must not fill the memory or the screen.
inline constexpr std::size_t kMaxSpecValues = 1'000'000;
inline constexpr std::size_t kMaxProblems = 100;

/// Text to JSON: comments allowed; duplicate keys, deep nesting and bad syntax refused with line and column.
Result<nlohmann::json> parse_json(std::string_view text, const std::string& file);
/// The same from a file; refuses what is not a regular, readable, reasonably small file.
Result<nlohmann::json> read_json_file(const std::string& file);

/// The candidate nearest to `word`, if near enough to be meant.
std::optional<std::string> did_you_mean(const std::string& word, const std::vector<std::string>& candidates);

/// A value as shown in a message: compact and cut short.
std::string shown(const nlohmann::json& value);

/// Adds a problem, or, once there are kMaxProblems, says a single time that there are more.
void add_problem(Problems& to, Problem problem);

/// One step of a JSON path as messages write it: `.key`, or `["odd key"]` with control characters escaped.
std::string path_step(const std::string& key);

struct IntegerRange {
  std::int64_t min = 0;
  std::int64_t max = std::int64_t{1} << 50;
};
struct NumberRange {
  double min = 0;
  double max = 1e30;
};

class ObjectReader {
 public:
  /// `value` should be an object; it is a problem if it is not, and then nothing is ever found in it.
  ObjectReader(const nlohmann::json& value, std::string file, std::string path, Problems& problems);

  [[nodiscard]] bool has(const char* key) const { return object_ != nullptr && object_->contains(key); }
  [[nodiscard]] std::string path_of(const std::string& key) const { return path_ + path_step(key); }

  // Each leaves `out` alone when the key is absent. require() makes an absent key a problem.
  ObjectReader& require(std::initializer_list<const char*> keys);
  ObjectReader& integer(const char* key, std::int64_t& out, IntegerRange range = {});
  ObjectReader& unsigned_integer(const char* key, std::uint64_t& out);
  ObjectReader& number(const char* key, double& out, NumberRange range = {});
  ObjectReader& boolean(const char* key, bool& out);
  ObjectReader& text(const char* key, std::string& out);
  ObjectReader& texts(const char* key, std::vector<std::string>& out);
  ObjectReader& integers(const char* key, std::vector<std::int64_t>& out, IntegerRange range = {});

  /// One of a set of names. Optional values keep their "unset".
  template <class Enum>
  ObjectReader& choice(const char* key, Enum& out, const std::vector<std::pair<const char*, Enum>>& names) {
    std::string word;
    if (!take_choice(key, word, names_of(names))) return *this;
    for (const auto& [name, value] : names) {
      if (word == name) out = value;
    }
    return *this;
  }
  ObjectReader& optional_number(const char* key, std::optional<double>& out, NumberRange range = {});

  /// The value under `key`, marked as known; null when absent.
  const nlohmann::json* take(const char* key);
  /// Calls `read` on the object under `key`, when there is one.
  ObjectReader& object(const char* key, const std::function<void(ObjectReader&)>& read);
  /// Calls `read` on each element of the array under `key`.
  ObjectReader& objects(const char* key, const std::function<void(ObjectReader&)>& read);

  /// A key that means nothing here, for a stated reason.
  void problem(const std::string& key, std::string rule, std::string fix);
  /// All keys are known from here on: for an object that is wrong in what decides which keys it may have.
  void ignore_the_rest();
  /// Unknown keys are problems. Call it last.
  void finish();

 private:
  template <class Enum>
  static std::vector<std::string> names_of(const std::vector<std::pair<const char*, Enum>>& names) {
    std::vector<std::string> out;
    out.reserve(names.size());
    for (const auto& entry : names) out.emplace_back(entry.first);
    return out;
  }
  bool take_choice(const char* key, std::string& word, const std::vector<std::string>& names);

  const nlohmann::json* object_ = nullptr;
  std::string file_, path_;
  Problems& problems_;
  std::vector<std::string> known_;
};

/// Whether `name` can name a profile: letters, digits, dots, dashes and underscores, and no path.
bool is_profile_name(const std::string& name);

/// Checks a rule on a value that is already in a struct.
class RuleChecker {
 public:
  explicit RuleChecker(std::string path) : path_(std::move(path)) {}
  /// Adds a problem for each of these counts that is below 1. Structs made in code never passed a reader.
  void expect_positive(std::initializer_list<std::pair<const char*, std::int64_t>> counts);
  [[nodiscard]] bool ok() const { return problems_.empty(); }
  /// Adds a problem unless `holds`.
  void expect(bool holds, const std::string& key, const std::string& value, std::string rule, std::string fix,
              ProblemKind kind = ProblemKind::Input);
  Problems take() { return std::move(problems_); }

 private:
  std::string path_;
  Problems problems_;
};

}  // namespace trainyard
