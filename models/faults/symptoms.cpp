#include "models/faults/symptoms.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "models/base/units.h"
#include "models/faults/fault_mode.h"

namespace trainyard::faults {

namespace {

// Medians and widths of delays, seconds. Assumed, but for the order: a driver logs at once, a peer sees a closed
// connection within seconds, NCCL's watchdogs look about once a second.
constexpr double kXidDelay_s = 1, kErrorDelay_s = 2, kLinkDelay_s = 1, kWatchdogPeriod_s = 1;
constexpr double kDelaySigma = 0.7;
/// Peers that complain: one to three, as logs are read until the first few.
constexpr std::int64_t kMostReporters = 3;
/// A second GPU logs NVLink's XID too (Delta: 16% of errors touch more than one).
constexpr double kSecondGpu = 0.16;

/// One fault's symptoms in the making.
class Writer {
 public:
  Writer(const Fault& fault, const SymptomContext& context, RandomStream& draws, const SymptomNoise& noise)
      : fault_(fault), row_(row_of(fault.mode)), context_(context), draws_(draws), noise_(noise) {}

  std::vector<Symptom> write() {
    if (draws_.uniform() >= row_.shows.silent) evident();
    straggling();
    hash_mismatch();
    spoil();
    if (stops_for_good()) watchdogs();
    const auto earlier = [](const Symptom& a, const Symptom& b) { return a.delay_s < b.delay_s; };
    std::stable_sort(out_.begin(), out_.end(), earlier);
    return std::move(out_);
  }

 private:
  bool chance(double probability) { return draws_.uniform() < probability; }
  double about(double median_s) { return draws_.lognormal(std::log(median_s), kDelaySigma); }
  [[nodiscard]] bool has_peers() const { return context_.in_job && context_.job_nodes > 1; }

  /// A fault that ends sooner than communicators give up is a pause.
  [[nodiscard]] bool outlasts(double seconds) const {
    return !fault_.duration_ns || static_cast<double>(*fault_.duration_ns) / kNsPerS > seconds;
  }

  [[nodiscard]] bool stops_for_good() const {
    switch (row_.effect) {
      case Effect::KillsProcess: return true;
      case Effect::Hangs: return outlasts(context_.collective_timeout_s);
      case Effect::Stalls: return outlasts(context_.queue_pair_timeout_s);
      case Effect::Slows:
      case Effect::CorruptsSilently: return false;
    }
    return false;
  }

  /// A slot that is not the struck one.
  std::int64_t some_peer() {
    const std::uint64_t others = static_cast<std::uint64_t>(context_.job_nodes - 1);
    return 1 + static_cast<std::int64_t>(draws_.below(others));
  }
  /// The next slot, this way or that.
  std::int64_t neighbour() { return chance(0.5) ? 1 : context_.job_nodes - 1; }

  /// Each kind of evidence by its probability; the likeliest one if none came up, as the fault is not a silent one.
  void evident() {
    const SymptomProfile& shows = row_.shows;
    const bool errors = has_peers() && (row_.effect == Effect::Slows || stops_for_good());
    const std::array<double, 4> likely{shows.xid, shows.heartbeat, shows.link_event, errors ? shows.peer_error : 0};
    const auto show = [&](std::size_t which) {
      if (which == 0) xids();
      if (which == 1) silence();
      if (which == 2) link_events();
      if (which == 3) peer_errors();
    };
    for (std::size_t i = 0; i < likely.size(); ++i)
      if (chance(likely[i])) show(i);
    const auto best = std::max_element(likely.begin(), likely.end());
    if (out_.empty() && *best > 0) show(static_cast<std::size_t>(best - likely.begin()));
  }

  void xids() {
    std::vector<double> weights;
    for (const XidWeight& entry : row_.shows.xids) weights.push_back(entry.weight);
    const int xid = row_.shows.xids[draws_.categorical(weights)].xid;
    const double delay_s = about(kXidDelay_s);
    out_.push_back({.kind = SymptomKind::Xid, .delay_s = delay_s, .device = fault_.device, .xid = xid});
    if (row_.mode != FaultMode::NvLink || context_.gpus_per_node < 2 || !chance(kSecondGpu)) return;
    const std::uint64_t others = static_cast<std::uint64_t>(context_.gpus_per_node - 1);
    const std::int64_t other = 1 + static_cast<std::int64_t>(draws_.below(others));
    out_.push_back({.kind = SymptomKind::Xid,
                    .delay_s = delay_s + draws_.exponential(kXidDelay_s),
                    .device = (fault_.device + other) % context_.gpus_per_node,
                    .xid = xid});
  }

