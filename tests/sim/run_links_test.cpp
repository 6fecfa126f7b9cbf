// Links and switches in a run: a link that is down harms no node, and is back for all when it is back.
#include <algorithm>
#include <cmath>

#include <catch2/catch.hpp>

#include "sim/nic_faults.h"
#include "tests/sim/run_inputs.h"

using namespace trainyard;
using namespace trainyard::testing;

namespace {

/// Six nodes below leaves of four, the switch of the first of which crashes at 3,600 s.
RunInput leaf_crash(std::optional<double> duration_s, Evidence evidence) {
  RunInput input = small_job();
  input.job_nodes = 6;
  input.cluster.tiers = {{"leaf", 4, 1}};
  input.policy.evidence = evidence;
  InjectedFault leaf = injected(InjectedKind::NodeCrash, 3600, 0, duration_s);
  leaf.mode = FaultMode::SwitchCrash;
  input.faults.injected = {leaf};
  return input;
}

}  // namespace

TEST_CASE("A switch that is back within the retries of queue pairs costs a stall, all its nodes together") {
  const RunResult run = simulate(leaf_crash(20, Evidence::Timeouts));
  CHECK(run.failures == 0);
  CHECK(run.effective_training_time > 0.99);
  CHECK(run.band_s(Band::DegradedSlowdown) > 10);  // its first 10 s passed in a snapshot
  CHECK(run.band_s(Band::DegradedSlowdown) < 30);
}

TEST_CASE("A switch that is back mends all nodes below it, ejected or not, and is one failure") {
  for (const Evidence evidence : {Evidence::Timeouts, Evidence::All}) {
    const RunResult run = simulate(leaf_crash(60, evidence));
    CHECK(run.failures == 1);
    REQUIRE(run.recoveries.size() == 1);
    CHECK(run.recoveries[0].causes.size() == 1);
    CHECK(run.recoveries[0].ledger.total_s() < 300);
    CHECK(run.effective_training_time > 0.98);
  }
}

TEST_CASE("A short flap does not mend a link whose switch is down") {
  RunInput input = leaf_crash(std::nullopt, Evidence::Timeouts);
  input.faults.injected.push_back(injected(InjectedKind::LinkDown, 3605, 0, 5));
  const RunResult run = simulate(input);
  CHECK(run.failures == 1);
  CHECK(!run.waiting_for.empty());
}

TEST_CASE("A leaf that fails takes the spares below it, wherever they stand") {
  RunInput input = leaf_crash(86400, Evidence::Timeouts);
  input.job_nodes = 4;
  input.cluster.tiers = {{"leaf", 2, 1}};  // leaf 0: nodes 0 and 1, or node 0 and a spare
  const auto spares_ejected = [&] {
    const RunResult run = simulate(input);
    CHECK(run.waiting_for.empty());
    return std::count_if(run.events.begin(), run.events.end(), [&](const RunEvent& event) {
      return event.kind == RunEventKind::Eject && event.node >= input.job_nodes;
    });
  };
  CHECK(spares_ejected() == 0);
  input.policy.spares.placement = SparePlacement::PerLeaf;
  CHECK(spares_ejected() == 1);
}

TEST_CASE("A switch that is out for longer never costs less, and nothing like a repair") {
  for (const char* policy : {"fast", "slow"}) {
    double before = 1;
    for (const double duration_s : {20.0, 32.0, 36.0, 40.0, 60.0, 300.0, 500.0, 3000.0}) {
      RunInput input = leaf_crash(duration_s, Evidence::Timeouts);
      const double interval_s = input.policy.checkpoint_interval_s;
      input.policy = policy == std::string("slow") ? slow_policy() : fast_policy();
      input.policy.checkpoint_interval_s = interval_s;
      input.policy.spare_nodes = 0;
      const RunResult run = simulate(input);
      INFO(policy << ", out for " << duration_s << " s");
      CHECK(run.waiting_for.empty());
      CHECK(run.band_s(Band::WaitForSpare) <= duration_s);
      CHECK(run.effective_training_time <= before + 0.03);
      before = run.effective_training_time;
    }
    CHECK(before > 0.8);
  }
}

TEST_CASE("Nothing that breaks, or comes back from repair, below a dead switch makes its node reachable") {
  RunInput input = leaf_crash(15000, Evidence::Timeouts);
  input.job_nodes = 2;
  input.duration_s = 20000;
  input.policy.spare_nodes = 2;  // all below the one leaf
  const double alone = simulate(input).effective_training_time;
  CHECK(alone < 0.4);
  SECTION("a job's node that was in the shop") {
    input.faults.injected.push_back(injected(InjectedKind::NodeCrash, 3400, 1, 300));
    CHECK(simulate(input).effective_training_time <= alone + 0.01);
  }
  SECTION("a spare") {
    InjectedFault spare = injected(InjectedKind::NodeCrash, 3610, 3, 60);
    spare.mode = FaultMode::GpuEccUncorrectable;
    input.faults.injected.push_back(spare);
    CHECK(simulate(input).effective_training_time <= alone + 0.01);
  }
}

