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
// The run simulation works on each failure. A week of 100,000 GPUs has hundreds: more than this is a slip of the pen.
constexpr double kMaxExpectedFailures = 1e6;

void expect_schema(ObjectReader& from) {
  std::int64_t schema = kSchema;
  from.require({"schema"});
  from.integer("schema", schema, {kSchema, kSchema});
}

// Where part of a value was written.
struct Layer {
  json written;
  std::string file;
  std::string path;
};

// Whether `suffix` (".tiers[0].name") leads to something that `value` itself says: a change lays its keys over the
// base one by one, and everything else it replaces whole.
bool says(const json* value, std::string_view suffix) {
  while (!suffix.empty()) {
    if (!value->is_object()) return true;
    if (suffix.front() != '.') return false;
    const std::size_t end = suffix.find_first_of(".[", 1);
    const auto member = value->find(suffix.substr(1, end == std::string_view::npos ? end : end - 1));
    if (member == value->end()) return false;
    value = &*member;
    suffix = end == std::string_view::npos ? std::string_view() : suffix.substr(end);
  }
  return true;
}

// A JSON value together with where it was written: one layer, or changes upon changes of a base, outermost first.
struct Source {
  json value;
  std::vector<Layer> layers;
  bool whole_file = false;  // then it must carry "schema"

  /// Names the layer that the problem's place under the outermost path comes from.
  void locate(Problem& problem) const {
    const std::string& prefix = layers.front().path;
    if (problem.path.compare(0, prefix.size(), prefix) != 0) return;
    const std::string suffix = problem.path.substr(prefix.size());
    const auto by = std::find_if(layers.begin(), layers.end() - 1,
                                 [&](const Layer& layer) { return says(&layer.written, suffix); });
    problem.file = by->file;
    problem.path = by->path + suffix;
  }
};

// Follows references: a text names a file; an object with "base" changes keys of another file.
class Resolver {
 public:
  explicit Resolver(Problems& problems) : problems_(problems) {}

  std::optional<Source> resolve(const json& value, const std::string& file, const std::string& path) {
    if (value.is_string()) return load(value.get<std::string>(), file, path);
    if (value.is_object() && value.contains("base")) return patched(value, file, path);
    return Source{value, {{value, file, path}}, false};
  }

  // A whole file, already read.
  std::optional<Source> resolve_file(const json& value, const std::string& file) {
    std::optional<Source> result = Source{value, {{value, file, "$"}}, true};
    if (!value.is_object() || !value.contains("base")) return result;
    if (!value.contains("schema"))
      add_problem(problems_, {file, "$.schema", "", "is missing", "add \"schema\": 1, also where there is a base"});
    open_.push_back(fs::path(file).lexically_normal().string());
    result = patched(value, file, "$");
    open_.pop_back();
    return result;
  }

 private:
  std::optional<Source> load(const std::string& name, const std::string& from, const std::string& path) {
    const std::string target = (fs::path(from).parent_path() / name).lexically_normal().string();
    if (std::find(open_.begin(), open_.end(), target) != open_.end() ||
        target == fs::path(from).lexically_normal().string()) {
      add_problem(problems_,
                  {from, path, shown(name), "refers to itself in a circle", "break the circle of \"base\" references"});
      return std::nullopt;
    }
    Result<json> read = read_json_file(target);
    if (!read) {
      for (Problem problem : read.problems()) {
        problem.rule = fmt::format("{} (named by {} of {})", problem.rule, path, from);
        add_problem(problems_, std::move(problem));
      }
      return std::nullopt;
    }
    return resolve_file(read.value(), target);
  }

  std::optional<Source> patched(const json& value, const std::string& file, const std::string& path) {
    if (!value["base"].is_string()) {
      add_problem(problems_,
                  {file, path + ".base", shown(value["base"]), "must be the name of a file", "write it in quotes"});
      return std::nullopt;
    }
    std::optional<Source> base = load(value["base"].get<std::string>(), file, path + ".base");
    if (!base) return std::nullopt;
    json changes = value;
    changes.erase("base");
    base->value.merge_patch(changes);  // RFC 7396
    base->layers.insert(base->layers.begin(), Layer{std::move(changes), file, path});
    return base;
  }

  Problems& problems_;
  std::vector<std::string> open_;
};

