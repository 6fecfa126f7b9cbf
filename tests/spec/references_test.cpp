// Files that name other files: where a problem is said to be, and what cannot be read at all.
#include <catch2/catch.hpp>

#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "models/spec/json_reader.h"
#include "models/spec/scenario.h"
#include "tests/spec/broken.h"
#include "tests/store/temp_dir.h"

using namespace trainyard;
using namespace trainyard::testing;

namespace {

// A scenario whose parts are files of their own, in a folder of its own.
struct Folder {
  TempDir dir;
  Folder() {
    write("model.json", R"({ "schema": 1, "name": "m", "family": "llama", "num_hidden_layers": 4, "hidden_size": 32,
                             "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 64, "max_position_embeddings": 16 })");
    write("plan.json", R"({ "schema": 1, "tp": 2, "sequence_length": 16, "global_batch_size": 1 })");
    write("cluster.json", R"({ "schema": 1, "name": "c", "hardware": "h100-sxm", "nodes": 4, "nic_bytes_per_s": 50e9,
                               "tiers": [{ "name": "leaf", "nodes_per_group": 2 }] })");
    write("faults.json", R"({ "schema": 1, "injected": [{ "kind": "gpu_slow", "node": 1, "factor": 2 }] })");
    write("policy.json", R"({ "schema": 1, "name": "p", "spare_nodes": 1 })");
    scenario(R"("model.json")");
  }
  void write(const char* name, const std::string& text) const { write_file(dir.file(name), text); }
  void scenario(const std::string& model, const std::string& plan = R"("plan.json")",
                const std::string& faults = R"("faults.json")", const std::string& policy = R"("policy.json")") const {
    write("scenario.json", R"({ "schema": 1, "name": "s", "model": )" + model + ", \"plan\": " + plan +
                               R"(, "cluster": "cluster.json", "faults": )" + faults + ", \"policies\": [" + policy +
                               R"(], "duration_s": 60 })");
  }
  [[nodiscard]] Result<Scenario> load() const { return load_scenario(dir.file("scenario.json")); }
  // The only problem, as "file path", the folder left out.
  [[nodiscard]] std::string place() const {
    const Result<Scenario> loaded = load();
    if (loaded) return "no problem";
    INFO(to_string(loaded.problems()[0]));
    CHECK(loaded.problems().size() == 1);
    const Problem& problem = loaded.problems()[0];
    return std::filesystem::path(problem.file).filename().string() + " " + problem.path;
  }
};

}  // namespace

TEST_CASE("a scenario in pieces loads") {
  const Folder folder;
  const Result<Scenario> loaded = folder.load();
  REQUIRE(loaded.ok());
  CHECK(loaded.value().model.hidden_size == 32);
  CHECK(loaded.value().plan.tp == 2);
}

TEST_CASE("a problem is where it was written") {
  const Folder folder;
  SECTION("in a file that is named") {
    folder.write("plan.json", R"({ "schema": 1, "tp": 3, "sequence_length": 16, "global_batch_size": "x" })");
    CHECK(folder.place() == "plan.json $.global_batch_size");
  }
  SECTION("a rule between values, in the file of the value") {
    folder.write("plan.json", R"({ "schema": 1, "pp": 8, "sequence_length": 16, "global_batch_size": 1 })");
    CHECK(folder.place() == "plan.json $.pp");
  }
  SECTION("in a change of a base") {
    folder.scenario(R"({ "base": "model.json", "hidden_size": "wide" })");
    CHECK(folder.place() == "scenario.json $.model.hidden_size");
  }
  SECTION("in the base of a change") {
    folder.write("broken.json", R"({ "base": "model.json", "schema": 1, "vocab_size": -1 })");
    folder.scenario(R"({ "base": "broken.json", "hidden_size": 64 })");
    CHECK(folder.place() == "broken.json $.vocab_size");
  }
  SECTION("in the base of a base") {
    folder.write("model.json",
                 R"({ "schema": 1, "name": "m", "family": "llama", "num_hidden_layers": 4, "hidden_size": 32,
                                    "num_attention_heads": 4, "intermediate_size": 0, "vocab_size": 64, "max_position_embeddings": 16 })");
    folder.write("middle.json", R"({ "base": "model.json", "schema": 1, "name": "middle" })");
    folder.scenario(R"({ "base": "middle.json", "hidden_size": 64 })");
    CHECK(folder.place() == "model.json $.intermediate_size");
  }
  SECTION("a key that a change takes away") {
    folder.scenario(R"({ "base": "model.json", "vocab_size": null })");
    CHECK(folder.place() == "scenario.json $.model.vocab_size");
  }
  SECTION("rules between parts") {
    folder.write("faults.json", R"({ "schema": 1, "injected": [{ "kind": "node_crash", "node": 4 }] })");
    CHECK(folder.place() == "faults.json $.injected[0].node");
    folder.write("faults.json", R"({ "schema": 1 })");
    folder.write("policy.json", R"({ "schema": 1, "name": "p", "spare_nodes": 4 })");
    CHECK(folder.place() == "policy.json $.spare_nodes");
    folder.scenario(R"("model.json")", R"("plan.json")", R"("faults.json")",
                    R"({ "base": "policy.json", "spare_nodes": 9 })");
    CHECK(folder.place() == "scenario.json $.policies[0].spare_nodes");
  }
  SECTION("every file says its schema, one with a base too") {
    folder.write("plan.json", R"({ "tp": 2, "sequence_length": 16, "global_batch_size": 1 })");
    CHECK(folder.place() == "plan.json $.schema");
    folder.write("plan.json", R"({ "schema": 1, "tp": 2, "sequence_length": 16, "global_batch_size": 1 })");
    folder.write("changed.json", R"({ "base": "plan.json", "tp": 1 })");
    folder.scenario(R"("model.json")", R"("changed.json")");
    CHECK(folder.place() == "changed.json $.schema");
  }
}

TEST_CASE("references in a circle") {
  const Folder folder;
  folder.write("a.json", R"({ "base": "b.json", "schema": 1 })");
  folder.write("b.json", R"({ "base": "a.json", "schema": 1 })");
  const Result<ModelSpec> circle = load_model(folder.dir.file("a.json"));
  REQUIRE_FALSE(circle.ok());
  CHECK(circle.problems().size() == 1);
  CHECK(circle.problems()[0].rule == "refers to itself in a circle");
  folder.scenario(R"("scenario.json")");
  CHECK(folder.place() == "scenario.json $.model");
}

TEST_CASE("what is no spec file is refused unread") {
  const Folder folder;
  SECTION("a hundred megabytes, most of them a hole in the file") {
    std::filesystem::resize_file(folder.dir.file("plan.json"), 100 << 20);
    const Result<Scenario> refused = folder.load();
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.problems()[0].rule.find("is larger than 16 MiB") == 0);
  }
  SECTION("a device without end") {
    const auto zeros = read_json_file("/dev/zero");
    REQUIRE_FALSE(zeros.ok());
    CHECK(zeros.problems()[0].rule == "is larger than 16 MiB");
  }
  SECTION("a file that is not there, named by another") {
    folder.scenario(R"("modle.json")");
    CHECK(folder.place() == "modle.json ");
  }
}

TEST_CASE("a scenario may come through a pipe") {
  const Folder folder;
  const std::string text = read_file(folder.dir.file("scenario.json")), pipe = folder.dir.file("pipe.json");
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  std::thread writer([&] { write_file(pipe, text); });
  const Result<Scenario> loaded = load_scenario(pipe);
  writer.join();
  CHECK(loaded.ok());
}
