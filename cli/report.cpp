#include "cli/report.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <xxhash.h>

#include "cli/recovery_figures.h"
#include "cli/spares_report.h"
#include "cli/terminal.h"
#include "cli/version.h"
#include "models/base/statistics.h"
#include "models/base/units.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

// Of the mean over seeds; 0 for one.
double standard_error(const std::vector<double>& values) {
  return standard_deviation(values) / std::sqrt(static_cast<double>(values.size()));
}

// How far seconds lie apart over seeds.
json spread(const std::vector<double>& values) {
  return {{"standard_error_s", standard_error(values)},
          {"p5_s", percentile(values, 0.05)},
          {"p95_s", percentile(values, 0.95)}};
}

template <class Of>
std::vector<double> over(const std::vector<RunResult>& runs, Of of) {
  std::vector<double> out;
  out.reserve(runs.size());
  for (const RunResult& run : runs) out.push_back(static_cast<double>(of(run)));
  return out;
}

json step_json(const Job& job, const StepResult& step) {
  const ParallelPlan& plan = job.scenario.plan;
  const double tokens = static_cast<double>(plan.global_batch * plan.sequence_length);
  const double device_seconds = step.time_s * static_cast<double>(plan.ranks());
  const auto mfu = [&](bool causal_half) {
    return model_flops_per_token(job.scenario.model, plan.sequence_length, causal_half) * tokens / device_seconds /
           job.cost().peak_flops();
  };
  json out;
  out["time_s"] = step.time_s;
  out["mfu"] = mfu(false);
  out["mfu_causal_half"] = mfu(true);
  out["tokens"] = tokens;
  out["tokens_per_s"] = tokens / step.time_s;
  out["tokens_per_s_per_gpu"] = tokens / device_seconds;
  for (std::size_t p = 0; p < kStepPartCount; ++p) out["parts"][to_string(static_cast<StepPart>(p))] = step.part_s[p];
  out["communicator_error"] = step.communicator_error;
  out["classes"] = step.classes.size();
  out["link_classes"] = step.link_classes;
  out["channel_classes"] = step.channel_classes;
  out["activities"] = step.flows;
  out["events"] = step.events;
  out["ops"] = step.ops;
  out["fold_wall_s"] = step.fold_wall_s;
  out["simulate_wall_s"] = step.simulate_wall_s;
  out["trace_hash"] = fmt::format("{:016x}", step.trace_hash);
  return out;
}

void add_memory(json& step, const Job& job) {
  const std::size_t stage = job.fullest_stage();
  const MemoryUse use = memory_use(job.program.stages[stage]);
  step["memory_peak_bytes"] = job.memory_peak_bytes();
  step["memory_capacity_bytes"] = job.hardware.memory_bytes;
  step["memory_arena_bytes"] = use.arena_bytes;
  step["memory_stage"] = stage;
  for (std::size_t r = 0; r < kRoleCount; ++r) {
    if (use.by_role[r] > 0) step["memory_by_role"][to_string(static_cast<Role>(r))] = use.by_role[r];
  }
}

// Of all seeds together.
json recovery_json(const std::vector<RunResult>& runs) {
  std::vector<store::Recovery> all;
  for (const RunResult& run : runs)
    for (const RunRecovery& recovery : run.recoveries) all.push_back(recovery_row(recovery));
  return recovery_figures(all, runs.size());
}

// The fewest of all seeds; shares of the time are means over them.
json spares_json(const std::vector<RunResult>& runs) {
  const std::int64_t configured = runs.front().spares.configured;
  json out{{"configured", configured}, {"fewest", configured}};
  std::vector<SparesOverTime> series;
  for (const RunResult& run : runs) {
    std::vector<store::SpareCount> counts;
    for (const SpareCount& count : run.spares.counts) counts.push_back({count.time_ns, count.free});
    series.emplace_back(std::move(counts), run.duration_ns);
    out["fewest"] = std::min(out["fewest"].get<std::int64_t>(), run.spares.fewest);
  }
  out["mean"] = mean(over(runs, [](const RunResult& r) { return r.spares.mean; }));
  const auto share_below = [&](std::int64_t k) {
    double sum = 0;
    for (const SparesOverTime& its : series) sum += its.share_below(k);
    return sum / static_cast<double>(series.size());
  };
  out["share_with_none"] = share_below(1);
  out["fewer_than"] = json::object();
  for (const std::int64_t k : round_numbers(configured)) out["fewer_than"][std::to_string(k)] = share_below(k);
  return out;
}

