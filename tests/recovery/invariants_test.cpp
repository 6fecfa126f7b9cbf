// The controller's numbered invariants, one test case each, under an adversary: symptoms that
// are true, false, late and repeated; answers that are acted, refused, lost, stale and repeated.
#include <array>
#include <functional>
#include <memory>
#include <set>
#include <tuple>

#include <catch2/catch.hpp>

#include "tests/recovery/yard.h"
#include "tests/sanitized.h"

using namespace trainyard::recovery;
using trainyard::RandomStream;
using trainyard::recovery::testing::kSecond;
using trainyard::recovery::testing::small_config;
using trainyard::recovery::testing::Yard;

namespace {

constexpr int kNights = trainyard::testing::kSanitized ? 40 : 200;
constexpr int kEventsPerNight = 600;

/// All that an observer can see of the controller.
struct Snapshot {
  State state;
  std::int64_t epoch;
  std::vector<NodeId> owners;
  std::map<NodeId, Temperature> spares;
  std::int64_t durable_step, steps_done;
  bool operator==(const Snapshot&) const = default;
};

Snapshot snapshot(const Controller& c) {
  return {c.state(), c.epoch(), c.owners(), c.spares(), c.durable_step(), c.steps_done()};
}

/// What one delivery did.
struct Observation {
  Event event;
  std::vector<Action> actions;
  Snapshot before, after;
  std::int64_t now_ns;
};
using Check = std::function<void(const Observation&)>;

ControllerConfig adversary_config() {
  ControllerConfig config = small_config();
  config.max_barren_attempts = 3;
  config.roster.spares.at(14) = Temperature::Warm;
  config.hot_spares = 3;
  return config;
}

class Adversary {
 public:
  explicit Adversary(std::uint64_t seed) : rng_(seed, "adversary"), calm_(seed % 2 == 0) {
    yard = Yard(adversary_config());
  }

  void night(const Check& check) {
    deliver(Launched{0}, check);
    for (int i = 0; i < kEventsPerNight; ++i) {
      yard.advance(static_cast<std::int64_t>(rng_.below(5)) * kSecond / 2);
      mischief(check);
    }
  }

  void deliver(const Event& event, const Check& check) {
    const Snapshot before = snapshot(yard.controller);
    const std::vector<Action> actions = yard.deliver(event);
    for (const Action& action : actions)
      if (std::holds_alternative<TakeCheckpoint>(action.body)) checkpoints_.push_back(action.key);
    check({event, actions, before, snapshot(yard.controller), yard.now_ns});
  }

  /// The world turns honest: everything asked is done, what is broken gets mended. Returns the
  /// number of deliveries until the job runs.
  int honest_until_running(const Check& check, int limit) {
    for (int i = 0; i < limit; ++i) {
      if (yard.controller.state() == State::Running) return i;
      deliver(honest_event(), check);
    }
    return limit;
  }

  Yard yard;

 private:
  NodeId some_node() { return static_cast<NodeId>(rng_.below(17)); }  // 15 exist
  std::int64_t some_past_ns() {
    return std::max<std::int64_t>(0, yard.now_ns - static_cast<std::int64_t>(rng_.below(30)) * kSecond);
  }
  std::int64_t some_epoch() {
    return std::max<std::int64_t>(0, yard.controller.epoch() - (rng_.below(3) == 0 ? 1 + rng_.below(2) : 0));
  }

  void mischief(const Check& check) {
    // Every other night is calm enough for training to get somewhere between failures.
    const double symptoms = calm_ ? 0.5 : 4;
    switch (rng_.categorical({30, 25, 10, symptoms, symptoms, symptoms, 8, 8, 5, 1, 1})) {
      case 0: return answer_something(check);
      case 1: return fire_something(check);
      case 2: return repeat_something(check);
      case 3: return deliver(HeartbeatLost{some_node(), some_past_ns()}, check);
      case 4: return complain(check);
      case 5: return deliver(XidReported{some_node(), 0, std::array{79, 31, 43}[rng_.below(3)], some_past_ns()}, check);
      case 6: return report_steps(check);
      case 7: return report_checkpoint(check);
      case 8: return repair_something(check);
      case 9: return deliver(SpareReady{some_node()}, check);
      default: return deliver(HumanCleared{}, check);
    }
  }

  void answer_something(const Check& check) {
    if (yard.asked.empty()) return;
    // Mostly the newest request; sometimes one that has long been given up.
    const std::size_t pick = rng_.below(4) == 0 ? rng_.below(yard.asked.size()) : yard.asked.size() - 1;
    const ActionKey key = yard.asked[pick].key;
    yard.asked.erase(yard.asked.begin() + static_cast<std::ptrdiff_t>(pick));
    const Outcome outcome =
        std::array{Outcome::Acted, Outcome::Refused, Outcome::Timeout}[rng_.categorical({12, 1, 1})];
    std::optional<NodeId> culprit;
    if (outcome != Outcome::Acted && rng_.below(2) == 0) culprit = some_node();
    deliver(Answered{key, outcome, culprit}, check);
  }

