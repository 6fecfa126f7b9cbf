#include "models/recovery/ledger.h"

#include <algorithm>
#include <utility>

#include "models/base/check.h"
#include "models/base/units.h"

namespace trainyard::recovery {

const char* to_string(Phase phase) {
  switch (phase) {
    case Phase::Detect: return "detect";
    case Phase::Decide: return "decide";
    case Phase::Drain: return "drain";
    case Phase::Fence: return "fence";
    case Phase::Allocate: return "allocate";
    case Phase::WaitForSpare: return "wait_for_spare";
    case Phase::WaitForHuman: return "wait_for_human";
    case Phase::ProcessStart: return "process_start";
    case Phase::Communicators: return "communicators";
    case Phase::LoadState: return "load_state";
    case Phase::FirstStep: return "first_step";
  }
  return "?";
}

std::int64_t RecoveryLedger::begin_ns() const { return spans.empty() ? 0 : spans.front().begin_ns; }

std::int64_t RecoveryLedger::end_ns() const { return spans.empty() ? 0 : spans.back().end_ns; }

double RecoveryLedger::total_s() const { return static_cast<double>(end_ns() - begin_ns()) / kNsPerS; }

std::array<double, kPhaseCount> RecoveryLedger::phase_s() const {
  std::array<std::int64_t, kPhaseCount> sum_ns{};
  for (const PhaseSpan& span : spans) sum_ns[static_cast<std::size_t>(span.phase)] += span.end_ns - span.begin_ns;
  std::array<double, kPhaseCount> seconds{};
  for (std::size_t i = 0; i < seconds.size(); ++i) seconds[i] = static_cast<double>(sum_ns[i]) / kNsPerS;
  return seconds;
}

void LedgerBook::open(std::int64_t last_seen_ns, std::int64_t now_ns, Phase first) {
  TY_CHECK(!open_, "one recovery at a time");
  open_ = true;
  ledger_ = RecoveryLedger{};
  ledger_.attempts = 1;
  if (last_seen_ns < now_ns) ledger_.spans.push_back({Phase::Detect, 1, last_seen_ns, now_ns});
  ledger_.spans.push_back({first, 1, now_ns, now_ns});
}

void LedgerBook::enter(std::int64_t now_ns, Phase phase) {
  TY_CHECK(open_, "a phase belongs to a recovery");
  const PhaseSpan& current = ledger_.spans.back();
  if (current.phase == phase && current.begin_ns == now_ns) return;  // it has just been opened there
  end_span(now_ns);
  if (phase == Phase::Decide) ++ledger_.attempts;
  ledger_.spans.push_back({phase, ledger_.attempts, now_ns, now_ns});
}

void LedgerBook::ejected(std::int64_t node) {
  if (open_) ledger_.ejected_nodes.push_back(node);
}

RecoveryLedger LedgerBook::close(std::int64_t now_ns, std::int64_t epoch, std::int64_t restored_step) {
  TY_CHECK(open_, "no recovery to close");
  end_span(now_ns);
  open_ = false;
  ledger_.epoch = epoch;
  ledger_.restored_step = restored_step;
  return std::move(ledger_);
}

RecoveryLedger LedgerBook::so_far(std::int64_t now_ns) const {
  LedgerBook copy = *this;
  return copy.close(now_ns, 0, 0);
}

void LedgerBook::end_span(std::int64_t now_ns) {
  PhaseSpan& span = ledger_.spans.back();
  TY_CHECK(now_ns >= span.begin_ns, "the controller's clock ran backwards");
  span.end_ns = now_ns;
  if (span.begin_ns == span.end_ns) ledger_.spans.pop_back();  // passed through without staying
}

}  // namespace trainyard::recovery
