#include "sim/fuzz/night.h"

#include <algorithm>
#include <array>
#include <string>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "models/base/random.h"
#include "models/base/units.h"
#include "models/spec/json_reader.h"
#include "models/spec/node_places.h"

namespace trainyard::fuzz {

using recovery::NodeId;
using recovery::Temperature;
using recovery::Tier;

namespace {

constexpr std::array kKindNames = {"node_crash", "rank_crash", "freeze",         "agent_restart", "cut_off",
                                   "link_down",  "leaf_flap",  "launcher_crash", "store_outage",  "corrupt",
                                   "slow",       "xid",        "false_blame",    "maintenance",   "stale",
                                   "refusal",    "deafness",   "disk_full"};
static_assert(kKindNames.size() == static_cast<std::size_t>(MischiefKind::DiskFull) + 1);

/// Every knob once, with its range: for writing, reading and drawing alike.
template <class Visit>
void for_each_knob(NightKnobs& k, Visit visit) {
  visit("slots", k.slots, 1, 64);
  visit("replicas", k.replicas, 1, 64);
  visit("hot_spares", k.hot_spares, 0, 64);
  visit("warm_spares", k.warm_spares, 0, 64);
  visit("cold_spares", k.cold_spares, 0, 64);
  visit("nodes_per_domain", k.nodes_per_domain, 1, 64);
  visit("spares_per_leaf", k.spares_per_leaf, 0, 1);
  visit("min_replicas", k.min_replicas, 1, 64);
  visit("keep_hot", k.keep_hot, 0, 64);
  visit("max_ejections_per_domain", k.max_ejections_per_domain, 1, 64);
  visit("ejection_window_s", k.ejection_window_s, 1, 1e6);
  visit("lemon_ejections", k.lemon_ejections, 0, 64);
  visit("retire_ejections", k.retire_ejections, 0, 64);
  visit("readmission_test", k.readmission_test, 0, 1);
  visit("hash_vote", k.hash_vote, 0, 1);
  visit("adaptive_cadence", k.adaptive_cadence, 0, 1);
  visit("usual_tier", k.usual_tier, 1, 4);
  visit("permanent_every", k.permanent_every, 1, 64);
  visit("checkpoint_interval_s", k.checkpoint_interval_s, 1, 1e6);
  visit("replace_at_slowdown", k.replace_at_slowdown, 0, 100);
  visit("straggler_patience_s", k.straggler_patience_s, 0, 1e6);
  visit("regrow_patience_s", k.regrow_patience_s, 0, 1e6);
  visit("maintenance_lead_s", k.maintenance_lead_s, 0, 1e6);
  visit("diagnosis_s", k.diagnosis_s, 0, 1e6);
  visit("deadline_s", k.deadline_s, 1, 1e6);
  visit("answer_s", k.answer_s, 1, 1e6);
  visit("page_retry_s", k.page_retry_s, 1, 1e6);
  visit("detection_s", k.detection_s, 1, 1e6);
  visit("training_s", k.training_s, 1, 1e6);
  visit("lease_s", k.lease_s, 1, 1e6);
  visit("retry_s", k.retry_s, 0.1, 1e6);
  visit("delay_s", k.delay_s, 1e-6, 100);
  visit("delay_sigma", k.delay_sigma, 0, 3);
  visit("loss", k.loss, 0, 0.9);
  visit("repeat", k.repeat, 0, 0.9);
  visit("step_s", k.step_s, 0.1, 1e4);
  visit("heartbeat_s", k.heartbeat_s, 0.1, 1e4);
  visit("link_timeout_s", k.link_timeout_s, 0.1, 1e5);
  visit("collective_timeout_s", k.collective_timeout_s, 0.1, 1e5);
  visit("stop_s", k.stop_s, 0, 1e4);
  visit("promote_s", k.promote_s, 0, 1e4);
  visit("warm_extra_s", k.warm_extra_s, 0, 1e4);
  visit("cold_extra_s", k.cold_extra_s, 0, 1e4);
  visit("start_s", k.start_s, 0, 1e4);
  visit("connect_s", k.connect_s, 0, 1e4);
  visit("load_s", k.load_s, 0, 1e4);
  visit("warm_up_s", k.warm_up_s, 0, 1e4);
  visit("test_s", k.test_s, 0, 1e5);
  visit("repair_s", k.repair_s, 0, 1e6);
  visit("human_s", k.human_s, 0, 1e6);
  visit("hash_s", k.hash_s, 0, 1e4);
  visit("write_peer_s", k.write_peer_s, 0, 1e4);
  visit("write_nvme_s", k.write_nvme_s, 0, 1e4);
  visit("write_remote_s", k.write_remote_s, 0, 1e4);
  visit("bad_repair", k.bad_repair, 0, 1);
  visit("mischief_ends_s", k.mischief_ends_s, 0, 1e6);
  visit("calm_s", k.calm_s, 0, 1e6);
}

/// Draws with the plain names that the night's text reads best with.
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : stream_(seed, "fuzz.night") {}
  bool chance(double p) { return stream_.uniform() < p; }
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(stream_.below(static_cast<std::uint64_t>(high - low + 1)));
  }
  /// Rounded to milliseconds, so that the night's file says it exactly.
  double between_s(double low, double high) {
    return static_cast<double>(between(static_cast<std::int64_t>(low * 1000), static_cast<std::int64_t>(high * 1000))) /
           1000;
  }
  std::size_t weighted(const std::vector<double>& weights) { return stream_.categorical(weights); }

