// Real processes, one for each rank, compute what the reference computes on all logical ranks at once.
#include <catch2/catch.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstring>

#include "exec/mesh_communicator.h"
#include "exec/step_interpreter.h"
#include "models/program/shards.h"
#include "tests/program/reference.h"
#include "tests/program/tiny_models.h"
#include "tests/program/training.h"

using namespace trainyard;

namespace {

// Sets what the rank holds of these weights: parameters, and master weights of its share.
void set_weights(const exec::StepInterpreter& rank, const StepProgram& program, const Weights& weights) {
  for (const Frame& frame : rank.stage().frames) {
    if (frame.role == Role::Params || frame.role == Role::Optimizer)
      std::memset(rank.frame(frame.role, frame.chunk), 0, static_cast<std::size_t>(frame.bytes));
  }
  for_each_run(program, rank.mesh(), rank.rank(),
               [&](std::size_t chunk, const Bucket& bucket, const Param&, std::int64_t element, const ParamPart& part,
                   std::int64_t global, std::int64_t count) {
                 const auto c = static_cast<std::int64_t>(chunk);
                 const double* from = weights.at(part.name).data.data() + global;
                 auto* params = reinterpret_cast<double*>(rank.frame(Role::Params, c) + bucket.param_offset_bytes);
                 auto* master =
                     reinterpret_cast<double*>(rank.frame(Role::Optimizer, c) + bucket.optimizer_offset_bytes);
                 for (std::int64_t i = 0; i < count; ++i) {
                   params[element + i] = from[i];
                   const std::int64_t share = element + i - rank.share_begin(bucket);
                   if (share >= 0 && share < bucket.shard_elements) master[share] = from[i];
                 }
               });
}

struct Outcome {
  bool ok = false;
  double loss = 0, grad_norm = 0;
};

// Trains in processes of their own; what the last rank says of each step.
std::vector<Outcome> train_for_real(const StepProgram& program, int steps) {
  const Mesh mesh(program.plan);
  const Weights weights = random_weights(program);
  std::vector<std::int32_t> tokens;
  for (const double token : random_tokens(program.model, program.plan).data)
    tokens.push_back(static_cast<std::int32_t>(token));
  std::vector<std::vector<int>> sockets = exec::connect_mesh(mesh.ranks()).value();
  int results[2];
  REQUIRE(pipe(results) == 0);
  std::vector<pid_t> ranks;
  for (std::int64_t rank = 0; rank < mesh.ranks(); ++rank) {
    const pid_t pid = fork();
    if (pid == 0) {
      for (std::size_t other = 0; other < sockets.size(); ++other) {
        if (static_cast<std::int64_t>(other) == rank) continue;
        for (const int socket : sockets[other]) {
          if (socket >= 0) close(socket);
        }
      }
      const auto kernels = kernels::cpu_kernels();
      const auto communicator = exec::mesh_communicator(rank, sockets[static_cast<std::size_t>(rank)]);
      exec::StepInterpreter interpreter(program, rank, *kernels, *communicator);
      set_weights(interpreter, program, weights);
      for (int step = 0; step < steps; ++step) {
        const auto outcome = interpreter.step(
            [&](std::int64_t sample) { return tokens.data() + sample * (program.plan.sequence_length + 1); });
        if (!outcome) {
          fprintf(stderr, "%s\n", to_string(outcome.problems().front()).c_str());
          _exit(1);
        }
        const Outcome told{true, outcome.value().loss, outcome.value().grad_norm};
        if (rank == mesh.ranks() - 1 && write(results[1], &told, sizeof told) != sizeof told) _exit(2);
      }
      _exit(0);
    }
    ranks.push_back(pid);
  }
  close(results[1]);
  for (const auto& row : sockets) {
    for (const int socket : row) {
      if (socket >= 0) close(socket);
    }
  }
  std::vector<Outcome> out;
  Outcome told;
  while (read(results[0], &told, sizeof told) == sizeof told) out.push_back(told);
  close(results[0]);
  for (const pid_t pid : ranks) {
    int status = 0;
    waitpid(pid, &status, 0);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
  }
  return out;
}

}  // namespace

TEST_CASE("processes train as the reference does, under any plan", "[exec]") {
  RandomStream random(5, "step_interpreter_test");
  constexpr int kSteps = 3;
  for (const ModelFamily family : {ModelFamily::Llama, ModelFamily::Mixtral, ModelFamily::Grok1, ModelFamily::Gpt3}) {
    ModelSpec model = tiny_model(family);
    model.num_hidden_layers = 8;
    for (int i = 0; i < 6; ++i) {
      ParallelPlan plan = random_plan(model, random);
      if (plan.ranks() > 8) plan.dp = 1, plan.global_batch = plan.micro_batch * plan.pp, plan.ep = 1;
      if (plan.ranks() > 8) plan.cp = 1;
      INFO(describe(model, plan));
      const StepProgram program = lower(model, plan);
      const Run want = train(program, kSteps, 1);
      const std::vector<Outcome> got = train_for_real(program, kSteps);
      REQUIRE(got.size() == kSteps);
      for (std::size_t s = 0; s < got.size(); ++s) {
        CHECK(got[s].loss == Approx(want.steps[s].loss).epsilon(1e-10));
        CHECK(got[s].grad_norm == Approx(want.steps[s].grad_norm).epsilon(1e-9));
      }
    }
  }
}
