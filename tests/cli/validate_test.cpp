// trainyard validate, as a user runs it.
#include <catch2/catch.hpp>

#include <cmath>

#include <nlohmann/json.hpp>

#include "tests/cli/yard.h"

using namespace trainyard::test;
using nlohmann::json;

namespace {

const std::string kRow = R"({"id": "one", "source": "somebody", "framework": "home-made", "model_name": "Llama3-8B",
  "layers": 2, "hidden": 1024, "heads": 8, "kv_heads": 8, "ffn_hidden": 4096, "gated_mlp": true, "vocab": 32000, "seq_len": 2048,
  "gpu_type": "H100", "num_gpus": 8, "num_nodes": 1, "tp": 2, "pp": 1, "cp": null, "zero_stage": 1, "micro_batch": 1,
  "global_batch_seqs": 8, "precision": "BF16", "recompute": "none", "iteration_time_s": 0.05)";

}  // namespace

TEST_CASE("published rows are predicted, or named with a reason", "[cli]") {
  const Yard yard;
  const std::string picture = yard.file("scatter.svg", ""), table = yard.file("rows.csv", "");
  const Outcome outcome = yard.run("validate --only 'Korthikanti' --json --csv '" + table + "' -o '" + picture + "'");
  INFO(outcome.err);
  REQUIRE(outcome.code == 0);
  const json report = json::parse(outcome.out);
  CHECK(report["rows"] == 10);
  REQUIRE(report["results"].size() == 10);
  CHECK(report["predicted"] == 10);
  CHECK(report["skipped"].empty());
  for (const json& row : report["results"]) {
    const double measured_s = row["measured_s"], predicted_s = row["predicted_s"];
    CHECK(row["error"].get<double>() == Approx(predicted_s / measured_s - 1));
    double parts_s = 0;
    for (const auto& [part, seconds] : row["parts"].items()) parts_s += seconds.get<double>();
    CHECK(parts_s == Approx(predicted_s));
    double terms_s = 0;
    for (const auto& [term, seconds] : row["waterfall"].items()) {
      CHECK(seconds.get<double>() >= 0);
      terms_s += seconds.get<double>();
    }
    CHECK(terms_s == Approx(predicted_s));
    CHECK(row["fitted"] == true);  // the stack's profile names them
  }
  double shares = 0;
  for (const auto& [source, terms] : report["waterfall"].items())
    for (const auto& [term, share] : terms.items()) shares += share.get<double>();
  CHECK(shares == Approx(1));
  CHECK(report["ranking"].empty());  // two layouts of each model
  for (const char* key :
       {"median_abs_error", "p90_abs_error", "bias", "null_model", "by_source", "by_gpu", "memory", "by_stack"})
    CHECK(report.contains(key));
  const json skipped = json::parse(yard.run("validate --only 'MLPerf' --json").out);
  CHECK(skipped["rows"] > 4);
  CHECK(skipped["predicted"] == 0);
  CHECK(skipped["skipped"].size() == skipped["rows"]);
  for (const json& row : skipped["skipped"]) CHECK(!row["reason"].get<std::string>().empty());
  const Outcome nothing = yard.run("validate --only nobody");
  CHECK(nothing.code == 2);
  CHECK(contains(nothing.err, "--only = nobody: there is no such row"));
  CHECK(yard.run("validate --only MLPerf --markdown '" + table + "'").code == 2);
  const Outcome text = yard.run("validate --only korthikanti-et-al-2022-arxiv-0001 --worst 3");
  CHECK(contains(text.out, "Worst rows"));
  CHECK(contains(text.out, "constant FLOP/s per GPU"));
}

TEST_CASE("a set of one's own is read in both forms", "[cli]") {
  const Yard yard;
  const std::string list = yard.file("list.json", "[" + kRow + "}]");
  const std::string grouped = yard.file(
      "groups.json", R"({"groups": [{"common": )" + kRow + R"(}, "rows": [{"id": "a"}, {"id": "b", "experts": 8}]}]})");
  const json alone = json::parse(yard.run("validate --json --set '" + list + "'").out);
  const json both = json::parse(yard.run("validate --json --set '" + grouped + "'").out);
  REQUIRE(alone["results"].size() == 1);
  REQUIRE(both["results"].size() == 1);
  CHECK(alone["results"][0]["predicted_s"] == both["results"][0]["predicted_s"]);
  CHECK(alone["results"][0]["stack"] == "default");
  CHECK(alone["results"][0]["fitted"] == false);
  CHECK(alone["held_out"]["rows"] == 1);
  CHECK(both["skipped"][0] == json{{"id", "b"}, {"source", "somebody"}, {"reason", "experts"}});
}

