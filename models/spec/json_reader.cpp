#include "models/spec/json_reader.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include <fmt/format.h>

namespace trainyard {

namespace {

using nlohmann::json;

Problem about_file(const std::string& file, std::string rule, std::string fix, std::string value = "") {
  Problem problem;
  problem.file = file;
  problem.value = std::move(value);
  problem.rule = std::move(rule);
  problem.fix = std::move(fix);
  return problem;
}

// "line 3, column 14" of a byte offset.
std::string place_of(std::string_view text, std::size_t byte) {
  byte = std::min(byte, text.size());
  const std::string_view before = text.substr(0, byte > 0 ? byte - 1 : 0);
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const std::size_t newline = before.rfind('\n');
  const std::size_t column = newline == std::string_view::npos ? before.size() + 1 : before.size() - newline;
  return fmt::format("line {}, column {}", line, column);
}

// Nesting is checked on the text, before a parser recurses into it. Strings and comments are skipped.
bool nests_too_deep(std::string_view text) {
  int depth = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '"') {
      for (++i; i < text.size() && text[i] != '"'; ++i) {
        if (text[i] == '\\') ++i;
      }
    } else if (c == '/' && i + 1 < text.size() && text[i + 1] == '/') {
      while (i < text.size() && text[i] != '\n') ++i;
    } else if (c == '/' && i + 1 < text.size() && text[i + 1] == '*') {
      for (i += 2; i + 1 < text.size() && !(text[i] == '*' && text[i + 1] == '/'); ++i) {
      }
      ++i;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxSpecDepth) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

// What other programs call the keys of ours, for people who come from there.
constexpr std::pair<const char*, const char*> kNamesElsewhere[] = {
    // Megatron-Core
    {"tensor_model_parallel_size", "tp"},
    {"context_parallel_size", "cp"},
    {"expert_model_parallel_size", "ep"},
    {"pipeline_model_parallel_size", "pp"},
    {"virtual_pipeline_model_parallel_size", "virtual_stages"},
    {"data_parallel_size", "dp"},
    {"seq_length", "sequence_length"},
    {"recompute_granularity", "recompute"},
    {"num_layers", "num_hidden_layers"},
    {"ffn_hidden_size", "intermediate_size"},
    // Hugging Face, where one struct here stands for several models there
    {"rms_norm_eps", "norm_eps"},
    {"layer_norm_epsilon", "norm_eps"},
    {"model_type", "family"},
    {"attn_logit_softcapping", "attention_softcap"},
    {"final_logit_softcapping", "output_softcap"},
    {"norm_topk_prob", "renormalize"},
};

std::optional<std::string> name_here(const std::string& key, const std::vector<std::string>& known) {
  for (const auto& [elsewhere, here] : kNamesElsewhere) {
    if (key == elsewhere && std::find(known.begin(), known.end(), here) != known.end()) return here;
  }
  return std::nullopt;
}

std::size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row[b.size()];
}

}  // namespace

