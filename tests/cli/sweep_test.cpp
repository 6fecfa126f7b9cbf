// Sweeps as a user runs them: paired seeds, interruptions, shards, comparisons, mistakes.
#include <catch2/catch.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/cli/yard.h"
#include "tests/sanitized.h"

using namespace trainyard::test;

namespace {

const std::string kScenario = TRAINYARD_SOURCE_DIR "/scenarios/tiny/grok1-a-day.json";
const std::string kFast = TRAINYARD_SOURCE_DIR "/scenarios/policies/grok-90s.json";

// An environment variable, for the time of a test.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { ::setenv(name, value, 1); }
  ~Variable() { ::unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
};

// All cells, one a line, by variation and seed.
std::string cells_of(const Yard& yard, const std::string& more = "") {
  const Outcome outcome = yard.run("run export latest --format csv " + more);
  REQUIRE(outcome.code == 0);
  return outcome.out;
}

// One line of CSV.
std::vector<std::string> fields_of(const std::string& line) {
  std::vector<std::string> out(1);
  bool quoted = false;
  for (const char c : line) {
    if (c == '"')
      quoted = !quoted;
    else if (c == ',' && !quoted)
      out.emplace_back();
    else
      out.back() += c;
  }
  return out;
}

// A column of the CSV: the values of one variation, by seed.
std::vector<std::string> column(const std::string& csv, const std::string& name, const std::string& variation) {
  std::istringstream lines(csv);
  std::string line;
  std::getline(lines, line);
  const std::vector<std::string> header = fields_of(line);
  const auto index = static_cast<std::size_t>(std::find(header.begin(), header.end(), name) - header.begin());
  REQUIRE(index < header.size());
  std::vector<std::string> out;
  while (std::getline(lines, line)) {
    const std::vector<std::string> fields = fields_of(line);
    if (fields[1] == variation) out.push_back(fields[index]);
  }
  return out;
}

std::vector<double> numbers(const std::vector<std::string>& texts) {
  std::vector<double> out;
  for (const std::string& text : texts) out.push_back(std::stod(text));
  return out;
}

std::int64_t stored_cells(const Yard& yard) {
  const Outcome list = yard.run("run list --sweeps --json");
  if (list.code != 0) return 0;
  std::int64_t cells = 0;
  for (const auto& sweep : nlohmann::json::parse(list.out)) cells += sweep["cells"].get<std::int64_t>();
  return cells;
}

constexpr int kManySeeds = trainyard::testing::kSanitized ? 12 : 60;
const std::string kManyCells = "sim sweep " + kScenario + " --seeds " + std::to_string(kManySeeds) + " --jobs 1 ";

// Starts kManyCells and sends the signal once some of its cells are in the store. Returns the status it ends with.
int interrupted_status(const Yard& yard, int signal) {
  const pid_t victim = fork();
  if (victim == 0) {
    if (std::freopen("/dev/null", "w", stdout) == nullptr || std::freopen("/dev/null", "w", stderr) == nullptr)
      _exit(126);
    execl(TRAINYARD_BINARY, TRAINYARD_BINARY, "sim", "sweep", kScenario.c_str(), "--seeds",
          std::to_string(kManySeeds).c_str(), "--jobs", "1", "--store", yard.store().c_str(), nullptr);
    _exit(127);
  }
  for (int i = 0; i < 2000 && stored_cells(yard) < 3; ++i) usleep(5'000);
  kill(victim, signal);
  int status = 0;
  waitpid(victim, &status, 0);
  return status;
}

}  // namespace

TEST_CASE("a cell of a sweep is the run of its seed", "[cli][sweep]") {
  const Yard yard;
  const Outcome swept = yard.run("sim sweep --vary spare_nodes=4 " + kScenario + " --seeds 2 --seed 8 --json -q");
  REQUIRE(swept.code == 0);
  const auto report = nlohmann::json::parse(swept.out);
  CHECK(report["first_seed"] == 8);
  CHECK(report["cells"] == 4);
  const std::string csv = cells_of(yard);
  for (const char* seed : {"8", "9"}) {
    const auto run =
        nlohmann::json::parse(yard.run("sim run " + kScenario + " --json --no-store -q --seed " + seed).out);
    for (const auto& policy : run["policies"]) {
      const std::size_t at = std::string(seed) == "8" ? 0 : 1;
      const std::string name = policy["policy"].get<std::string>() + ",spare_nodes=4";
      CHECK(column(csv, "seed", name)[at] == seed);
      CHECK(column(csv, "trace_hash", name)[at] == policy["trace_hash"]);
      CHECK(std::stod(column(csv, "effective_training_time", name)[at]) ==
            policy["effective_training_time"].get<double>());
      CHECK(std::stod(column(csv, "recovery_median_s", name)[at]) == policy["recovery"]["median_s"].get<double>());
    }
  }
  const auto& variation = report["variations"][0];
  double bands = 0;
  for (const auto& [name, seconds] : variation["bands"].items()) bands += seconds.get<double>();
  CHECK(bands == Approx(86400).epsilon(1e-12));
  CHECK(variation["best"] == true);
  CHECK(report["variations"][1]["behind_best"]["mean"] > 0);
}

TEST_CASE("policies that are alike differ by exactly nothing", "[cli][sweep]") {
  const Yard yard;
  const std::string file = yard.file("twins.json", R"({ "schema": 1, "scenario": ")" + kScenario + R"(", "seeds": 4,
    "policies": [{ "base": ")" + kFast + R"(", "spare_nodes": 4 },
                 { "base": ")" + kFast + R"(", "spare_nodes": 4, "name": "twin" }] })");
  REQUIRE(yard.run("sim sweep " + file + " -q").code == 0);
  const std::string csv = cells_of(yard);
  CHECK(column(csv, "trace_hash", "grok-90s") == column(csv, "trace_hash", "twin"));
  const auto compared = nlohmann::json::parse(yard.run("sim compare grok-90s twin --json").out)[0];
  for (const char* measure : {"effective_training_time", "median_recovery_s"}) {
    CHECK(compared[measure]["mean"] == 0);
    CHECK(compared[measure]["half_width"] == 0);
    CHECK(compared[measure]["greater"] == 0);
    CHECK(compared[measure]["p_value"] == 1);
    CHECK(contains(compared[measure]["verdict"], "no difference at all"));
  }
}

