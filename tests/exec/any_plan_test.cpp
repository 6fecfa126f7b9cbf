// Any plan, same loss: processes under every kind of plan give the loss curve of one rank.
#include <catch2/catch.hpp>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "tests/exec/plan_space.h"
#include "tests/exec/training_job.h"
#include "tests/program/training.h"
#include "tests/sanitized.h"

using namespace trainyard;
using namespace trainyard::test;

namespace {

// What differs shows in the first steps, or grows: the fast suite looks at a few, `.ci/run` and the full product at
// twenty.
constexpr std::int64_t kFewSteps = testing::kSanitized ? 3 : 4, kSteps = 20;
constexpr std::int64_t kBatch = 8, kMaxRanks = 8;
const std::vector<ModelFamily> kFamilies{ModelFamily::Llama, ModelFamily::Gpt3, ModelFamily::Mixtral,
                                         ModelFamily::Grok1};

// Float64 proves that plans compute the same; float32 that they do as it is used.
double tolerance(Precision precision) { return precision == Precision::F64 ? 1e-10 : 1e-5; }

ModelSpec model_of(ModelFamily family) {
  ModelSpec model = byte_model(family);
  model.num_hidden_layers = 4;
  return model;
}

ParallelPlan base_plan(Precision precision) {
  ParallelPlan plan = tiny_plan();
  plan.precision = precision;
  plan.global_batch = kBatch;
  plan.optimizer.learning_rate = 1e-3;
  plan.optimizer.clip_grad = 1;
  return plan;
}

std::string processor() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "";
}

// The largest relative difference of two loss curves.
double difference(const std::vector<double>& got, const std::vector<double>& want) {
  if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
  double worst = 0;
  for (std::size_t i = 0; i < want.size(); ++i)
    worst = std::max(worst, std::fabs(got[i] - want[i]) / std::fabs(want[i]));
  return std::isnan(worst) ? std::numeric_limits<double>::infinity() : worst;
}

// The job under one plan after the other, beside one rank.
class Comparison {
 public:
  Comparison(ModelFamily family, Precision precision, std::int64_t steps)
      : steps_(steps),
        model_(model_of(family)),
        corpus_(exec::Corpus::open(text_.path()).value()),
        want_(run(base_plan(precision))) {}

  [[nodiscard]] std::vector<double> run(const ParallelPlan& plan) const {
    const StepProgram program = lower(model_, plan);
    const exec::TrainingReport report = train_job(program, corpus_, steps_);
    const Mesh mesh(plan);
    for (std::int64_t r = 0; r < mesh.ranks(); ++r) {
      const StageProgram& stage = program.stages[static_cast<std::size_t>(mesh.coordinates(r).pp)];
      if (report.ranks.at(static_cast<std::size_t>(r)).arena_bytes != stage.arena_bytes)
        throw std::runtime_error("the arena is not what was predicted");
    }
    return losses(report);
  }
  [[nodiscard]] double difference_of(const ParallelPlan& plan) const { return difference(run(plan), want_); }
  [[nodiscard]] const ModelSpec& model() const { return model_; }

 private:
  std::int64_t steps_;
  TextFile text_;
  ModelSpec model_;
  exec::Corpus corpus_;
  std::vector<double> want_;
};

// Every pair of choices is in one of the plans.
void compare_pairs(std::int64_t steps) {
  std::vector<ModelSpec> models;
  std::vector<std::unique_ptr<Comparison>> in_f64, in_f32;
  for (const ModelFamily family : kFamilies) {
    models.push_back(model_of(family));
    in_f64.push_back(std::make_unique<Comparison>(family, Precision::F64, steps));
    in_f32.push_back(std::make_unique<Comparison>(family, Precision::F32, steps));
  }
  const PlanSpace space(models, base_plan(Precision::F64), kMaxRanks, true);
  const std::vector<Choices> points = space.pairwise();
  for (std::size_t i = 0; i < points.size(); i += testing::kSanitized ? 15 : 1) {
    const Choices& point = points[i];
    ParallelPlan plan = space.plan_of(point);
    INFO(describe(models[space.model_of(point)], plan));
    CHECK(in_f64[space.model_of(point)]->difference_of(plan) < tolerance(Precision::F64));
    plan.precision = Precision::F32;
    CHECK(in_f32[space.model_of(point)]->difference_of(plan) < tolerance(Precision::F32));
  }
}

}  // namespace

TEST_CASE("any plan, same loss: every pair of choices", "[exec]") { compare_pairs(kFewSteps); }

// `.ci/run` runs it.
TEST_CASE("any plan, same loss over twenty steps: every pair of choices", "[.slow]") { compare_pairs(kSteps); }

TEST_CASE("the same plan twice gives the same bits", "[exec]") {
  for (const Precision precision : {Precision::F32, Precision::Bf16}) {
    const Comparison job(ModelFamily::Mixtral, precision, testing::kSanitized ? kFewSteps : kSteps);
    ParallelPlan plan = base_plan(precision);
    plan.tp = plan.dp = plan.ep = plan.pp = 2;
    plan.zero_stage = 3;
    CHECK(job.run(plan) == job.run(plan));
  }
}

// The whole product takes most of an hour: `./yard nightly`. Its result goes to $TRAINYARD_RESULT as JSON.
TEST_CASE("any plan, same loss: the full product", "[.nightly]") {
  nlohmann::ordered_json result{
      {"commit", std::getenv("TRAINYARD_COMMIT") != nullptr ? std::getenv("TRAINYARD_COMMIT") : ""},
      {"instruction_set", kernels::cpu_instruction_set()},
      {"machine", processor()}};
  for (const ModelFamily family : kFamilies) {
    for (const Precision precision : {Precision::F64, Precision::F32}) {
      const Comparison job(family, precision, kSteps);
      const PlanSpace space({job.model()}, base_plan(precision), kMaxRanks, false);
      double worst = 0;
      std::string worst_plan;
      std::size_t failed = 0;
      for (const Choices& point : space.points()) {
        const ParallelPlan plan = space.plan_of(point);
        INFO(describe(job.model(), plan));
        const double off = job.difference_of(plan);
        CHECK(off < tolerance(precision));
        failed += off < tolerance(precision) ? 0 : 1;
        if (off > worst) worst = off, worst_plan = describe(job.model(), plan);
      }
      result["runs"].push_back({{"model", job.model().name},
                                {"precision", precision == Precision::F64 ? "f64" : "f32"},
                                {"plans", space.points().size()},
                                {"steps", kSteps},
                                {"tolerance", tolerance(precision)},
                                {"failed", failed},
                                {"worst_relative_difference", worst},
                                {"worst_plan", worst_plan}});
      std::cerr << result["runs"].back().dump() << std::endl;
    }
  }
  if (const char* file = std::getenv("TRAINYARD_RESULT")) std::ofstream(file) << result.dump(2) << "\n";
}
