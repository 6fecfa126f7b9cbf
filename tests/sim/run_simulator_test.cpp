// The run simulator on small jobs where the right answer can be worked out by hand.
#include "sim/run_simulator.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <numeric>

#include <catch2/catch.hpp>
#include <simgrid/s4u.hpp>

#include "models/base/units.h"
#include "models/spec/node_places.h"
#include "sim/simgrid_engine.h"
#include "tests/sim/run_inputs.h"

using namespace trainyard;
using namespace trainyard::testing;
using recovery::Phase;

namespace {

bool ended_running(const RunResult& result) {
  bool running = true;
  for (const RunEvent& event : result.events)
    if (event.kind == RunEventKind::ControllerState)
      running = event.text == "running";
    else if (event.kind == RunEventKind::Failure)
      running = false;  // not noticed yet
  return running;
}

}  // namespace

TEST_CASE("Without faults time is work and checkpoints") {
  const RunResult result = simulate(small_job());
  CHECK(result.failures == 0);
  CHECK(result.recoveries.empty());
  CHECK(result.checkpoints == 23);  // one in every 3,610 s of a day
  CHECK(result.band_s(Band::CheckpointStall) == Approx(230));
  CHECK(result.band_s(Band::Productive) == Approx(86400 - 230));
  CHECK(result.steps_done == 8617);
  CHECK(result.steps_committed == 23 * 360);
  CHECK(result.effective_training_time == Approx(86170.0 / 86400));
  CHECK(result.spares.availability == 1);
  CHECK(result.spares.fewest == 2);
}

