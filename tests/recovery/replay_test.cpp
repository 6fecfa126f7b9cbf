#include "models/recovery/replay.h"

#include <catch2/catch.hpp>

#include <limits>

#include "models/base/random.h"

using namespace trainyard::recovery;
using trainyard::RandomStream;

namespace {

ActionKey some_key(RandomStream& draw) {
  return {static_cast<std::int64_t>(draw.below(9)), static_cast<std::int64_t>(draw.below(1000)),
          static_cast<std::int64_t>(draw.next_u64() >> 1)};
}

// One event of each kind, with whatever values.
std::vector<Event> some_events(RandomStream& draw) {
  const auto any = [&] { return static_cast<std::int64_t>(draw.next_u64()); };
  std::optional<NodeId> maybe;
  if (draw.below(2) == 0) maybe = any();
  std::vector<std::pair<NodeId, std::uint64_t>> votes;
  for (std::uint64_t i = draw.below(4); i > 0; --i) votes.emplace_back(any(), draw.next_u64());
  const StateCopy copy{static_cast<Tier>(draw.below(kTierCount)), any(), some_key(draw)};
  return {Launched{any()},
          HeartbeatLost{any(), any()},
          CommunicatorError{any(), any(), maybe, any()},
          XidReported{any(), any(), static_cast<int>(draw.below(200)), any()},
          RankExited{any(), any(), any()},
          Straggling{any(), any(), 1 + draw.uniform()},
          StragglingOver{any()},
          MaintenanceDue{any(), any()},
          HashesAgree{some_key(draw)},
          HashesDiffer{some_key(draw), votes},
          StateFound{any(), copy},
          TookOver{any()},
          StepsDone{any(), any(), any()},
          CheckpointDurable{some_key(draw), any(), copy.tier},
          SpareReady{any(), static_cast<Temperature>(draw.below(3))},
          NodeRepaired{some_key(draw), any()},
          TimerFired{some_key(draw)},
          Answered{some_key(draw), static_cast<Outcome>(draw.below(3)), maybe},
          HumanCleared{}};
}

ControllerConfig logged_config() {
  ControllerConfig config;
  config.roster.owners = {0, 1};
  config.roster.spares = {{2, Temperature::Hot}};
  config.checkpoints.interval_ns = 1'000'000'000;
  config.stragglers.replace_at_slowdown = 1.25;
  return config;
}

// Two nodes and a spare, one of which falls silent.
std::vector<LoggedEvent> small_events() {
  std::vector<LoggedEvent> events;
  Controller controller(logged_config());
  const auto tell = [&](std::int64_t at_ns, const Event& event) {
    const std::vector<Action> actions = controller.step(at_ns, event);
    events.push_back({at_ns, describe(event), static_cast<std::int64_t>(actions.size()), digest(actions)});
  };
  tell(0, Launched{0});
  for (std::int64_t step = 1; step < 50; step += 7) tell(step * 1'000'000'000, StepsDone{0, step, step + 6});
  tell(60'000'000'000, HeartbeatLost{1, 59'000'000'000});
  return events;
}

ControllerLog log_of(const std::vector<LoggedEvent>& events, const ControllerConfig& config = logged_config()) {
  LogWriter writer(config);
  for (const LoggedEvent& event : events) writer.add(event);
  return writer.take();
}

}  // namespace

TEST_CASE("What an event is described by reads back as that event") {
  RandomStream draw(1, "events");
  for (int i = 0; i < 200; ++i) {
    const std::vector<Event> events = some_events(draw);
    REQUIRE(events.size() == kEventKinds);
    for (const Event& event : events) {
      const std::string text = describe(event);
      const std::optional<Event> read = event_from(text);
      INFO(text);
      REQUIRE(read.has_value());
      CHECK(read->index() == event.index());
      CHECK(describe(*read) == text);
    }
  }
}

TEST_CASE("What is no description of an event is not taken for one") {
  for (const char* text :
       {"", "launch step=1", "launched", "launched step=", "launched step=one", "launched step=1 node=2",
        "evil launched step=1", "launched step=99999999999999999999", "timer_fired key=1.2", "timer_fired key=1.2.3.4",
        "steps_done epoch=1 steps=4", "hashes_differ key=1.2.3 votes=5", "hashes_differ key=1.2.3 votes=5:zz,",
        "answered key=1.2.3 outcome=done culprit=none", "straggling epoch=1 node=2 slowdown=fast"}) {
    INFO(text);
    CHECK_FALSE(event_from(text).has_value());
  }
}

