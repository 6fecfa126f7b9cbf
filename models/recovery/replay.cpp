#include "models/recovery/replay.h"

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include <fmt/compile.h>
#include <fmt/format.h>
#include <xxhash.h>
#include <nlohmann/json.hpp>

namespace trainyard::recovery {

// ---- The controller's settings as JSON

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Deadlines, fence_ns, allocate_ns, process_start_ns, communicators_ns, load_state_ns,
                                   first_step_ns, checkpoint_ns, upkeep_ns)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(StragglerPolicy, replace_at_slowdown, patience_ns)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(CheckpointConfig, cadence, interval_ns, stall_s, expected_mtbf_s, usual_tier,
                                   permanent_every, hash_vote)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(RosterConfig, owners, spares, nodes_per_domain, places, slots_per_replica,
                                   min_replicas, max_ejections_per_domain, ejection_window_ns, lemon_ejections,
                                   lemon_window_ns, retire_ejections)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(ControllerConfig, incarnation, roster, checkpoints, stragglers, hot_spares,
                                   regrow_patience_ns, maintenance_lead_ns, exits_before_blame, exit_window_ns,
                                   readmission_test, diagnosis_ns, max_barren_attempts, page_retry_ns, deadlines)

// JSON has no infinity, and a job that nothing ever happens to expects its next failure then.
std::string to_text(const ControllerConfig& config) {
  nlohmann::json json = config;
  if (std::isinf(config.checkpoints.expected_mtbf_s)) json["checkpoints"]["expected_mtbf_s"] = "never";
  return json.dump();
}

namespace {

// What the controller takes for granted. A log may have been edited by anyone.
bool sound(const CheckpointConfig& checkpoints) {
  return checkpoints.expected_mtbf_s >= 0 && std::isfinite(checkpoints.stall_s) && checkpoints.stall_s >= 0 &&
         checkpoints.interval_ns >= 0;
}

bool sound(const RosterConfig& roster) {
  std::set<NodeId> nodes(roster.owners.begin(), roster.owners.end());
  const auto slots = static_cast<std::int64_t>(roster.owners.size());
  for (const auto& [node, temperature] : roster.spares) nodes.insert(node);
  return slots > 0 && nodes.size() == roster.owners.size() + roster.spares.size() && *nodes.begin() >= 0 &&
         std::none_of(roster.places.begin(), roster.places.end(), [](std::int64_t place) { return place < 0; }) &&
         roster.nodes_per_domain > 0 && roster.max_ejections_per_domain > 0 && roster.slots_per_replica >= 0 &&
         (roster.slots_per_replica == 0 || slots % roster.slots_per_replica == 0);
}

}  // namespace

std::optional<ControllerConfig> config_from(const std::string& text) {
  try {
    nlohmann::json json = nlohmann::json::parse(text);
    const bool never = json.at("checkpoints").at("expected_mtbf_s") == "never";
    if (never) json["checkpoints"]["expected_mtbf_s"] = 0;
    auto config = json.get<ControllerConfig>();
    if (never) config.checkpoints.expected_mtbf_s = INFINITY;
    if (sound(config.roster) && sound(config.checkpoints)) return config;
  } catch (const nlohmann::json::exception&) {
  }
  return std::nullopt;
}

// ---- Events from their descriptions

namespace {

// The words of one line: its kind, then "name=value"s. Remembers whether all that was asked for was there.
class Words {
 public:
  explicit Words(std::string_view line) {
    while (!line.empty()) {
      const std::size_t end = std::min(line.find(' '), line.size());
      const std::string_view word = line.substr(0, end);
      line.remove_prefix(std::min(end + 1, line.size()));
      const std::size_t equals = word.find('=');
      if (equals != std::string_view::npos)
        values_[word.substr(0, equals)] = word.substr(equals + 1);
      else if (kind_.empty())
        kind_ = word;
      else
        fine_ = false;
    }
  }

  [[nodiscard]] std::string_view kind() const { return kind_; }
  /// All words were of the expected form, and no others were there.
  [[nodiscard]] bool fine() const { return fine_ && values_.empty(); }

  std::string_view take(std::string_view name) {
    const auto found = values_.find(name);
    if (found == values_.end()) {
      fine_ = false;
      return {};
    }
    const std::string_view value = found->second;
    values_.erase(found);
    return value;
  }

  template <class Number = std::int64_t>
  Number number(std::string_view text, int base = 10) {
    Number value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    fine_ = fine_ && error == std::errc() && end == text.data() + text.size();
    return value;
  }
  std::int64_t integer(std::string_view name) { return number(take(name)); }