 private:
  RandomStream stream_;
};

void draw_job(Dice& dice, NightKnobs& k) {
  k.replicas = dice.chance(0.5) ? 1 : dice.between(2, 4);
  k.slots = k.replicas * dice.between(1, k.replicas == 1 ? 8 : 3);
  k.min_replicas = dice.between(1, k.replicas);
  k.hot_spares = dice.between(0, 4);
  k.warm_spares = dice.between(0, 3);
  k.cold_spares = dice.between(0, 1);
  k.keep_hot = dice.between(0, k.spares());
  k.nodes_per_domain = dice.between(2, 6);
  k.spares_per_leaf = dice.chance(0.5);
}

void draw_policy(Dice& dice, NightKnobs& k) {
  k.max_ejections_per_domain = dice.between(1, 4);
  k.ejection_window_s = dice.between_s(600, 3600);
  k.lemon_ejections = dice.chance(0.5) ? dice.between(1, 3) : 0;
  k.retire_ejections = k.lemon_ejections > 0 && dice.chance(0.3) ? k.lemon_ejections + dice.between(1, 4) : 0;
  k.readmission_test = dice.chance(0.7);
  k.hash_vote = k.replicas > 1 && dice.chance(0.6);
  k.adaptive_cadence = dice.chance(0.2);
  k.usual_tier = dice.between(1, 4);
  k.permanent_every = k.usual_tier == 4 ? 1 : dice.between(1, 5);
  k.checkpoint_interval_s = dice.between_s(30, 300);
  k.replace_at_slowdown = dice.chance(0.6) ? dice.between_s(1.1, 2) : 0;
  k.straggler_patience_s = dice.between_s(0, 300);
  k.regrow_patience_s = dice.between_s(0, 120);
  k.maintenance_lead_s = dice.between_s(0, 300);
  k.diagnosis_s = dice.chance(0.2) ? 0 : dice.between_s(1, 20);
  k.deadline_s = dice.between_s(90, 300);
  // Mostly shorter than the deadlines, as it should be.
  k.answer_s = dice.chance(0.8) ? k.deadline_s * 0.75 : k.deadline_s * 6;
  k.page_retry_s = dice.between_s(300, 1800);
}