TEST_CASE("A log gives back what was written into it") {
  RandomStream draw(2, "log");
  std::vector<LoggedEvent> events;
  std::int64_t now_ns = 0;
  for (int i = 0; i < 2000; ++i) {
    for (const Event& event : some_events(draw)) {
      now_ns += static_cast<std::int64_t>(draw.below(2) * draw.below(1'000'000'000));
      events.push_back({now_ns, describe(event), static_cast<std::int64_t>(draw.below(5)),
                        static_cast<std::uint32_t>(draw.next_u64())});
    }
  }
  const ControllerLog log = log_of(events);
  CHECK(log.events == static_cast<std::int64_t>(events.size()));
  LogReader reader(log);
  for (const LoggedEvent& event : events) {
    const std::optional<LoggedEvent> read = reader.next();
    REQUIRE(read.has_value());
    if (*read != event) FAIL(event.event);
  }
  CHECK_FALSE(reader.next().has_value());
  CHECK(reader.complete());
}

TEST_CASE("A replay does the same, and says where it does not") {
  const std::vector<LoggedEvent> events = small_events();
  const ControllerLog log = log_of(events);
  for (const bool step_by_step : {false, true}) {
    const auto same = replay(log, {step_by_step, {}});
    REQUIRE(same.ok());
    CHECK(same.value().events == log.events);
    CHECK(same.value().actions > 1);
    CHECK_FALSE(same.value().differs_at.has_value());
  }
  // Something was told that is not in the log, or is there and led to nothing.
  std::vector<LoggedEvent> other = events;
  other.insert(other.begin() + 3, {15'500'000'000, describe(HeartbeatLost{1, 15'000'000'000}), 0, 0});
  REQUIRE(replay(log_of(other)).value().differs_at.has_value());
  CHECK(replay(log_of(other)).value().differs_at->at_ns == 15'500'000'000);
  CHECK(replay(log_of(other)).value().events == 3);
  // Another controller.
  ControllerConfig config = logged_config();
  config.diagnosis_ns = 5;
  CHECK(replay(log_of(events, config)).value().differs_at.has_value());
}

TEST_CASE("Settings that no controller can have are not read") {
  ControllerConfig config;
  config.roster.owners = {4, 2};
  REQUIRE(config_from(to_text(config)).has_value());
  SECTION("a domain that may lose nothing") { config.roster.max_ejections_per_domain = 0; }
  SECTION("a save that takes less than nothing") { config.checkpoints.stall_s = -1; }
  SECTION("failures before they begin") { config.checkpoints.expected_mtbf_s = -5; }
  SECTION("an interval into the past") { config.checkpoints.interval_ns = -1; }
  CHECK_FALSE(config_from(to_text(config)).has_value());
}

TEST_CASE("Settings read back as they were") {
  ControllerConfig config;
  config.roster.owners = {4, 2};
  config.roster.spares = {{7, Temperature::Cold}};
  config.checkpoints.cadence = Cadence::Adaptive;
  config.checkpoints.stall_s = 1.0 / 3;
  for (const double mtbf_s : {0.1, 0.0, std::numeric_limits<double>::infinity()}) {
    config.checkpoints.expected_mtbf_s = mtbf_s;
    const std::optional<ControllerConfig> read = config_from(to_text(config));
    REQUIRE(read.has_value());
    CHECK(to_text(*read) == to_text(config));
    CHECK(read->checkpoints.expected_mtbf_s == mtbf_s);
    CHECK(read->checkpoints.stall_s == 1.0 / 3);
    CHECK(read->roster.spares == config.roster.spares);
  }
}

TEST_CASE("A log that is not one is refused") {
  const std::vector<LoggedEvent> events = small_events();
  const ControllerLog log = log_of(events);
  ControllerLog broken = log;
  broken.config = "{}";
  CHECK_FALSE(replay(broken).ok());
  broken = log;
  broken.config.replace(broken.config.find("[0,1]"), 5, "[1,1]");  // one node in two slots
  CHECK_FALSE(replay(broken).ok());
  std::vector<LoggedEvent> other = events;
  other[1].event = "nonsense";
  CHECK_FALSE(replay(log_of(other)).ok());
  other = events;
  other.back().at_ns = 1;  // back in time
  CHECK_FALSE(replay(log_of(other)).ok());
  broken = log;
  broken.events += 1;
  CHECK_FALSE(replay(broken).ok());
  RandomStream draw(3, "damage");
  for (int i = 0; i < 300; ++i) {
    broken = log;
    if (draw.below(2) == 0)
      broken.lines.resize(draw.below(broken.lines.size()));
    else
      broken.lines[draw.below(broken.lines.size())] ^= static_cast<std::uint8_t>(1 + draw.below(255));
    const auto result = replay(broken);  // no crash; and what is whole is not damaged
    if (result.ok() && !result.value().differs_at) CHECK(result.value().events == log.events);
  }
}
