// FaultSpec from JSON.
#include <algorithm>

#include <fmt/format.h>

#include "models/spec/spec_readers.h"

namespace trainyard {

namespace {

void read_mode(ObjectReader& from, FaultMode& mode) {
  std::vector<std::pair<const char*, FaultMode>> names;
  for (std::size_t i = 0; i < kFaultModes; ++i) names.emplace_back(fault_mode_names()[i], static_cast<FaultMode>(i));
  from.choice<FaultMode>("mode", mode, names);
}

void read_cause(ObjectReader& from, FaultCause& cause) {
  from.require({"name", "scope", "source"});
  from.text("name", cause.name)
      .choice<FaultScope>("scope", cause.scope,
                          {{"gpu", FaultScope::Gpu},
                           {"node", FaultScope::Node},
                           {"network", FaultScope::Network},
                           {"job", FaultScope::Job}})
      .text("source", cause.source)
      .number("rate_per_gpu_hour", cause.rate_per_gpu_hour, {0, 1})
      .boolean("stops_job", cause.stops_job);
  if (from.has("mode")) read_mode(from, cause.mode.emplace(default_mode(cause.scope)));
  double count = 0, gpu_hours = 0;
  from.number("count", count, {0, 1e12}).number("gpu_hours", gpu_hours, {1, 1e18});
  const bool as_rate = from.has("rate_per_gpu_hour"), as_count = from.has("count") && from.has("gpu_hours");
  const bool half_a_count = from.has("count") != from.has("gpu_hours");
  if (as_rate == as_count || half_a_count) {
    from.problem("rate_per_gpu_hour", "must be given either as it is, or as count and gpu_hours, and not as both",
                 "keep one form");
  } else if (as_count && gpu_hours > 0) {
    cause.rate_per_gpu_hour = count / gpu_hours;
  }
}

/// Of whole nodes, leaves and jobs no part can be named.
bool has_device(const InjectedFault& fault) {
  if (!fault.mode) return fault.kind != InjectedKind::NodeCrash;
  const FaultScope scope = scope_of(*fault.mode);
  const bool of_nic = fault.kind == InjectedKind::NicSlow || *fault.mode == FaultMode::NicLost;
  return scope == FaultScope::Gpu || of_nic || fault.kind == InjectedKind::LinkDown;
}

/// A process that has died is dead, and wrong numbers are wrong until somebody finds them.
bool has_duration(const InjectedFault& fault) {
  return fault.mode != FaultMode::SoftwareCrash && fault.mode != FaultMode::SoftwareHang &&
         fault.mode != FaultMode::SilentDataCorruption;
}

void read_injected(ObjectReader& from, InjectedFault& fault) {
  from.require({"node"});
  if (from.has("kind") == from.has("mode"))
    from.problem("kind", "must be given, or a mode, and not both", "keep one of them");
  if (from.has("mode")) {
    read_mode(from, fault.mode.emplace(FaultMode::HostCrash));
    fault.kind = kind_of(*fault.mode);
  }
  from.choice<InjectedKind>("kind", fault.kind,
                            {{"gpu_slow", InjectedKind::GpuSlow},
                             {"nic_slow", InjectedKind::NicSlow},
                             {"link_down", InjectedKind::LinkDown},
                             {"node_crash", InjectedKind::NodeCrash}})
      .number("at_s", fault.at_s, {0, 1e10})
      .optional_number("duration_s", fault.duration_s, {0, 1e10})
      .integer("node", fault.node, {0, 10'000'000})
      .integer("device", fault.device, {0, 1023})
      .number("factor", fault.factor, {1, 1e6})
      .number("loss", fault.loss, {0, 0.5})
      .choice<LinkDirection>("direction", fault.direction,
                             {{"both", LinkDirection::Both}, {"out", LinkDirection::Out}, {"in", LinkDirection::In}});
  // 400 to 200 Gb/s, x16 to x8: both are half.
  if (fault.mode == FaultMode::RateDowngrade && !from.has("factor")) fault.factor = 2;
  const char* what = fault.mode ? to_string(*fault.mode) : "node_crash";
  if (from.has("device") && !has_device(fault))
    from.problem("device", fmt::format("means nothing for a {}, which is not of one device", what), "remove it");
  if (from.has("duration_s") && !has_duration(fault))
    from.problem("duration_s", fmt::format("means nothing for a {}, which has no end of its own", what), "remove it");
}

// ---- Generators ---------------------------------------------------------------------------

constexpr NumberRange kShare{0, 1};
constexpr NumberRange kHours{1e-3, 1e6};

void read_fleet_parts(ObjectReader& from, FleetModel& fleet) {
  from.object("lemons",
              [&](ObjectReader& lemons) {
                lemons.require({"share", "factor"});
                lemons.number("share", fleet.lemons.share, kShare).number("factor", fleet.lemons.factor, {1, 1e6});
              })
      .object("refailure",
              [&](ObjectReader& again) {
                again.require({"probability", "median_days", "sigma"});
                // A node that always fails again would never be of use.
                again.number("probability", fleet.refailure.probability, {0, 0.95})
                    .number("median_days", fleet.refailure.median_days, {1e-4, 1e5})
                    .number("sigma", fleet.refailure.sigma, {0, 10})
                    .number("same_class_share", fleet.refailure.same_class_share, kShare);
              })
      .object("seasons",
              [&](ObjectReader& seasons) {
                seasons.require({"days", "sigma"});
                seasons.number("days", fleet.seasons.days, {0.1, 1e5}).number("sigma", fleet.seasons.sigma, {0, 3});
              })
      .object("bursts",
              [&](ObjectReader& bursts) {
                bursts.require({"per_1000_node_days", "size_exponent", "max_nodes"});
                bursts.number("per_1000_node_days", fleet.bursts.per_1000_node_days, {0, 1000})
                    .number("size_exponent", fleet.bursts.size_exponent, {0, 20})
                    .integer("max_nodes", fleet.bursts.max_nodes, {2, 10'000})
                    .number("simultaneous_share", fleet.bursts.simultaneous_share, kShare)
                    .number("spread_hours", fleet.bursts.spread_hours, kHours)
                    .number("shared_repair_share", fleet.bursts.shared_repair_share, kShare)
                    .number("shared_refailure_share", fleet.bursts.shared_refailure_share, kShare);
              })
      .object("quick_repair", [&](ObjectReader& quick) {
        quick.require({"median_hours", "sigma"});
        quick.number("median_hours", fleet.quick_repair.median_hours, kHours)
            .number("sigma", fleet.quick_repair.sigma, {0, 10});
      });
}

void read_fleet(ObjectReader& from, FleetModel& fleet) {
  from.require({"rate_per_node_day", "classes"});
  from.number("rate_per_node_day", fleet.rate_per_node_day, {0, 24});
  read_fleet_parts(from, fleet);
  from.objects("classes", [&](ObjectReader& entry) {
    FleetModel::Class& read = fleet.classes.emplace_back();
    entry.require({"name", "mode", "weight", "repair_scale_hours"});
    entry.text("name", read.name)
        .number("weight", read.weight, {0, 1e9})
        .number("burst_weight", read.burst_weight, {0, 1e9})
        .number("quick_share", read.quick_share, kShare)
        .number("repair_shape", read.repair_shape, {0.1, 10})
        .number("repair_scale_hours", read.repair_scale_hours, kHours);
    read_mode(entry, read.mode);
  });
}

/// [node, start_day, end_day, class]: whether it is four numbers, the first and last of them counts.
bool read_entry(const nlohmann::json& row, FaultTrace::Entry& entry) {
  if (!row.is_array() || row.size() != 4) return false;
  if (!row[0].is_number_unsigned() || !row[3].is_number_unsigned()) return false;
  if (!row[1].is_number() || !row[2].is_number()) return false;
  // Cut to what a trace may hold: whatever is beyond is refused by the rules, with its place.
  constexpr std::uint64_t kMost = 1 << 30;
  entry.node = static_cast<std::int64_t>(std::min(row[0].get<std::uint64_t>(), kMost));
  entry.start_day = row[1].get<double>();
  entry.end_day = row[2].get<double>();
  entry.class_index = static_cast<std::size_t>(std::min(row[3].get<std::uint64_t>(), kMost));
  return true;
}

void read_trace(ObjectReader& from, FaultTrace& trace) {
  from.require({"nodes", "days", "classes", "faults"});
  from.integer("nodes", trace.nodes, {1, 10'000'000}).number("days", trace.days, {1e-6, 1e5});
  from.objects("classes", [&](ObjectReader& entry) {
    FaultTrace::Class& read = trace.classes.emplace_back();
    entry.require({"name", "mode"});
    entry.text("name", read.name);
    read_mode(entry, read.mode);
  });
  const nlohmann::json* rows = from.take("faults");
  if (rows == nullptr) return;
  if (!rows->is_array()) return from.problem("faults", "must be a list", "write [[node, start_day, end_day, class]]");
  for (const nlohmann::json& row : *rows) {
    FaultTrace::Entry entry;
    if (!read_entry(row, entry))
      return from.problem("faults", fmt::format("has {} where [node, start_day, end_day, class] must be", shown(row)),
                          "write four numbers");
    trace.faults.push_back(entry);
  }
}

void read_generator(ObjectReader& from, FaultGenerator& generator) {
  from.require({"kind"});
  std::optional<GeneratorKind> kind;
  from.choice<std::optional<GeneratorKind>>(
      "kind", kind,
      {{"poisson", GeneratorKind::Poisson}, {"fleet", GeneratorKind::Fleet}, {"trace", GeneratorKind::Trace}});
  if (!kind) return from.ignore_the_rest();  // which keys there may be is not known
  generator.kind = *kind;
  if (generator.kind == GeneratorKind::Poisson) return;
  from.require({"source"});
  from.text("source", generator.source);
  if (generator.kind == GeneratorKind::Fleet) read_fleet(from, generator.fleet);
  if (generator.kind == GeneratorKind::Trace) read_trace(from, generator.trace);
}

}  // namespace

void read_faults(ObjectReader& from, FaultSpec& faults) {
  std::string name;
  from.text("name", name)
      .objects("causes",
               [&](ObjectReader& entry) {
                 FaultCause cause;
                 read_cause(entry, cause);
                 faults.causes.push_back(cause);
               })
      .objects("injected",
               [&](ObjectReader& entry) {
                 InjectedFault fault;
                 read_injected(entry, fault);
                 faults.injected.push_back(fault);
               })
      .object("generator", [&](ObjectReader& generator) { read_generator(generator, faults.generator); });
}

}  // namespace trainyard