void append_located(Problems& to, Problems from, const Source& source) {
  for (Problem& problem : from) {
    source.locate(problem);
    add_problem(to, std::move(problem));
  }
}

template <class Spec>
Spec read_spec(const Source& source, void (*read)(ObjectReader&, Spec&), Problems& problems) {
  Spec spec;
  Problems found;
  ObjectReader reader(source.value, source.layers.front().file, source.layers.front().path, found);
  if (source.whole_file) expect_schema(reader);
  if (source.value.is_object()) read(reader, spec);
  reader.finish();
  append_located(problems, std::move(found), source);
  return spec;
}

class ScenarioReader {
 public:
  ScenarioReader(const json& value, const std::string& file, const OtherPolicies* policies = nullptr)
      : value_(value), file_(file), other_policies_(policies), resolver_(problems_) {}

  Result<Scenario> read() {
    ObjectReader from(value_, file_, "$", problems_);
    expect_schema(from);
    if (from.has("base")) {
      from.take("base");
      from.problem("base", "a scenario cannot be based on another; its model, plan, cluster, faults and policies can",
                   "copy the scenario, and write { \"base\": \"FILE\", ... } for the part that changes");
    }
    from.require({"name", "model", "plan", "cluster"});
    from.text("name", out_.name)
        .text("description", out_.description)
        .unsigned_integer("seed", out_.seed)
        .text("stack", out_.stack);
    if (from.has("stack") && !is_profile_name(out_.stack))
      from.problem("stack", "must be the name of a profile, not a path",
                   "use one of scenarios/profiles/stack-<name>.json");
    double days = 0;
    from.number("duration_days", days, {0, 11574}).number("duration_s", out_.duration_s, {0, 1e9});
    if (from.has("duration_days") && from.has("duration_s"))
      from.problem("duration_s", "is given together with duration_days", "keep one of them");
    if (from.has("duration_days")) out_.duration_s = days * 86400;

    part(from, "model", read_model, out_.model, model_);
    part(from, "plan", read_plan, out_.plan, plan_);
    part(from, "cluster", read_cluster, out_.cluster, cluster_);
    part(from, "faults", read_faults, out_.faults, faults_);
    policies(from);
    training(from);
    validation(from);
    from.finish();
    // Rules between values make sense only once every value is readable.
    if (problems_.empty()) validate_all();
    if (!problems_.empty()) return problems_;
    out_.written = {written(model_), written(plan_), written(cluster_), written(faults_), {}};
    for (const Source& policy : policies_) out_.written.policies.push_back(written(policy));
    return out_;
  }

 private:
  static std::string written(const std::optional<Source>& source) {
    json value = source ? source->value : json::object();
    value.erase("schema");  // which only files have
    return value.dump();
  }

  template <class Spec>
  void part(ObjectReader& from, const char* key, void (*reader)(ObjectReader&, Spec&), Spec& spec,
            std::optional<Source>& source) {
    const json* value = from.take(key);
    if (value == nullptr) return;
    source = resolver_.resolve(*value, file_, from.path_of(key));
    if (source) spec = read_spec(*source, reader, problems_);
  }

  void policies(ObjectReader& from) {
    const json* list = from.take("policies");
    if (other_policies_ != nullptr) {
      const json other = json::parse(other_policies_->list);
      return read_policies(other, other_policies_->file, other_policies_->path);
    }
    if (list == nullptr) return;
    if (!list->is_array()) return from.problem("policies", "must be a list", "write [ ... ]");
    read_policies(*list, file_, from.path_of("policies"));
  }

  void read_policies(const json& list, const std::string& file, const std::string& path) {
    for (std::size_t i = 0; i < list.size() && problems_.size() <= kMaxProblems; ++i) {
      std::optional<Source> source = resolver_.resolve(list[i], file, fmt::format("{}[{}]", path, i));
      if (!source) continue;
      out_.policies.push_back(read_spec(*source, read_policy, problems_));
      policies_.push_back(std::move(*source));
    }
  }

  void training(ObjectReader& from) {
    if (!from.has("training")) return;
    std::optional<Source> source;
    part(from, "training", read_training, out_.training.emplace(), source);
    if (!source) return;
    for (std::string* path : {&out_.training->data, &out_.training->checkpoint.folder}) seen_from_here(*path, *source);
  }