  void fire_something(const Check& check) {
    if (yard.timers.empty()) return;
    const auto next = std::min_element(yard.timers.begin(), yard.timers.end());
    const auto [at_ns, key] = *next;
    if (at_ns > yard.now_ns + 120 * kSecond && rng_.below(4) != 0) return;
    yard.timers.erase(next);
    yard.now_ns = std::max(yard.now_ns, at_ns);
    deliver(TimerFired{key}, check);
  }

  void repeat_something(const Check& check) {
    const Event event = yard.events[rng_.below(yard.events.size())].second;
    deliver(event, check);
  }

  void complain(const Check& check) {
    CommunicatorError event{some_epoch(), some_node(), std::nullopt, some_past_ns()};
    if (rng_.below(2) == 0) event.suspect = some_node();
    deliver(event, check);
  }

  void report_steps(const Check& check) {
    const std::int64_t first = yard.controller.steps_done() + 1 - static_cast<std::int64_t>(rng_.below(3)) +
                               static_cast<std::int64_t>(rng_.below(5) == 0);
    deliver(StepsDone{some_epoch(), first, first + static_cast<std::int64_t>(rng_.below(6))}, check);
  }

  void report_checkpoint(const Check& check) {
    if (checkpoints_.empty()) return;
    const std::size_t pick = rng_.below(3) == 0 ? rng_.below(checkpoints_.size()) : checkpoints_.size() - 1;
    deliver(CheckpointDurable{checkpoints_[pick], yard.controller.steps_done()}, check);
  }

  void repair_something(const Check& check) {
    if (yard.in_repair.empty()) return;
    auto chosen = yard.in_repair.begin();
    std::advance(chosen, static_cast<std::ptrdiff_t>(rng_.below(yard.in_repair.size())));
    const NodeRepaired event{chosen->second, chosen->first};
    yard.in_repair.erase(chosen);
    deliver(event, check);
  }

  Event honest_event() {
    while (!yard.asked.empty()) {
      const ActionKey key = yard.asked.back().key;
      const bool current = key.epoch == yard.controller.epoch();
      yard.asked.pop_back();
      if (current) {
        yard.advance(kSecond);
        return Answered{key, Outcome::Acted, std::nullopt};
      }
    }
    if (!yard.in_repair.empty()) {
      const auto [node, key] = *yard.in_repair.begin();
      yard.in_repair.erase(node);
      return NodeRepaired{key, node};
    }
    if (yard.timers.empty()) return SpareReady{1000 + yard.now_ns};  // a human brings a new machine
    const auto next = std::min_element(yard.timers.begin(), yard.timers.end());
    const auto [at_ns, key] = *next;
    yard.timers.erase(next);
    yard.now_ns = std::max(yard.now_ns, at_ns);
    return TimerFired{key};
  }

  RandomStream rng_;
  bool calm_;
  std::vector<ActionKey> checkpoints_;
};

void for_many_nights(const std::function<Check(Adversary&)>& make_check) {
  for (std::uint64_t seed = 1; seed <= kNights; ++seed) {
    INFO("seed " << seed);
    Adversary adversary(seed);
    adversary.night(make_check(adversary));
  }
}

template <class T>
const T* first_of(const std::vector<Action>& actions) {
  for (const Action& action : actions)
    if (const T* body = std::get_if<T>(&action.body)) return body;
  return nullptr;
}

template <class... T>
bool is_any(const ActionBody& body) {
  return (std::holds_alternative<T>(body) || ...);
}

}  // namespace

TEST_CASE("The adversary reaches every state and every kind of action") {
  std::set<State> states;
  std::set<std::size_t> kinds;
  for_many_nights([&](Adversary&) {
    return [&](const Observation& seen) {
      states.insert(seen.after.state);
      for (const Action& action : seen.actions) kinds.insert(action.body.index());
    };
  });
  CHECK(states.size() == 10);  // all but Idle, which the first event leaves, and planned restarts
  CHECK(kinds.size() == std::variant_size_v<ActionBody>);
}

TEST_CASE("I1 one epoch at a time") {
  for_many_nights([](Adversary&) -> Check {
    auto fence = std::make_shared<ActionKey>();
    auto fenced_epoch = std::make_shared<std::int64_t>(1);
    return [fence, fenced_epoch](const Observation& seen) {
      const auto* answer = std::get_if<Answered>(&seen.event);
      if (answer && answer->key == *fence && answer->outcome == Outcome::Acted) *fenced_epoch = fence->epoch;
      const bool fences = first_of<Fence>(seen.actions) != nullptr;
      if (seen.before.state != State::Idle) REQUIRE(seen.after.epoch == seen.before.epoch + (fences ? 1 : 0));
      for (const Action& action : seen.actions) {
        REQUIRE(action.key.epoch == seen.after.epoch);
        if (std::holds_alternative<Fence>(action.body)) *fence = action.key;
        if (is_any<StartProcesses, BuildCommunicators, LoadState, Resume, PromoteSpare>(action.body))
          REQUIRE(action.key.epoch == *fenced_epoch);
      }
    };
  });
}