Result<json> parse_json(std::string_view text, const std::string& file) {
  if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) {
    return about_file(file, "is empty", "write a JSON object, or copy one from scenarios/");
  }
  if (nests_too_deep(text)) {
    return about_file(file, fmt::format("nests deeper than {} levels", kMaxSpecDepth),
                      "flatten it: no spec needs more than six");
  }
  // Duplicate keys: JSON allows them and keeps the last, which hides mistakes.
  std::vector<std::set<std::string>> open;
  std::optional<std::string> duplicate;
  std::size_t values = 0;
  const json::parser_callback_t watch = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) open.emplace_back();
    if (event == json::parse_event_t::object_end) open.pop_back();
    if (event == json::parse_event_t::key && !duplicate && !open.back().insert(value.get<std::string>()).second) {
      duplicate = shown(value);
    }
    const bool whole = event == json::parse_event_t::value || event == json::parse_event_t::object_end ||
                       event == json::parse_event_t::array_end;
    // Values beyond the limit are thrown away at once: the file will be refused.
    return !whole || ++values <= kMaxSpecValues;
  };
  try {
    json parsed = json::parse(text.begin(), text.end(), watch, true, true);
    if (values > kMaxSpecValues)
      return about_file(file, fmt::format("holds more than {} values", kMaxSpecValues),
                        "name a spec file: they are short");
    if (duplicate) return about_file(file, "names a key twice in one object", "remove one of them", *duplicate);
    return parsed;
  } catch (const json::parse_error& error) {
    std::string what = error.what();
    if (const std::size_t at = what.find(": "); at != std::string::npos) what = what.substr(at + 2);
    if (what.size() > 160) what = what.substr(0, 160) + "...";
    for (char& c : what) {
      if (c < ' ' || c > '~') c = '?';  // the parser quotes what it read, and that may be anything
    }
    const bool bad_encoding = what.find("UTF-8") != std::string::npos || text.find('\0') != std::string_view::npos;
    return about_file(file, fmt::format("is not JSON at {}: {}", place_of(text, error.byte), what),
                      bad_encoding ? "save the file as UTF-8" : "mend the syntax there");
  } catch (const json::exception& error) {
    return about_file(file, fmt::format("holds a value that JSON readers refuse: {}", error.what()),
                      "use numbers within float64");
  }
}

Result<json> read_json_file(const std::string& file) {
  std::error_code error;
  const auto status = std::filesystem::status(file, error);
  if (error || status.type() == std::filesystem::file_type::not_found) {
    return about_file(file, "does not exist", "check the path; paths in a file are relative to that file");
  }
  if (status.type() == std::filesystem::file_type::directory) {
    return about_file(file, "is a directory", "name a JSON file in it");
  }
  const std::uintmax_t bytes =
      status.type() == std::filesystem::file_type::regular ? std::filesystem::file_size(file, error) : 0;
  if (!error && bytes > static_cast<std::uintmax_t>(kMaxSpecBytes)) {
    return about_file(file, fmt::format("is larger than {} MiB", kMaxSpecBytes >> 20),
                      "name a spec file: they are a few KiB", fmt::format("{} bytes", bytes));
  }
  // Opened once: a pipe, which has no size beforehand, can be read only once. The limit holds while reading too.
  std::ifstream stream(file, std::ios::binary);
  if (!stream.is_open()) return about_file(file, "cannot be read", "check its permissions");
  std::string text;
  std::vector<char> piece(std::size_t{64} << 10);
  while (stream && text.size() <= static_cast<std::size_t>(kMaxSpecBytes)) {
    stream.read(piece.data(), static_cast<std::streamsize>(piece.size()));
    text.append(piece.data(), static_cast<std::size_t>(stream.gcount()));
  }
  if (stream.bad())
    return about_file(file, "cannot be read to its end", "check the disk or the program that writes it");
  if (text.size() > static_cast<std::size_t>(kMaxSpecBytes)) {
    return about_file(file, fmt::format("is larger than {} MiB", kMaxSpecBytes >> 20),
                      "name a spec file: they are a few KiB");
  }
  return parse_json(text, file);
}