  void silence() {
    out_.push_back({.kind = SymptomKind::HeartbeatLost,
                    .delay_s = context_.heartbeat_timeout_s + draws_.exponential(kWatchdogPeriod_s)});
  }

  void link_events() {
    const double down_s = about(kLinkDelay_s);
    out_.push_back({.kind = SymptomKind::LinkDown, .delay_s = down_s, .device = fault_.device});
    if (!fault_.duration_ns) return;
    const double up_s = static_cast<double>(*fault_.duration_ns) / kNsPerS;
    out_.push_back({.kind = SymptomKind::LinkUp, .delay_s = down_s + up_s, .device = fault_.device});
  }

  void peer_errors() {
    // A dead process closes its connections; a link that is down is noticed when retries are spent.
    const double first_s = row_.effect == Effect::KillsProcess ? 0 : context_.queue_pair_timeout_s;
    const std::int64_t reporters =
        std::min(context_.job_nodes - 1,
                 1 + static_cast<std::int64_t>(draws_.below(static_cast<std::uint64_t>(kMostReporters))));
    for (std::int64_t i = 0; i < reporters; ++i) {
      Symptom error{.kind = SymptomKind::CommunicatorError, .delay_s = first_s + about(kErrorDelay_s)};
      error.slot = i == 0 ? neighbour() : some_peer();
      const double named = draws_.uniform();
      const std::int64_t other = some_peer();
      if (named < row_.shows.names_victim)
        error.suspect_slot = 0;
      else if (named < row_.shows.names_victim + row_.shows.names_other)
        error.suspect_slot = other;
      if (error.suspect_slot == error.slot) error.suspect_slot.reset();  // nobody names itself
      out_.push_back(error);
    }
  }

  void straggling() {
    if (!has_peers() || !chance(row_.shows.straggling) || !outlasts(context_.straggler_window_s)) return;
    const double measured = fault_.factor * (1 + noise_.slowdown_sigma * draws_.normal());
    out_.push_back({.kind = SymptomKind::Straggling,
                    .delay_s = context_.straggler_window_s + draws_.exponential(kWatchdogPeriod_s),
                    .device = fault_.device,
                    .slowdown = std::max(1.0, measured)});
  }

  void hash_mismatch() {
    if (!has_peers() || context_.hash_interval_s <= 0 || !chance(row_.shows.hash_mismatch)) return;
    out_.push_back({.kind = SymptomKind::HashMismatch,
                    .delay_s = context_.hash_interval_s * draws_.uniform(),
                    .device = fault_.device});
  }

  /// Loses, repeats and misplaces what was written so far.
  void spoil() {
    std::vector<Symptom> kept;
    for (Symptom symptom : out_) {
      const bool lost = chance(noise_.lost), twice = chance(noise_.duplicated), wrong = chance(noise_.wrong_node);
      const double again_s = draws_.exponential(kWatchdogPeriod_s);
      if (lost) continue;
      if (wrong && has_peers() && symptom.slot == 0) symptom.slot = neighbour();
      kept.push_back(symptom);
      if (!twice) continue;
      symptom.delay_s += again_s;
      kept.push_back(symptom);
    }
    out_ = std::move(kept);
  }

  /// Who waits for the dead complains in the end, come what may. In a job of one node, that node's own ranks do.
  void watchdogs() {
    if (!context_.in_job) return;
    const std::int64_t slot = context_.job_nodes > 1 ? some_peer() : 0;
    out_.push_back({.kind = SymptomKind::CollectiveTimeout,
                    .delay_s = context_.collective_timeout_s + draws_.exponential(kWatchdogPeriod_s),
                    .slot = slot});
  }

  const Fault& fault_;
  const ModeRow& row_;
  const SymptomContext& context_;
  RandomStream& draws_;
  const SymptomNoise& noise_;
  std::vector<Symptom> out_;
};

}  // namespace

const char* to_string(SymptomKind kind) {
  switch (kind) {
    case SymptomKind::HeartbeatLost: return "heartbeat lost";
    case SymptomKind::Xid: return "XID";
    case SymptomKind::CommunicatorError: return "communicator error";
    case SymptomKind::CollectiveTimeout: return "collective timeout";
    case SymptomKind::Straggling: return "straggling";
    case SymptomKind::HashMismatch: return "hash mismatch";
    case SymptomKind::LinkDown: return "link down";
    case SymptomKind::LinkUp: return "link up";
  }
  return "";
}

std::vector<Symptom> symptoms_of(const Fault& fault, const SymptomContext& context, RandomStream& draws,
                                 const SymptomNoise& noise) {
  return Writer(fault, context, draws, noise).write();
}

}  // namespace trainyard::faults
