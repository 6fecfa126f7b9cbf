// Whole jobs: what the launcher reports, how it ends when a rank dies or someone asks it to stop, and that any plan
// starts alike and reads the same text.
#include <catch2/catch.hpp>

#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <fstream>
#include <numeric>
#include <set>

#include "exec/gloo_communicator.h"
#include "models/base/stop.h"
#include "tests/exec/training_job.h"

using namespace trainyard;
using namespace trainyard::test;

namespace {

// Children of this process.
std::vector<pid_t> children() {
  std::ifstream in("/proc/self/task/" + std::to_string(getpid()) + "/children");
  std::vector<pid_t> out;
  for (pid_t child = 0; in >> child;) out.push_back(child);
  return out;
}

}  // namespace

TEST_CASE("a job starts with the loss of a guess and learns", "[exec]") {
  ParallelPlan plan = tiny_plan();
  plan.precision = GENERATE(Precision::F32, Precision::Bf16);
  plan.global_batch = 8;
  plan.dp = 2;
  const TextFile text;
  const exec::TrainingReport report =
      train_job(lower(byte_model(ModelFamily::Llama), plan), exec::Corpus::open(text.path()).value(), 30);
  const std::vector<double> got = losses(report);
  REQUIRE(got.size() == 30);
  CHECK(got.front() == Approx(std::log(256)).epsilon(0.02));
  CHECK(got.back() < 3.2);  // the text has some ten letters
  CHECK(report.ranks.size() == 2);
  CHECK(children().empty());
}

TEST_CASE("jobs start alike and read the same text under any plan", "[exec]") {
  const ModelSpec model = byte_model(GENERATE(ModelFamily::Mixtral, ModelFamily::Gpt3));
  const TextFile text;
  const exec::Corpus corpus = exec::Corpus::open(text.path()).value();
  ParallelPlan one = tiny_plan();
  one.global_batch = 8;
  const std::vector<double> want = losses(train_job(lower(model, one), corpus, 4));
  ParallelPlan many = one;
  many.tp = many.cp = many.dp = 2;
  many.micro_batch = 2;
  const std::vector<double> got = losses(train_job(lower(model, many), corpus, 4));
  for (std::size_t i = 0; i < want.size(); ++i) CHECK(got.at(i) == Approx(want[i]).epsilon(1e-10));
}

TEST_CASE("both communicators agree", "[exec]") {
  if (!exec::has_gloo()) {
    WARN("this build has no Gloo: skipped");
    return;
  }
  const TextFile text;
  const exec::Corpus corpus = exec::Corpus::open(text.path()).value();
  exec::TrainingJob job;
  ParallelPlan plan = tiny_plan();
  plan.global_batch = 4;
  ModelFamily family = ModelFamily::Llama;
  SECTION("tp with sequence parallelism, cp") { plan.tp = plan.cp = 2, plan.sequence_parallel = true; }
  SECTION("pp, interleaved") {
    plan.pp = plan.virtual_stages = 2;
    plan.schedule = PipelineSchedule::Interleaved;
  }
  SECTION("experts, ZeRO 3, over a pipeline") {
    plan.pp = plan.dp = plan.ep = 2, plan.zero_stage = 3;
    family = ModelFamily::Mixtral;
  }
  SECTION("a ring of three, in which direction tells") {
    plan.cp = 3, plan.sequence_length = 12, plan.cp_comm_type = CpCommType::P2p;
  }
  SECTION("pp, interleaved, in step") {
    plan.pp = plan.virtual_stages = 2;
    plan.schedule = PipelineSchedule::Interleaved;
    plan.overlap.p2p = false;
  }
  SECTION("hybrid sharding") { plan.dp = 4, plan.zero_stage = 3, plan.zero_shard_size = 2; }
  SECTION("bf16") {
    plan.dp = plan.tp = 2, plan.zero_stage = 1, plan.precision = Precision::Bf16, plan.fp32_gradients = false;
  }
  ModelSpec model = byte_model(family);
  model.num_hidden_layers = plan.chunks();
  const StepProgram program = lower(model, plan);
  job.program = &program;
  job.corpus = &corpus;
  job.training.steps = 2;
  const std::vector<double> mesh = losses(exec::train(job).value());
  job.gloo = true;
  const std::vector<double> gloo = losses(exec::train(job).value());
  REQUIRE(gloo.size() == 2);
  const double tolerance = plan.precision == Precision::F64 ? 1e-12 : 1e-2;
  for (std::size_t i = 0; i < 2; ++i) CHECK(gloo[i] == Approx(mesh[i]).epsilon(tolerance));
  CHECK(children().empty());
}

TEST_CASE("a rank that dies is named, and nobody is left behind", "[exec]") {
  ParallelPlan plan = tiny_plan();
  plan.tp = plan.dp = 2;
  const TextFile text;
  const exec::Corpus corpus = exec::Corpus::open(text.path()).value();
  exec::TrainingEvents events;
  events.on_step = [](const exec::StepReport& step) {
    if (step.step == 2) kill(children().at(3), SIGKILL);
  };
  const exec::TrainingReport report =
      train_job(lower(byte_model(ModelFamily::Llama), plan), corpus, 1'000'000, {}, nullptr, events);
  REQUIRE(report.problems.size() == 1);
  CHECK(to_string(report.problems[0]).find("rank 3") != std::string::npos);
  CHECK(to_string(report.problems[0]).find("killed by signal 9") != std::string::npos);
  CHECK(report.problems[0].kind == ProblemKind::Failed);
  CHECK(report.steps.size() >= 3);
  CHECK(children().empty());
}