std::optional<std::string> did_you_mean(const std::string& word, const std::vector<std::string>& candidates) {
  std::optional<std::string> best;
  std::size_t best_distance = std::max<std::size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const std::size_t longer = std::max(word.size(), candidate.size()),
                      shorter = std::min(word.size(), candidate.size());
    if (longer - shorter >= best_distance) continue;  // the lengths alone are too far apart; words may be megabytes
    const std::size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

std::string shown(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

void add_problem(Problems& to, Problem problem) {
  if (to.size() < kMaxProblems) {
    to.push_back(std::move(problem));
  } else if (to.size() == kMaxProblems) {
    to.push_back(about_file(problem.file, fmt::format("has more problems than the {} listed", kMaxProblems),
                            "mend those first"));
  }
}

std::string path_step(const std::string& key) {
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  };
  if (!key.empty() && key.size() <= 60 && std::all_of(key.begin(), key.end(), plain)) return "." + key;
  return "[" + shown(key) + "]";
}

bool is_profile_name(const std::string& name) {
  return !name.empty() && name[0] != '.' &&
         name.find_first_not_of(
             "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
             "0123456789._-") == std::string::npos;
}

ObjectReader::ObjectReader(const json& value, std::string file, std::string path, Problems& problems)
    : file_(std::move(file)), path_(std::move(path)), problems_(problems) {
  if (value.is_object()) {
    object_ = &value;
  } else {
    add_problem(problems_, {file_, path_, shown(value), "must be an object", "write { ... } here"});
  }
}

const json* ObjectReader::take(const char* key) {
  known_.emplace_back(key);
  return has(key) ? &(*object_)[key] : nullptr;
}

void ObjectReader::problem(const std::string& key, std::string rule, std::string fix) {
  if (problems_.size() > kMaxProblems) return;  // showing a value costs as much as the value is long
  const std::string value = has(key.c_str()) ? shown((*object_)[key]) : "";
  add_problem(problems_, {file_, path_of(key), value, std::move(rule), std::move(fix)});
}

ObjectReader& ObjectReader::require(std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    if (object_ != nullptr && !has(key)) problem(key, "is missing", fmt::format("add \"{}\"", key));
  }
  return *this;
}

ObjectReader& ObjectReader::integer(const char* key, std::int64_t& out, IntegerRange range) {
  const json* value = take(key);
  if (value == nullptr) return *this;
  const std::string rule = range.min == range.max
                               ? fmt::format("must be {}", range.min)
                               : fmt::format("must be a whole number from {} to {}", range.min, range.max);
  bool in_range = false;
  if (value->is_number_unsigned()) {
    const auto x = value->get<std::uint64_t>();
    in_range =
        x <= static_cast<std::uint64_t>(range.max) && (range.min <= 0 || x >= static_cast<std::uint64_t>(range.min));
  } else if (value->is_number_integer()) {
    const auto x = value->get<std::int64_t>();
    in_range = x >= range.min && x <= range.max;
  }
  if (in_range) {
    out = value->get<std::int64_t>();
  } else {
    problem(key, rule, "give one");
  }
  return *this;
}

ObjectReader& ObjectReader::unsigned_integer(const char* key, std::uint64_t& out) {
  const json* value = take(key);
  if (value == nullptr) return *this;
  if (value->is_number_unsigned()) {
    out = value->get<std::uint64_t>();
  } else {
    problem(key, "must be a whole number from 0 to 2^64-1", "give one");
  }
  return *this;
}

ObjectReader& ObjectReader::number(const char* key, double& out, NumberRange range) {
  const json* value = take(key);
  if (value == nullptr) return *this;
  const bool good = value->is_number() && std::isfinite(value->get<double>()) && value->get<double>() >= range.min &&
                    value->get<double>() <= range.max;
  if (good) {
    out = value->get<double>();
  } else {
    problem(key, fmt::format("must be a number from {:g} to {:g}", range.min, range.max),
            "give one in the unit that the key names");
  }
  return *this;
}

ObjectReader& ObjectReader::optional_number(const char* key, std::optional<double>& out, NumberRange range) {
  if (!has(key) || (*object_)[key].is_null()) {
    take(key);
    return *this;
  }
  double value = range.min;
  number(key, value, range);
  out = value;
  return *this;
}

ObjectReader& ObjectReader::boolean(const char* key, bool& out) {
  const json* value = take(key);
  if (value == nullptr) return *this;
  if (value->is_boolean()) {
    out = value->get<bool>();
  } else {
    problem(key, "must be true or false", "write it without quotes");
  }
  return *this;
}

ObjectReader& ObjectReader::text(const char* key, std::string& out) {
  const json* value = take(key);
  if (value == nullptr) return *this;
  const bool text = value->is_string() && !value->get_ref<const std::string&>().empty();
  // Texts are printed: an escape sequence in one would command the reader's terminal.
  const auto controls = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
  if (text && std::none_of(value->get_ref<const std::string&>().begin(), value->get_ref<const std::string&>().end(),
                           controls)) {
    out = value->get<std::string>();
  } else if (text) {
    problem(key, "must be a text without control characters", "remove them");
  } else {
    problem(key, "must be a text that is not empty", "write it in quotes");
  }
  return *this;
}