TEST_CASE("a comparison is what a pocket calculator gives", "[cli][sweep]") {
  const Yard yard;
  REQUIRE(yard.run("sim sweep " + kScenario + " --seeds 5 -q --vary checkpoint_interval_s=60,120").code == 0);
  const std::string csv = cells_of(yard);
  const auto of_a = numbers(column(csv, "effective_training_time", "grok-90s,checkpoint_interval_s=60"));
  const auto of_b = numbers(column(csv, "effective_training_time", "grok-90s,checkpoint_interval_s=120"));
  REQUIRE(of_a.size() == 5);
  REQUIRE(of_b.size() == 5);
  double mean = 0, squares = 0;
  for (int i = 0; i < 5; ++i) mean += (of_b[i] - of_a[i]) / 5;
  for (int i = 0; i < 5; ++i) squares += std::pow(of_b[i] - of_a[i] - mean, 2);
  const double half_width = 2.7764451 * std::sqrt(squares / 4 / 5);
  const Outcome outcome =
      yard.run("sim compare checkpoint_interval_s=60,grok-90s grok-90s,checkpoint_interval_s=120 --json");
  REQUIRE(outcome.code == 0);
  const auto compared = nlohmann::json::parse(outcome.out)[0]["effective_training_time"];
  CHECK(compared["seeds"] == 5);
  CHECK(compared["mean"].get<double>() == Approx(mean).epsilon(1e-9));
  CHECK(compared["half_width"].get<double>() == Approx(half_width).epsilon(1e-6));
  CHECK(compared["unpaired_half_width"] > compared["half_width"]);
  CHECK(compared["b"].get<double>() - compared["a"].get<double>() == Approx(mean).epsilon(1e-9));
  CHECK(contains(compared["verdict"], std::abs(mean) > half_width ? "real" : "no difference can be told from 5 seeds"));
  // A sweep beside itself, variation by variation.
  const auto whole = nlohmann::json::parse(yard.run("sim compare --sweeps latest 1 --json").out);
  REQUIRE(whole.size() == 4);
  CHECK(whole[0]["effective_training_time"]["mean"] == 0);
}

TEST_CASE("an interrupted sweep goes on, and ends as if nothing had happened", "[cli][sweep]") {
  const Yard whole;
  const std::string report = whole.run(kManyCells + "-q").out;
  const std::string expected = cells_of(whole);
  for (const int signal : {SIGINT, SIGKILL}) {
    const Yard yard;
    const int status = interrupted_status(yard, signal);
    if (signal == SIGINT) {
      REQUIRE(WIFEXITED(status));
      CHECK(WEXITSTATUS(status) == 130);
    } else {
      CHECK(WIFSIGNALED(status));
    }
    const std::int64_t left = stored_cells(yard);
    CHECK(left >= 3);
    CHECK(left < 2 * kManySeeds);
    const Outcome rest = yard.run(kManyCells);
    REQUIRE(rest.code == 0);
    CHECK(contains(rest.err, std::to_string(left) + " of " + std::to_string(2 * kManySeeds) + " cells are in"));
    CHECK(cells_of(yard) == expected);
    CHECK(rest.out == report);
  }
}