TEST_CASE("One crash: every phase as long as the policy says, lost work beside it") {
  RunInput input = small_job();
  input.faults.injected = {injected(InjectedKind::NodeCrash, 5003.2, 1)};
  const RunResult result = simulate(input);
  CHECK(result.failures == 1);
  REQUIRE(result.by_cause.size() == 1);
  CHECK(result.by_cause[0].name == "injected");
  REQUIRE(result.recoveries.size() == 1);
  const RunRecovery& recovery = result.recoveries.front();
  // The checkpoint of step 360 ended at 3,610 s. The crash strikes in the fourth tenth of a
  // step (3.2 s in), so peers notice at the end of it, 0.8 s later.
  CHECK(recovery.ledger.begin_ns() == 5003'200'000'000);
  CHECK(phase_s(recovery, Phase::Detect) == Approx(0.8 + 12));
  CHECK(phase_s(recovery, Phase::Decide) == Approx(3));
  CHECK(phase_s(recovery, Phase::Fence) == Approx(5));
  CHECK(phase_s(recovery, Phase::Allocate) == Approx(10));
  CHECK(phase_s(recovery, Phase::ProcessStart) == Approx(12));
  CHECK(phase_s(recovery, Phase::Communicators) == Approx(25));
  CHECK(phase_s(recovery, Phase::LoadState) == Approx(15));
  CHECK(phase_s(recovery, Phase::FirstStep) == Approx(8));
  CHECK(recovery.ledger.total_s() == Approx(90.8));
  CHECK(recovery.ledger.ejected_nodes == std::vector<std::int64_t>{1});
  CHECK(recovery.ledger.restored_step == 360);
  CHECK(recovery.lost_work_s == Approx(5003.2 - 3610));
  CHECK(result.band_s(Band::LostWork) == Approx(5003.2 - 3610));
  CHECK(sum_s(result) == Approx(86400).margin(1e-9));
  check_ledgers_equal_bands(result);
  CHECK(result.spares.fewest == 1);
}

TEST_CASE("A crash during recovery starts it over and both nodes are replaced") {
  RunInput input = small_job();
  // 50 s after the first crash the communicators are being built.
  input.faults.injected = {injected(InjectedKind::NodeCrash, 5000, 1), injected(InjectedKind::NodeCrash, 5050, 2)};
  const RunResult result = simulate(input);
  REQUIRE(result.recoveries.size() == 1);
  const RunRecovery& recovery = result.recoveries.front();
  CHECK(recovery.ledger.attempts == 2);
  CHECK(recovery.causes.size() == 2);
  CHECK(recovery.ledger.ejected_nodes == std::vector<std::int64_t>{1, 2});
  CHECK(recovery.ledger.end_ns() == to_ns(5050 + 90));  // as if it had begun at the second crash
  CHECK(result.band_s(Band::LostWork) == Approx(5000 - 3610));
  check_ledgers_equal_bands(result);
}

TEST_CASE("Crashes at every moment of a recovery all lead back to training") {
  for (double after_s = 0; after_s < 100; after_s += 3.7) {
    INFO("second crash " << after_s << " s after the first");
    RunInput input = small_job();
    input.faults.injected = {injected(InjectedKind::NodeCrash, 5000, 1),
                             injected(InjectedKind::NodeCrash, 5000 + after_s, 2)};
    const RunResult result = simulate(input);
    CHECK(result.failures == 2);
    CHECK(count(result, RunEventKind::Eject) == 2);
    REQUIRE(!result.recoveries.empty());
    const double end_s = static_cast<double>(result.recoveries.back().ledger.end_ns()) / 1e9;
    // Both are dealt with at once when the second shows within the window that gathers symptoms.
    CHECK(end_s <= 5000 + after_s + 91.01);
    CHECK(result.steps_done > 8000);
    CHECK(sum_s(result) == Approx(86400).margin(1e-9));
    check_ledgers_equal_bands(result);
  }
}

TEST_CASE("With the spares exhausted the job waits until a node comes back") {
  RunInput input = small_job();
  input.policy.spare_nodes = 0;
  input.faults.injected = {injected(InjectedKind::NodeCrash, 5000, 1, 7200)};
  const RunResult result = simulate(input);
  REQUIRE(result.recoveries.size() == 1);
  // Gone from 5,000 to 12,200; asked for from 5,000 + 1 + 12 + 3 + 5 on.
  const double noticed_s = phase_s(result.recoveries[0], Phase::Detect);
  CHECK(result.band_s(Band::WaitForSpare) == Approx(7200 - noticed_s - 3 - 5));
  CHECK(result.pages == 2);  // nobody came within the hour: paged again
  CHECK(count(result, RunEventKind::Repaired) == 1);
  CHECK(result.spares.availability == 0);
  check_ledgers_equal_bands(result);
}

TEST_CASE("A node that never comes back leaves the job waiting to the end") {
  RunInput input = small_job();
  input.policy.spare_nodes = 0;
  input.faults.injected = {injected(InjectedKind::NodeCrash, 5000, 1)};
  const RunResult result = simulate(input);
  CHECK(result.recoveries.empty());
  CHECK(result.band_s(Band::WaitForSpare) > 81000);
  CHECK(result.steps_done == 360);
  CHECK(sum_s(result) == Approx(86400).margin(1e-9));
}

TEST_CASE("A spare below the failed node's leaf keeps its traffic there, one after the job's nodes does not") {
  RunInput input = small_job();
  input.job_nodes = 6;
  input.cluster.tiers = {{"leaf", 4, 1}};
  input.faults.injected = {injected(InjectedKind::NodeCrash, 3600, 0)};
  // Twice as long for ranks that are not below the switch of their home.
  input.step_times = [&](const JobState& state) {
    const auto homes = places_with_spares_per_leaf(input.job_nodes, state.spares_among, 4);
    const bool away = std::any_of(state.moved.begin(), state.moved.end(), [&](const MovedNode& moved) {
      return place_of(homes, moved.position) / 4 != moved.place / 4;
    });
    return StepTime{away ? 20.0 : 10.0, 10};
  };
  const double together = simulate(input).effective_training_time;
  input.policy.spares.placement = SparePlacement::PerLeaf;
  const double per_leaf = simulate(input).effective_training_time;
  CHECK(together < 0.55);
  CHECK(per_leaf > 0.95);
}

TEST_CASE("An injected mode does what the mode does") {
  const auto with = [](FaultMode mode, std::optional<double> duration_s = std::nullopt) {
    RunInput input = small_job();
    input.policy.evidence = Evidence::All;
    input.cluster.tiers = {{"leaf", 2, 1}};
    InjectedFault fault = injected(kind_of(mode), 3600, 0, duration_s);
    fault.mode = mode;
    input.faults.injected = {fault};
    return simulate(input);
  };
  CHECK(with(FaultMode::SwitchCrash).failures == 1);
  CHECK(with(FaultMode::HostCrash).failures == 1);
  CHECK(with(FaultMode::SilentDataCorruption).corruptions == 1);
  CHECK(with(FaultMode::SilentDataCorruption).failures == 0);
  CHECK(with(FaultMode::StorageOutage, 600).failures == 0);
  const RunResult software = with(FaultMode::SoftwareCrash);
  CHECK(software.failures == 1);
  CHECK(count(software, RunEventKind::Eject) == 0);               // no node is to blame
  CHECK(with(FaultMode::UserError, 1800).recoveries.size() > 1);  // until somebody has found it
  // A GPU that falls off the bus says so in an XID, where a dead host says nothing.
  const auto xids = [](const RunResult& run) {
    recovery::LogReader log(run.log);
    int told = 0;
    while (const auto event = log.next()) told += event->event.rfind("xid_reported", 0) == 0 ? 1 : 0;
    return told;
  };
  CHECK(xids(with(FaultMode::GpuOffBus)) + xids(with(FaultMode::GpuEccUncorrectable)) > 0);
  CHECK(xids(with(FaultMode::HostCrash)) == 0);
}

TEST_CASE("A software failure at the very start is seen too") {
  RunInput input = small_job();
  InjectedFault crash = injected(InjectedKind::NodeCrash, 0, 0);
  crash.mode = FaultMode::SoftwareCrash;
  input.faults.injected = {crash};
  CHECK(simulate(input).effective_training_time > 0.95);
}

TEST_CASE("A software failure of a job that lost a replica is seen, whoever would report it") {
  RunInput input = small_job();
  input.replicas = 4;
  input.policy.spare_nodes = 0;
  input.policy.elastic.enabled = true;
  InjectedFault crash = injected(InjectedKind::NodeCrash, 7200, 0);
  crash.mode = FaultMode::SoftwareCrash;
  input.faults.injected = {injected(InjectedKind::NodeCrash, 3600, 2), crash};
  for (input.seed = 1; input.seed <= 8; ++input.seed) CHECK(simulate(input).recoveries.size() == 2);
}

TEST_CASE("A failure while the store is out waits for the store, and no longer") {
  RunInput input = small_job();
  input.checkpoint_bytes = 1e12;
  input.cluster.storage.remote_write_bytes_per_s = 1e11;  // reads take no time of their own
  // Loads of several attempts have piled up when it ends.
  for (const double outage_s : {200.0, 260.0, 400.0, 600.0, 1800.0}) {
    InjectedFault outage = injected(InjectedKind::NodeCrash, 4990, 0, outage_s);
    outage.mode = FaultMode::StorageOutage;
    input.faults.injected = {outage, injected(InjectedKind::NodeCrash, 5000, 2)};
    const RunResult run = simulate(input);
    INFO("outage of " << outage_s << " s");
    CHECK(run.waiting_for.empty());
    REQUIRE(!run.recoveries.empty());
    CHECK(run.recoveries.size() <= 2);
    UNSCOPED_INFO(run.effective_training_time);
    CHECK(run.effective_training_time > 0.9);
  }
}

TEST_CASE("A hang that nobody tells of is noticed in the end: no step was done for too long") {
  RunInput input = small_job();
  input.policy.evidence = Evidence::All;
  input.policy.timeouts.collective_s = 1e6;  // no watchdog below it barks
  InjectedFault hang = injected(InjectedKind::NodeCrash, 5000, 1);
  hang.mode = FaultMode::NvLink;
  input.faults.injected = {hang};
  double longest_s = 0;
  for (input.seed = 1; input.seed <= 20; ++input.seed) {
    const RunResult run = simulate(input);
    REQUIRE(!run.recoveries.empty());
    longest_s = std::max(longest_s, phase_s(run.recoveries[0], Phase::Detect));
    check_ledgers_equal_bands(run);
  }
  CHECK(longest_s == Approx(input.policy.timeouts.training_s).margin(1));
}

TEST_CASE("Of two failures the second of which shows first, the recovery began with the first") {
  RunInput input = small_job();
  input.policy.evidence = Evidence::All;
  InjectedFault hang = injected(InjectedKind::NodeCrash, 5000, 1), crash = injected(InjectedKind::NodeCrash, 5100, 2);
  hang.mode = FaultMode::NvLink;
  crash.mode = FaultMode::HostCrash;
  input.faults.injected = {hang, crash};
  for (input.seed = 1; input.seed <= 20; ++input.seed) {
    const RunResult run = simulate(input);
    REQUIRE(!run.recoveries.empty());
    CHECK(run.recoveries[0].ledger.begin_ns() == to_ns(5000));
    check_ledgers_equal_bands(run);
  }
}

TEST_CASE("A job that never gets going again has not ended well") {
  RunInput input = small_job();
  input.duration_s = 4000;
  for (int i = 0; i < 5; ++i) {  // software that crashes wherever a recovery has got to
    InjectedFault crash = injected(InjectedKind::NodeCrash, 3700 + 58.0 * i, 0);
    crash.mode = FaultMode::SoftwareCrash;
    input.faults.injected.push_back(crash);
  }
  CHECK(simulate(input).waiting_for.find("a recovery that succeeds") == 0);
}

TEST_CASE("A short mistake does not end a longer one") {
  const auto effective = [](const std::vector<std::pair<double, double>>& mistakes) {
    RunInput input = small_job();
    for (const auto& [at_s, duration_s] : mistakes) {
      InjectedFault mistake = injected(InjectedKind::NodeCrash, at_s, 0, duration_s);
      mistake.mode = FaultMode::UserError;
      input.faults.injected.push_back(mistake);
    }
    return simulate(input).effective_training_time;
  };
  CHECK(effective({{3600, 14400}, {5000, 60}}) <= effective({{3600, 14400}}) + 0.01);
}

TEST_CASE("A spare whose maintenance is announced stands in until shortly before it") {
  const auto waited_s = [](FaultMode mode) {
    RunInput input = small_job();
    input.policy.spare_nodes = 1;
    input.duration_s = 100000;
    InjectedFault planned = injected(InjectedKind::NodeCrash, 90000, 4, 3600);
    planned.mode = mode;
    input.faults.injected = {planned, injected(InjectedKind::NodeCrash, 10000, 0)};
    return simulate(input).band_s(Band::WaitForSpare);
  };
  CHECK(waited_s(FaultMode::HostMaintenance) <= waited_s(FaultMode::HostCrash));
}

TEST_CASE("A job that dies before a planned restart is noticed, and its recovery begins there") {
  RunInput input = small_job();
  input.replicas = 2;
  input.duration_s = 20000;
  input.policy = slow_policy();
  input.policy.spare_nodes = 0;
  input.policy.checkpoint_interval_s = 300;
  input.policy.evidence = Evidence::All;
  input.policy.elastic.enabled = true;
  InjectedFault memory = injected(InjectedKind::NodeCrash, 5990, 0);
  memory.mode = FaultMode::GpuHbmRowRemap;  // some of its XIDs are harmless by themselves
  input.faults.injected = {injected(InjectedKind::NodeCrash, 10, 2, 5980), memory};
  for (input.seed = 1; input.seed <= 40; ++input.seed) {
    const RunResult run = simulate(input);
    INFO("seed " << input.seed);
    CHECK(run.band_s(Band::Detect) < 2 * 1200 + 600);
    check_ledgers_equal_bands(run);
  }
}

TEST_CASE("A recovery that goes on when the run ends is told as far as it went") {
  RunInput input = small_job();
  input.policy.spare_nodes = 0;
  input.faults.injected = {injected(InjectedKind::NodeCrash, 5000, 1)};
  const RunResult run = simulate(input);
  CHECK(run.recoveries.empty());
  REQUIRE(run.unfinished.size() == 1);
  CHECK(run.unfinished[0].ledger.begin_ns() == to_ns(5000));
  CHECK(run.unfinished[0].ledger.end_ns() == to_ns(input.duration_s));
  CHECK(run.unfinished[0].causes == std::vector<std::string>{"injected"});
  CHECK(run.unfinished[0].lost_work_s == Approx(run.band_s(Band::LostWork)));
}

TEST_CASE("A job that was down for longer than recoveries take has not ended well") {
  RunInput input = small_job();
  input.checkpoint_bytes = 1e12;
  input.cluster.storage.remote_write_bytes_per_s = 1e11;
  input.duration_s = 7200;
  InjectedFault outage = injected(InjectedKind::NodeCrash, 4990, 0, 9000);
  outage.mode = FaultMode::StorageOutage;
  input.faults.injected = {outage, injected(InjectedKind::NodeCrash, 5000, 2)};
  CHECK(!simulate(input).waiting_for.empty());
}

TEST_CASE("Maintenance twice in a day: the node is back after each") {
  RunInput input = small_job();
  input.policy.spare_nodes = 1;
  for (const double at_s : {7200.0, 40000.0}) {
    InjectedFault planned = injected(InjectedKind::NodeCrash, at_s, 2, 3600);
    planned.mode = FaultMode::HostMaintenance;
    input.faults.injected.push_back(planned);
  }
  const RunResult run = simulate(input);
  const auto back = std::find_if(run.events.begin(), run.events.end(),
                                 [](const RunEvent& event) { return event.kind == RunEventKind::Repaired; });
  REQUIRE(back != run.events.end());
  CHECK(back->time_ns == to_ns(10800));
}

TEST_CASE("Repair times follow the policy's lognormal", "[statistics]") {
  RunInput input = colossus(fast_policy(), 30 * 86400.0);
  input.faults = llama3_total();
  const RunResult result = simulate(input);
  std::map<std::int64_t, std::int64_t> ejected_ns;
  std::vector<double> repairs_s;
  for (const RunEvent& event : result.events) {
    if (event.kind == RunEventKind::Eject) ejected_ns[event.node] = event.time_ns;
    if (event.kind == RunEventKind::Repaired)
      repairs_s.push_back(static_cast<double>(event.time_ns - ejected_ns.at(event.node)) / 1e9);
  }
  REQUIRE(repairs_s.size() > 1000);
  std::nth_element(repairs_s.begin(), repairs_s.begin() + repairs_s.size() / 2, repairs_s.end());
  // The median of n lognormal draws scatters by exp(1.25 sigma / sqrt(n)).
  CHECK(repairs_s[repairs_s.size() / 2] == Approx(input.policy.repair_median_s).epsilon(0.15));
}

TEST_CASE("Failures in one leaf are bounded: a human is paged and nodes stay") {
  RunInput input = small_job();
  input.policy.max_ejections_per_domain_per_hour = 1;
  input.faults.injected = {injected(InjectedKind::NodeCrash, 5000, 1), injected(InjectedKind::NodeCrash, 5000, 2)};
  const RunResult result = simulate(input);
  CHECK(result.pages == 1);
  REQUIRE(result.recoveries.size() == 1);
  CHECK(result.band_s(Band::WaitForHuman) == Approx(3600));
  CHECK(result.recoveries[0].ledger.ejected_nodes == std::vector<std::int64_t>{1, 2});
  check_ledgers_equal_bands(result);
}

TEST_CASE("A slow GPU costs its factor while the job holds it") {
  RunInput input = small_job();
  SECTION("for its duration") {
    input.faults.injected = {injected(InjectedKind::GpuSlow, 10000, 2, 2000, 1.25)};
    const RunResult result = simulate(input);
    CHECK(result.failures == 0);
    CHECK(result.band_s(Band::DegradedSlowdown) == Approx(2000 * 0.2).margin(10));
    CHECK(sum_s(result) == Approx(86400).margin(1e-9));
  }
  SECTION("until its node leaves") {
    input.faults.injected = {injected(InjectedKind::GpuSlow, 10000, 2, std::nullopt, 1.25),
                             injected(InjectedKind::NodeCrash, 20000, 2)};
    const RunResult result = simulate(input);
    CHECK(result.band_s(Band::DegradedSlowdown) == Approx(10000 * 0.2).margin(20));
  }
  SECTION("not at all on a spare that is never used") {
    input.faults.injected = {injected(InjectedKind::GpuSlow, 10000, 5, std::nullopt, 1.25)};
    CHECK(simulate(input).band_s(Band::DegradedSlowdown) == 0);
  }
  SECTION("and once on a spare, from its promotion on") {
    input.faults.injected = {injected(InjectedKind::GpuSlow, 10000, 4, std::nullopt, 1.25),
                             injected(InjectedKind::NodeCrash, 46400, 2)};
    const RunResult result = simulate(input);
    CHECK(result.band_s(Band::DegradedSlowdown) == Approx(40000 * 0.2).margin(60));
  }
}

TEST_CASE("A link that is down stalls, and beyond the queue pair's retries kills") {
  RunInput input = small_job();
  // The job is 7 tenths into a step at 5,007; the next collective is a second later.
  SECTION("20 s: until the next retry after it is up") {
    input.faults.injected = {injected(InjectedKind::LinkDown, 5007.5, 2, 20)};
    const RunResult result = simulate(input);
    CHECK(result.failures == 0);
    const double retry_s = 4.096e-6 * (1 << 20);
    CHECK(result.band_s(Band::DegradedSlowdown) == Approx(5 * retry_s));  // 19.5 s are over at the fifth
  }
  SECTION("shorter than the way to the next collective: nobody notices") {
    input.faults.injected = {injected(InjectedKind::LinkDown, 5007.5, 2, 0.25)};
    CHECK(simulate(input).band_s(Band::DegradedSlowdown) == 0);
  }
  SECTION("60 s: dead after 30.06 s, its node ejected and back when the link is") {
    input.faults.injected = {injected(InjectedKind::LinkDown, 5007.5, 2, 60)};
    const RunResult result = simulate(input);
    CHECK(result.failures == 1);
    REQUIRE(result.recoveries.size() == 1);
    CHECK(phase_s(result.recoveries[0], Phase::Detect) == Approx(7 * 4.096e-6 * (1 << 20)));
    CHECK(result.recoveries[0].ledger.ejected_nodes == std::vector<std::int64_t>{2});
    CHECK(count(result, RunEventKind::Repaired) == 1);
    check_ledgers_equal_bands(result);
  }
  SECTION("during a recovery: communicators wait for it") {
    input.faults.injected = {injected(InjectedKind::NodeCrash, 5000, 1), injected(InjectedKind::LinkDown, 5040, 2, 50)};
    const RunResult result = simulate(input);
    REQUIRE(result.recoveries.size() == 1);
    CHECK(result.recoveries[0].ledger.attempts == 1);
    CHECK(phase_s(result.recoveries[0], Phase::Communicators) > 25);
    check_ledgers_equal_bands(result);
  }
}

TEST_CASE("A software failure restarts in place") {
  RunInput input = small_job();
  input.cluster.gpus_per_node = 8;
  input.faults.causes = {{"bug", FaultScope::Job, 1.0 / (32 * 4), "test"}};  // every four hours
  const RunResult result = simulate(input);
  REQUIRE(result.recoveries.size() >= 2);
  CHECK(count(result, RunEventKind::Eject) == 0);
  CHECK(result.band_s(Band::Allocate) == 0);
  check_ledgers_equal_bands(result);
}

TEST_CASE("Every scope of random failure leads back to training, and the replay agrees") {
  for (const FaultScope scope : {FaultScope::Gpu, FaultScope::Node, FaultScope::Network, FaultScope::Job}) {
    INFO("scope " << static_cast<int>(scope));
    RunInput input = small_job();
    input.policy.repair_median_s = 600;
    input.policy.max_ejections_per_domain_per_hour = 1000;
    input.policy.checkpoint_interval_s = 300;
    input.faults.causes = {{"often", scope, 1.0 / (32 * 0.25), "test"}};  // every quarter of an hour
    const auto results = run_many(with_seeds(input, 8));
    for (const RunResult& result : results.value()) {
      CHECK(result.failures > 40);
      CHECK(result.steps_committed > 500);
      CHECK(sum_s(result) == Approx(86400).margin(1e-9));
      CHECK(result.recoveries.size() >= 5);
      if (ended_running(result)) check_ledgers_equal_bands(result);
    }
  }
}

TEST_CASE("A checkpoint that still drains cannot be restored") {
  RunInput input = small_job();
  input.cluster.storage.remote_write_bytes_per_s = 1e9;
  input.checkpoint_bytes = 600e9;  // ten minutes
  input.faults.injected = {injected(InjectedKind::NodeCrash, 4000, 1)};
  const RunResult early = simulate(input);
  CHECK(early.recoveries.at(0).ledger.restored_step == 0);
  CHECK(early.band_s(Band::LostWork) == Approx(4000 - 10));
  input.faults.injected[0].at_s = 4300;
  const RunResult late = simulate(input);
  CHECK(late.recoveries.at(0).ledger.restored_step == 360);
  CHECK(late.band_s(Band::LostWork) == Approx(4300 - 3610));
}

TEST_CASE("Checkpoints that come faster than they are written wait for one another") {
  RunInput input = small_job();
  input.cluster.storage.remote_write_bytes_per_s = 1e9;
  input.checkpoint_bytes = 5000e9;  // and one is taken every hour
  std::vector<double> durable_s;
  for (const RunEvent& event : simulate(input).events)
    if (event.kind == RunEventKind::CheckpointDurable) durable_s.push_back(static_cast<double>(event.time_ns) / 1e9);
  REQUIRE(durable_s.size() == 16);
  for (std::size_t i = 0; i < durable_s.size(); ++i)
    CHECK(durable_s[i] == Approx(3600 + 5000 * static_cast<double>(i + 1)).margin(1e-8));
}

TEST_CASE("The same seed gives the same run, another seed another") {
  RunInput input = colossus(fast_policy(), 2 * 86400.0);
  input.faults = llama3_total();
  const RunResult first = simulate(input);
  const RunResult again = simulate(input);
  CHECK(first == again);
  input.seed = 2;
  const RunResult other = simulate(input);
  CHECK(other.trace_hash != first.trace_hash);
  CHECK(other.next_draw != first.next_draw);
}

TEST_CASE("A pool returns what single runs return, in the order of its inputs") {
  RunInput input = colossus(fast_policy(), 86400.0);
  input.faults = llama3_total();
  std::vector<std::size_t> reported;
  RunPool pool;
  pool.processes = 3;
  pool.on_result = [&](std::size_t index, const RunResult&) { reported.push_back(index); };
  const auto results = run_many(with_seeds(input, 5), pool);
  REQUIRE(results.ok());
  for (std::size_t i = 0; i < 5; ++i) CHECK(results.value()[i].seed == i + 1);
  std::sort(reported.begin(), reported.end());
  CHECK(reported == std::vector<std::size_t>{0, 1, 2, 3, 4});
  input.seed = 4;
  CHECK(simulate(input) == results.value()[3]);
}

TEST_CASE("States that injected faults foresee are asked for before anything is forked") {
  RunInput input = small_job();
  std::vector<std::size_t> asked;  // a child's questions cannot reach this vector
  input.step_times = [&asked](const JobState& state) {
    asked.push_back(state.slow.size());
    return StepTime{10, 10};
  };
  input.faults.injected = {injected(InjectedKind::GpuSlow, 100, 2, 300, 2),
                           injected(InjectedKind::NicSlow, 200, 1, 400, 2)};
  simulate(input);
  CHECK(asked == std::vector<std::size_t>{0, 1, 2, 1});
}

TEST_CASE("Phases of no length are passed through") {
  RunInput input = small_job();
  PolicySpec instant;
  instant.spare_nodes = 2;
  for (double* seconds : {&instant.detection_timeout_s, &instant.diagnosis_s, &instant.checkpoint_stall_s,
                          &instant.fence_s, &instant.allocate_s, &instant.process_start_s, &instant.communicators_s,
                          &instant.load_state_s, &instant.first_step_s})
    *seconds = 0;
  instant.checkpoint_interval_s = 600;
  input.policy = instant;
  input.faults.injected = {injected(InjectedKind::NodeCrash, 5000, 1)};
  const RunResult result = simulate(input);
  REQUIRE(result.recoveries.size() == 1);
  CHECK(result.recoveries[0].ledger.total_s() == Approx(1));  // to the next collective
  CHECK(result.band_s(Band::Productive) + result.band_s(Band::LostWork) == Approx(86400 - 1));
}

TEST_CASE("A process whose SimGrid has run before simulates the same") {
  const RunInput input = small_job();
  const std::uint64_t expected = simulate(input).trace_hash;
  const pid_t pid = fork();  // SimGrid has one engine per process: keep this one clean
  if (pid == 0) {
    simgrid::s4u::Engine* engine = simgrid_engine();
    simgrid::s4u::NetZone* zone = simgrid::s4u::create_empty_zone("zone");
    simgrid::s4u::Host* host = zone->create_host("host", 1e9);
    zone->seal();
    simgrid::s4u::Actor::create("sleeper", host, [] { simgrid::s4u::this_actor::sleep_for(12.25); });
    engine->run();
    const bool clock_moved = simgrid::s4u::Engine::get_clock() > 12;
    const auto result = simulate_run(input);
    _exit(clock_moved && result.ok() && result.value().trace_hash == expected ? 0 : 1);
  }
  int status = -1;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  CHECK(status == 0);
}

TEST_CASE("The interval: as given, else the optimum, else hourly") {
  RunInput input = colossus(fast_policy(), 86400);
  CHECK(checkpoint_interval_s(input) == 3600);
  input.faults = llama3_total();
  CHECK(checkpoint_interval_s(input) == Approx(131.77).margin(0.01));  // Daly's third order agrees
  input.policy.checkpoint_interval_s = 77;
  CHECK(checkpoint_interval_s(input) == 77);
}

TEST_CASE("Input that makes no sense is refused with all of its problems") {
  RunInput input = small_job();
  input.duration_s = -1;
  input.policy.spare_nodes = 100;
  input.faults.injected = {injected(InjectedKind::GpuSlow, 0, 1000)};
  const auto result = run_many({input});
  REQUIRE_FALSE(result.ok());
  CHECK(result.problems().size() == 3);

  input = small_job();
  input.faults.causes = {{"absurd", FaultScope::Gpu, 1e9, "test"}};
  CHECK(validate(input).size() == 1);
  input.policy.checkpoint_interval_s = 1e-6;
  input.policy.checkpoint_stall_s = 0;
  CHECK(validate(input).size() == 2);
}

TEST_CASE("A straggler is replaced at a planned restart, and no work is lost") {
  RunInput input = small_job();
  input.step_times = [](const JobState& state) { return StepTime{state.slow.empty() ? 10.0 : 15.0, 100}; };
  input.faults.injected = {injected(InjectedKind::GpuSlow, 5000, 1)};
  input.faults.injected[0].factor = 1.5;
  input.policy.stragglers.replace_at_slowdown = 1.2;
  input.policy.stragglers.patience_s = 300;
  const RunResult result = simulate(input);
  REQUIRE(result.recoveries.size() == 1);
  const RunRecovery& restart = result.recoveries[0];
  CHECK(restart.ledger.ejected_nodes == std::vector<std::int64_t>{1});
  CHECK(restart.lost_work_s == 0);
  CHECK(phase_s(restart, Phase::Detect) == 0);
  CHECK(phase_s(restart, Phase::Decide) == 0);
  CHECK(result.band_s(Band::LostWork) == 0);
  // Slow from 5,000 s: a minute until it is called so, the patience, then up to a step until the snapshot.
  CHECK(result.band_s(Band::DegradedSlowdown) == Approx((60 + 300) / 3.0).margin(15 + 5));
  check_ledgers_equal_bands(result);

  input.policy.stragglers.replace_at_slowdown = 0;
  const RunResult tolerated = simulate(input);
  CHECK(tolerated.recoveries.empty());
  CHECK(tolerated.effective_training_time < 0.72);
  CHECK(result.effective_training_time > 0.95);
}

TEST_CASE("A planned restart that falls into a snapshot waits for its end, and takes one more") {
  RunInput input = small_job();
  input.step_times = [](const JobState& state) { return StepTime{state.slow.empty() ? 10.0 : 15.0, 100}; };
  input.policy.checkpoint_stall_s = 600;
  input.policy.checkpoint_interval_s = 2000;
  input.policy.stragglers.replace_at_slowdown = 1.2;
  input.policy.stragglers.patience_s = 300;
  input.duration_s = 7200;
  // The first snapshot begins at 2,000 s; a minute and the patience after this the node is to be replaced.
  for (const double slow_s : {1500.0, 1600.0, 1700.0, 2100.0}) {
    CAPTURE(slow_s);
    input.faults.injected = {injected(InjectedKind::GpuSlow, slow_s, 1, std::nullopt, 1.5)};
    const RunResult result = simulate(input);
    REQUIRE(result.recoveries.size() == 1);
    CHECK(result.recoveries[0].ledger.ejected_nodes == std::vector<std::int64_t>{1});
    CHECK(result.band_s(Band::LostWork) == 0);
    check_ledgers_equal_bands(result);
  }
}

TEST_CASE("A fleet's faults take nodes away for as long as the fleet says") {
  RunInput input = small_job();
  FaultTrace trace;
  trace.nodes = 6;
  trace.days = 1;
  trace.classes = {{"crash", FaultMode::HostCrash}};
  trace.faults = {{1, 0.1, 0.3, 0}};
  input.faults.generator.kind = GeneratorKind::Trace;
  input.faults.generator.trace = trace;
  const RunResult result = simulate(input);
  CHECK(result.failures == 1);
  REQUIRE(result.recoveries.size() == 1);
  CHECK(result.recoveries[0].causes == std::vector<std::string>{"crash"});
  const auto repaired = std::find_if(result.events.begin(), result.events.end(),
                                     [](const RunEvent& event) { return event.kind == RunEventKind::Repaired; });
  REQUIRE(repaired != result.events.end());
  CHECK(static_cast<double>(repaired->time_ns) * 1e-9 == Approx(0.3 * 86400));
}

TEST_CASE("What needs more replicas than the job has is refused") {
  RunInput input = small_job();
  input.policy.elastic.enabled = true;
  input.policy.checkpoints.hash_vote = true;
  const Problems problems = validate(input);
  REQUIRE(problems.size() == 2);
  CHECK(problems[0].path == "$.policy.elastic");
  CHECK(problems[1].path == "$.policy.checkpoints.hash_vote");
  CHECK(problems[0].kind == ProblemKind::Infeasible);
}

TEST_CASE("What breaks on a node while it is tested sends it back to repair") {
  RunInput input = small_job();
  input.policy.repair_median_s = 600;
  input.policy.readmission.test_s = 20000;
  input.policy.max_ejections_per_domain_per_hour = 1000;
  input.faults.causes = {{"often", FaultScope::Gpu, 1.0 / (32 * 0.5), "test"}};
  std::int64_t ejections = 0, repairs = 0;
  const auto results = run_many(with_seeds(input, 8));
  for (const RunResult& result : results.value()) {
    CHECK(sum_s(result) == Approx(86400).margin(1e-9));
    ejections += count(result, RunEventKind::Eject);
    repairs += count(result, RunEventKind::Repaired);
  }
  CHECK(ejections > 40);
  CHECK(repairs > 20);
}

TEST_CASE("A link that flaps at random stalls the job, and only a long flap stops it") {
  RunInput input = small_job();
  input.policy.checkpoint_interval_s = 600;
  input.faults.causes = {{"flap", FaultScope::Network, 1.0 / (32 * 0.5), "test", FaultMode::LinkFlap},
                         {"other", FaultScope::Gpu, 1e-12, "test"}};
  const RunResult result = simulate(input);
  CHECK(result.by_cause[1].failures == 0);
  CHECK(result.by_cause[0].failures == static_cast<std::int64_t>(result.recoveries.size()));
  CHECK(result.band_s(Band::DegradedSlowdown) > 0);
  CHECK(result.recoveries.size() < 10);  // of dozens of flaps
  CHECK(count(result, RunEventKind::FaultBegins) > 20);
}