  void validation(ObjectReader& from) {
    std::optional<Source> source;
    part(from, "validation", read_validation, out_.validation, source);
    for (std::string& path : out_.validation.scenarios) seen_from_here(path, *source);
  }

  // A path that is written as seen from its file.
  static void seen_from_here(std::string& path, const Source& source) {
    if (path.empty()) return;
    const fs::path folder = fs::path(source.layers.back().file).parent_path();
    path = (folder / path).lexically_normal().string();
  }

  // The rules of one part, each problem told where it was written.
  void append(Problems found, const std::optional<Source>& source) {
    if (source) append_located(problems_, std::move(found), *source);
  }

  static std::string path_of(const std::optional<Source>& source) { return source ? source->layers.front().path : "$"; }

  void validate_all() {
    append(validate(out_.model, path_of(model_)), model_);
    append(validate(out_.cluster, path_of(cluster_)), cluster_);
    append(validate(out_.faults, path_of(faults_)), faults_);
    if (problems_.empty()) append(validate(out_.plan, out_.model, &out_.cluster, path_of(plan_)), plan_);
    for (std::size_t i = 0; i < out_.policies.size(); ++i)
      append_located(problems_, validate(out_.policies[i], policies_[i].layers.front().path), policies_[i]);
    if (problems_.empty()) spares_fit();
    if (problems_.empty()) injected_faults_hit_something();
    if (problems_.empty()) trace_covers_the_run();
    if (problems_.empty()) whole_run();
  }

  std::int64_t job_nodes() const {
    return (out_.plan.ranks() + out_.cluster.gpus_per_node - 1) / out_.cluster.gpus_per_node;
  }

  void spares_fit() {
    const std::int64_t job_nodes = this->job_nodes();
    for (std::size_t i = 0; i < out_.policies.size(); ++i) {
      RuleChecker rule(policies_[i].layers.front().path);
      const std::int64_t spares = out_.policies[i].spare_nodes;
      rule.expect(job_nodes + spares <= out_.cluster.nodes, "spare_nodes", std::to_string(spares),
                  fmt::format("with the job's {} nodes exceeds the cluster's {}", job_nodes, out_.cluster.nodes),
                  fmt::format("keep at most {} spares", out_.cluster.nodes - job_nodes));
      append_located(problems_, rule.take(), policies_[i]);
    }
  }

  void injected_faults_hit_something() {
    RuleChecker rule(path_of(faults_));
    for (std::size_t i = 0; i < out_.faults.injected.size(); ++i) {
      const InjectedFault& fault = out_.faults.injected[i];
      rule.expect(fault.node < out_.cluster.nodes, fmt::format("injected[{}].node", i), std::to_string(fault.node),
                  fmt::format("is not one of the cluster's {} nodes (counted from 0)", out_.cluster.nodes),
                  "name a node that exists");
      rule.expect(fault.device < out_.cluster.gpus_per_node, fmt::format("injected[{}].device", i),
                  std::to_string(fault.device),
                  fmt::format("is not one of a node's {} devices (counted from 0)", out_.cluster.gpus_per_node),
                  "name a device that exists");
    }
    if (rule.ok()) injected_faults_strike_the_job(rule);
    append(rule.take(), faults_);
  }

  // A fault that could change nothing is a slip.
  void injected_faults_strike_the_job(RuleChecker& rule) const {
    const bool only_step = out_.duration_s == 0;
    std::int64_t held = job_nodes();
    for (std::size_t i = 0; i < out_.policies.size() && !only_step; ++i)
      held = i == 0 ? job_nodes() + out_.policies[i].spare_nodes
                    : std::min(held, job_nodes() + out_.policies[i].spare_nodes);
    for (std::size_t i = 0; i < out_.faults.injected.size(); ++i) {
      const InjectedFault& fault = out_.faults.injected[i];
      rule.expect(
          fault.node < held, fmt::format("injected[{}].node", i), std::to_string(fault.node),
          fmt::format("{} nodes 0 to {}", only_step ? "the job holds" : "the run holds, spares included,", held - 1),
          "strike one of them");
      rule.expect(!only_step || fault.kind != InjectedKind::NodeCrash,
                  fmt::format("injected[{}].{}", i, fault.mode ? "mode" : "kind"),
                  fault.mode ? to_string(*fault.mode) : "node_crash",
                  "is nothing that happens within a step, and this scenario simulates one step only",
                  "give duration_s and a recovery policy");
      rule.expect(only_step || fault.at_s < out_.duration_s, fmt::format("injected[{}].at_s", i),
                  fmt::format("{:g}", fault.at_s),
                  fmt::format("strikes after the run has ended, at {:g} s", out_.duration_s),
                  "strike earlier, or run longer");
    }
  }