void draw_times(Dice& dice, NightKnobs& k) {
  k.delay_s = dice.between_s(0.001, 0.5);
  k.delay_sigma = dice.between_s(0.1, 1.5);
  if (dice.chance(0.6)) k.loss = dice.between_s(0, 0.15);
  if (dice.chance(0.6)) k.repeat = dice.between_s(0, 0.15);
  k.step_s = dice.between_s(5, 25);
  k.heartbeat_s = dice.between_s(15, 25);
  k.detection_s = k.heartbeat_s * 3 + dice.between_s(5, 30);
  k.lease_s = k.heartbeat_s * 3 + dice.between_s(5, 60);
  k.link_timeout_s = dice.between_s(5, 40);
  k.collective_timeout_s = k.link_timeout_s + dice.between_s(20, 120);
  k.training_s = k.collective_timeout_s + dice.between_s(20, 120);
  k.retry_s = dice.between_s(5, 30);
  for (double* time_s : {&k.stop_s, &k.promote_s, &k.start_s, &k.connect_s, &k.load_s, &k.warm_up_s})
    *time_s = dice.between_s(0, 20);
  k.warm_extra_s = dice.between_s(0, 40);
  k.cold_extra_s = k.warm_extra_s + dice.between_s(0, 80);
  k.test_s = dice.between_s(10, 120);
  k.repair_s = dice.between_s(60, 600);
  k.human_s = dice.between_s(60, 600);
  k.hash_s = dice.between_s(0, 10);
  k.write_peer_s = dice.between_s(0, 5);
  k.write_nvme_s = dice.between_s(0, 10);
  k.write_remote_s = dice.between_s(1, 60);
  k.bad_repair = dice.chance(0.3) ? dice.between_s(0, 0.5) : 0;
  k.mischief_ends_s = dice.between_s(1200, 3600);
}

Mischief draw_mischief(Dice& dice, const NightKnobs& k) {
  //                                crash exit freeze agent cut link leaf launcher store corrupt slow xid blame maint
  //                                stale refuse deaf disk
  static const std::vector<double> weights = {4, 4, 2, 2, 3, 3, 1, 4, 1, 2, 3, 2, 2, 2, 3, 2, 2, 1};
  constexpr std::array kXids = {79, 48, 31, 43, 63, 119, 74, 13};
  Mischief m;
  m.kind = static_cast<MischiefKind>(dice.weighted(weights));
  m.at_s = dice.between_s(1, k.mischief_ends_s);
  m.node = dice.between(0, k.slots + k.spares() - 1);
  m.other = dice.between(0, k.slots + k.spares() - 1);
  // Short enough to be a stall, or long enough to be a failure.
  m.for_s = dice.chance(0.4) ? dice.between_s(0.1, 15) : dice.between_s(15, 600);
  if (m.kind == MischiefKind::Slow) m.factor = dice.between_s(1.02, 4);
  if (m.kind == MischiefKind::Xid) m.count = kXids[static_cast<std::size_t>(dice.between(0, kXids.size() - 1))];
  if (m.kind == MischiefKind::Stale) m.count = dice.between(1, 20);
  if (m.kind == MischiefKind::LauncherCrash) m.count = dice.between(0, 30);
  if (m.kind == MischiefKind::Refusal || m.kind == MischiefKind::Deafness) m.count = dice.between(1, 4);
  return m;
}

}  // namespace

const char* to_string(MischiefKind kind) { return kKindNames[static_cast<std::size_t>(kind)]; }

std::vector<std::int64_t> NightKnobs::places() const {
  return places_with_spares_per_leaf(slots + (spares_per_leaf ? 0 : spares()), spares_per_leaf ? spares() : 0,
                                     nodes_per_domain);
}

Night draw_night(std::uint64_t seed) {
  Dice dice(seed);
  Night night;
  night.seed = seed;
  draw_job(dice, night.knobs);
  draw_policy(dice, night.knobs);
  draw_times(dice, night.knobs);
  // Some nights are quiet; the median one is not.
  const std::int64_t events = dice.chance(0.25) ? dice.between(1, 12) : dice.between(20, 50);
  for (std::int64_t i = 0; i < events; ++i) night.mischief.push_back(draw_mischief(dice, night.knobs));
  // Troubles like company: some strike while the recovery from the one before is under way.
  for (std::size_t i = 1; i < night.mischief.size(); ++i)
    if (dice.chance(0.3))
      night.mischief[i].at_s =
          std::min(night.knobs.mischief_ends_s, night.mischief[i - 1].at_s + dice.between_s(0, 90));
  std::stable_sort(night.mischief.begin(), night.mischief.end(),
                   [](const Mischief& a, const Mischief& b) { return a.at_s < b.at_s; });
  return night;
}

