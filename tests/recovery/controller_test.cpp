// Directed cases: what the controller does in situations that have a name.
#include "models/recovery/controller.h"

#include <catch2/catch.hpp>

#include "models/base/units.h"
#include "tests/recovery/yard.h"

using namespace trainyard::recovery;
using trainyard::PolicySpec;
using trainyard::recovery::testing::kSecond;
using trainyard::recovery::testing::small_config;
using trainyard::recovery::testing::Yard;

namespace {

double seconds_in(const RecoveryLedger& ledger, Phase phase) {
  return ledger.phase_s()[static_cast<std::size_t>(phase)];
}

Yard running_yard() {
  Yard yard;
  yard.deliver(Launched{0});
  yard.advance(10 * kSecond);
  return yard;
}

}  // namespace

TEST_CASE("A dead node is replaced by a spare and the ledger tells when") {
  Yard yard = running_yard();
  yard.deliver(HeartbeatLost{5, yard.now_ns - 4 * kSecond});
  CHECK(yard.controller.state() == State::Deciding);
  yard.recover();
  REQUIRE(yard.controller.state() == State::Running);
  CHECK(yard.controller.owners()[5] == 12);
  CHECK(yard.controller.epoch() == 2);
  CHECK(yard.in_repair.contains(5));
  REQUIRE(yard.ledgers.size() == 1);
  const RecoveryLedger& ledger = yard.ledgers.front();
  CHECK(seconds_in(ledger, Phase::Detect) == Approx(4));
  CHECK(seconds_in(ledger, Phase::Decide) == Approx(3));
  for (const Phase phase :
       {Phase::Fence, Phase::Allocate, Phase::ProcessStart, Phase::Communicators, Phase::LoadState, Phase::FirstStep})
    CHECK(seconds_in(ledger, phase) == Approx(1));
  CHECK(ledger.total_s() == Approx(13));
  CHECK(ledger.ejected_nodes == std::vector<NodeId>{5});
}

TEST_CASE("A software failure restarts in place") {
  Yard yard = running_yard();
  yard.deliver(CommunicatorError{1, 3, std::nullopt, yard.now_ns});
  yard.recover();
  CHECK(yard.controller.state() == State::Running);
  CHECK(yard.in_repair.empty());
  CHECK(seconds_in(yard.ledgers.at(0), Phase::Allocate) == 0);
}

TEST_CASE("Complaints that name a peer blame it, unless something direct is known") {
  Yard yard = running_yard();
  yard.deliver(CommunicatorError{1, 3, NodeId{4}, yard.now_ns});
  yard.deliver(CommunicatorError{1, 5, NodeId{4}, yard.now_ns});
  SECTION("complaints only") {
    yard.recover();
    CHECK(yard.in_repair.size() == 1);
    CHECK(yard.in_repair.contains(4));
  }
  SECTION("and an XID elsewhere") {
    yard.deliver(XidReported{6, 2, 79, yard.now_ns});
    yard.recover();
    CHECK(yard.in_repair.size() == 1);
    CHECK(yard.in_repair.contains(6));
  }
}

TEST_CASE("Harmless XIDs stop nobody; application XIDs restart without ejection") {
  Yard yard = running_yard();
  CHECK(yard.deliver(XidReported{6, 2, 43, yard.now_ns}).empty());
  CHECK(yard.controller.state() == State::Running);
  yard.deliver(XidReported{6, 2, 31, yard.now_ns});
  yard.recover();
  CHECK(yard.controller.state() == State::Running);
  CHECK(yard.controller.epoch() == 2);
  CHECK(yard.in_repair.empty());
}

TEST_CASE("A failure during recovery starts it over, with both nodes replaced") {
  Yard yard = running_yard();
  yard.deliver(HeartbeatLost{5, yard.now_ns});
  yard.fire_next_timer();
  yard.answer<Fence>();
  yard.answer<PromoteSpare>();
  yard.answer<StartProcesses>();
  REQUIRE(yard.controller.state() == State::Connecting);
  yard.advance(7 * kSecond);
  yard.deliver(HeartbeatLost{8, yard.now_ns - kSecond});
  CHECK(yard.controller.state() == State::Deciding);
  yard.recover();
  REQUIRE(yard.controller.state() == State::Running);
  CHECK(yard.controller.epoch() == 3);
  CHECK(yard.controller.owners()[5] == 12);
  CHECK(yard.controller.owners()[8] == 13);
  REQUIRE(yard.ledgers.size() == 1);
  CHECK(yard.ledgers[0].attempts == 2);
  CHECK(seconds_in(yard.ledgers[0], Phase::Communicators) == Approx(7 + 1));
}

