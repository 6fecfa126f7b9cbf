// Every file that we ship loads, and says what its source says.
#include <catch2/catch.hpp>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>

#include "models/spec/sweep_spec.h"
#include "tests/spec/broken.h"
#include "tests/store/temp_dir.h"

using namespace trainyard;
using namespace trainyard::testing;

namespace {

// Files of a folder under scenarios/, and of the folders in it.
std::vector<std::string> files_in(const std::string& folder) {
  std::vector<std::string> out;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(kScenarios + folder)) {
    if (entry.path().extension() == ".json") out.push_back(entry.path().string());
  }
  std::sort(out.begin(), out.end());
  return out;
}

// Folders of parts, which a scenario names, and of sweeps, which name a scenario; all other files are scenarios.
const std::set<std::string> kParts{"models",   "plans",    "clusters", "faults",
                                   "policies", "profiles", "sweeps",   "measured"};

std::string all(const Problems& problems) {
  std::string text;
  for (const Problem& problem : problems) text += to_string(problem) + "\n";
  return text;
}

template <class Spec>
Spec loaded(Result<Spec> result) {
  if (!result) FAIL(all(result.problems()));
  return std::move(result).value();
}

}  // namespace

TEST_CASE("every shipped scenario loads") {
  int scenarios = 0;
  for (const std::string& file : files_in("")) {
    const std::filesystem::path path = std::filesystem::relative(file, kScenarios);
    if (kParts.count(path.begin()->string()) > 0 || path.filename() == "plan.lock.json") continue;
    INFO(file);
    const Result<Scenario> scenario = load_scenario(file);
    if (!scenario) FAIL(all(scenario.problems()));
    CHECK(scenario.value().name == path.stem().string());
    ++scenarios;
  }
  CHECK(scenarios >= 14);
}

TEST_CASE("every shipped sweep makes its variations") {
  for (const std::string& file : files_in("sweeps")) {
    INFO(file);
    CHECK(loaded(expand(loaded(load_sweep(file)))).variations.size() > 1);
  }
}

TEST_CASE("every shipped model and cluster loads") {
  for (const std::string& file : files_in("models")) loaded(load_model(file));
  for (const std::string& file : files_in("clusters")) loaded(load_cluster(file));
}

TEST_CASE("every shipped plan and policy is named by a shipped scenario, and so loads") {
  std::string scenarios;
  for (const std::string& file : files_in("")) {
    if (kParts.count(std::filesystem::relative(file, kScenarios).begin()->string()) == 0) scenarios += read_file(file);
  }
  for (const std::string folder : {"plans", "policies"}) {
    for (const std::string& file : files_in(folder)) {
      const std::string name = folder + "/" + std::filesystem::path(file).filename().string();
      INFO(name);
      CHECK(scenarios.find(name) != std::string::npos);
    }
  }
}

TEST_CASE("every shipped fault table loads, and has something that strikes") {
  for (const std::string& file : files_in("faults")) {
    const std::string name = std::filesystem::path(file).filename().string();
    INFO(name);
    const FaultSpec faults = loaded(parse_scenario(R"({ "schema": 1, "name": "s", "model": "models/tiny-llama.json",
                                   "plan": { "sequence_length": 16, "global_batch_size": 1 },
                                   "cluster": "clusters/two-racks.json", "faults": "faults/)" +
                                                       name + R"(" })",
                                                   kScenarios + "test.json"))
                                 .faults;
    CHECK(faults.total_rate_per_gpu_hour() + faults.generator.faults_per_node_day() > 0);
  }
}

TEST_CASE("parameter counts are the published ones") {
  const auto count = [](const char* name) {
    return parameter_count(loaded(load_model(kScenarios + "models/" + name)));
  };
  CHECK(count("grok-1.json") == 315684820992);
  CHECK(count("llama3-8b.json") == 8030261248);      // Hugging Face, meta-llama/Meta-Llama-3-8B
  CHECK(count("llama3-70b.json") == 70553706496);    // meta-llama/Meta-Llama-3-70B
  CHECK(count("llama3-405b.json") == 405853388800);  // meta-llama/Llama-3.1-405B
  CHECK(count("mixtral-8x7b.json") == 46702792704);  // mistralai/Mixtral-8x7B-v0.1
  CHECK(static_cast<double>(count("gpt3-175b.json")) == Approx(175e9).epsilon(0.005));
  CHECK(static_cast<double>(active_parameter_count(loaded(load_model(kScenarios + "models/grok-1.json")))) ==
        Approx(83.8e9).epsilon(0.001));
}

TEST_CASE("FLOPs per token follow the two published conventions") {
  // Derived figures of NVIDIA dgxc-benchmarking 24.11 (Grok-1, 8k) and of Llama 3 Table 4.
  const ModelSpec grok = loaded(load_model(kScenarios + "models/grok-1.json"));
  CHECK(model_flops_per_token(grok, 8192, false) == Approx(541.166e9).epsilon(1e-3));
  CHECK(model_flops_per_token(grok, 8192, true) == Approx(521.839e9).epsilon(1e-3));
  const ModelSpec llama = loaded(load_model(kScenarios + "models/llama3-405b.json"));
  CHECK(model_flops_per_token(llama, 8192, false) == Approx(2625.42e9).epsilon(1e-3));
  CHECK(model_flops_per_token(llama, 8192, true) == Approx(2523.96e9).epsilon(1e-3));
}

TEST_CASE("Llama 3's fault table adds up to its 419 interruptions") {
  const Scenario scenario = loaded(load_scenario(kScenarios + "02-llama3-405b-54-days.json"));
  CHECK(scenario.faults.total_rate_per_gpu_hour() * 21233664 == Approx(419));
  CHECK(scenario.plan.ranks() == 16384);
}

TEST_CASE("the policies take half an hour, ninety seconds, and fifty, lost work aside") {
  const Scenario scenario = loaded(load_scenario(kScenarios + "01-grok1-100k-week.json"));
  REQUIRE(scenario.policies.size() == 3);
  CHECK(scenario.policies[0].recovery_s() == 90);
  CHECK(scenario.policies[1].recovery_s() == 1800);
  CHECK(scenario.policies[2].recovery_s() == 50);
}

TEST_CASE("every key that is read is documented") {
  const std::string root = TRAINYARD_SOURCE_DIR;
  const auto text_of = [&](const std::string& file) {
    std::ifstream in(root + file);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  const std::string keys = text_of("/scenarios/KEYS.md"),
                    readers = text_of("/models/spec/spec_readers.cpp") + text_of("/models/spec/fault_reader.cpp");
  const std::regex read(
      "[.>](text|integer|integers|number|optional_number|boolean|object|objects|take|choice<[^(]*>)"
      "\\(\\s*\"([a-z0-9_]+)\"");
  int found = 0;
  for (std::sregex_iterator it(readers.begin(), readers.end(), read), end; it != end; ++it, ++found) {
    INFO((*it)[2]);
    CHECK(keys.find("`" + (*it)[2].str() + "`") != std::string::npos);
  }
  CHECK(found > 80);
}