ObjectReader& ObjectReader::texts(const char* key, std::vector<std::string>& out) {
  const json* value = take(key);
  if (value == nullptr) return *this;
  const bool all =
      value->is_array() && std::all_of(value->begin(), value->end(), [](const json& v) { return v.is_string(); });
  if (!all) return problem(key, "must be a list of texts", "write [ \"...\", ... ]"), *this;
  out = value->get<std::vector<std::string>>();
  return *this;
}

ObjectReader& ObjectReader::integers(const char* key, std::vector<std::int64_t>& out, IntegerRange range) {
  const json* value = take(key);
  if (value == nullptr) return *this;
  const bool good =
      value->is_array() && std::all_of(value->begin(), value->end(), [&](const json& x) {
        return x.is_number_integer() && x.get<std::int64_t>() >= range.min && x.get<std::int64_t>() <= range.max;
      });
  if (good) {
    out = value->get<std::vector<std::int64_t>>();
  } else {
    problem(key, fmt::format("must be a list of whole numbers from {} to {}", range.min, range.max), "write [ ... ]");
  }
  return *this;
}

bool ObjectReader::take_choice(const char* key, std::string& word, const std::vector<std::string>& names) {
  const json* value = take(key);
  if (value == nullptr) return false;
  if (value->is_string()) word = value->get<std::string>();
  if (value->is_string() && std::find(names.begin(), names.end(), word) != names.end()) return true;
  const std::optional<std::string> guess = did_you_mean(word, names);
  problem(key, fmt::format("must be one of {}", fmt::join(names, ", ")),
          guess ? fmt::format("did you mean \"{}\"?", *guess) : std::string("choose one"));
  return false;
}

ObjectReader& ObjectReader::object(const char* key, const std::function<void(ObjectReader&)>& read) {
  const json* value = take(key);
  if (value == nullptr) return *this;
  ObjectReader inner(*value, file_, path_of(key), problems_);
  if (inner.object_ == nullptr) return *this;
  read(inner);
  inner.finish();
  return *this;
}

ObjectReader& ObjectReader::objects(const char* key, const std::function<void(ObjectReader&)>& read) {
  const json* value = take(key);
  if (value == nullptr) return *this;
  if (!value->is_array()) {
    problem(key, "must be a list", "write [ { ... }, ... ]");
    return *this;
  }
  for (std::size_t i = 0; i < value->size() && problems_.size() <= kMaxProblems; ++i) {
    ObjectReader inner((*value)[i], file_, fmt::format("{}[{}]", path_of(key), i), problems_);
    if (inner.object_ == nullptr) continue;
    read(inner);
    inner.finish();
  }
  return *this;
}

void ObjectReader::ignore_the_rest() {
  if (object_ == nullptr) return;
  for (const auto& [key, value] : object_->items()) known_.push_back(key);
}

void ObjectReader::finish() {
  if (object_ == nullptr) return;
  for (const auto& [key, value] : object_->items()) {
    if (problems_.size() > kMaxProblems) return;
    if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
    std::optional<std::string> guess = name_here(key, known_);
    if (!guess) guess = did_you_mean(key, known_);
    problem(
        key, "is not a key that is known here",
        guess ? fmt::format("did you mean \"{}\"?", *guess) : fmt::format("known keys: {}", fmt::join(known_, ", ")));
  }
}

void RuleChecker::expect(bool holds, const std::string& key, const std::string& value, std::string rule,
                         std::string fix, ProblemKind kind) {
  if (holds) return;
  add_problem(problems_, {"", key.empty() ? path_ : path_ + "." + key, value, std::move(rule), std::move(fix), kind});
}

void RuleChecker::expect_positive(std::initializer_list<std::pair<const char*, std::int64_t>> counts) {
  for (const auto& [key, count] : counts)
    expect(count >= 1, key, std::to_string(count), "must be at least 1", "give a positive count");
}

}  // namespace trainyard
