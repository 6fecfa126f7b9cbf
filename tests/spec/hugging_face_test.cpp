// Hugging Face's config.json: what is written is read back as the same model, and nothing is said that is not so.
#include "models/spec/hugging_face.h"

#include <catch2/catch.hpp>

#include "models/spec/scenario.h"
#include "tests/store/temp_dir.h"

using namespace trainyard;

namespace {

ModelSpec shipped(const std::string& name) {
  return load_model(std::string(TRAINYARD_SOURCE_DIR) + "/scenarios/models/" + name + ".json").value();
}

Problems refused(const std::string& config) {
  const TempDir dir;
  write_file(dir.file("config.json"), config);
  const Result<ModelSpec> read = load_hugging_face_config(dir.file("config.json"));
  return read ? Problems{} : read.problems();
}

constexpr char kLlama[] = R"("vocab_size": 256, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
                             "intermediate_size": 64, "max_position_embeddings": 16, "hidden_act": "silu")";

}  // namespace

TEST_CASE("a model goes to config.json and comes back") {
  const std::string name = GENERATE("llama3-8b", "llama3-70b", "llama3-405b", "mixtral-8x7b", "gpt3-175b", "grok-1",
                                    "tiny-llama", "tiny-mixtral", "tiny-gpt3", "tiny-grok1");
  ModelSpec model = shipped(name);
  const TempDir dir;
  const Result<std::string> config = hugging_face_config(model, "float32");
  INFO(name);
  REQUIRE(config.ok());
  write_file(dir.file("config.json"), config.value());
  const Result<ModelSpec> read = load_hugging_face_config(dir.file("config.json"));
  REQUIRE(read.ok());
  model.name = read.value().name;
  // As texts of model files: every field takes part.
  CHECK(model_file_text(read.value()) == model_file_text(model));
  write_file(dir.file("model.json"), model_file_text(model));
  CHECK(model_file_text(load_model(dir.file("model.json")).value()) == model_file_text(model));
}

TEST_CASE("what Hugging Face's classes cannot say is refused, not dropped") {
  ModelSpec model = shipped("tiny-llama");
  const auto refused = [&](auto change, const std::string& key) {
    ModelSpec other = model;
    change(other);
    const Result<std::string> config = hugging_face_config(other, "float32");
    return !config.ok() && config.problems().front().path == "$.model." + key;
  };
  CHECK(refused([](ModelSpec& m) { m.attention_softcap = 30; }, "attention_softcap"));
  CHECK(refused([](ModelSpec& m) { m.embedding_multiplier = 2; }, "embedding_multiplier"));
  CHECK(refused([](ModelSpec& m) { m.norm = NormKind::LayerNorm; }, "norm"));
  CHECK(refused([](ModelSpec& m) { m.sliding_window = 8; }, "sliding_window"));
  model = shipped("tiny-mixtral");
  CHECK(refused([](ModelSpec& m) { m.moe->renormalize = false; }, "moe.renormalize"));
  model = shipped("tiny-gpt3");
  CHECK(refused([](ModelSpec& m) { m.position = PositionKind::Rope; }, "position"));
}

TEST_CASE("a config.json that is wrong, or asks for what is not supported, says so") {
  CHECK(refused(R"({ "model_type": "llama", )" + std::string(kLlama) + "}").empty());
  CHECK(refused(R"({ "model_type": "bert" })").front().path == "$.model_type");
  CHECK(refused("[]").front().path == "$");
  CHECK(refused(R"({ "model_type": "llama" })").size() > 3);
  CHECK(refused(R"({ "model_type": "llama", "rope_scaling": { "rope_type": "llama3" }, )" + std::string(kLlama) + "}")
            .front()
            .path == "$.rope_scaling");
  CHECK(refused(R"({ "model_type": "llama", "rms_norm_eps": "small", )" + std::string(kLlama) + "}").front().path ==
        "$.rms_norm_eps");
  CHECK(refused(R"({ "model_type": "llama", "num_key_value_heads": 3, )" + std::string(kLlama) + "}").front().path ==
        "$.num_key_value_heads");
}

TEST_CASE("quantized weights are refused, and what is missing is said once") {
  const std::string start = std::string(R"({"model_type": "llama", )") + kLlama;
  CHECK(refused(start + "}").empty());
  const Problems quantized = refused(start + R"(, "quantization_config": {"quant_method": "gptq"}})");
  REQUIRE(quantized.size() == 1);
  CHECK(quantized.front().path == "$.quantization_config");
  std::string without = start + "}";
  without.erase(without.find(R"(, "hidden_act")"), std::string(R"(, "hidden_act": "silu")").size());
  const Problems missing = refused(without);
  REQUIRE(missing.size() == 1);
  CHECK(missing.front().rule == "is missing");
}

TEST_CASE("a model file says every kind of position") {
  ModelSpec model = shipped("tiny-gpt3");
  const TempDir dir;
  for (const PositionKind kind : {PositionKind::Rope, PositionKind::Learned, PositionKind::None, PositionKind::Alibi}) {
    model.position = kind;
    write_file(dir.file("model.json"), model_file_text(model));
    const Result<ModelSpec> read = load_model(dir.file("model.json"));
    REQUIRE(read.ok());
    CHECK(read.value().position == kind);
  }
}
