#include "models/spec/scenario.h"

#include <algorithm>
#include <filesystem>

#include <fmt/format.h>

#include "models/spec/spec_readers.h"

namespace trainyard {

namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr std::int64_t kSchema = 1;

void expect_schema(ObjectReader& from) {
  std::int64_t schema = kSchema;
  from.require({"schema"});
  from.integer("schema", schema, {kSchema, kSchema});
}

// A JSON value together with the file that it was written in.
struct Source {
  json value;
  std::string file;
  std::string path;
  bool whole_file = false;  // then it must carry "schema"
};

// Follows references: a text names a file; an object with "base" changes keys of another file.
class Resolver {
 public:
  explicit Resolver(Problems& problems) : problems_(problems) {}

  std::optional<Source> resolve(const json& value, const std::string& file, const std::string& path) {
    if (value.is_string()) return load(value.get<std::string>(), file, path);
    if (value.is_object() && value.contains("base")) return patched(value, file, path);
    return Source{value, file, path, false};
  }

 private:
  std::optional<Source> load(const std::string& name, const std::string& from, const std::string& path) {
    const std::string target = (fs::path(from).parent_path() / name).lexically_normal().string();
    if (std::find(open_.begin(), open_.end(), target) != open_.end() ||
        target == fs::path(from).lexically_normal().string()) {
      problems_.push_back(
          {from, path, "\"" + name + "\"", "refers to itself in a circle", "break the circle of \"base\" references"});
      return std::nullopt;
    }
    Result<json> read = read_json_file(target);
    if (!read) {
      for (Problem problem : read.problems()) {
        problem.rule = fmt::format("{} (named by {} of {})", problem.rule, path, from);
        problems_.push_back(std::move(problem));
      }
      return std::nullopt;
    }
    open_.push_back(target);
    json value = std::move(read).value();
    std::optional<Source> result = Source{value, target, "$", true};
    if (value.is_object() && value.contains("base")) result = patched(value, target, "$");
    open_.pop_back();
    if (result) result->whole_file = true;
    return result;
  }

  std::optional<Source> patched(const json& value, const std::string& file, const std::string& path) {
    if (!value["base"].is_string()) {
      problems_.push_back(
          {file, path + ".base", shown(value["base"]), "must be the name of a file", "write it in quotes"});
      return std::nullopt;
    }
    std::optional<Source> base = load(value["base"].get<std::string>(), file, path + ".base");
    if (!base) return std::nullopt;
    json changes = value;
    changes.erase("base");
    base->value.merge_patch(changes);  // RFC 7396
    base->file = file;                 // what is wrong now is most likely a change
    base->path = path;
    return base;
  }

  Problems& problems_;
  std::vector<std::string> open_;
};

template <class Spec>
Spec read_spec(const Source& source, void (*read)(ObjectReader&, Spec&), Problems& problems) {
  Spec spec;
  ObjectReader reader(source.value, source.file, source.path, problems);
  if (source.whole_file) expect_schema(reader);
  if (source.value.is_object()) read(reader, spec);
  reader.finish();
  return spec;
}

void append_in_file(Problems& to, Problems from, const std::string& file) {
  for (Problem& problem : from) {
    problem.file = file;
    to.push_back(std::move(problem));
  }
}

class ScenarioReader {
 public:
  ScenarioReader(const json& value, const std::string& file) : value_(value), file_(file), resolver_(problems_) {}

  Result<Scenario> read() {
    ObjectReader from(value_, file_, "$", problems_);
    expect_schema(from);
    from.require({"name", "model", "plan", "cluster"});
    from.text("name", out_.name)
        .text("description", out_.description)
        .unsigned_integer("seed", out_.seed)
        .text("stack", out_.stack);
    double days = 0;
    from.number("duration_days", days, {0, 36500}).number("duration_s", out_.duration_s, {0, 3.2e9});
    if (from.has("duration_days") && from.has("duration_s"))
      from.problem("duration_s", "is given together with duration_days", "keep one of them");
    if (from.has("duration_days")) out_.duration_s = days * 86400;

    part(from, "model", read_model, out_.model, model_);
    part(from, "plan", read_plan, out_.plan, plan_);
    part(from, "cluster", read_cluster, out_.cluster, cluster_);
    part(from, "faults", read_faults, out_.faults, faults_);
    policies(from);
    from.finish();
    // Rules between values make sense only once every value is readable.
    if (problems_.empty()) validate_all();
    if (!problems_.empty()) return problems_;
    return out_;
  }

 private:
  struct Place {
    std::string file, path;
  };