TEST_CASE("what is done is not done again, and more seeds only add to it", "[cli][sweep]") {
  const Yard yard;
  REQUIRE(yard.run("sim sweep " + kScenario + " --seeds 2 -q").code == 0);
  const Outcome same = yard.run("sim sweep " + kScenario + " --seeds 2 --progress ndjson");
  CHECK(contains(same.err, "4 of 4 cells are in"));
  CHECK_FALSE(contains(same.err, "\"progress\""));
  const Outcome more = yard.run("sim sweep " + kScenario + " --seeds 3 --vary spare_nodes=4 --progress ndjson");
  CHECK(contains(more.err, "\"cells\":6"));
  std::istringstream lines(more.err);
  nlohmann::json last;
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty() && line[0] == '{') last = nlohmann::json::parse(line);
  }
  CHECK(last["progress"] == "simulating cells");
  CHECK(last["done"] == last["total"]);
  CHECK(nlohmann::json::parse(yard.run("run list --sweeps --json").out).size() == 1);
  CHECK(contains(yard.run("sim sweep " + kScenario + " --seeds 3").err, "4 of 6 cells are in"));
}

TEST_CASE("another input is another sweep, and the message says which", "[cli][sweep]") {
  const Yard yard;
  const auto write = [&](const std::string& spares) {
    return yard.file("sweep.json", R"({ "schema": 1, "name": "s", "scenario": ")" + kScenario + R"(", "seeds": 1,
      "policies": [{ "base": ")" + kFast +
                                       R"(", "spare_nodes": )" + spares + "}] }");
  };
  REQUIRE(yard.run("sim sweep " + write("2")).code == 0);
  const Outcome changed = yard.run("sim sweep " + write("3"));
  CHECK(contains(changed.err, "not the inputs of sweep 1 (policies changed): this is a new sweep"));
  CHECK(nlohmann::json::parse(yard.run("run list --sweeps --json").out).size() == 2);
  CHECK_FALSE(contains(yard.run("sim sweep " + write("2")).err, "new sweep"));
}

TEST_CASE("shards, joined, are the whole", "[cli][sweep]") {
  const Yard yard;
  const std::string sweep = "sim sweep " + kScenario + " --seeds 4 --vary spare_nodes=2,4 ";
  REQUIRE(yard.run(sweep + "-q").code == 0);
  const std::string whole = cells_of(yard);
  const std::string stem = yard.store().substr(0, yard.store().rfind('.'));
  std::string stores;
  for (const std::string i : {"0", "1", "2"}) {
    const Outcome outcome = yard.run(sweep + "--shard " + i + "/3");
    REQUIRE(outcome.code == 0);
    CHECK(contains(outcome.err, "shard " + i + " of 3, counted from 0, by --shard"));
    stores += " " + stem + ".shard-" + i + "-of-3.sqlite";
  }
  const Outcome merged = yard.run("run merge" + stores + " -o " + stem + "-all.sqlite --json");
  REQUIRE(merged.code == 0);
  CHECK(nlohmann::json::parse(merged.out)["cells"] == 16);
  CHECK(nlohmann::json::parse(merged.out)["sweeps"] == 1);
  CHECK(cells_of(yard, "--store " + stem + "-all.sqlite") == whole);
  const Outcome report = yard.run("run show --sweep --json --store " + stem + "-all.sqlite");
  CHECK(nlohmann::json::parse(report.out)["variations"] ==
        nlohmann::json::parse(yard.run("run show --sweep --json").out)["variations"]);
  CHECK(yard.run("run merge" + stores + " -o " + stem + "-all.sqlite").code == 2);
}