TEST_CASE("A switch that crashes during a recovery is a failure of its own") {
  RunInput input = leaf_crash(2000, Evidence::Timeouts);
  InjectedFault software = injected(InjectedKind::NodeCrash, 3580, 0);
  software.mode = FaultMode::SoftwareCrash;
  input.faults.injected.push_back(software);
  CHECK(simulate(input).failures == 2);
}

TEST_CASE("With two switches to a NIC the loss of one slows its leaf and stops nobody") {
  RunInput input = leaf_crash(7200, Evidence::Timeouts);
  input.cluster.dual_tor = true;
  std::size_t most = 0;
  input.step_times = [&most](const JobState& state) {
    most = std::max(most, state.slow.size());
    for (const InjectedFault& part : state.slow) {
      CHECK(part.kind == InjectedKind::NicSlow);
      CHECK(part.factor == 2);
    }
    return StepTime{state.slow.empty() ? 10.0 : 12.0, 10};
  };
  const RunResult run = simulate(input);
  CHECK(run.failures == 0);
  CHECK(run.recoveries.empty());
  CHECK(most == 4);  // at once, all nodes of the leaf
  CHECK(run.band_s(Band::DegradedSlowdown) == Approx(7200 * (1 - 10.0 / 12)).epsilon(0.01));

  // The other port of a NIC, too: that link is down.
  InjectedFault port = injected(InjectedKind::LinkDown, 3700, 1, 600);
  input.faults.injected.push_back(port);
  CHECK(simulate(input).failures == 1);
  input.faults.injected.back().node = 5;  // of another leaf: one port
  CHECK(simulate(input).failures == 0);
}

TEST_CASE("A leaf that flaps costs a stall, and no node is ejected") {
  RunInput input = leaf_crash(12, Evidence::All);
  input.faults.injected[0].at_s = 4000;  // within training
  input.faults.injected[0].mode = FaultMode::LeafFlap;
  input.faults.injected[0].kind = kind_of(FaultMode::LeafFlap);
  const RunResult run = simulate(input);
  CHECK(run.failures == 0);
  CHECK(count(run, RunEventKind::Eject) == 0);
  CHECK(run.effective_training_time > 0.99);
  // Where queue pairs give up after 7.5 s instead, the same flap is a failure, and one for all four nodes.
  input.policy.timeouts.link_s = queue_pair_timeout_s(18, 7);
  CHECK(simulate(input).failures == 1);
}

TEST_CASE("A storm of pauses stops the job for as long as a switch listens to it") {
  RunInput input = leaf_crash(20, Evidence::All);
  input.faults.injected[0].mode = FaultMode::PfcStorm;
  input.faults.injected[0].kind = kind_of(FaultMode::PfcStorm);
  CHECK(simulate(input).failures == 0);
  input.faults.injected[0].duration_s = 300;
  const RunResult whole_leaf = simulate(input);
  CHECK(whole_leaf.failures == 1);
  // With a watchdog the NIC alone is cut off, and its node alone is to blame.
  input.cluster.rdma.pfc_watchdog_s = 0.2;
  const RunResult one_nic = simulate(input);
  CHECK(one_nic.failures == 1);
  CHECK(one_nic.effective_training_time >= whole_leaf.effective_training_time);
}

TEST_CASE("In a deadlock of pauses nobody's queue pairs tell: those who wait do") {
  for (const Evidence evidence : {Evidence::Timeouts, Evidence::All}) {
    RunInput input = leaf_crash(1200, evidence);
    input.faults.injected[0].mode = FaultMode::PfcDeadlock;
    input.faults.injected[0].kind = kind_of(FaultMode::PfcDeadlock);
    const RunResult run = simulate(input);
    REQUIRE(run.recoveries.size() >= 1);
    const auto symptom = std::find_if(run.events.begin(), run.events.end(),
                                      [](const RunEvent& event) { return event.kind == RunEventKind::Symptom; });
    REQUIRE(symptom != run.events.end());
    CHECK(static_cast<double>(symptom->time_ns) * 1e-9 >= 3600 + input.policy.timeouts.collective_s);
    CHECK(run.waiting_for.empty());
  }
}

TEST_CASE("Communicators wait for ranks that cannot find each other, in tries of 20 s") {
  RunInput input = small_job();
  InjectedFault software = injected(InjectedKind::NodeCrash, 3700, 0), bootstrap = software;
  software.mode = FaultMode::SoftwareCrash;
  bootstrap.mode = FaultMode::BootstrapFailure;
  bootstrap.at_s = 3690;
  input.faults.injected = {software};
  const auto total_s = [&] {
    const RunResult run = simulate(input);
    CHECK(run.failures == 1);
    REQUIRE(run.recoveries.size() == 1);
    return run.recoveries[0].ledger.total_s();
  };
  const double undisturbed_s = total_s();
  bootstrap.duration_s = 5;  // over before anybody connects
  input.faults.injected = {software, bootstrap};
  CHECK(total_s() == Approx(undisturbed_s));
  bootstrap.duration_s = 120;
  input.faults.injected = {software, bootstrap};
  const double later_s = total_s() - undisturbed_s;
  CHECK(later_s > 20);
  CHECK(std::fmod(later_s + 1e-6, 20.0) < 1e-3);
}

