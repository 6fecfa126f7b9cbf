// A small world for tests: keeps what the controller asked for and answers when told to.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "models/base/random.h"
#include "models/recovery/controller.h"

namespace trainyard::recovery::testing {

constexpr std::int64_t kSecond = 1'000'000'000;

inline ControllerConfig small_config() {
  ControllerConfig config;
  for (NodeId node = 0; node < 12; ++node) config.roster.owners.push_back(node);
  for (NodeId node = 12; node < 15; ++node) config.roster.spares.emplace(node, Temperature::Hot);
  config.roster.nodes_per_domain = 4;
  config.diagnosis_ns = 3 * kSecond;
  config.checkpoints.interval_ns = 100 * kSecond;
  config.roster.max_ejections_per_domain = 2;
  config.readmission_test = false;
  config.deadlines = {60 * kSecond, 60 * kSecond, 60 * kSecond,  60 * kSecond,
                      60 * kSecond, 60 * kSecond, 500 * kSecond, 600 * kSecond};
  return config;
}

class Yard {
 public:
  explicit Yard(ControllerConfig config = small_config()) : controller(std::move(config)) {}

  /// Delivers the event now; keeps what comes out.
  std::vector<Action> deliver(const Event& event) {
    events.emplace_back(now_ns, event);
    std::vector<Action> actions = controller.step(now_ns, event);
    for (const Action& action : actions) {
      log.push_back(describe(action));
      note(action);
    }
    return actions;
  }

  /// Answers the oldest unanswered action of type T.
  template <class T>
  std::vector<Action> answer(Outcome outcome = Outcome::Acted, std::optional<NodeId> culprit = std::nullopt) {
    const auto found =
        std::find_if(asked.begin(), asked.end(), [](const Action& a) { return std::holds_alternative<T>(a.body); });
    TY_CHECK(found != asked.end(), "nothing of this kind was asked");
    const ActionKey key = found->key;
    asked.erase(found);
    return deliver(Answered{key, outcome, culprit});
  }

  template <class T>
  [[nodiscard]] std::int64_t count_asked() const {
    return std::count_if(asked.begin(), asked.end(), [](const Action& a) { return std::holds_alternative<T>(a.body); });
  }

  /// Moves the clock to the earliest timer and fires it.
  std::vector<Action> fire_next_timer() {
    const auto next = std::min_element(timers.begin(), timers.end());
    TY_CHECK(next != timers.end(), "no timer is armed");
    const auto [at_ns, key] = *next;
    timers.erase(next);
    now_ns = std::max(now_ns, at_ns);
    return deliver(TimerFired{key});
  }

  void advance(std::int64_t by_ns) { now_ns += by_ns; }

  /// From Deciding to Running, every action answered after one second.
  void recover() {
    while (controller.state() == State::Deciding) fire_next_timer();
    const auto waits = [this] {
      return controller.state() == State::WaitingForHuman || controller.state() == State::WaitingForSpare;
    };
    for (int i = 0; i < 50 && controller.state() != State::Running && !waits(); ++i) {
      advance(kSecond);
      switch (controller.state()) {
        case State::Fencing: answer_current<Fence>(); break;
        case State::Allocating: answer_current<PromoteSpare>(); break;
        case State::Starting: answer_current<StartProcesses>(); break;
        case State::Connecting: answer_current<BuildCommunicators>(); break;
        case State::Loading: answer_current<LoadState>(); break;
        case State::WarmingUp: answer_current<Resume>(); break;
        default: return;
      }
    }
  }

  /// Drops stale requests of this kind, then answers the newest epoch's oldest.
  template <class T>
  void answer_current() {
    std::erase_if(asked, [this](const Action& a) {
      return std::holds_alternative<T>(a.body) && a.key.epoch < controller.epoch();
    });
    answer<T>();
  }

  Controller controller;
  std::int64_t now_ns = 0;
  std::vector<Action> asked;                               // actions that await an answer
  std::vector<std::pair<std::int64_t, ActionKey>> timers;  // armed, due or not
  std::map<NodeId, ActionKey> in_repair;
  std::vector<std::int64_t> pages_ns;
  std::vector<RecoveryLedger> ledgers;
  std::vector<std::pair<std::int64_t, Event>> events;
  std::vector<std::string> log;

 private:
  void note(const Action& action) {
    if (const auto* timer = std::get_if<SetTimer>(&action.body))
      timers.emplace_back(timer->at_ns, action.key);
    else if (const auto* eject = std::get_if<Eject>(&action.body))
      in_repair[eject->node] = action.key;
    else if (const auto* back = std::get_if<ReturnToRepair>(&action.body))
      in_repair[back->node] = action.key;
    else if (std::holds_alternative<PageHuman>(action.body))
      pages_ns.push_back(now_ns);
    else if (const auto* file = std::get_if<FileLedger>(&action.body))
      ledgers.push_back(file->ledger);
    else
      asked.push_back(action);
  }
};

}  // namespace trainyard::recovery::testing