// The recovery whose length is the median one: the typical night.
const RunRecovery* typical_recovery(const RunResult& run) {
  std::vector<const RunRecovery*> all;
  for (const RunRecovery& recovery : run.recoveries) all.push_back(&recovery);
  if (all.empty()) return nullptr;
  const auto middle = all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2);
  std::stable_sort(all.begin(), all.end(), [](const RunRecovery* a, const RunRecovery* b) {
    return a->ledger.total_s() < b->ledger.total_s();
  });
  return *middle;
}

json run_json(const std::vector<RunResult>& runs) {
  const RunResult& first = runs.front();
  json out;
  out["policy"] = first.policy;
  out["seeds"] = runs.size();
  out["duration_s"] = static_cast<double>(first.duration_ns) * 1e-9;
  const std::vector<double> effective = over(runs, [](const RunResult& r) { return r.effective_training_time; });
  out["effective_training_time"] = mean(effective);
  out["effective_training_time_standard_error"] = standard_error(effective);
  out["failures"]["total"] = mean(over(runs, [](const RunResult& r) { return r.failures; }));
  for (std::size_t c = 0; c < first.by_cause.size(); ++c) {
    out["failures"]["by_cause"][first.by_cause[c].name] =
        mean(over(runs, [&](const RunResult& r) { return r.by_cause[c].failures; }));
  }
  out["recovery"]["median_s"] = mean(over(runs, [](const RunResult& r) { return r.median_recovery_s(); }));
  out["recovery"]["count"] = mean(over(runs, [](const RunResult& r) { return r.recoveries.size(); }));
  if (const RunRecovery* typical = typical_recovery(first)) {
    json& ledger = out["recovery"]["typical"];
    ledger["cause"] = recovery_row(*typical).cause;
    ledger["total_s"] = typical->ledger.total_s();
    ledger["lost_work_s"] = typical->lost_work_s;
    const auto phases = typical->ledger.phase_s();
    for (std::size_t p = 0; p < phases.size(); ++p) {
      if (phases[p] > 0) ledger["phases"][recovery::to_string(static_cast<recovery::Phase>(p))] = phases[p];
    }
  }
  const json figures = recovery_json(runs);
  out["recovery"]["all"] = figures["all"];
  out["recovery"]["by_cause"] = figures["by_cause"];
  for (std::size_t b = 0; b < kBandCount; ++b) {
    const char* name = to_string(static_cast<Band>(b));
    const std::vector<double> seconds = over(runs, [&](const RunResult& r) { return r.band_s(static_cast<Band>(b)); });
    out["bands"][name] = mean(seconds);
    if (runs.size() > 1) out["bands_over_seeds"][name] = spread(seconds);
  }
  out["checkpoint_interval_s"] = first.checkpoint_interval_s;
  out["mean_time_between_failures_s"] =
      std::isfinite(first.mean_time_between_failures_s) ? json(first.mean_time_between_failures_s) : json(nullptr);
  out["steps_done"] = mean(over(runs, [](const RunResult& r) { return r.steps_done; }));
  out["checkpoints"] = mean(over(runs, [](const RunResult& r) { return r.checkpoints; }));
  const auto stuck = std::find_if(runs.begin(), runs.end(), [](const RunResult& r) { return !r.waiting_for.empty(); });
  out["waiting_for_at_end"] = stuck == runs.end() ? json(nullptr) : json(stuck->waiting_for);
  out["silent_corruption"] = {
      {"nodes", mean(over(runs, [](const RunResult& r) { return r.corruptions; }))},
      {"found", mean(over(runs, [](const RunResult& r) { return r.corruptions_found; }))},
      {"trained_with_s",
       mean(over(runs, [](const RunResult& r) { return static_cast<double>(r.corrupted_training_ns) / kNsPerS; }))}};
  out["spares"] = spares_json(runs);
  // Of one run its own, as the store has it; of several, one over them all.
  std::uint64_t hash = first.trace_hash;
  for (std::size_t i = 1; i < runs.size(); ++i) hash = XXH64(&runs[i].trace_hash, sizeof hash, hash);
  out["trace_hash"] = fmt::format("{:016x}", hash);
  return out;
}

}  // namespace

