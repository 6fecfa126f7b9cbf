// Checkpoints: any plan loads what any plan saved, and nothing that is damaged or half written is taken for one.
#include <catch2/catch.hpp>

#include <filesystem>
#include <fstream>

#include "tests/exec/training_job.h"
#include "tests/program/training.h"
#include "tests/sanitized.h"

using namespace trainyard;
using namespace trainyard::test;
namespace fs = std::filesystem;

namespace {

ParallelPlan plan_for(std::int64_t batch) {
  ParallelPlan plan = tiny_plan();
  plan.global_batch = batch;
  return plan;
}

// Ten plans of one job: the same batch, spread in other ways.
std::vector<ParallelPlan> ten_plans(const ModelSpec& model) {
  const auto make = [&](std::int64_t tp, std::int64_t cp, std::int64_t pp, std::int64_t dp, std::int64_t zero) {
    ParallelPlan plan = plan_for(8);
    plan.tp = tp, plan.cp = cp, plan.pp = pp, plan.dp = dp, plan.zero_stage = zero;
    plan.bucket_bytes = 4096;
    if (model.moe) plan.ep = std::min<std::int64_t>(cp * dp, 2);
    return plan;
  };
  std::vector<ParallelPlan> plans{make(1, 1, 1, 1, 0), make(2, 1, 1, 1, 0), make(1, 2, 1, 1, 1), make(1, 1, 2, 1, 0),
                                  make(1, 1, 1, 2, 1), make(2, 1, 1, 2, 1), make(1, 2, 2, 1, 1), make(2, 2, 1, 1, 3),
                                  make(1, 1, 2, 2, 3), make(1, 1, 1, 4, 2)};
  plans[5].sequence_parallel = true;
  return plans;
}

std::string bytes_of(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void overwrite(const fs::path& file, const std::string& bytes) { std::ofstream(file, std::ios::binary) << bytes; }

}  // namespace

TEST_CASE("a checkpoint of one plan resumes under ten others with the same losses", "[exec]") {
  const auto family = GENERATE(ModelFamily::Llama, ModelFamily::Mixtral, ModelFamily::Gpt3);
  const ModelSpec model = byte_model(family);
  const TextFile text;
  const exec::Corpus corpus = exec::Corpus::open(text.path()).value();
  const std::vector<ParallelPlan> plans = ten_plans(model);
  const TempDir dir;
  const StepProgram writer = lower(model, plans[family == ModelFamily::Gpt3 ? 8 : 5]);
  const std::vector<double> want = losses(train_job(writer, corpus, 6, {dir.path(), 3, 9}));
  const exec::SavedState saved = exec::SavedState::open(dir.file("step-00000003")).value();
  CHECK(saved.manifest().step == 3);
  for (std::size_t p = 0; p < plans.size(); p += testing::kSanitized ? 4 : 1) {
    const ParallelPlan& plan = plans[p];
    INFO(describe(model, plan));
    const StepProgram program = lower(model, plan);
    REQUIRE(saved.fits(program).empty());
    const std::vector<double> got = losses(train_job(program, corpus, 6, {}, &saved));
    REQUIRE(got.size() == 3);
    for (std::size_t i = 0; i < got.size(); ++i) CHECK(got[i] == Approx(want[i + 3]).epsilon(1e-10));
  }
}

TEST_CASE("a checkpoint goes from hybrid sharding to full sharding to one rank, and back, with the same losses",
          "[exec]") {
  const ModelSpec model = byte_model(ModelFamily::Mixtral);
  const auto make = [](std::int64_t dp, std::int64_t zero, std::int64_t shard_size) {
    ParallelPlan plan = plan_for(8);
    plan.dp = dp, plan.zero_stage = zero, plan.zero_shard_size = shard_size;
    plan.ep = dp == 8 ? 2 : 1;
    plan.bucket_bytes = 4096;
    return plan;
  };
  const TextFile text;
  const exec::Corpus corpus = exec::Corpus::open(text.path()).value();
  const std::vector<double> want = losses(train_job(lower(model, make(1, 0, 0)), corpus, 10));
  const TempDir dir;
  std::vector<double> got;
  std::vector<std::size_t> files;
  std::optional<exec::SavedState> saved;
  for (const ParallelPlan& plan : {make(4, 3, 2), make(4, 3, 0), make(1, 0, 0), make(4, 1, 2), make(8, 2, 2)}) {
    const StepProgram program = lower(model, plan);
    if (saved) REQUIRE(saved->fits(program).empty());
    const std::int64_t until = static_cast<std::int64_t>(got.size()) + 2;
    const std::vector<double> more =
        losses(train_job(program, corpus, until, {dir.path(), until, 9}, saved ? &*saved : nullptr));
    got.insert(got.end(), more.begin(), more.end());
    saved = exec::SavedState::open(exec::list_checkpoints(dir.path()).front()).value();
    CHECK(saved->manifest().step == until);
    files.push_back(saved->manifest().files.size());
  }
  // Of copies the first is saved: by two of four ranks; of two halves of the experts in two shards each, by four of
  // eight.
  CHECK(files == std::vector<std::size_t>{2, 4, 1, 2, 4});
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(got[i] == Approx(want[i]).epsilon(1e-10));
}

TEST_CASE("a run that was resumed is the run that was not, bit for bit", "[exec]") {
  const auto precision = GENERATE(Precision::F32, Precision::Bf16);
  const ModelSpec model = byte_model(ModelFamily::Grok1);
  ParallelPlan plan = plan_for(4);
  plan.precision = precision;
  plan.dp = plan.ep = 2;
  plan.zero_stage = 1;
  plan.overlap.param_gather = true;
  const StepProgram program = lower(model, plan);
  const TextFile text;
  const exec::Corpus corpus = exec::Corpus::open(text.path()).value();
  const TempDir dir;
  const std::vector<double> want = losses(train_job(program, corpus, 5, {dir.path(), 2, 9}));
  const exec::SavedState saved = exec::SavedState::open(dir.file("step-00000002")).value();
  const std::vector<double> got = losses(train_job(program, corpus, 5, {}, &saved));
  CHECK(got == std::vector<double>(want.begin() + 2, want.end()));
}

TEST_CASE("of checkpoints the newest are kept", "[exec]") {
  const StepProgram program = lower(byte_model(ModelFamily::Llama), plan_for(1));
  const TextFile text;
  const TempDir dir;
  const exec::TrainingReport report =
      train_job(program, exec::Corpus::open(text.path()).value(), 5, {dir.path(), 1, 2});
  CHECK(report.checkpoints == std::vector<std::int64_t>{1, 2, 3, 4, 5});
  const std::vector<std::string> left = exec::list_checkpoints(dir.path());
  REQUIRE(left.size() == 2);
  CHECK(fs::path(left[0]).filename() == "step-00000005");
  CHECK(fs::path(left[1]).filename() == "step-00000004");
}

TEST_CASE("a checkpoint that is not whole is seen, and none of it is used", "[exec]") {
  const StepProgram program = lower(byte_model(ModelFamily::Llama), plan_for(1));
  const TextFile text;
  const TempDir dir;
  train_job(program, exec::Corpus::open(text.path()).value(), 2, {dir.path(), 1, 2});
  const fs::path newest = dir.file("step-00000002"), data = newest / "rank-00000.safetensors";
  REQUIRE(exec::SavedState::open(newest).ok());
  const auto refused = [&] {
    const auto opened = exec::SavedState::open(newest);
    CHECK(exec::SavedState::open(dir.file("step-00000001")).ok());
    return !opened.ok() && !opened.problems().front().rule.empty();
  };
  const std::string whole = bytes_of(data), manifest = bytes_of(newest / "manifest.json");
  SECTION("any bit of its data turned over") {
    RandomStream random(7, "bits");
    for (int i = 0; i < 40; ++i) {
      std::string bytes = whole;
      bytes[i < 10 ? static_cast<std::size_t>(i) : random.below(bytes.size())] ^=
          static_cast<char>(1 << random.below(8));
      overwrite(data, bytes);
      CHECK(refused());
    }
  }
  SECTION("any byte of its manifest changed") {
    for (std::size_t i = 0; i + 1 < manifest.size(); i += 3) {
      std::string bytes = manifest;
      bytes[i] = static_cast<char>(bytes[i] ^ 1);
      overwrite(newest / "manifest.json", bytes);
      INFO(i);
      CHECK(refused());
    }
  }
  SECTION("cut short") {
    for (const std::size_t size : {std::size_t{0}, std::size_t{7}, std::size_t{900}, whole.size() - 1}) {
      overwrite(data, whole.substr(0, size));
      CHECK(refused());
    }
    overwrite(data, whole);
    overwrite(newest / "manifest.json", manifest.substr(0, manifest.size() / 2));
    CHECK(refused());
  }
  SECTION("a file is missing") {
    fs::remove(data);
    CHECK(refused());
  }
  SECTION("its manifest is missing") {
    fs::remove(newest / "manifest.json");
    CHECK(refused());
    CHECK(!exec::SavedState::open(newest.string() + "/").ok());
  }
  SECTION("it was never ended") {
    fs::remove(newest / "manifest.json");
    fs::rename(newest, newest.string() + ".partial");
    REQUIRE(exec::list_checkpoints(dir.path()).size() == 1);
    CHECK(fs::path(exec::list_checkpoints(dir.path())[0]).filename() == "step-00000001");
  }
}

TEST_CASE("what was saved of another model is refused before ranks start", "[exec]") {
  const ModelSpec model = byte_model(ModelFamily::Llama);
  const TextFile text;
  const TempDir dir;
  train_job(lower(model, plan_for(1)), exec::Corpus::open(text.path()).value(), 1, {dir.path(), 0, 2});
  const exec::SavedState saved = exec::SavedState::open(dir.file("step-00000001")).value();
  ModelSpec wider = model;
  wider.intermediate_size *= 2;
  ModelSpec deeper = model;
  deeper.num_hidden_layers += 1;
  for (const ModelSpec& other : {wider, deeper}) {
    const Problems problems = saved.fits(lower(other, plan_for(1)));
    REQUIRE(!problems.empty());
    CHECK(problems.front().rule.find("model.layers.") != std::string::npos);
  }
}

TEST_CASE("only what is named as a checkpoint is one, and the newest is the one of most steps", "[exec]") {
  CHECK(exec::checkpoint_step("runs/step-00000200") == 200);
  CHECK(exec::checkpoint_step("runs/step-00000200/") == 200);
  CHECK(exec::checkpoint_step("step-123456789012") == 123456789012);
  for (const char* other : {"step-", "step-00000200.good", "step-00000200.partial", "step-2e3", "step--1", "steps",
                            "step-99999999999999999999", ""})
    CHECK(!exec::checkpoint_step(other));
  const TempDir dir;
  for (const char* name : {"step-99999999", "step-100000000", "step-00000007.good"})
    fs::create_directory(dir.file(name));
  CHECK(exec::list_checkpoints(dir.path()) ==
        std::vector<std::string>{dir.file("step-100000000"), dir.file("step-99999999")});
}

TEST_CASE("a folder of checkpoints has one writer, who clears away what others left", "[exec]") {
  const TempDir dir;
  {
    fs::create_directories(dir.file("step-00000003.partial"));
    fs::create_directories(dir.file("step-00000002.good"));
    const auto first = exec::FolderLock::take(dir.path());
    REQUIRE(first.ok());
    CHECK(!fs::exists(dir.file("step-00000003.partial")));
    CHECK(fs::exists(dir.file("step-00000002.good")));
    const auto second = exec::FolderLock::take(dir.path());
    REQUIRE(!second.ok());
    CHECK(second.problems().front().rule.find("another job") != std::string::npos);
  }
  CHECK(exec::FolderLock::take(dir.path()).ok());
}

TEST_CASE("a checkpoint takes the place of an older one of the same step", "[exec]") {
  const TempDir dir;
  for (const std::uint64_t seed : {1, 2}) {
    exec::Manifest manifest;
    manifest.step = 5;
    manifest.seed = seed;
    REQUIRE(exec::begin_checkpoint(dir.path(), 5).ok());
    REQUIRE(exec::commit_checkpoint(dir.path(), manifest, 2).empty());
    CHECK(exec::verify_checkpoint(dir.file("step-00000005")).value().seed == seed);
    CHECK(!fs::exists(dir.file("step-00000005.partial")));
  }
}

TEST_CASE("descriptions of pieces that reach outside their tensor are refused", "[exec]") {
  const auto parse = [](const std::string& runs, std::int64_t elements) {
    return exec::parse_piece(R"({"tensor": "w", "shape": [4, 3], "runs": )" + runs + "}", elements);
  };
  REQUIRE(parse("[[0, 2, 3, 4]]", 8));
  CHECK(parse("[[0, 2, 3, 4]]", 8)->runs[0].repeat == 4);
  for (const char* runs :
       {"[[0, 2, 3, 5]]", "[[5, 8, 0, 1]]", "[[18446744073709551608, 8, 0, 1]]", "[[0, 8, 9223372036854775807, 2]]",
        "[[-1, 8, 0, 1]]", "[[0, 0, 0, 8]]", "[[0, 4, 2, 2]]", "[[0, 1.5, 0, 1]]", "[[0, 8, 0]]", "[8]", "8",
        "[[0, 1, 0, 1], [0, 9223372036854775807, 0, 1]]", "[[0, 4, 0, 2]]"})
    CHECK(!parse(runs, 8));
  CHECK(!exec::parse_piece("{", 1));
  CHECK(!exec::parse_piece(R"({"tensor": "w", "shape": [18446744073709551615], "runs": [[0, 1, 0, 1]]})", 1));
}
