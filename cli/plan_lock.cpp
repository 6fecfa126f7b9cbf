#include "cli/plan_lock.h"

#include <filesystem>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/job_identity.h"
#include "cli/output_file.h"
#include "models/spec/json_reader.h"

namespace trainyard::cli {

namespace {

namespace fs = std::filesystem;
using json = nlohmann::ordered_json;

// With sorted keys, so that only what a profile says counts.
Result<std::string> hash_file(const std::string& file) {
  const Result<nlohmann::json> read = read_json_file(file);
  if (!read) return read.problems();
  return short_hash(read.value().dump());
}

std::string key_of(const std::string& job_file) { return fs::path(job_file).filename().string(); }

json to_json(const LockedPlan& plan) {
  json scenarios = json::array();
  for (const LockedScenario& scenario : plan.scenarios) {
    json row{{"file", scenario.file},
             {"trace_hash", scenario.trace_hash},
             {"seeds", scenario.seeds},
             {"step_time_s", scenario.step_time_s}};
    if (scenario.effective_training_time) row["effective_training_time"] = *scenario.effective_training_time;
    if (scenario.recovery_s) row["recovery_s"] = *scenario.recovery_s;
    scenarios.push_back(row);
  }
  const PlanHashes& hashes = plan.hashes;
  return {{"commit", plan.commit},
          {"date", plan.date},
          {"hashes",
           {{"model", hashes.model},
            {"plan", hashes.plan},
            {"cluster", hashes.cluster},
            {"hardware", hashes.hardware},
            {"stack", hashes.stack},
            {"program", hashes.program}}},
          {"predicted",
           {{"step_time_s", plan.step_time_s},
            {"memory_peak_bytes", plan.memory_peak_bytes},
            {"arena_bytes", plan.arena_bytes}}},
          {"scenarios", scenarios}};
}

void read_entry(ObjectReader& from, LockedPlan& plan) {
  from.require({"hashes", "predicted", "scenarios"});
  from.text("commit", plan.commit).text("date", plan.date);
  from.object("hashes", [&](ObjectReader& hashes) {
    hashes.require({"model", "plan", "cluster", "hardware", "stack", "program"});
    hashes.text("model", plan.hashes.model)
        .text("plan", plan.hashes.plan)
        .text("cluster", plan.hashes.cluster)
        .text("hardware", plan.hashes.hardware)
        .text("stack", plan.hashes.stack)
        .text("program", plan.hashes.program);
  });
  from.object("predicted", [&](ObjectReader& predicted) {
    predicted.require({"step_time_s", "memory_peak_bytes", "arena_bytes"});
    predicted.number("step_time_s", plan.step_time_s)
        .number("memory_peak_bytes", plan.memory_peak_bytes)
        .integers("arena_bytes", plan.arena_bytes);
  });
  from.objects("scenarios", [&](ObjectReader& entry) {
    LockedScenario& scenario = plan.scenarios.emplace_back();
    entry.require({"file"});
    entry.text("file", scenario.file)
        .text("trace_hash", scenario.trace_hash)
        .integer("seeds", scenario.seeds)
        .number("step_time_s", scenario.step_time_s)
        .optional_number("effective_training_time", scenario.effective_training_time)
        .optional_number("recovery_s", scenario.recovery_s);
  });
}

// The whole file, with every job's entry; empty when there is none.
Result<nlohmann::json> read_whole(const std::string& lock_file) {
  std::error_code error;
  if (!fs::exists(lock_file, error)) return nlohmann::json{{"schema", 1}, {"plans", nlohmann::json::object()}};
  Result<nlohmann::json> read = read_json_file(lock_file);
  if (!read) return read;
  if (!read.value().is_object() || !read.value().contains("plans") || !read.value()["plans"].is_object() ||
      read.value().value("schema", nlohmann::json()) != 1)
    return Problem{lock_file, "$.plans", "", "is not a plan lock of schema 1", "remove it, and validate again"};
  return read;
}

}  // namespace

Result<PlanHashes> hash_plan(const Scenario& scenario, const StepProgram& program, const ProfileFiles& profiles) {
  const Result<std::string> hardware = hash_file(profiles.hardware), stack = hash_file(profiles.stack);
  if (!hardware) return hardware.problems();
  if (!stack) return stack.problems();
  const Scenario::Written& written = scenario.written;
  return PlanHashes{
      short_hash(written.model), short_hash(written.plan), short_hash(written.cluster), hardware.value(), stack.value(),
      short_hash(dump(program))};
}

std::string lock_file_of(const std::string& job_file) {
  return (fs::path(job_file).parent_path() / "plan.lock.json").string();
}

Result<std::optional<LockedPlan>> read_lock(const std::string& lock_file, const std::string& job_file) {
  const Result<nlohmann::json> whole = read_whole(lock_file);
  if (!whole) return whole.problems();
  const nlohmann::json& plans = whole.value()["plans"];
  const auto entry = plans.find(key_of(job_file));
  if (entry == plans.end()) return std::optional<LockedPlan>();
  Problems problems;
  LockedPlan plan;
  ObjectReader reader(*entry, lock_file, "$.plans" + path_step(key_of(job_file)), problems);
  read_entry(reader, plan);
  reader.finish();
  if (!problems.empty()) return problems;
  return std::optional<LockedPlan>(std::move(plan));
}

Problems write_lock(const std::string& lock_file, const std::string& job_file, const LockedPlan& plan) {
  const Result<nlohmann::json> whole = read_whole(lock_file);
  if (!whole) return whole.problems();
  json out{{"schema", 1}, {"plans", json::object()}};
  for (const auto& [name, entry] : whole.value()["plans"].items()) out["plans"][name] = entry;
  out["plans"][key_of(job_file)] = to_json(plan);
  return write_output(lock_file, out.dump(2) + "\n");
}

Problems changed_since(const LockedPlan& lock, const PlanHashes& now, const std::string& job_file) {
  Problems problems;
  const auto compare = [&](const std::string& was, const std::string& is, const char* path, const char* what) {
    if (was == is) return;
    problems.push_back({job_file, path, is, fmt::format("{} is not the one that was validated, {}", what, was),
                        "validate it again with trainyard plan validate, or pass --unvalidated"});
  };
  compare(lock.hashes.model, now.model, "$.model", "the model");
  compare(lock.hashes.plan, now.plan, "$.plan", "the plan");
  if (problems.empty())  // by another version of this program
    compare(lock.hashes.program, now.program, "$", "the step program");
  return problems;
}

std::vector<std::string> drift_since(const LockedPlan& lock, const PlanHashes& now) {
  std::vector<std::string> out;
  const auto compare = [&](const std::string& was, const std::string& is, const char* what) {
    if (was != is) out.push_back(fmt::format("{} has changed since the plan was validated on {}", what, lock.date));
  };
  compare(lock.hashes.cluster, now.cluster, "the cluster");
  compare(lock.hashes.hardware, now.hardware, "the hardware profile");
  compare(lock.hashes.stack, now.stack, "the stack profile");
  return out;
}

}  // namespace trainyard::cli