json make_report(const Job& job, const Simulated& simulated) {
  const Scenario& scenario = job.scenario;
  json out;
  out["scenario"] = scenario.name;
  out["description"] = scenario.description;
  out["version"] = version_number();
  out["commit"] = commit_id();
  out["seed"] = scenario.seed;
  out["model"] = scenario.model.name;
  out["cluster"] = scenario.cluster.name;
  out["hardware"] = job.hardware.name;
  out["stack"] = job.stack.name;
  out["gpus"] = scenario.plan.ranks();
  out["cluster_gpus"] = scenario.cluster.gpus();
  const ParallelPlan& plan = scenario.plan;
  out["plan"] = {{"tp", plan.tp},
                 {"cp", plan.cp},
                 {"ep", plan.ep},
                 {"pp", plan.pp},
                 {"dp", plan.dp},
                 {"virtual_stages", plan.virtual_stages},
                 {"zero_stage", plan.zero_stage},
                 {"micro_batches", plan.micro_batches()}};
  if (plan.ring_attention()) out["plan"]["cp_comm_type"] = "p2p";
  if (plan.zero_shard_size > 0) out["plan"]["zero_shard_size"] = plan.zero_shard_size;
  out["step"] = step_json(job, simulated.step);
  add_memory(out["step"], job);
  if (simulated.healthy) out["healthy_step"] = step_json(job, *simulated.healthy);
  std::uint64_t hash = simulated.step.trace_hash;
  for (const auto& runs : simulated.runs) {
    out["policies"].push_back(run_json(runs));
    for (const RunResult& run : runs) hash = XXH64(&run.trace_hash, sizeof run.trace_hash, hash);
  }
  if (!simulated.runs.empty()) {
    out["run"] = out["policies"][0];
    out["memo"] = {{"hits", simulated.memo.hits},
                   {"misses", simulated.memo.misses},
                   {"miss_wall_s", simulated.memo.miss_wall_s},
                   {"step_known", simulated.memo.step_known}};
  }
  out["host"] = {{"wall_s", simulated.wall_s}, {"peak_rss_bytes", simulated.peak_rss_bytes}};
  out["trace_hash"] = fmt::format("{:016x}", hash);
  return out;
}

// --- text

