#include "models/published/published_set.h"

#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "models/spec/json_reader.h"

namespace trainyard {

namespace {

using nlohmann::json;

void add_row(const json& row, const std::string& file, const std::string& path, PublishedSet& set, Problems& problems) {
  if (!row.is_object()) {
    add_problem(problems, {file, path, shown(row), "must be an object: one measured run", "correct or remove it"});
    return;
  }
  ++set.rows;
  auto read = published_run(row, file, path, problems);
  if (auto* run = std::get_if<PublishedRun>(&read)) {
    set.runs.push_back(std::move(*run));
    return;
  }
  const auto text = [&](const char* key) {
    return row.contains(key) && row[key].is_string() ? row[key].get<std::string>() : "";
  };
  set.skipped.push_back({text("id"), text("source"), std::get<std::string>(read)});
}

void add_rows(const json& rows, const json& common, const std::string& file, const std::string& path, PublishedSet& set,
              Problems& problems) {
  if (!rows.is_array()) {
    add_problem(problems, {file, path, shown(rows), "must be a list of rows", "see models/published/published_set.h"});
    return;
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    json row = common;
    if (rows[i].is_object())
      row.update(rows[i]);
    else
      row = rows[i];
    add_row(row, file, fmt::format("{}[{}]", path, i), set, problems);
  }
}

}  // namespace

Result<PublishedSet> load_published_set(const std::string& file) {
  const Result<json> read = read_json_file(file);
  if (!read) return read.problems();
  const json& value = read.value();
  PublishedSet set;
  Problems problems;
  if (!value.is_object()) {
    add_rows(value, json::object(), file, "$", set, problems);
  } else if (const auto groups = value.find("groups"); groups != value.end() && groups->is_array()) {
    for (std::size_t g = 0; g < groups->size(); ++g) {
      const json& group = (*groups)[g];
      const std::string path = fmt::format("$.groups[{}]", g);
      const json common = group.is_object() ? group.value("common", json::object()) : json::object();
      const json rows = group.is_object() ? group.value("rows", json()) : json();
      add_rows(rows, common.is_object() ? common : json::object(), file, path + ".rows", set, problems);
    }
  } else {
    problems.push_back(
        {file, "$", "", "must be a list of rows, or have groups of them", "see models/published/published_set.h"});
  }
  if (!problems.empty()) return problems;
  return set;
}

}  // namespace trainyard