TEST_CASE("A link that loses packets in silence slows the run by what it loses") {
  RunInput input = small_job();
  InjectedFault lossy = injected(InjectedKind::NicSlow, 1000, 2, 3600);
  lossy.mode = FaultMode::GrayLoss;
  lossy.loss = 1e-3;
  lossy.direction = LinkDirection::Out;
  lossy.factor = 1;
  input.faults.injected = {lossy};
  double factor = 0;
  input.step_times = [&factor](const JobState& state) {
    for (const InjectedFault& part : state.slow) {
      factor = part.factor;
      CHECK(part.loss == 1e-3);
      CHECK(part.direction == LinkDirection::Out);
    }
    return StepTime{10, 10};
  };
  CHECK(simulate(input).failures == 0);
  CHECK(factor == Approx(slowdown_by_loss(input.cluster, 1e-3)));
}

TEST_CASE("A link that goes down again before anybody has complained is complained of in time") {
  RunInput input = small_job();
  input.faults.injected = {injected(InjectedKind::LinkDown, 4000, 3, 600),
                           injected(InjectedKind::LinkDown, 4010, 3, 7200)};
  const RunResult run = simulate(input);
  CHECK(run.failures == 1);
  REQUIRE(run.recoveries.size() == 1);
  CHECK(run.recoveries[0].ledger.total_s() < 200);
}

TEST_CASE("A NIC of two ports is down only while both are, and no repair of a node mends its switch") {
  RunInput input = leaf_crash(std::nullopt, Evidence::Timeouts);
  input.cluster.dual_tor = true;
  input.faults.injected = {injected(InjectedKind::LinkDown, 4000, 3, 60),
                           injected(InjectedKind::LinkDown, 4045, 3, 3600)};
  const RunResult flap = simulate(input);  // both for 15 s: a stall
  CHECK(flap.failures == 0);
  CHECK(flap.band_s(Band::DegradedSlowdown) > 15);

  InjectedFault leaf = injected(InjectedKind::NodeCrash, 4000, 3, 36000);
  leaf.mode = FaultMode::SwitchCrash;
  input.policy.spare_nodes = 0;
  input.faults.injected = {leaf, injected(InjectedKind::NodeCrash, 5000, 3, 600)};
  std::size_t fewest = 4;
  input.step_times = [&fewest](const JobState& state) {
    if (!state.slow.empty()) fewest = std::min(fewest, state.slow.size());
    return StepTime{10, 10};
  };
  CHECK(simulate(input).waiting_for.empty());
  CHECK(fewest >= 3);  // while node 3 was away; it came back with half a NIC
  input.faults.injected.push_back(injected(InjectedKind::LinkDown, 20000, 3, 600));
  CHECK(simulate(input).failures == 2);  // its other port
}

TEST_CASE("What a trace says of how long a switch was out is how long it was out") {
  RunInput input = small_job();
  input.faults.generator.kind = GeneratorKind::Trace;
  FaultTrace& trace = input.faults.generator.trace;
  trace.nodes = 8;
  trace.days = 2;
  trace.classes = {{"switch", FaultMode::SwitchCrash}};
  trace.faults = {{1, 0.05, 0.06, 0}};
  const RunResult run = simulate(input);
  for (const RunEvent& event : run.events) {
    if (event.kind == RunEventKind::FaultEnds) CHECK(static_cast<double>(event.time_ns) == Approx(0.06 * 86400e9));
  }
  CHECK(count(run, RunEventKind::FaultEnds) >= 4);
}

TEST_CASE("Of a storm that a watchdog ends the culprit alone stays cut off") {
  RunInput input = leaf_crash(600, Evidence::All);
  input.faults.injected[0].at_s = 4000;
  input.faults.injected[0].node = 2;
  input.faults.injected[0].mode = FaultMode::PfcStorm;
  input.faults.injected[0].kind = kind_of(FaultMode::PfcStorm);
  input.cluster.rdma.pfc_watchdog_s = 5;
  const RunResult run = simulate(input);
  for (const RunEvent& event : run.events) {
    if (event.kind != RunEventKind::FaultEnds) continue;
    CHECK(static_cast<double>(event.time_ns) == Approx(event.node == 2 ? 4600e9 : 4005e9));
  }
  CHECK(run.failures == 1);
}

TEST_CASE("Checkpoints are spaced by what stops the job") {
  RunInput input = small_job();
  input.policy.checkpoint_interval_s = 0;
  input.faults = one_cause(FaultMode::RateDowngrade, FaultScope::Node, 0.01);
  CHECK(failures_per_gpu_hour(input) == 0);
  input.faults = one_cause(FaultMode::LinkFlap, FaultScope::Network, 0.01);
  const double of_long_flaps = failures_per_gpu_hour(input);
  CHECK(of_long_flaps > 0);
  CHECK(of_long_flaps < 0.001);  // a lognormal around 4 s seldom exceeds 30
  input.faults.causes[0].stops_job = true;
  CHECK(failures_per_gpu_hour(input) == 0.01);
}