  std::optional<std::int64_t> optional(std::string_view name) {
    const std::string_view text = take(name);
    if (text == "none") return std::nullopt;
    return number(text);
  }

  double hexadecimal_real(std::string_view name) {
    const std::string text(take(name));
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    fine_ = fine_ && !text.empty() && *end == '\0';
    return value;
  }

  // "a.b.c"
  ActionKey key(std::string_view name) {
    const std::string_view text = take(name);
    const std::size_t first = text.find('.'), second = first < text.size() ? text.find('.', first + 1) : first;
    if (second >= text.size()) {
      fine_ = false;
      return {};
    }
    return {number(text.substr(0, first)), number(text.substr(first + 1, second - first - 1)),
            number(text.substr(second + 1))};
  }

  // One of the enumerators up to `last`, by its name.
  template <class Enum>
  Enum one_of(std::string_view name, Enum last) {
    const std::string_view text = take(name);
    for (int i = 0; i <= static_cast<int>(last); ++i)
      if (text == to_string(static_cast<Enum>(i))) return static_cast<Enum>(i);
    fine_ = false;
    return {};
  }

  // "first..last"
  std::pair<std::int64_t, std::int64_t> range(std::string_view name) {
    const std::string_view text = take(name);
    const std::size_t dots = text.find("..");
    if (dots == std::string_view::npos) {
      fine_ = false;
      return {};
    }
    return {number(text.substr(0, dots)), number(text.substr(dots + 2))};
  }

  // "node:hash,node:hash,"
  std::vector<std::pair<NodeId, std::uint64_t>> votes(std::string_view name) {
    std::vector<std::pair<NodeId, std::uint64_t>> out;
    for (std::string_view text = take(name); fine_ && !text.empty();) {
      const std::size_t colon = text.find(':'), comma = text.find(',');
      if (colon >= comma || comma == std::string_view::npos) {
        fine_ = false;
        break;
      }
      out.emplace_back(number(text.substr(0, colon)),
                       number<std::uint64_t>(text.substr(colon + 1, comma - colon - 1), 16));
      text.remove_prefix(comma + 1);
    }
    return out;
  }

  StateCopy copy() { return {one_of("tier", Tier::Remote), integer("step"), key("checkpoint")}; }

 private:
  std::string_view kind_;
  std::map<std::string_view, std::string_view> values_;
  bool fine_ = true;
};

void read(Words& w, Launched& e) { e.step = w.integer("step"); }
void read(Words& w, HeartbeatLost& e) { e = {w.integer("node"), w.integer("last_seen_ns")}; }
void read(Words& w, CommunicatorError& e) {
  e = {w.integer("epoch"), w.integer("reporter"), w.optional("suspect"), w.integer("last_seen_ns")};
}
void read(Words& w, XidReported& e) {
  e = {w.integer("node"), w.integer("gpu"), static_cast<int>(w.integer("xid")), w.integer("last_seen_ns")};
}
void read(Words& w, RankExited& e) { e = {w.integer("epoch"), w.integer("node"), w.integer("last_seen_ns")}; }
void read(Words& w, Straggling& e) { e = {w.integer("epoch"), w.integer("node"), w.hexadecimal_real("slowdown")}; }
void read(Words& w, StragglingOver& e) { e.node = w.integer("node"); }
void read(Words& w, MaintenanceDue& e) { e = {w.integer("node"), w.integer("at_ns")}; }
void read(Words& w, HashesAgree& e) { e.key = w.key("key"); }
void read(Words& w, HashesDiffer& e) { e = {w.key("key"), w.votes("votes")}; }
void read(Words& w, StateFound& e) { e = {w.integer("epoch"), w.copy()}; }
void read(Words& w, TookOver& e) { e.incarnation = w.integer("incarnation"); }
void read(Words& w, StepsDone& e) {
  const auto [first, last] = w.range("steps");
  e = {w.integer("epoch"), first, last};
}
void read(Words& w, CheckpointDurable& e) { e = {w.key("key"), w.integer("step"), w.one_of("tier", Tier::Remote)}; }
void read(Words& w, SpareReady& e) { e = {w.integer("node"), w.one_of("temperature", Temperature::Cold)}; }
void read(Words& w, NodeRepaired& e) { e = {w.key("key"), w.integer("node")}; }
void read(Words& w, TimerFired& e) { e.key = w.key("key"); }
void read(Words& w, Answered& e) { e = {w.key("key"), w.one_of("outcome", Outcome::Timeout), w.optional("culprit")}; }
void read(Words&, HumanCleared&) {}

template <std::size_t Kind = 0>
Event event_of_kind(std::string_view kind, bool& known) {
  if constexpr (Kind == kEventKinds) {
    known = false;
    return {};
  } else {
    Event event(std::in_place_index<Kind>);
    return kind == kind_of(event) ? event : event_of_kind<Kind + 1>(kind, known);
  }
}

Problem unreadable(const std::string& what, const std::string& value) {
  return {"", what, value, "cannot be read", "replay it with the version that wrote it, or simulate the run again"};
}

// No log of ours has a range as long as this.
constexpr std::int64_t kMostSteps = 100'000'000;

// What the event leads to; a range of steps told one by one, if so asked.
std::vector<Action> told(Controller& controller, std::int64_t at_ns, const Event& event, bool step_by_step) {
  const auto* steps = std::get_if<StepsDone>(&event);
  const bool sound =
      steps != nullptr && steps->first >= 0 && steps->last >= steps->first && steps->last - steps->first < kMostSteps;
  if (!sound || !step_by_step) return controller.step(at_ns, event);
  std::vector<Action> actions;
  for (std::int64_t more = 0; more <= steps->last - steps->first; ++more) {
    const std::int64_t step = steps->first + more;
    for (Action& action : controller.step(at_ns, StepsDone{steps->epoch, step, step}))
      actions.push_back(std::move(action));
  }
  return actions;
}

}  // namespace

