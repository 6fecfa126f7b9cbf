// The device interpreter, with the processor as the device: what is queued in which order, and that it is enough.
#include <catch2/catch.hpp>

#include <map>
#include <set>

#include "exec/device_teams.h"
#include "exec/stream_schedule.h"
#include "kernels/open_device.h"
#include "models/base/index.h"
#include "tests/exec/goldens.h"
#include "tests/exec/processes.h"
#include "tests/program/tiny_models.h"
#include "tests/program/training.h"

using namespace trainyard;
using namespace trainyard::test;

namespace {

// For each launch, by stream, the last launch that streams and waits make it come after.
std::vector<std::map<Stream, std::int32_t>> order_of(const std::vector<exec::ScheduledLaunch>& schedule) {
  std::vector<std::map<Stream, std::int32_t>> after;
  std::map<Stream, std::map<Stream, std::int32_t>> of_stream;
  for (std::size_t i = 0; i < schedule.size(); ++i) {
    auto& known = of_stream[schedule[i].stream];
    for (const std::int32_t awaited : schedule[i].waits) {
      for (const auto& [stream, at] : after[index(awaited)])
        known[stream] = std::max(known.count(stream) != 0 ? known[stream] : -1, at);
    }
    known[schedule[i].stream] = static_cast<std::int32_t>(i);
    after.push_back(known);
  }
  return after;
}

void check_schedule(const StepProgram& program, const StageProgram& stage) {
  const std::vector<exec::ScheduledLaunch> schedule = exec::schedule_streams(program, stage);
  const auto after = order_of(schedule);
  std::map<std::pair<std::int32_t, OpId>, std::int32_t> position;
  for (std::size_t i = 0; i < schedule.size(); ++i)
    position[{schedule[i].item, schedule[i].op}] = static_cast<std::int32_t>(i);
  std::size_t ops = 0;
  for (const Item& item : stage.items) ops += item.block < 0 ? 1 : program.block(item).ops.size();
  REQUIRE(position.size() == ops);
  REQUIRE(schedule.size() == ops);
  std::map<Stream, std::pair<std::int32_t, OpId>> last;
  for (std::size_t i = 0; i < schedule.size(); ++i) {
    const exec::ScheduledLaunch& launch = schedule[i];
    const auto comes_after = [&](std::int32_t item, OpId op) {
      const std::int32_t at = position.at({item, op});
      const auto found = after[i].find(schedule[index(at)].stream);
      return at < static_cast<std::int32_t>(i) && found != after[i].end() && found->second >= at;
    };
    const Item& item = stage.items[index(launch.item)];
    for (const Wait& wait : item.waits) {
      const Item& other = stage.items[index(wait.item)];
      const auto count = other.block < 0 ? 1 : static_cast<OpId>(program.block(other).ops.size());
      for (OpId op = wait.op < 0 ? 0 : wait.op; op < (wait.op < 0 ? count : wait.op + 1); ++op)
        CHECK(comes_after(wait.item, op));
    }
    if (item.block >= 0) {
      for (const OpId dep : program.block(item).ops[index(launch.op)].deps) CHECK(comes_after(launch.item, dep));
    }
    const auto& [entry, is_new] = last.try_emplace(launch.stream, std::make_pair(launch.item, launch.op));
    if (!is_new) CHECK(entry->second < std::make_pair(launch.item, launch.op));
    entry->second = {launch.item, launch.op};
  }
}

}  // namespace

TEST_CASE("every op is queued behind all that it waits for, under any plan", "[exec]") {
  RandomStream random(11, "device_interpreter_test");
  for (const ModelFamily family : {ModelFamily::Llama, ModelFamily::Mixtral, ModelFamily::Grok1, ModelFamily::Gpt3}) {
    ModelSpec model = tiny_model(family);
    model.num_hidden_layers = 8;
    for (int i = 0; i < 15; ++i) {
      const ParallelPlan plan = random_plan(model, random);
      INFO(describe(model, plan));
      const StepProgram program = lower(model, plan);
      for (const StageProgram& stage : program.stages) check_schedule(program, stage);
    }
  }
}