TEST_CASE("a shard is read from where it runs", "[cli][sweep]") {
  const Yard yard;
  const auto said = [&](const std::string& options = "") {
    const Outcome outcome = yard.run("sim sweep " + kScenario + " --seeds 4 --no-store " + options);
    const std::size_t at = outcome.err.find("shard ");
    return std::to_string(outcome.code) + (at == std::string::npos ? "" : " " + outcome.err.substr(at, 10));
  };
  CHECK(said() == "0");
  {
    const Variable id("SLURM_ARRAY_TASK_ID", "30"), count("SLURM_ARRAY_TASK_COUNT", "4"),
        first("SLURM_ARRAY_TASK_MIN", "10"), step("SLURM_ARRAY_TASK_STEP", "10");
    CHECK(said() == "0 shard 2 of");
    CHECK(said("--shard 0/2") == "0 shard 0 of");  // the option wins
    const Variable below("SLURM_ARRAY_TASK_ID", "5");
    CHECK(said().substr(0, 1) == "2");
  }
  {
    const Variable index("JOB_COMPLETION_INDEX", "1");
    CHECK(said().substr(0, 1) == "2");  // of how many?
    CHECK(said("--shards 3") == "0 shard 1 of");
    const Variable count("TRAINYARD_SHARD_COUNT", "5");
    CHECK(contains(said(), "shard 1 of"));
    CHECK(said("--shards 1").substr(0, 1) == "2");
  }
  {
    const Variable rank("OMPI_COMM_WORLD_RANK", "3"), size("OMPI_COMM_WORLD_SIZE", "4");
    CHECK(said() == "0 shard 3 of");
  }
  const Variable rank("PMI_RANK", "0"), size("PMI_SIZE", "2");
  CHECK(said() == "0 shard 0 of");
}

TEST_CASE("a sweep advises from its own cells, and sees the edge of its grid", "[cli][sweep]") {
  const Yard yard;
  const Outcome outcome = yard.run(
      "sim sweep " + kScenario + " --seeds 6 --vary checkpoint_interval_s=20,0,2000 --vary spare_nodes=0,4 --json -q");
  REQUIRE(outcome.code == 0);
  const auto advice = nlohmann::json::parse(outcome.out)["advice"];
  REQUIRE(advice.size() == 5);  // two keys of two policies, and the policies
  CHECK(advice[0]["policy"] == "grok-90s");
  CHECK(advice[0]["key"] == "checkpoint_interval_s");
  CHECK(advice[0]["value"] == 0);
  CHECK(advice[0]["at_edge"].is_null());  // 0 stands for an interval between the others
  REQUIRE(advice[0]["points"].size() == 3);
  CHECK(advice[0]["points"][0]["behind_best"]["real"] == true);
  CHECK(advice[1]["key"] == "spare_nodes");
  CHECK(advice[1]["value"] == 4);
  CHECK(advice[1]["at_edge"] == "highest");
  CHECK(contains(advice[1]["text"], "It is the highest value tried"));
  REQUIRE(advice[1]["marginal"].size() == 1);
  CHECK(advice[1]["marginal"][0]["worth_it"] == true);  // without a spare the job waits for every repair
  CHECK(advice[1]["points"][1]["variation"] == "grok-90s,checkpoint_interval_s=0,spare_nodes=4");
  CHECK(contains(advice[4]["text"], "is better than baseline-2023"));
}

TEST_CASE("mistakes about sweeps are told before anything is simulated", "[cli][sweep]") {
  const Yard yard;
  const auto code_and_message = [&](const std::string& arguments, const std::string& message) {
    const Outcome outcome = yard.run(arguments);
    INFO(arguments << "\n" << outcome.err);
    CHECK(outcome.code == 2);
    CHECK(contains(outcome.err, message));
  };
  const std::string sweep = "sim sweep " + kScenario;
  code_and_message(sweep + " --vary spare_node=3", "did you mean \"spare_nodes\"?");
  code_and_message(sweep + " --vary spare_nodes=-1,2", "--vary spare_nodes[0]");
  code_and_message(sweep + " --vary spare_nodes", "must be a key of a policy with its values");
  code_and_message(sweep + " --shard 4/4", "the last of 4 is 3/4");
  code_and_message(sweep + " --shard 1", "must be i/n");
  code_and_message(sweep + " --seeds 0", "--seeds");
  code_and_message("sim sweep scenarios/tiny/llama.json", "a sweep compares recovery");
  code_and_message("sim sweep nowhere.json", "nowhere.json");
  const std::string lost = yard.file("lost.json", R"({ "schema": 1, "scenario": "lost-scenario.json" })");
  code_and_message("sim sweep " + lost, "named by $.scenario of");
  code_and_message("sim compare a b", "there is no run store here");
  REQUIRE(yard.run(sweep + " --seeds 1 -q").code == 0);
  code_and_message("sim compare grok-90s fast", "is no variation of sweep 1");
  code_and_message("sim compare grok-90s baseline-2023 --sweep 9", "no sweep has this id or name");
  const Outcome one = yard.run("sim compare baseline-2023 grok-90s");
  CHECK(one.code == 0);
  CHECK(contains(one.out, "one seed cannot tell"));
}