TEST_CASE("I2 one owner per slot") {
  for_many_nights([](Adversary& adversary) -> Check {
    auto may_change = std::make_shared<bool>(false);
    return [&adversary, may_change](const Observation& seen) {
      const std::string violated = adversary.yard.controller.violated_invariant();
      INFO(describe(seen.event));
      REQUIRE(violated == "");
      if (seen.before.state == State::Fencing && seen.after.state != State::Fencing) *may_change = true;
      if (seen.before.owners != seen.after.owners) REQUIRE(*may_change);
      if (first_of<StartProcesses>(seen.actions) || first_of<Fence>(seen.actions)) *may_change = false;
    };
  });
}

TEST_CASE("I3 a fenced rank cannot commit") {
  int stale_reports = 0;
  for_many_nights([&](Adversary&) {
    return [&](const Observation& seen) {
      std::int64_t epoch = seen.before.epoch;
      if (const auto* steps = std::get_if<StepsDone>(&seen.event)) epoch = steps->epoch;
      if (const auto* durable = std::get_if<CheckpointDurable>(&seen.event)) epoch = durable->key.epoch;
      if (epoch >= seen.before.epoch) return;
      ++stale_reports;
      REQUIRE(seen.before == seen.after);
      REQUIRE(seen.actions.empty());
    };
  });
  CHECK(stale_reports > 1000);
}

TEST_CASE("I4 exactly once") {
  // The test's own history: what ranks that were resumed at a step trained, in order, cut back
  // to what is durable at every fence.
  for_many_nights([](Adversary&) -> Check {
    auto history = std::make_shared<std::vector<std::int64_t>>();
    return [history](const Observation& seen) {
      REQUIRE(seen.after.durable_step >= seen.before.durable_step);
      if (const auto* steps = std::get_if<StepsDone>(&seen.event);
          steps && seen.after.steps_done > seen.before.steps_done) {
        REQUIRE(steps->first <= static_cast<std::int64_t>(history->size()) + 1);
        for (std::int64_t step = seen.before.steps_done + 1; step <= steps->last; ++step) history->push_back(step);
      }
      if (first_of<Fence>(seen.actions)) history->resize(static_cast<std::size_t>(seen.after.durable_step));
      if (const Resume* resume = first_of<Resume>(seen.actions))
        REQUIRE(resume->step == static_cast<std::int64_t>(history->size()));
      for (std::size_t i = 0; i < history->size(); ++i)
        if ((*history)[i] != static_cast<std::int64_t>(i) + 1) FAIL("step trained out of order");
      REQUIRE(seen.after.steps_done == static_cast<std::int64_t>(history->size()));
    };
  });
}

TEST_CASE("I5 no checkpoint before its quorum") {
  int promoted = 0;
  for_many_nights([&](Adversary&) -> Check {
    auto in_progress = std::make_shared<std::optional<ActionKey>>();
    return [in_progress, &promoted](const Observation& seen) {
      if (seen.after.durable_step != seen.before.durable_step && seen.before.state != State::Idle) {
        const auto* durable = std::get_if<CheckpointDurable>(&seen.event);
        REQUIRE(durable);
        REQUIRE(in_progress->has_value());
        REQUIRE(durable->key == **in_progress);
        REQUIRE(seen.after.durable_step == durable->step);
        ++promoted;
      }
      for (const Action& action : seen.actions) {
        if (std::holds_alternative<TakeCheckpoint>(action.body)) *in_progress = action.key;
        if (std::holds_alternative<Fence>(action.body)) in_progress->reset();
        if (const auto* load = std::get_if<LoadState>(&action.body))
          REQUIRE(load->copy.step == seen.after.durable_step);
        if (const auto* resume = std::get_if<Resume>(&action.body)) REQUIRE(resume->step == seen.after.durable_step);
      }
    };
  });
  CHECK(promoted > 100);
}