TEST_CASE("a device trains bit for bit as the step interpreter does", "[exec]") {
  const auto family = GENERATE(ModelFamily::Llama, ModelFamily::Mixtral, ModelFamily::Grok1, ModelFamily::Gpt3);
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::F32;
  SECTION("one rank") {}
  SECTION("data and tensor parallel, optimizer sharded") {
    plan.dp = plan.tp = 2;
    plan.sequence_parallel = true;
    plan.zero_stage = 1;
  }
  SECTION("experts on two ranks") {
    plan.dp = 2;
    if (tiny_model(family).moe) plan.ep = 2;
  }
  const StepProgram program = lower(tiny_model(family), plan);
  const auto run = [&](On on) {
    return train_in_processes(program, random_weights(program), random_tokens(tiny_model(family), plan), 3, on);
  };
  CHECK(same_bits(run(On::Processor), run(On::HostDevice)));
}

TEST_CASE("a GPU trains as PyTorch does", "[exec]") {
  if (!kernels::list_cuda_devices()) {
    WARN("SKIPPED: " << kernels::list_cuda_devices().problems().front().rule);
    return;
  }
  const auto family = GENERATE(ModelFamily::Llama, ModelFamily::Mixtral, ModelFamily::Grok1, ModelFamily::Gpt3);
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::F32;
  const Weights golden = read_safetensors(golden_file(family));
  const Run got =
      train_in_processes(lower(tiny_model(family), plan), section(golden, "init."), golden.at("tokens"), 3, On::Gpu);
  for (std::size_t step = 0; step < 3; ++step)
    CHECK(got.steps.at(step).loss == Approx(golden.at("loss." + std::to_string(step)).data[0]).epsilon(1e-5));
  check_close(got.gradients, section(golden, "grad."), 2e-5);
  check_close(without_key_biases(got.weights), without_key_biases(section(golden, "final.")), 2e-4);
}

TEST_CASE("ranks agree on the teams that they make, and make each once", "[exec]") {
  RandomStream random(12, "device_teams");
  for (const ModelFamily family : {ModelFamily::Llama, ModelFamily::Mixtral}) {
    ModelSpec model = tiny_model(family);
    model.num_hidden_layers = 8;
    for (int i = 0; i < 25; ++i) {
      const ParallelPlan plan = random_plan(model, random);
      INFO(describe(model, plan));
      const StepProgram program = lower(model, plan);
      const Mesh mesh(plan);
      std::vector<exec::DeviceTeams> all;
      for (std::int64_t rank = 0; rank < mesh.ranks(); ++rank) all.push_back(exec::device_teams(program, rank));
      for (std::int64_t rank = 0; rank < mesh.ranks(); ++rank) {
        std::set<std::pair<Stream, std::vector<std::int64_t>>> seen;
        for (const exec::Team& team : all[index(rank)].teams) {
          CHECK(team.ranks.at(team.me) == rank);
          CHECK(seen.insert({team.stream, team.ranks}).second);
          // What two ranks share, both list in one order.
          for (const std::int64_t other : team.ranks) {
            const auto shared = [&](std::int64_t of) {
              std::vector<std::pair<Stream, std::vector<std::int64_t>>> list;
              for (const exec::Team& its : all[index(of)].teams) {
                const auto has = [&](std::int64_t r) {
                  return std::find(its.ranks.begin(), its.ranks.end(), r) != its.ranks.end();
                };
                if (has(rank) && has(other)) list.emplace_back(its.stream, its.ranks);
              }
              return list;
            };
            CHECK(shared(rank) == shared(other));
          }
        }
        for (const exec::MessageChannel& channel : all[index(rank)].channels) {
          const std::int64_t other = channel.sender == rank ? channel.receiver : channel.sender;
          const auto& its = all[index(other)].channels;
          CHECK(std::find(its.begin(), its.end(), channel) != its.end());
        }
      }
    }
  }
}

TEST_CASE("a pipeline's batches go through one communicator of its stages", "[exec]") {
  ModelSpec model = tiny_model(ModelFamily::Llama);
  model.num_hidden_layers = 8;
  ParallelPlan plan = tiny_plan();
  plan.pp = 4;
  const exec::DeviceTeams teams = exec::device_teams(lower(model, plan), 2);
  const auto stages = std::find_if(teams.teams.begin(), teams.teams.end(),
                                   [](const exec::Team& team) { return team.stream == Stream::Pp; });
  REQUIRE(stages != teams.teams.end());
  CHECK(stages->ranks == std::vector<std::int64_t>{0, 1, 2, 3});
  CHECK(stages->me == 2);
  CHECK(teams.channels.empty());
}