namespace {

constexpr int kBarWidth = 40;

std::string percent(double share) { return fmt::format("{:.1f}%", 100 * share); }
std::string words(std::string name) {
  std::replace(name.begin(), name.end(), '_', ' ');
  return name;
}

std::string step_text(const json& report) {
  const json& step = report["step"];
  const double time_s = step["time_s"];
  if (!step["communicator_error"].get<std::string>().empty()) {
    return fmt::format("The step fails after {}: {}\n", format_duration(time_s),
                       step["communicator_error"].get<std::string>());
  }
  const std::int64_t tokens = step["tokens"];
  std::string out = fmt::format(
      "Step       {}   {} tokens   MFU {} ({} with causal attention counted half)\n", format_duration(time_s),
      tokens < 10'000'000 ? format_count(tokens) : fmt::format("{:.1f} M", 1e-6 * static_cast<double>(tokens)),
      percent(step["mfu"]), percent(step["mfu_causal_half"]));
  if (report.contains("healthy_step")) {
    const double healthy_s = report["healthy_step"]["time_s"];
    out += fmt::format("Healthy    {}   the degradations cost {} ({:+.1f}%)\n", format_duration(healthy_s),
                       format_duration(time_s - healthy_s), 100 * (time_s / healthy_s - 1));
  }
  std::vector<std::vector<std::string>> rows;
  std::vector<double> shares;
  for (const auto& [name, seconds] : step["parts"].items()) {
    const double share = seconds.get<double>() / time_s;
    if (share < 0.0005) continue;
    rows.push_back({words(name), format_duration(seconds), percent(share)});
    shares.push_back(share);
  }
  return out + with_bars(table({}, rows), 0, shares, kBarWidth);
}

std::string memory_text(const json& report) {
  const json& step = report["step"];
  const double peak = step["memory_peak_bytes"], capacity = step["memory_capacity_bytes"];
  std::string out = fmt::format("Memory     {} of {} a GPU ({}), at stage {}\n", format_bytes(peak),
                                format_bytes(capacity), percent(peak / capacity), step["memory_stage"].get<int>());
  std::string parts;
  for (const auto& [role, bytes] : step["memory_by_role"].items()) {
    if (bytes.get<double>() < 0.005 * capacity) continue;
    parts += fmt::format("{}{} {}", parts.empty() ? "" : ", ", words(role), format_bytes(bytes));
  }
  const double outside = peak - step["memory_arena_bytes"].get<double>();
  parts += fmt::format("{}outside the arena {}", parts.empty() ? "" : ", ", format_bytes(outside));
  return out + "  " + parts + (peak > capacity ? "\n  It does not fit.\n" : "\n");
}

// One column for each policy.
std::string policies_text(const json& policies) {
  const auto row = [&](const std::string& name, auto value) {
    std::vector<std::string> cells{name};
    for (const json& policy : policies) cells.push_back(value(policy));
    return cells;
  };
  std::vector<std::string> header{""};
  for (const json& policy : policies) header.push_back(policy["policy"]);
  std::vector<std::vector<std::string>> rows;
  rows.push_back(row("effective training time", [](const json& p) {
    const double error = p["effective_training_time_standard_error"];
    return percent(p["effective_training_time"]) + (error > 0 ? fmt::format(" +-{:.1f}", 100 * error) : "");
  }));
  rows.push_back(
      row("failures", [](const json& p) { return fmt::format("{:.4g}", p["failures"]["total"].get<double>()); }));
  rows.push_back(row("recovery, median", [](const json& p) {
    return p["recovery"]["count"] == 0 ? std::string("-") : format_duration(p["recovery"]["median_s"]);
  }));
  rows.push_back(row("checkpoint every", [](const json& p) { return format_duration(p["checkpoint_interval_s"]); }));
  rows.push_back(row("steps done", [](const json& p) { return format_count(p["steps_done"].get<double>()); }));
  rows.push_back(row("spare nodes, fewest free", [](const json& p) {
    return fmt::format("{} of {}", p["spares"]["fewest"].get<std::int64_t>(),
                       p["spares"]["configured"].get<std::int64_t>());
  }));
  const auto none_free = [](const json& p) { return p["spares"].value("share_with_none", 0.0); };
  if (std::any_of(policies.begin(), policies.end(),
                  [&](const json& p) { return none_free(p) > 0 && p["spares"]["configured"] > 0; }))
    rows.push_back(row("time with none free", [&](const json& p) { return percent(none_free(p)); }));
  const auto corrupt = [](const json& p) { return p["silent_corruption"]["nodes"].get<double>(); };
  if (std::any_of(policies.begin(), policies.end(), [&](const json& p) { return corrupt(p) > 0; })) {
    rows.push_back(row("silently corrupt nodes, found", [&](const json& p) {
      return fmt::format("{:.4g}, {:.4g}", corrupt(p), p["silent_corruption"]["found"].get<double>());
    }));
    rows.push_back(row("trained with wrong numbers",
                       [](const json& p) { return format_duration(p["silent_corruption"]["trained_with_s"]); }));
  }
  std::string out = table(header, rows);
  for (const json& policy : policies) {
    if (!policy["waiting_for_at_end"].is_null()) {
      const int seeds = policy["seeds"];
      out += fmt::format("{}: the job was down at the end{}, waiting for {}\n", policy["policy"].get<std::string>(),
                         seeds > 1 ? " under some seeds" : "", policy["waiting_for_at_end"].get<std::string>());
    }
  }
  return out;
}

// Between which shares of the time a band lies under nine seeds of ten; nothing for one seed.
std::string seeds_text(const json& policy, const std::string& band) {
  if (!policy.contains("bands_over_seeds")) return "";
  const double duration_s = policy["duration_s"];
  const json& its = policy["bands_over_seeds"][band];
  return fmt::format(" ({:.1f} to {:.1f})", 100 * its["p5_s"].get<double>() / duration_s,
                     100 * its["p95_s"].get<double>() / duration_s);
}

std::string bands_text(const json& policies) {
  std::string out = "\nWhere the time went\n";
  std::vector<std::vector<std::string>> rows;
  std::vector<std::string> header{""};
  for (const json& policy : policies) header.push_back(policy["policy"]);
  std::size_t band = 0;
  for (const auto& [name, seconds] : policies[0]["bands"].items()) {
    std::vector<std::string> cells{mark(band) + " " + words(name)};
    bool shown = false;
    for (const json& policy : policies) {
      const double share = policy["bands"][name].get<double>() / policy["duration_s"].get<double>();
      shown |= share >= 0.0005;
      cells.push_back(percent(share) + seeds_text(policy, name));
    }
    if (shown) rows.push_back(cells);
    ++band;
  }
  std::size_t widest = 0;
  for (const json& policy : policies) widest = std::max(widest, policy["policy"].get<std::string>().size());
  for (const json& policy : policies) {
    std::vector<double> shares;
    for (const auto& [name, seconds] : policy["bands"].items())
      shares.push_back(seconds.get<double>() / policy["duration_s"].get<double>());
    out += fmt::format("  {:<{}}  {}\n", policy["policy"].get<std::string>(), widest, stacked_bar(shares, 60));
  }
  out += table(header, rows);
  if (policies[0].contains("bands_over_seeds"))
    out += fmt::format("  mean, and the 5th to the 95th percentile of {} seeds\n", policies[0]["seeds"].get<int>());
  return out;
}

std::string ledger_text(const json& policies) {
  std::vector<std::string> header{""}, names;
  for (const json& policy : policies) {
    if (!policy["recovery"].contains("typical")) return "";
    header.push_back(policy["policy"]);
    for (const auto& [phase, seconds] : policy["recovery"]["typical"]["phases"].items()) {
      if (std::find(names.begin(), names.end(), phase) == names.end()) names.push_back(phase);
    }
  }
  std::vector<std::vector<std::string>> rows;
  const auto add = [&](const std::string& name, auto value) {
    std::vector<std::string> cells{name};
    for (const json& policy : policies) cells.push_back(value(policy["recovery"]["typical"]));
    rows.push_back(cells);
  };
  for (const std::string& name : names) {
    add(words(name),
        [&](const json& t) { return t["phases"].contains(name) ? format_duration(t["phases"][name]) : "-"; });
  }
  add("in all", [](const json& t) { return format_duration(t["total_s"]); });
  add("and lost work, done again", [](const json& t) { return format_duration(t["lost_work_s"]); });
  return "\nA typical recovery\n" + table(header, rows);
}

// So many causes are shown; `run show --recoveries` shows them all.
constexpr std::size_t kCauses = 10;

std::string causes_text(const json& policy) {
  const double total = policy["failures"]["total"];
  if (total <= 0) return "";
  std::vector<std::pair<double, std::string>> causes;
  for (const auto& [name, count] : policy["failures"]["by_cause"].items())
    if (count > 0) causes.emplace_back(count.get<double>(), name);
  std::stable_sort(causes.begin(), causes.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  const std::size_t shown = causes.size() > kCauses + 1 ? kCauses : causes.size();
  std::vector<std::vector<std::string>> rows;
  std::vector<double> shares;
  for (std::size_t i = 0; i < shown; ++i) {
    const auto& [count, name] = causes[i];
    rows.push_back({name, fmt::format("{:.4g}", count)});
    shares.push_back(count / causes.front().first);
    const json recoveries = policy["recovery"].value("by_cause", json::object());  // older versions had none
    for (const char* figure : {"median_s", "mean_s", "p99_s"})
      rows.back().push_back(recoveries.contains(name) ? format_duration(recoveries[name]["total_s"][figure]) : "-");
  }
  double rest = 0;
  for (std::size_t i = shown; i < causes.size(); ++i) rest += causes[i].first;
  if (rest > 0)
    rows.push_back({fmt::format("{} other causes", causes.size() - shown), fmt::format("{:.4g}", rest), "", "", ""});
  return fmt::format("\nFailures by cause, and the recoveries that they began ({})\n",
                     policy["policy"].get<std::string>()) +
         with_bars(table({"", "times", "median", "mean", "99th"}, rows), 1, shares, kBarWidth / 2);
}

}  // namespace

std::string report_text(const json& report) {
  const json& plan = report["plan"];
  std::string zero = fmt::format("ZeRO {}", plan["zero_stage"].get<int>());
  if (plan.contains("zero_shard_size")) zero += fmt::format(" over {}", plan["zero_shard_size"].get<std::int64_t>());
  std::string out = fmt::format("{}   seed {}   trainyard {} ({})\n", report["scenario"].get<std::string>(),
                                report["seed"].get<std::uint64_t>(), report["version"].get<std::string>(),
                                report["commit"].get<std::string>());
  out += fmt::format("{} on {} of {} GPUs of {}: tp {} cp {} ep {} pp {}x{} dp {}, {}, {} micro-batch{}\n\n",
                     report["model"].get<std::string>(), format_count(report["gpus"]),
                     format_count(report["cluster_gpus"]), report["cluster"].get<std::string>(), plan["tp"].get<int>(),
                     plan["cp"].get<int>(), plan["ep"].get<int>(), plan["pp"].get<int>(),
                     plan["virtual_stages"].get<int>(), plan["dp"].get<int>(), zero, plan["micro_batches"].get<int>(),
                     plan["micro_batches"] == 1 ? "" : "es");
  out += step_text(report) + memory_text(report);
  if (report.contains("policies")) {
    const json& policies = report["policies"];
    out += fmt::format("\n{} with failures", format_duration(policies[0]["duration_s"]));
    if (!policies[0]["mean_time_between_failures_s"].is_null())
      out += fmt::format(", one every {}", format_duration(policies[0]["mean_time_between_failures_s"]));
    out += policies[0]["seeds"].get<int>() > 1 ? fmt::format(", mean of {} seeds\n", policies[0]["seeds"].get<int>())
                                               : "\n";
    out += policies_text(policies) + bands_text(policies) + ledger_text(policies) + causes_text(policies[0]);
  }
  const json& step = report["step"];
  out += fmt::format("\nSimulated {} ranks as {} class{}, {} activities and {} events", format_count(report["gpus"]),
                     format_count(step["classes"]), step["classes"] == 1 ? "" : "es", format_count(step["activities"]),
                     format_count(step["events"]));
  if (report.contains("memo"))
    out += fmt::format("; {} step state{}, {} seen again", report["memo"]["misses"].get<int>(),
                       report["memo"]["misses"] == 1 ? "" : "s", report["memo"]["hits"].get<int>());
  if (report.contains("memo") && report["memo"].value("step_known", false))
    out += "; the step is known from a run before";
  out += fmt::format("\nin {}, {}   trace {}\n", format_duration(report["host"]["wall_s"]),
                     format_bytes(report["host"]["peak_rss_bytes"]), report["trace_hash"].get<std::string>());
  return out;
}

}  // namespace trainyard::cli