TEST_CASE("A promoted spare that dies is replaced by the next one") {
  Yard yard = running_yard();
  yard.deliver(HeartbeatLost{5, yard.now_ns});
  yard.fire_next_timer();
  yard.answer<Fence>();
  REQUIRE(yard.controller.owners()[5] == 12);
  yard.answer<PromoteSpare>(Outcome::Refused);
  CHECK(yard.controller.state() == State::Deciding);
  yard.recover();
  CHECK(yard.controller.state() == State::Running);
  CHECK(yard.controller.owners()[5] == 13);
  CHECK(yard.in_repair.contains(12));
}

TEST_CASE("A promotion that was not confirmed before a restart is asked for again") {
  Yard yard = running_yard();
  yard.deliver(HeartbeatLost{5, yard.now_ns});
  yard.fire_next_timer();
  yard.answer<Fence>();
  yard.asked.clear();  // the promotion of 12 is never answered
  yard.deliver(HeartbeatLost{0, yard.now_ns});
  yard.fire_next_timer();
  yard.answer<Fence>();
  CHECK(yard.count_asked<PromoteSpare>() == 2);
  yard.recover();
  CHECK(yard.controller.state() == State::Running);
}

TEST_CASE("With the spares exhausted a human is told once, and a repaired node revives the job") {
  auto config = small_config();
  config.roster.spares = {};
  Yard yard(config);
  yard.deliver(Launched{0});
  yard.deliver(HeartbeatLost{5, 0});
  yard.recover();
  CHECK(yard.controller.state() == State::WaitingForSpare);
  CHECK(yard.pages_ns.size() == 1);
  yard.advance(3600 * kSecond);
  yard.deliver(NodeRepaired{yard.in_repair.at(5), 5});
  yard.recover();
  CHECK(yard.controller.state() == State::Running);
  CHECK(yard.controller.owners()[5] == 5);
  CHECK(yard.pages_ns.size() == 1);
  CHECK(seconds_in(yard.ledgers.at(0), Phase::WaitForSpare) == Approx(3600));
}

TEST_CASE("A leaf that flaps does not lose its nodes") {
  Yard yard = running_yard();  // nodes 4..7 share a leaf; two ejections an hour
  for (const NodeId node : {4, 5, 6, 7}) yard.deliver(HeartbeatLost{node, yard.now_ns});
  yard.recover();
  REQUIRE(yard.controller.state() == State::WaitingForHuman);
  CHECK(yard.in_repair.size() == 2);
  CHECK(yard.pages_ns.size() == 1);
  SECTION("a human mends the leaf: the others stay") {
    yard.deliver(HumanCleared{});
    yard.recover();
    CHECK(yard.controller.state() == State::Running);
    CHECK(yard.in_repair.size() == 2);
    CHECK(yard.controller.owners()[6] == 6);
  }
  SECTION("nobody comes: the window lets two more go after an hour") {
    const std::int64_t waiting_since_ns = yard.now_ns;
    while (yard.controller.state() == State::WaitingForHuman) yard.fire_next_timer();
    CHECK(yard.now_ns >= waiting_since_ns + 3600 * kSecond - kSecond);
    CHECK(yard.in_repair.size() == 4);
    CHECK(yard.controller.state() == State::WaitingForSpare);  // three spares for four slots
  }
}

TEST_CASE("A spare that falls silent is sent to repair without stopping the job") {
  Yard yard = running_yard();
  yard.deliver(HeartbeatLost{13, yard.now_ns});
  CHECK(yard.controller.state() == State::Running);
  CHECK(yard.in_repair.contains(13));
  CHECK_FALSE(yard.controller.spares().contains(13));
  yard.deliver(NodeRepaired{yard.in_repair.at(13), 13});
  CHECK(yard.controller.spares().contains(13));
}

TEST_CASE("A request that nobody answers runs into its deadline") {
  Yard yard = running_yard();
  yard.deliver(CommunicatorError{1, 3, std::nullopt, yard.now_ns});
  yard.fire_next_timer();
  REQUIRE(yard.controller.state() == State::Fencing);
  yard.timers.erase(
      std::remove_if(yard.timers.begin(), yard.timers.end(), [&](const auto& timer) { return timer.second.epoch < 2; }),
      yard.timers.end());
  const std::int64_t asked_ns = yard.now_ns;
  yard.fire_next_timer();
  CHECK(yard.now_ns == asked_ns + 60 * kSecond);
  CHECK(yard.controller.state() == State::Deciding);
  yard.recover();
  CHECK(yard.controller.state() == State::Running);
}

TEST_CASE("Recoveries that lead nowhere end at a human, and are tried again later") {
  Yard yard = running_yard();
  for (int i = 0; i < 6 && yard.pages_ns.empty(); ++i) {
    yard.deliver(CommunicatorError{yard.controller.epoch(), 3, std::nullopt, yard.now_ns});
    yard.recover();
  }
  REQUIRE(yard.controller.state() == State::WaitingForHuman);
  while (yard.controller.state() == State::WaitingForHuman) yard.fire_next_timer();
  yard.recover();
  CHECK(yard.controller.state() == State::Running);
}

