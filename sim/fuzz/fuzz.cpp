#include "sim/fuzz/fuzz.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>

#include "models/base/random.h"
#include "models/base/stop.h"
#include "models/recovery/controller.h"

namespace trainyard::fuzz {
namespace {

constexpr std::int64_t kNightsAtATime = 16;

void add(FuzzResult& to, std::uint64_t seed, const NightResult& night) {
  ++to.nights;
  if (!night.violation.empty()) to.violations.push_back({seed, night.violation, night.violation_at_s});
  for (std::size_t i = 0; i < to.transitions.size(); ++i) to.transitions[i] += night.transitions[i];
  to.mischief.push_back(night.mischief);
  to.recoveries += night.recoveries;
  to.checkpoints += night.checkpoints;
  to.takeovers += night.takeovers;
  to.messages += night.messages;
  to.worst_calm_recovery_s = std::max(to.worst_calm_recovery_s, night.calm_recovery_s);
  to.action_hash ^= mix64(seed ^ night.action_hash);  // in any order the same
}

FuzzResult empty_result() {
  FuzzResult result;
  result.transitions.resize(recovery::transition_table().size());
  return result;
}

void merge(FuzzResult& to, const FuzzResult& part) {
  to.nights += part.nights;
  to.violations.insert(to.violations.end(), part.violations.begin(), part.violations.end());
  for (std::size_t i = 0; i < to.transitions.size(); ++i) to.transitions[i] += part.transitions[i];
  to.mischief.insert(to.mischief.end(), part.mischief.begin(), part.mischief.end());
  to.recoveries += part.recoveries;
  to.checkpoints += part.checkpoints;
  to.takeovers += part.takeovers;
  to.messages += part.messages;
  to.worst_calm_recovery_s = std::max(to.worst_calm_recovery_s, part.worst_calm_recovery_s);
  to.action_hash ^= part.action_hash;
}

/// Threads take nights from one counter; each keeps its own sums.
class Crew {
 public:
  explicit Crew(const FuzzOptions& options) : options_(options), total_(empty_result()) {}

  FuzzResult run() {
    const unsigned processors = std::max(1U, std::thread::hardware_concurrency());
    const int threads = options_.threads > 0 ? options_.threads : static_cast<int>(processors);
    at_work_ = threads;
    std::vector<std::thread> crew;
    crew.reserve(static_cast<std::size_t>(threads));
    for (int i = 0; i < threads; ++i) crew.emplace_back([this] { work(); });
    while (at_work_ > 0) {
      if (options_.on_wait) options_.on_wait(played_);
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    for (std::thread& thread : crew) thread.join();
    std::sort(total_.violations.begin(), total_.violations.end(),
              [](const Violation& a, const Violation& b) { return a.seed < b.seed; });
    std::sort(total_.mischief.begin(), total_.mischief.end());
    return std::move(total_);
  }

 private:
  void work() {
    FuzzResult mine = empty_result();
    while (!stop_requested() && (options_.stop_after == 0 || violations_ < options_.stop_after)) {
      const std::int64_t begin = next_.fetch_add(kNightsAtATime);
      const std::int64_t end = std::min(begin + kNightsAtATime, options_.seeds);
      if (begin >= options_.seeds) break;
      for (std::int64_t i = begin; i < end && !stop_requested(); ++i) {
        const std::uint64_t seed = options_.first_seed + static_cast<std::uint64_t>(i);
        const NightResult night = play(draw_night(seed));
        if (!night.violation.empty()) ++violations_;
        add(mine, seed, night);
        ++played_;
      }
    }
    const std::lock_guard<std::mutex> guard(lock_);
    merge(total_, mine);
    --at_work_;
  }

  const FuzzOptions& options_;
  std::atomic<std::int64_t> next_ = 0, played_ = 0, violations_ = 0;
  std::atomic<int> at_work_ = 0;
  std::mutex lock_;
  FuzzResult total_;
};

/// "I4" of "I4: durable steps are not done": two nights fail alike if these agree.
std::string invariant_of(const std::string& violation) { return violation.substr(0, violation.find_first_of(":,")); }

class Minimiser {
 public:
  Minimiser(Night night, std::string invariant) : night_(std::move(night)), invariant_(std::move(invariant)) {}

  Night run() {
    less_mischief();
    plain();
    less_mischief();
    return night_;
  }
  [[nodiscard]] std::int64_t played() const { return played_; }

 private:
  bool fails(const Night& night) {
    ++played_;
    return invariant_of(play(night).violation) == invariant_;
  }

  bool keep_if_it_fails(Night candidate) {
    if (!fails(candidate)) return false;
    night_ = std::move(candidate);
    return true;
  }

  /// ddmin: tries without ever smaller pieces of the mischief.
  void less_mischief() {
    for (std::size_t piece = std::max<std::size_t>(1, night_.mischief.size() / 2); piece > 0; piece /= 2) {
      for (std::size_t at = 0; at < night_.mischief.size();) {
        Night without = night_;
        const auto first = without.mischief.begin() + static_cast<std::ptrdiff_t>(at);
        const auto last = first + static_cast<std::ptrdiff_t>(std::min(piece, without.mischief.size() - at));
        without.mischief.erase(first, last);
        if (!keep_if_it_fails(std::move(without))) at += piece;
      }
    }
  }

  /// One knob after the other at its default, as long as any can be.
  void plain() {
    for (bool better = true; better;) {
      better = false;
      for (Night& candidate : plainer(night_)) {
        better = keep_if_it_fails(std::move(candidate));
        if (better) break;
      }
    }
  }

  Night night_;
  std::string invariant_;
  std::int64_t played_ = 0;
};

}  // namespace

std::int64_t FuzzResult::median_mischief() const { return mischief.empty() ? 0 : mischief[mischief.size() / 2]; }

std::int64_t FuzzResult::transitions_covered() const {
  return std::count_if(transitions.begin(), transitions.end(), [](std::int64_t taken) { return taken > 0; });
}

FuzzResult fuzz(const FuzzOptions& options) { return Crew(options).run(); }

Night minimise(const Night& night, std::int64_t* played) {
  const NightResult result = play(night);
  if (result.violation.empty()) return night;
  Minimiser minimiser(night, invariant_of(result.violation));
  Night shortest = minimiser.run();
  if (played != nullptr) *played = minimiser.played();
  return shortest;
}

}  // namespace trainyard::fuzz