TEST_CASE("I6 ejections are bounded") {
  int ejections = 0;
  int pages = 0;
  for_many_nights([&](Adversary&) -> Check {
    auto times_ns = std::make_shared<std::map<std::int64_t, std::vector<std::int64_t>>>();
    return [times_ns, &ejections, &pages](const Observation& seen) {
      const auto config = small_config();
      for (const Action& action : seen.actions) {
        const auto* page = std::get_if<PageHuman>(&action.body);
        pages += page && page->reason == PageReason::EjectionBound;
        const auto* eject = std::get_if<Eject>(&action.body);
        if (!eject) continue;
        ++ejections;
        auto& domain = (*times_ns)[eject->node / config.roster.nodes_per_domain];
        domain.push_back(seen.now_ns);
        const auto recent = std::count_if(domain.begin(), domain.end(), [&](std::int64_t at_ns) {
          return at_ns > seen.now_ns - config.roster.ejection_window_ns;
        });
        REQUIRE(recent <= config.roster.max_ejections_per_domain);
      }
    };
  });
  CHECK(ejections > 500);
  CHECK(pages > 100);
}

TEST_CASE("I7 an answer counts once") {
  int repeats = 0;
  for_many_nights([&](Adversary&) -> Check {
    auto used = std::make_shared<std::set<ActionKey>>();
    return [used, &repeats](const Observation& seen) {
      std::optional<ActionKey> key;
      if (const auto* answer = std::get_if<Answered>(&seen.event)) key = answer->key;
      if (const auto* timer = std::get_if<TimerFired>(&seen.event)) key = timer->key;
      if (const auto* repaired = std::get_if<NodeRepaired>(&seen.event)) key = repaired->key;
      if (!key || used->insert(*key).second) return;
      ++repeats;
      REQUIRE(seen.before == seen.after);
      REQUIRE(seen.actions.empty());
    };
  });
  CHECK(repeats > 500);
}

TEST_CASE("I7 symptoms that are repeated or older than the last proof of life change nothing") {
  Yard yard;
  yard.deliver(Launched{0});
  yard.advance(100 * kSecond);
  const HeartbeatLost symptom{5, yard.now_ns - kSecond};
  yard.deliver(symptom);
  const auto deciding = snapshot(yard.controller);
  CHECK(yard.deliver(symptom).empty());
  CHECK(snapshot(yard.controller) == deciding);
  while (yard.controller.state() == State::Deciding) yard.fire_next_timer();
  const auto fencing = snapshot(yard.controller);
  REQUIRE(fencing.state == State::Fencing);
  CHECK(yard.deliver(symptom).empty());  // its node is condemned already
  CHECK(snapshot(yard.controller) == fencing);
  yard.recover();
  REQUIRE(yard.controller.state() == State::Running);
  const auto running = snapshot(yard.controller);
  CHECK(yard.deliver(symptom).empty());                                 // of a node that has left
  CHECK(yard.deliver(HeartbeatLost{6, symptom.last_seen_ns}).empty());  // of one that has answered since
  CHECK(yard.deliver(XidReported{6, 0, 79, symptom.last_seen_ns}).empty());
  CHECK(yard.deliver(XidReported{6, 0, 31, symptom.last_seen_ns}).empty());
  CHECK(yard.deliver(CommunicatorError{1, 3, NodeId{6}, yard.now_ns}).empty());  // of a dead epoch
  CHECK(snapshot(yard.controller) == running);
}

TEST_CASE("I7 answers to another incarnation change nothing") {
  Yard yard;
  yard.deliver(Launched{0});
  yard.deliver(HeartbeatLost{5, 0});
  yard.fire_next_timer();
  REQUIRE(yard.controller.state() == State::Fencing);
  ActionKey key = yard.asked.back().key;
  key.incarnation += 1;
  const auto before = snapshot(yard.controller);
  CHECK(yard.deliver(Answered{key, Outcome::Acted, std::nullopt}).empty());
  CHECK(snapshot(yard.controller) == before);
}

TEST_CASE("I8 never stuck") {
  for (std::uint64_t seed = 1; seed <= kNights; ++seed) {
    INFO("seed " << seed);
    Adversary adversary(seed);
    const Check check = [&](const Observation&) {
      const std::string violated = adversary.yard.controller.violated_invariant();
      if (!violated.empty()) FAIL(violated);
    };
    adversary.night(check);
    const std::int64_t quiet_since_ns = adversary.yard.now_ns;
    REQUIRE(adversary.honest_until_running(check, 400) < 400);
    // At worst each of the window's ejections must wait for its own hour to pass, after a page
    // for lack of progress; everything else is seconds.
    CHECK(adversary.yard.now_ns - quiet_since_ns < 4 * 3600 * kSecond);
  }
}

TEST_CASE("I9 the same events give the same actions") {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    INFO("seed " << seed);
    Adversary adversary(seed);
    adversary.night([](const Observation&) {});
    const auto config = adversary_config();
    Controller replayed(config);
    std::vector<std::string> log;
    for (const auto& [now_ns, event] : adversary.yard.events)
      for (const Action& action : replayed.step(now_ns, event)) log.push_back(describe(action));
    REQUIRE(log.size() > 100);
    REQUIRE(log == adversary.yard.log);
  }
}
