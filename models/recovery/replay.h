// The controller's log: what it was told and, as a hash, what it did. Enough to do it all again and to see whether it
// comes out the same.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "models/base/deflate.h"
#include "models/base/status.h"
#include "models/recovery/controller.h"

namespace trainyard::recovery {

struct LoggedEvent {
  std::int64_t at_ns = 0;
  std::string event;         // describe(event)
  std::int64_t actions = 0;  // how many it led to
  std::uint32_t digest = 0;  // of those: digest(actions)
  bool operator==(const LoggedEvent&) const = default;
};

struct ControllerLog {
  std::string config;               // JSON; empty: nothing was logged
  std::vector<std::uint8_t> lines;  // one for each event, compressed: months are a million events
  std::int64_t events = 0;
  bool operator==(const ControllerLog&) const = default;
};

class LogWriter {
 public:
  explicit LogWriter(const ControllerConfig& config);
  void add(std::int64_t at_ns, const Event& event, const std::vector<Action>& actions);
  void add(const LoggedEvent& event);
  ControllerLog take();

 private:
  ControllerLog log_;
  Deflater lines_;
  std::int64_t last_ns_ = 0;
};

class LogReader {
 public:
  /// `log` outlives this.
  explicit LogReader(const ControllerLog& log) : lines_(log.lines) {}
  /// None at the end, and where the log cannot be read.
  std::optional<LoggedEvent> next();
  /// The end was reached, and nothing was wrong.
  [[nodiscard]] bool complete() const { return fine_ && lines_.complete(); }

 private:
  Inflater lines_;
  std::int64_t last_ns_ = 0;
  bool fine_ = true;
};

std::string to_text(const ControllerConfig& config);
std::optional<ControllerConfig> config_from(const std::string& text);

/// What describe(event) says, read back; none when it is not of that form.
std::optional<Event> event_from(const std::string& text);

/// 32 bits of XXH3 over the lines that describe(action) gives.
std::uint32_t digest(const std::vector<Action>& actions);

struct ReplayOptions {
  /// Steps are told one by one, where the log has a range of them.
  bool step_by_step = false;
  /// Called after every event of the log with the actions that it leads to now.
  std::function<void(const LoggedEvent& event, const std::vector<Action>& actions)> on_event;
};

struct Replay {
  /// That led to the same actions, and how many those were.
  std::int64_t events = 0, actions = 0;
  /// The first event of the log that leads to other actions than it did. The replay ends there: what
  /// follows was told to a controller that had done something else.
  std::optional<LoggedEvent> differs_at;
};

/// Tells a new controller all of it. A Problem without a file where the log cannot be read.
Result<Replay> replay(const ControllerLog& log, const ReplayOptions& options = {});

}  // namespace trainyard::recovery