TEST_CASE("a request to stop that reaches ranks too does not end them", "[exec]") {
  const TextFile text;
  ParallelPlan plan = tiny_plan();
  plan.dp = 2;
  plan.global_batch = 2;
  exec::TrainingEvents events;
  events.on_step = [](const exec::StepReport& step) {
    for (const pid_t child : step.step == 1 ? children() : std::vector<pid_t>{}) {
      for (const int signal : {SIGTERM, SIGINT, SIGHUP}) kill(child, signal);
    }
  };
  const exec::TrainingReport report = train_job(lower(byte_model(ModelFamily::Llama), plan),
                                                exec::Corpus::open(text.path()).value(), 6, {}, nullptr, events);
  CHECK(losses(report).size() == 6);
}

TEST_CASE("training that diverges ends, and keeps the checkpoints that are good", "[exec]") {
  const TextFile text;
  const TempDir dir;
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::F32;
  plan.global_batch = 2;
  plan.optimizer.learning_rate = 1e30;
  const exec::TrainingReport report = train_job(lower(byte_model(ModelFamily::Llama), plan),
                                                exec::Corpus::open(text.path()).value(), 50, {dir.path(), 1, 2});
  REQUIRE(report.problems.size() == 1);
  CHECK(report.problems[0].rule.find("diverged at step") != std::string::npos);
  CHECK(report.problems[0].kind == ProblemKind::Failed);
  REQUIRE(!report.steps.empty());
  CHECK(!std::isfinite(report.steps.back().loss + report.steps.back().grad_norm));
  for (const std::string& saved : exec::list_checkpoints(dir.path()))
    CHECK(*exec::checkpoint_step(saved) < static_cast<std::int64_t>(report.steps.size()));
  CHECK(children().empty());
}

TEST_CASE("what a rank said before it left is heard, whatever it left unread", "[exec]") {
  auto ends = exec::ControlChannel::make();
  REQUIRE(ends);
  ends->first.send({{"type", "run"}});
  ends->second.send({{"type", "problem"}});
  ends->second.close();
  const auto message = ends->first.receive();
  REQUIRE(message);
  CHECK((*message)["type"] == "problem");
  CHECK(!ends->first.receive());
}

TEST_CASE("experts that overflow their bound end the job with a cure", "[exec]") {
  ParallelPlan plan = tiny_plan();
  plan.global_batch = 4;
  plan.dp = plan.ep = 4;
  plan.moe.buffer_factor = 1;
  const TextFile text;
  const exec::TrainingReport report =
      train_job(lower(byte_model(ModelFamily::Mixtral), plan), exec::Corpus::open(text.path()).value(), 100);
  REQUIRE(report.problems.size() == 1);
  CHECK(report.problems[0].fix.find("buffer_factor") != std::string::npos);
  CHECK(report.problems[0].kind == ProblemKind::Infeasible);
  CHECK(children().empty());
}

TEST_CASE("every window of a text comes once in each pass, in another order each time", "[exec]") {
  const std::uint64_t count = GENERATE(1, 2, 5, 64, 1000);
  std::set<std::vector<std::uint64_t>> orders;
  for (std::uint64_t key = 0; key < 3; ++key) {
    std::vector<std::uint64_t> order(count);
    for (std::uint64_t i = 0; i < count; ++i) order[i] = exec::permuted(i, count, key);
    orders.insert(order);
    CHECK(std::set<std::uint64_t>(order.begin(), order.end()).size() == count);
    CHECK(*std::max_element(order.begin(), order.end()) == count - 1);
  }
  if (count >= 64) CHECK(orders.size() == 3);
}

TEST_CASE("a sample is a stretch of the text and a function of seed, step and sample", "[exec]") {
  const TextFile text(1000);
  const exec::Corpus corpus = exec::Corpus::open(text.path()).value();
  std::ifstream in(text.path());
  const std::string whole(std::istreambuf_iterator<char>(in), {});
  std::set<std::string> seen;
  for (int serial = 0; serial < 99; ++serial) {  // 99 windows of 10 tokens: one pass
    std::vector<std::int32_t> tokens(11), again(11);
    corpus.sample(5, serial / 3, serial % 3, 3, 10, tokens.data());
    corpus.sample(5, serial, 0, 1, 10, again.data());
    CHECK(tokens == again);
    const std::string sample(tokens.begin(), tokens.end());
    CHECK(whole.find(sample) != std::string::npos);
    seen.insert(sample);
  }
  CHECK(seen.size() == 99);
}

TEST_CASE("text that cannot be read is one problem", "[exec]") {
  CHECK(!exec::Corpus::open("/nonexistent/text").ok());
  CHECK(!exec::Corpus::open("/dev/null").ok());
  const TempDir dir;
  CHECK(!exec::Corpus::open(dir.path()).ok());  // no files
  REQUIRE(mkfifo(dir.file("pipe").c_str(), 0600) == 0);
  CHECK(!exec::Corpus::open(dir.file("pipe")).ok());  // and nobody waits for a writer
}