TEST_CASE("the ranks that a row shards over are its plan's", "[cli]") {
  const Yard yard;
  const auto predicted = [&](const std::string& keys) {
    const std::string set =
        yard.file("set.json", R"({"groups": [{"common": )" + kRow + R"(}, "rows": [{"id": "a", "tp": 1,
      "num_gpus": 16, "num_nodes": 2, "global_batch_seqs": 16, "zero_stage": 3)" +
                                  keys + "}]}]}");
    return json::parse(yard.run("validate --json --set '" + set + "'").out)["results"][0];
  };
  const json over_all = predicted("");
  CHECK(predicted(R"(, "fsdp_shard_size": 8)")["predicted_s"] != over_all["predicted_s"]);
  CHECK(predicted(R"(, "fsdp_shard_size": 8)")["assumed"] == over_all["assumed"]);
  for (const char* same : {R"(, "fsdp_shard_size": 16)", R"(, "fsdp_shard_size": 0)"})
    CHECK(predicted(same) == over_all);
  // Neither does five divide the ranks, nor are there 32.
  for (const char* cannot_be : {R"(, "fsdp_shard_size": 5)", R"(, "fsdp_shard_size": 32)"}) {
    const json row = predicted(cannot_be);
    CHECK(row["predicted_s"] == over_all["predicted_s"]);
    CHECK(contains(row["assumed"].dump(), "shards over all 16 data-parallel ranks"));
  }
}

TEST_CASE("what a row does not say its framework and its time do", "[cli]") {
  const Yard yard;
  const auto predicted = [&](const std::string& keys) {
    const std::string set = yard.file("set.json", "[" + kRow + keys + "}]");
    const json report = json::parse(yard.run("validate --json --set '" + set + "'").out);
    INFO(report.dump(2));
    REQUIRE(report["results"].size() == 1);
    return report["results"][0];
  };
  const std::string plain_row = kRow.substr(0, kRow.find("\"gpu_type\""));
  const auto stack_of = [&](const std::string& keys) {
    const std::string row = plain_row + keys + kRow.substr(kRow.find(", \"num_gpus\"")) + "}";
    return json::parse(yard.run("validate --json --set '" + yard.file("set.json", "[" + row + "]") + "'")
                           .out)["results"][0]["stack"]
        .get<std::string>();
  };
  CHECK(stack_of(R"("gpu_type": "A100")") == "default-a100");
  CHECK(stack_of(R"("gpu_type": "A100", "source_date": "2022-05")") == "default-2021");
  CHECK(stack_of(R"("gpu_type": "A100", "source_date": "2022-06")") == "default-a100");
  CHECK(stack_of(R"("gpu_type": "A100", "source_date": "24.11")") == "default-a100");
  CHECK(stack_of(R"("gpu_type": "H100", "source_date": "2021")") == "default");

  const auto recomputing = [&](const std::string& how) {
    const std::string row =
        kRow.substr(0, kRow.find(", \"recompute\"")) + ", \"recompute\": \"" + how + "\", \"iteration_time_s\": 0.05}";
    return json::parse(
        yard.run("validate --json --set '" + yard.file("set.json", "[" + row + "]") + "'").out)["results"][0];
  };
  double last_s = -1;
  for (const char* how :
       {"none", "selective (core attention)", "selective op SAC (every 2nd matmul)", "full (per layer)"}) {
    INFO(how);
    const double again_s = recomputing(how)["waterfall"]["recompute"];
    CHECK(again_s > last_s);
    last_s = again_s;
  }
  CHECK(recomputing("full (per layer)")["peak_bytes"] <
        recomputing("selective op SAC (every 2nd matmul)")["peak_bytes"]);
  CHECK(recomputing("selective op SAC (every 2nd matmul)")["peak_bytes"] < recomputing("none")["peak_bytes"]);

  const json plain = predicted("");
  const json bigger = predicted(R"(, "gpu_mem_gb": 96)");
  CHECK(bigger["predicted_s"] > plain["predicted_s"]);  // memory that is slower
}