  template <class Spec>
  void part(ObjectReader& from, const char* key, void (*reader)(ObjectReader&, Spec&), Spec& spec, Place& place) {
    const json* value = from.take(key);
    place = {file_, from.path_of(key)};
    if (value == nullptr) return;
    const std::optional<Source> source = resolver_.resolve(*value, file_, from.path_of(key));
    if (!source) return;
    place = {source->file, source->path};
    spec = read_spec(*source, reader, problems_);
  }

  void policies(ObjectReader& from) {
    const json* list = from.take("policies");
    if (list == nullptr) return;
    if (!list->is_array()) return from.problem("policies", "must be a list", "write [ ... ]");
    for (std::size_t i = 0; i < list->size(); ++i) {
      const std::string path = fmt::format("{}[{}]", from.path_of("policies"), i);
      const std::optional<Source> source = resolver_.resolve((*list)[i], file_, path);
      if (!source) continue;
      policies_.push_back({source->file, source->path});
      out_.policies.push_back(read_spec(*source, read_policy, problems_));
    }
  }

  void validate_all() {
    append_in_file(problems_, validate(out_.model, model_.path), model_.file);
    append_in_file(problems_, validate(out_.cluster, cluster_.path), cluster_.file);
    append_in_file(problems_, validate(out_.faults, faults_.path), faults_.file);
    if (problems_.empty())
      append_in_file(problems_, validate(out_.plan, out_.model, &out_.cluster, plan_.path), plan_.file);
    for (std::size_t i = 0; i < out_.policies.size(); ++i) {
      append_in_file(problems_, validate(out_.policies[i], policies_[i].path), policies_[i].file);
    }
    if (problems_.empty()) cross_rules();
  }

  void cross_rules() {
    RuleChecker rule("$");
    const std::int64_t gpus_per_node = out_.cluster.gpus_per_node;
    const std::int64_t job_nodes = (out_.plan.ranks() + gpus_per_node - 1) / gpus_per_node;
    for (std::size_t i = 0; i < out_.policies.size(); ++i) {
      const std::int64_t spares = out_.policies[i].spare_nodes;
      rule.expect(job_nodes + spares <= out_.cluster.nodes, fmt::format("policies[{}].spare_nodes", i),
                  std::to_string(spares),
                  fmt::format("with the job's {} nodes exceeds the cluster's {}", job_nodes, out_.cluster.nodes),
                  fmt::format("keep at most {} spares", out_.cluster.nodes - job_nodes));
    }
    rule.expect(out_.duration_s == 0 || !out_.policies.empty(), "policies", "[]",
                "a run over time needs a recovery policy", "add one from scenarios/policies, or remove the duration");
    for (std::size_t i = 0; i < out_.faults.injected.size(); ++i) {
      const InjectedFault& fault = out_.faults.injected[i];
      rule.expect(fault.node < out_.cluster.nodes, fmt::format("faults.injected[{}].node", i),
                  std::to_string(fault.node),
                  fmt::format("is not one of the cluster's {} nodes (counted from 0)", out_.cluster.nodes),
                  "name a node that exists");
      rule.expect(fault.device < gpus_per_node, fmt::format("faults.injected[{}].device", i),
                  std::to_string(fault.device),
                  fmt::format("is not one of a node's {} devices (counted from 0)", gpus_per_node),
                  "name a device that exists");
    }
    append_in_file(problems_, rule.take(), file_);
  }

  const json& value_;
  const std::string& file_;
  Problems problems_;
  Resolver resolver_;
  Scenario out_;
  Place model_, plan_, cluster_, faults_;
  std::vector<Place> policies_;
};

template <class Spec>
Result<Spec> load_spec(const std::string& file, void (*read)(ObjectReader&, Spec&)) {
  const Result<json> text = read_json_file(file);
  if (!text) return text.problems();
  Problems problems;
  std::optional<Source> source = Source{text.value(), file, "$", true};
  if (text.value().is_object()) source = Resolver(problems).resolve(text.value(), file, "$");
  if (!source) return problems;
  source->whole_file = true;
  Spec spec = read_spec(*source, read, problems);
  if (problems.empty()) append_in_file(problems, validate(spec, "$"), source->file);
  if (!problems.empty()) return problems;
  return spec;
}

}  // namespace

Result<Scenario> parse_scenario(std::string_view text, const std::string& file) {
  Result<json> parsed = parse_json(text, file);
  if (!parsed) return parsed.problems();
  return ScenarioReader(parsed.value(), file).read();
}

Result<Scenario> load_scenario(const std::string& file) {
  Result<json> read = read_json_file(file);
  if (!read) return read.problems();
  return ScenarioReader(read.value(), file).read();
}

Result<ModelSpec> load_model(const std::string& file) { return load_spec(file, read_model); }
Result<ClusterSpec> load_cluster(const std::string& file) { return load_spec(file, read_cluster); }

}  // namespace trainyard