  // Nodes or days that a trace knows nothing of would be faultless.
  void trace_covers_the_run() {
    if (out_.faults.generator.kind != GeneratorKind::Trace) return;
    const FaultTrace& trace = out_.faults.generator.trace;
    std::int64_t held = job_nodes();
    for (const PolicySpec& policy : out_.policies) held = std::max(held, job_nodes() + policy.spare_nodes);
    RuleChecker rule(path_of(faults_));
    rule.expect(held <= trace.nodes, "generator.nodes", std::to_string(trace.nodes),
                fmt::format("the run holds {} nodes, spares included, and node i of it is node i of the trace", held),
                "run a smaller job, or use a fleet generator");
    rule.expect(out_.duration_s <= trace.days * 86400, "generator.days", fmt::format("{:g}", trace.days),
                fmt::format("the run lasts {:g} days, longer than the trace", out_.duration_s / 86400),
                "shorten the run, or use a fleet generator");
    append(rule.take(), faults_);
  }

  void whole_run() {
    RuleChecker rule("$");
    rule.expect(out_.duration_s == 0 || !out_.policies.empty(), "policies", "[]",
                "a run over time needs a recovery policy", "add one from scenarios/policies, or remove the duration");
    for (std::size_t i = 0; i < out_.policies.size(); ++i) {
      const auto same = [&](const PolicySpec& other) { return other.name == out_.policies[i].name; };
      rule.expect(std::find_if(out_.policies.begin(), out_.policies.end(), same) ==
                      out_.policies.begin() + static_cast<std::ptrdiff_t>(i),
                  fmt::format("policies[{}].name", i), out_.policies[i].name, "names a policy that came before",
                  "give each policy a name of its own, as in { \"base\": \"...\", \"name\": \"other\" }");
    }
    const double gpu_hours = static_cast<double>(out_.cluster.gpus()) * out_.duration_s / 3600;
    const double node_days = static_cast<double>(out_.cluster.nodes) * out_.duration_s / 86400;
    const double failures =
        out_.faults.total_rate_per_gpu_hour() * gpu_hours + out_.faults.generator.faults_per_node_day() * node_days;
    rule.expect(failures <= kMaxExpectedFailures, "faults", fmt::format("{:.3g} failures", failures),
                fmt::format("more than {:g} failures are expected in this run, each of which is simulated",
                            kMaxExpectedFailures),
                "shorten the run or lower the rates");
    for (Problem& problem : rule.take()) {
      problem.file = file_;
      add_problem(problems_, std::move(problem));
    }
  }

  const json& value_;
  const std::string& file_;
  const OtherPolicies* other_policies_;
  Problems problems_;
  Resolver resolver_;
  Scenario out_;
  std::optional<Source> model_, plan_, cluster_, faults_;
  std::vector<Source> policies_;
};

template <class Spec>
Result<Spec> load_spec(const std::string& file, void (*read)(ObjectReader&, Spec&)) {
  const Result<json> text = read_json_file(file);
  if (!text) return text.problems();
  Problems problems;
  const std::optional<Source> source = Resolver(problems).resolve_file(text.value(), file);
  if (!source) return problems;
  Spec spec = read_spec(*source, read, problems);
  if (problems.empty()) append_located(problems, validate(spec, "$"), *source);
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

Result<Scenario> load_scenario(const std::string& file, const OtherPolicies& policies) {
  Result<json> read = read_json_file(file);
  if (!read) return read.problems();
  return ScenarioReader(read.value(), file, &policies).read();
}

Result<ModelSpec> load_model(const std::string& file) { return load_spec(file, read_model); }
Result<ClusterSpec> load_cluster(const std::string& file) { return load_spec(file, read_cluster); }

}  // namespace trainyard