std::optional<Event> event_from(const std::string& text) {
  Words words(text);
  bool known = true;
  Event event = event_of_kind(words.kind(), known);
  if (!known) return std::nullopt;
  std::visit([&](auto& its) { read(words, its); }, event);
  if (!words.fine()) return std::nullopt;
  return event;
}

// ---- The log: "<nanoseconds since the last event> <actions>:<digest> <event>" is a line

std::uint32_t digest(const std::vector<Action>& actions) {
  std::string lines;
  for (const Action& action : actions) lines += describe(action) + "\n";
  return static_cast<std::uint32_t>(XXH3_64bits(lines.data(), lines.size()));
}

LogWriter::LogWriter(const ControllerConfig& config) { log_.config = to_text(config); }

void LogWriter::add(std::int64_t at_ns, const Event& event, const std::vector<Action>& actions) {
  add({at_ns, describe(event), static_cast<std::int64_t>(actions.size()), actions.empty() ? 0 : digest(actions)});
}

void LogWriter::add(const LoggedEvent& event) {
  lines_.add(
      fmt::format(FMT_COMPILE("{} {}:{:x} {}\n"), event.at_ns - last_ns_, event.actions, event.digest, event.event));
  last_ns_ = event.at_ns;
  ++log_.events;
}

ControllerLog LogWriter::take() {
  log_.lines = lines_.take();
  return std::move(log_);
}

std::optional<LoggedEvent> LogReader::next() {
  const std::optional<std::string> line = lines_.line();
  if (!line) return std::nullopt;
  LoggedEvent out;
  std::int64_t since_ns = 0;
  const char *at = line->data(), *const end = at + line->size();
  const auto number = [&](auto& value, int base, char then) {
    const auto [stop, error] = std::from_chars(at, end, value, base);
    fine_ = fine_ && error == std::errc() && stop != end && *stop == then;
    at = fine_ ? stop + 1 : at;
  };
  number(since_ns, 10, ' ');
  number(out.actions, 10, ':');
  number(out.digest, 16, ' ');
  fine_ = fine_ && since_ns >= 0 && since_ns <= std::numeric_limits<std::int64_t>::max() - last_ns_;
  if (!fine_) return std::nullopt;
  out.at_ns = last_ns_ += since_ns;
  out.event.assign(at, end);
  return out;
}

// ---- The replay

Result<Replay> replay(const ControllerLog& log, const ReplayOptions& options) {
  const std::optional<ControllerConfig> config = config_from(log.config);
  if (!config) return unreadable("the controller's settings", "");
  Controller controller(*config);
  Replay out;
  LogReader reader(log);
  while (const std::optional<LoggedEvent> logged = reader.next()) {
    const std::optional<Event> event = event_from(logged->event);
    if (!event) return unreadable(fmt::format("event {} of the controller's log", out.events + 1), logged->event);
    const std::vector<Action> actions = told(controller, logged->at_ns, *event, options.step_by_step);
    if (options.on_event) options.on_event(*logged, actions);
    const bool same = static_cast<std::int64_t>(actions.size()) == logged->actions &&
                      (actions.empty() || digest(actions) == logged->digest);
    if (!same) {
      out.differs_at = *logged;
      return out;
    }
    ++out.events;
    out.actions += logged->actions;
  }
  if (!reader.complete() || out.events != log.events)
    return unreadable(fmt::format("the controller's log after event {}", out.events), "");
  return out;
}

}  // namespace trainyard::recovery