recovery::LauncherConfig launcher_config(const NightKnobs& k) {
  recovery::LauncherConfig config;
  recovery::ControllerConfig& controller = config.controller;
  recovery::RosterConfig& roster = controller.roster;
  for (NodeId node = 0; node < k.slots; ++node) roster.owners.push_back(node);
  for (std::int64_t i = 0; i < k.spares(); ++i)
    roster.spares.emplace(k.slots + i, i < k.hot_spares                   ? Temperature::Hot
                                       : i < k.hot_spares + k.warm_spares ? Temperature::Warm
                                                                          : Temperature::Cold);
  roster.nodes_per_domain = k.nodes_per_domain;
  roster.places = k.places();
  if (k.replicas > 1) roster.slots_per_replica = k.shards();
  roster.min_replicas = k.min_replicas;
  roster.max_ejections_per_domain = k.max_ejections_per_domain;
  roster.ejection_window_ns = to_ns(k.ejection_window_s);
  roster.lemon_ejections = k.lemon_ejections;
  roster.retire_ejections = k.retire_ejections;
  recovery::CheckpointConfig& checkpoints = controller.checkpoints;
  checkpoints.cadence = k.adaptive_cadence ? recovery::Cadence::Adaptive : recovery::Cadence::Fixed;
  checkpoints.interval_ns = to_ns(k.checkpoint_interval_s);
  checkpoints.stall_s = 1;
  checkpoints.expected_mtbf_s = 1800;
  checkpoints.usual_tier = static_cast<Tier>(k.usual_tier);
  checkpoints.permanent_every = k.permanent_every;
  checkpoints.hash_vote = k.hash_vote;
  controller.stragglers = {k.replace_at_slowdown, to_ns(k.straggler_patience_s)};
  controller.hot_spares = k.keep_hot;
  controller.regrow_patience_ns = to_ns(k.regrow_patience_s);
  controller.maintenance_lead_ns = to_ns(k.maintenance_lead_s);
  controller.readmission_test = k.readmission_test;
  controller.diagnosis_ns = to_ns(k.diagnosis_s);
  controller.page_retry_ns = to_ns(k.page_retry_s);
  const std::int64_t deadline_ns = to_ns(k.deadline_s + k.lease_s);
  controller.deadlines = {deadline_ns, deadline_ns, deadline_ns,     deadline_ns,
                          deadline_ns, deadline_ns, 3 * deadline_ns, 2 * deadline_ns};
  config.detection_ns = to_ns(k.detection_s);
  config.training_ns = to_ns(k.training_s);
  config.lease_ns = to_ns(k.lease_s);
  config.retry_ns = to_ns(k.retry_s);
  config.answer_ns = to_ns(k.answer_s);
  config.shards = k.shards();
  return config;
}

// ---- JSON -----------------------------------------------------------------------------------

nlohmann::ordered_json to_json(const Night& night) {
  nlohmann::ordered_json json{{"schema", 1}, {"seed", night.seed}, {"knobs", nlohmann::ordered_json::object()}};
  NightKnobs knobs = night.knobs, defaults;
  nlohmann::ordered_json all = nlohmann::ordered_json::object();
  for_each_knob(defaults, [&](const char* name, auto& value, double, double) { all[name] = value; });
  for_each_knob(knobs, [&](const char* name, auto& value, double, double) {
    if (all[name] != nlohmann::ordered_json(value)) json["knobs"][name] = value;
  });
  json["mischief"] = nlohmann::ordered_json::array();
  for (const Mischief& m : night.mischief) {
    nlohmann::ordered_json entry{{"at_s", m.at_s}, {"kind", to_string(m.kind)}, {"node", m.node}};
    if (m.other != 0) entry["other"] = m.other;
    if (m.for_s != 0) entry["for_s"] = m.for_s;
    if (m.factor != 1) entry["factor"] = m.factor;
    if (m.count != 1) entry["count"] = m.count;
    json["mischief"].push_back(entry);
  }
  return json;
}