TEST_CASE("pipelines and tensor-parallel sums are as Megatron and DeepSpeed had them", "[cli]") {
  const Yard yard;
  const auto assumed = [&](const std::string& framework, const std::string& date, const std::string& keys) {
    const std::string set = yard.file("set.json", R"({"groups": [{"common": )" + kRow + R"(}, "rows": [{"id": "a",
      "framework": ")" + framework + R"(", "source_date": ")" +
                                                      date + "\"" + keys + "}]}]}");
    return json::parse(yard.run("validate --json --set '" + set + "'").out)["results"][0]["assumed"].dump();
  };
  const char* sums = "tensor-parallel sums after weight gradients";
  CHECK(contains(assumed("Megatron-LM 2021", "2021-04", ""), sums));
  CHECK_FALSE(contains(assumed("Megatron-LM 2022", "2022-05", ""), sums));
  CHECK(contains(assumed("Megatron-DeepSpeed", "2022-02", ""), sums));
  CHECK_FALSE(contains(assumed("Megatron-DeepSpeed", "2022-02", R"(, "tp": 1)"), sums));

  const char* whole = "whole layers run again";
  const std::string full = R"(, "recompute": "full")";
  CHECK(contains(assumed("Megatron-LM 2022", "2022-05", full), whole));
  CHECK(contains(assumed("PyTorch FSDP1", "2023-09", full), whole));
  CHECK_FALSE(contains(assumed("PyTorch FSDP1", "2023-10", full), whole));
  CHECK_FALSE(contains(assumed("Megatron-LM 2022", "2022-05", ""), whole));
  CHECK(contains(assumed("Composer", "2023-2024", full + R"(, "gpu_type": "A100")"), whole));
  CHECK_FALSE(contains(assumed("Composer", "2023-2024", full), whole));

  const char* blocks = "stage boundaries sent in blocks";
  const std::string pipeline = R"(, "pp": 2)";
  CHECK(contains(assumed("Megatron-LM 2022", "2022-05", pipeline), blocks));
  CHECK_FALSE(contains(assumed("Megatron-LM 2022", "2022-05", pipeline + R"(, "sequence_parallel": true)"), blocks));
  CHECK_FALSE(contains(assumed("NeMo", "24.11", pipeline), blocks));

  // Four stages of 2, 2, 2 and 1 layers; of eight layers, and of six with an embedding and a head, each has as much.
  const char* front = "filled with layers from the front";
  const auto layers = [](const char* count) { return R"(, "pp": 4, "tp": 1, "layers": )" + std::string(count); };
  CHECK(contains(assumed("Megatron-DeepSpeed", "2022-02", layers("7")), front));
  CHECK_FALSE(contains(assumed("Megatron-DeepSpeed", "2022-02", layers("8")), front));
  CHECK_FALSE(contains(assumed("Megatron-DeepSpeed", "2022-02", layers("6")), front));
  CHECK_FALSE(contains(assumed("Megatron-LM 2022", "2022-05", layers("7")), front));
}

TEST_CASE("rows that their source does not compare are ranked apart", "[cli]") {
  const Yard yard;
  const auto rankings = [&](const std::string& source) {
    std::string rows;
    for (int i = 0; i < 10; ++i)
      rows += std::string(i == 0 ? "" : ", ") + R"({"id": "r)" + std::to_string(i) + R"(", "source": ")" + source +
              R"(", "global_batch_seqs": )" + std::to_string(8 * (i + 1)) + R"(, "notes": "section x; )" +
              (i < 5 ? "02-20" : "02-26") + R"(; y"})";
    const std::string set =
        yard.file("set.json", R"({"groups": [{"common": )" + kRow + R"(}, "rows": [)" + rows + "]}]}");
    return json::parse(yard.run("validate --json --set '" + set + "'").out)["ranking"].size();
  };
  CHECK(rankings("BigScience BLOOM tr11 chronicles-prequel (Jean Zay)") == 2);
  CHECK(rankings("somebody") == 1);
}

TEST_CASE("layouts of one model are ranked", "[cli]") {
  const Yard yard;
  const auto ranking = [&](const char* seconds_of_largest) {
    std::string rows;
    for (const char* batch : {"8", "16", "24", "32"})
      rows += std::string(R"({"id": "b)") + batch + R"(", "global_batch_seqs": )" + batch + "}, ";
    rows += std::string(R"({"id": "b40", "global_batch_seqs": 40, "iteration_time_s": )") + seconds_of_largest + "}";
    const std::string common =
        kRow.substr(0, kRow.find("\"global_batch_seqs\"")) + kRow.substr(kRow.find("\"precision\""));
    const std::string set =
        yard.file("set.json", R"({"groups": [{"common": )" + common + R"(}, "rows": [)" + rows + "]}]}");
    const json report = json::parse(yard.run("validate --json --set '" + set + "'").out);
    REQUIRE(report["ranking"].size() == 1);
    return report["ranking"].begin().value();
  };
  // More sequences a step, more tokens a second: so it was measured where all steps took as long, but for the largest.
  CHECK(ranking("0.05")["rank_correlation"] == Approx(1));
  CHECK(ranking("0.05")["chosen_over_best"] == Approx(1));
  CHECK(ranking("5")["rank_correlation"] == Approx(0));
  CHECK(ranking("5")["chosen_over_best"] < 0.1);
}

TEST_CASE("a broken set is refused with its place, and a row that cannot be is skipped with its rule", "[cli]") {
  const Yard yard;
  const auto with = [&](const std::string& row) {
    return yard.file("set.json", R"({"groups": [{"common": )" + kRow + R"(}, "rows": [)" + row + "]}]}");
  };
  const Outcome outcome = yard.run("validate --set '" + with(R"({"micro_batch": 1.5})") + "'");
  CHECK(outcome.code == 2);
  CHECK(contains(outcome.err, "$.groups[0].rows[0].micro_batch = 1.5"));
  CHECK(yard.run("validate --set '" + with(R"({"tp": "two"})") + "'").code == 2);
  CHECK(yard.run("validate --set '" + with("7") + "'").code == 2);
  CHECK(yard.run("validate --set nowhere.json").code == 2);
  CHECK(contains(yard.run("validate --set '" + with(R"({"pp": 5})") + "'").out, "does not divide"));
}