TEST_CASE("Checkpoints: taken on time, one at a time, restored from") {
  Yard yard = running_yard();
  yard.fire_next_timer();
  CHECK(yard.now_ns == 100 * kSecond);
  REQUIRE(yard.count_asked<TakeCheckpoint>() == 1);
  const ActionKey key = yard.asked.back().key;
  yard.deliver(StepsDone{1, 1, 40});

  SECTION("durable: the restore point") {
    yard.answer<TakeCheckpoint>();
    yard.deliver(CheckpointDurable{key, 40});
    CHECK(yard.controller.durable_step() == 40);
    yard.deliver(StepsDone{1, 41, 55});
    yard.deliver(HeartbeatLost{5, yard.now_ns});
    yard.recover();
    CHECK(yard.ledgers.at(0).restored_step == 40);
    CHECK(yard.controller.steps_done() == 40);
  }
  SECTION("snapshot only: not a restore point") {
    yard.answer<TakeCheckpoint>();
    yard.deliver(HeartbeatLost{5, yard.now_ns});
    yard.recover();
    CHECK(yard.ledgers.at(0).restored_step == 0);
  }
  SECTION("storage behind: the next one waits for the last") {
    yard.answer<TakeCheckpoint>();
    yard.fire_next_timer();
    CHECK(yard.count_asked<TakeCheckpoint>() == 0);
    yard.deliver(CheckpointDurable{key, 40});
    CHECK(yard.count_asked<TakeCheckpoint>() == 1);
  }
  SECTION("refused: tried again after the interval") {
    yard.answer<TakeCheckpoint>(Outcome::Refused);
    CHECK(yard.controller.durable_step() == 0);
    while (yard.now_ns < 200 * kSecond) yard.fire_next_timer();
    CHECK(yard.count_asked<TakeCheckpoint>() == 1);
  }
  SECTION("durable before its own snapshot is answered: the next timer is armed all the same") {
    yard.deliver(CheckpointDurable{key, 40});
    yard.answer<TakeCheckpoint>();
    CHECK(yard.controller.durable_step() == 40);
    while (yard.now_ns < 200 * kSecond) yard.fire_next_timer();
    CHECK(yard.count_asked<TakeCheckpoint>() == 1);
  }
  SECTION("never durable: given up, and the next one is taken") {
    yard.answer<TakeCheckpoint>();
    while (yard.now_ns < 720 * kSecond) yard.fire_next_timer();
    CHECK(yard.count_asked<TakeCheckpoint>() == 1);
    CHECK(yard.deliver(CheckpointDurable{key, 40}).empty());
    CHECK(yard.controller.durable_step() == 0);
  }
}

TEST_CASE("A vote of one differs from nobody: its checkpoint stands") {
  Yard yard = running_yard();
  yard.fire_next_timer();
  const ActionKey key = yard.asked.back().key;
  yard.deliver(StepsDone{1, 1, 40});
  yard.answer<TakeCheckpoint>();

  SECTION("one holder") {
    yard.deliver(HashesDiffer{key, {{5, 1}}});
    CHECK(yard.controller.state() == State::Running);
    yard.deliver(CheckpointDurable{key, 40});
    CHECK(yard.controller.durable_step() == 40);
  }
  SECTION("two that differ: both are blamed, the checkpoint is dropped") {
    yard.deliver(HashesDiffer{key, {{5, 1}, {6, 2}}});
    yard.recover();
    CHECK(yard.ledgers.at(0).ejected_nodes == std::vector<NodeId>{5, 6});
    CHECK(yard.controller.durable_step() == 0);
  }
}

TEST_CASE("Steps reported one by one or as a range have equal effect") {
  Yard single = running_yard();
  Yard range = running_yard();
  for (std::int64_t step = 1; step <= 30; ++step) single.deliver(StepsDone{1, step, step});
  range.deliver(StepsDone{1, 1, 30});
  CHECK(single.controller.steps_done() == range.controller.steps_done());
  range.deliver(StepsDone{1, 32, 40});  // step 31 is missing: not accepted
  CHECK(range.controller.steps_done() == 30);
  range.deliver(StepsDone{1, 25, 40});  // overlaps what is known
  CHECK(range.controller.steps_done() == 40);
}

TEST_CASE("A policy gives deadlines that symptoms always beat") {
  PolicySpec policy;
  policy.spare_nodes = 4;
  const ControllerConfig config = controller_config(policy, {16, 8, 1}, 600, 3600);
  CHECK(config.roster.owners.size() == 16);
  CHECK(config.roster.spares.size() == 4);
  CHECK(config.roster.spares.begin()->first == 16);
  const double detect_s = policy.detection_timeout_s;
  CHECK(config.deadlines.communicators_ns > trainyard::to_ns(policy.communicators_s + detect_s));
  CHECK(config.deadlines.fence_ns > trainyard::to_ns(policy.fence_s + detect_s));
  CHECK(config.checkpoints.interval_ns == 600 * kSecond);
}