namespace {

void read_knob(ObjectReader& from, const char* name, std::int64_t& value, double low, double high) {
  from.integer(name, value, {static_cast<std::int64_t>(low), static_cast<std::int64_t>(high)});
}
void read_knob(ObjectReader& from, const char* name, double& value, double low, double high) {
  from.number(name, value, {low, high});
}
void read_knob(ObjectReader& from, const char* name, bool& value, double, double) { from.boolean(name, value); }

void read_mischief(ObjectReader& from, const NightKnobs& knobs, Mischief& m) {
  std::vector<std::pair<const char*, MischiefKind>> kinds;
  for (std::size_t i = 0; i < kKindNames.size(); ++i) kinds.emplace_back(kKindNames[i], static_cast<MischiefKind>(i));
  const IntegerRange nodes{0, knobs.slots + knobs.spares() - 1};
  from.require({"kind"});
  from.number("at_s", m.at_s, {0, 1e6})
      .choice<MischiefKind>("kind", m.kind, kinds)
      .integer("node", m.node, nodes)
      .integer("other", m.other, nodes)
      .number("for_s", m.for_s, {0, 1e6})
      .number("factor", m.factor, {1, 100})
      .integer("count", m.count, {0, 100'000});
}

void check(const NightKnobs& knobs, const std::string& file, Problems& problems) {
  RuleChecker rule("$.knobs");
  rule.expect(knobs.slots % knobs.replicas == 0, "replicas", std::to_string(knobs.replicas), "must divide slots evenly",
              "all replicas have the same number of slots");
  rule.expect(knobs.min_replicas <= knobs.replicas, "min_replicas", std::to_string(knobs.min_replicas),
              "must be at most replicas", "lower it");
  rule.expect(knobs.detection_s > knobs.heartbeat_s && knobs.lease_s > knobs.heartbeat_s, "heartbeat_s",
              fmt::format("{:g}", knobs.heartbeat_s), "must be below detection_s and lease_s",
              "a node must be able to miss a heartbeat");
  rule.expect(knobs.training_s > knobs.collective_timeout_s && knobs.collective_timeout_s > knobs.link_timeout_s,
              "training_s", fmt::format("{:g}", knobs.training_s),
              "must be above collective_timeout_s, and that above link_timeout_s",
              "each layer outlasts the one below it");
  for (Problem& problem : rule.take()) {
    problem.file = file;
    problems.push_back(problem);
  }
}

}  // namespace

Result<Night> night_from_json(const nlohmann::json& json, const std::string& file) {
  Problems problems;
  Night night;
  ObjectReader from(json, file, "$", problems);
  std::int64_t schema = 1;
  from.require({"schema"});
  from.integer("schema", schema, {1, 1}).unsigned_integer("seed", night.seed).object("knobs", [&](ObjectReader& its) {
    for_each_knob(night.knobs, [&](const char* name, auto& value, double low, double high) {
      read_knob(its, name, value, low, high);
    });
  });
  from.objects("mischief", [&](ObjectReader& entry) {
    Mischief m;
    read_mischief(entry, night.knobs, m);
    night.mischief.push_back(m);
  });
  from.finish();
  check(night.knobs, file, problems);
  if (!problems.empty()) return problems;
  std::stable_sort(night.mischief.begin(), night.mischief.end(),
                   [](const Mischief& a, const Mischief& b) { return a.at_s < b.at_s; });
  return night;
}

std::vector<Night> plainer(const Night& night) {
  NightKnobs plain;
  std::vector<nlohmann::json> defaults;
  for_each_knob(plain, [&](const char*, auto& value, double, double) { defaults.emplace_back(value); });
  std::vector<Night> nights;
  for (std::size_t which = 0; which < defaults.size(); ++which) {
    Night candidate = night;
    std::size_t index = 0;
    bool changed = false;
    for_each_knob(candidate.knobs, [&](const char*, auto& value, double, double) {
      if (index++ != which || nlohmann::json(value) == defaults[which]) return;
      defaults[which].get_to(value);
      changed = true;
    });
    Problems problems;
    check(candidate.knobs, "", problems);
    const std::int64_t nodes = candidate.knobs.slots + candidate.knobs.spares();
    const bool fits = std::all_of(candidate.mischief.begin(), candidate.mischief.end(),
                                  [nodes](const Mischief& m) { return m.node < nodes && m.other < nodes; });
    if (changed && fits && problems.empty()) nights.push_back(std::move(candidate));
  }
  return nights;
}

}  // namespace trainyard::fuzz
