#include "cli/accuracy.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/chart.h"
#include "cli/csv.h"
#include "cli/terminal.h"
#include "cli/version.h"
#include "models/base/statistics.h"
#include "models/base/units.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

json figures(const std::vector<double>& errors) {
  std::vector<double> sizes;
  for (const double error : errors) sizes.push_back(std::abs(error));
  return {{"rows", errors.size()},
          {"median_abs_error", median(sizes)},
          {"p90_abs_error", percentile(sizes, 0.9)},
          {"bias", mean(errors)},
          {"median_error", median(errors)}};
}

using Errors = std::map<std::string, std::vector<double>>;

Errors grouped(const std::vector<const Prediction*>& predictions,
               const std::function<std::string(const Prediction&)>& key) {
  Errors groups;
  for (const Prediction* its : predictions) groups[key(*its)].push_back(its->error());
  return groups;
}

json by(const Errors& groups) {
  json out = json::object();
  for (const auto& [name, errors] : groups) out[name] = figures(errors);
  return out;
}

/// What knows nothing but the hardware: every model runs at the median rate of its GPU.
json null_model(const std::vector<const Prediction*>& predictions) {
  std::map<std::string, std::vector<double>> rates;
  const auto rate_of = [](const Prediction& its) {
    return its.flops / its.run->measured_step_s / static_cast<double>(its.run->scenario.plan.ranks());
  };
  for (const Prediction* its : predictions) rates[its->run->gpu].push_back(rate_of(*its));
  std::map<std::string, double> rate;
  for (auto& [gpu, of_gpu] : rates) rate[gpu] = median(of_gpu);
  std::vector<double> errors;
  for (const Prediction* its : predictions) errors.push_back(rate_of(*its) / rate[its->run->gpu] - 1);
  json out = figures(errors);
  out["what"] = "every run at the median FLOP/s of its GPU, fitted on these very rows";
  return out;
}

/// How far apart measurements of one and the same job lie: no prediction can be nearer to all of them.
json noise_floor(const std::vector<const Prediction*>& predictions) {
  std::map<std::string, std::vector<double>> measured;
  for (const Prediction* its : predictions) {
    const ModelSpec& model = its->run->scenario.model;
    const ParallelPlan& plan = its->run->scenario.plan;
    measured[fmt::format("{} {} {} {} {} {} {} {} {} {} {} {} {} {}", its->stack, its->run->scenario.cluster.hardware,
                         model.name, model.num_hidden_layers, model.hidden_size, model.num_attention_heads, plan.tp,
                         plan.cp, plan.pp, plan.virtual_stages, plan.dp, plan.sequence_length, plan.micro_batch,
                         plan.global_batch)]
        .push_back(its->run->measured_step_s);
  }
  std::vector<double> spreads;
  for (auto& [job, seconds] : measured) {
    const auto [least, most] = std::minmax_element(seconds.begin(), seconds.end());
    if (seconds.size() > 1) spreads.push_back(*most / *least - 1);
  }
  return {{"jobs", spreads.size()}, {"median_spread", median(spreads)}};
}

/// Whether layouts come in the right order, by source, GPU and model (between models their size alone decides), among
/// rows that their source compares:
/// tokens/s of a GPU, predicted against measured, and what the layout that is predicted to be the best reaches of the
/// best.
json ranking(const std::vector<const Prediction*>& predictions) {
  constexpr std::size_t kFew = 5;  // of fewer rows an order says little
  struct Rates {
    std::vector<double> measured, predicted;
  };
  std::map<std::string, Rates> groups;
  for (const Prediction* its : predictions) {
    const ParallelPlan& plan = its->run->scenario.plan;
    const double tokens =
        static_cast<double>(plan.global_batch * plan.sequence_length) / static_cast<double>(plan.ranks());
    Rates& group =
        groups[fmt::format("{}, {}, {}{}{}", its->run->source, its->run->scenario.cluster.hardware,
                           its->run->scenario.model.name, its->run->series.empty() ? "" : ", ", its->run->series)];
    group.measured.push_back(tokens / its->run->measured_step_s);
    group.predicted.push_back(tokens / its->step_s);
  }
  json out = json::object();
  for (const auto& [name, rates] : groups) {
    if (rates.measured.size() < kFew) continue;
    const auto best = std::max_element(rates.predicted.begin(), rates.predicted.end()) - rates.predicted.begin();
    out[name] = {{"rows", rates.measured.size()},
                 {"rank_correlation", rank_correlation(rates.measured, rates.predicted)},
                 {"chosen_over_best", rates.measured[static_cast<std::size_t>(best)] /
                                          *std::max_element(rates.measured.begin(), rates.measured.end())}};
  }
  return out;
}

/// Where the predicted seconds go, in the order in which the model is built up: kernels as an average rank alone on its
/// GPU runs them, what each layer of parallelism adds that compute does not hide, and what slows all kernels.
json waterfall(const Prediction& its) {
  const auto part = [&](StepPart which) { return its.part_s[static_cast<std::size_t>(which)]; };
  const double slower = its.contention * its.slowest_rank;
  const double kernels = part(StepPart::Gemm) + part(StepPart::Attention) + part(StepPart::MemoryBound) +
                         part(StepPart::Recompute) + part(StepPart::Optimizer);
  const bool gathers = its.run->scenario.plan.zero_stage == 3;
  return {{"gemm", part(StepPart::Gemm) / slower},
          {"attention", part(StepPart::Attention) / slower},
          {"recompute", part(StepPart::Recompute) / slower},
          {"memory_bound", part(StepPart::MemoryBound) / slower},
          {"pipeline_fill_and_uneven_stages", part(StepPart::Bubble)},
          {"tensor_and_context_parallel", part(StepPart::ExposedTp) + part(StepPart::ExposedCp)},
          {"fsdp_gather_and_scatter", gathers ? part(StepPart::ExposedDp) : 0.0},
          {"sm_contention", kernels - kernels / its.contention},
          {"last_sync_and_optimizer", part(StepPart::Optimizer) / slower + (gathers ? 0.0 : part(StepPart::ExposedDp))},
          {"host", part(StepPart::Host)},
          {"jitter", (kernels - kernels / its.slowest_rank) / its.contention},
          {"p2p", part(StepPart::ExposedPp)},
          {"expert_parallel", part(StepPart::ExposedEp)}};
}

/// By source the mean share that each term has of the predicted step.
json mean_waterfalls(const std::vector<const Prediction*>& predictions) {
  json out = json::object();
  std::map<std::string, double> rows;
  for (const Prediction* its : predictions) {
    rows[its->run->source] += 1;
    const json terms = waterfall(*its);
    for (const auto& [term, seconds] : terms.items()) {
      json& share = out[its->run->source][term];
      share = (share.is_null() ? 0.0 : share.get<double>()) + seconds.get<double>() / its->step_s;
    }
  }
  for (auto& [source, terms] : out.items())
    for (auto& [term, share] : terms.items()) share = share.get<double>() / rows[source];
  return out;
}

json result(const Prediction& its) {
  json parts = json::object();
  for (std::size_t p = 0; p < its.part_s.size(); ++p)
    if (its.part_s[p] > 0) parts[to_string(static_cast<StepPart>(p))] = its.part_s[p];
  json out{{"id", its.run->id},
           {"source", its.run->source},
           {"framework", its.run->framework},
           {"model", its.run->scenario.model.name},
           {"gpu", its.run->gpu},
           {"gpus", its.run->scenario.plan.ranks()},
           {"stack", its.stack},
           {"measured_s", its.run->measured_step_s},
           {"predicted_s", its.step_s},
           {"error", its.error()},
           {"parts", parts},
           {"waterfall", waterfall(its)},
           {"peak_bytes", its.peak_bytes}};
  if (its.run->peak_memory_bytes) out["measured_peak_bytes"] = *its.run->peak_memory_bytes;
  out["fits"] = its.fits();
  out["fitted"] = its.fitted;
  out["assumed"] = its.run->assumed;
  return out;
}

json memory(const std::vector<Prediction>& predictions) {
  std::vector<double> errors;
  json wrong = json::array();
  std::size_t out_of_memory = 0, found = 0;
  for (const Prediction& its : predictions) {
    if (its.run->peak_memory_bytes) errors.push_back(its.peak_bytes / *its.run->peak_memory_bytes - 1);
    out_of_memory += its.run->out_of_memory ? 1 : 0;
    found += its.run->out_of_memory && !its.fits() ? 1 : 0;
    if (its.fits() == its.run->out_of_memory) wrong.push_back(its.run->id);
  }
  json out = errors.empty() ? json::object() : figures(errors);
  out["out_of_memory"] = out_of_memory;
  out["out_of_memory_found"] = found;
  out["fit_is_wrong"] = wrong;
  return out;
}

std::string percent(double share) { return fmt::format("{:+.1f}%", 100 * share); }
std::string unsigned_percent(double share) { return fmt::format("{:.1f}%", 100 * share); }

std::string groups_text(const json& groups, const char* name) {
  std::vector<std::vector<std::string>> rows;
  for (const auto& [key, its] : groups.items())
    rows.push_back({key.size() > 60 ? key.substr(0, 57) + "..." : key, std::to_string(its["rows"].get<std::size_t>()),
                    unsigned_percent(its["median_abs_error"]), unsigned_percent(its["p90_abs_error"]),
                    percent(its["bias"])});
  return "\n" + table({name, "rows", "median |e|", "p90 |e|", "bias"}, rows, 0);
}

std::string counts_of(const json& report) {
  return fmt::format("{} rows: {} predicted, {} that ran out of memory, {} skipped", report["rows"].get<std::size_t>(),
                     report["predicted"].get<std::size_t>(), report["memory"]["out_of_memory"].get<std::size_t>(),
                     report["skipped"].size());
}

/// The results with the largest errors, largest first.
std::vector<const json*> by_size(const json& results, std::size_t count) {
  std::vector<const json*> order;
  for (const json& its : results) order.push_back(&its);
  const auto size = [](const json* its) { return std::abs((*its)["error"].get<double>()); };
  std::stable_sort(order.begin(), order.end(), [&](const json* a, const json* b) { return size(a) > size(b); });
  order.resize(std::min(count, order.size()));
  return order;
}

std::map<std::string, std::size_t> reasons_of(const json& report) {
  std::map<std::string, std::size_t> reasons;
  for (const json& row : report["skipped"]) ++reasons[row["reason"]];
  return reasons;
}

/// A line for each source, a column for each term.
std::vector<std::vector<std::string>> waterfall_rows(const json& waterfalls) {
  std::vector<std::vector<std::string>> rows;
  for (const auto& [source, terms] : waterfalls.items()) {
    rows.push_back({source.size() > 40 ? source.substr(0, 37) + "..." : source});
    for (const auto& [term, share] : terms.items())
      rows.back().push_back(share > 0 ? fmt::format("{:.1f}", 100 * share.get<double>()) : "");
  }
  return rows;
}
const std::vector<std::string> kWaterfallHead{"% of the prediction",
                                              "gemm",
                                              "attn",
                                              "again",
                                              "memory",
                                              "pipe",
                                              "tp cp",
                                              "fsdp",
                                              "SMs",
                                              "sync",
                                              "host",
                                              "jitter",
                                              "p2p",
                                              "ep"};

std::vector<std::vector<std::string>> ranking_rows(const json& ranking) {
  std::vector<std::vector<std::string>> rows;
  for (const auto& [name, its] : ranking.items())
    rows.push_back({name, std::to_string(its["rows"].get<std::size_t>()),
                    fmt::format("{:.3f}", its["rank_correlation"].get<double>()),
                    unsigned_percent(its["chosen_over_best"])});
  return rows;
}
const std::vector<std::string> kRankingHead{"ranking of tokens/s", "rows", "Spearman", "chosen / best"};

std::string worst_text(const json& results, std::size_t count) {
  std::vector<std::vector<std::string>> rows;
  for (const json* of : by_size(results, count)) {
    const json& its = *of;
    std::string most;
    double most_s = 0;
    for (const auto& [part, seconds] : its["parts"].items())
      if (seconds > most_s) most = part, most_s = seconds;
    rows.push_back({its["id"], its["model"],
                    fmt::format("{} {}", its["gpus"].get<std::int64_t>(), its["gpu"].get<std::string>()),
                    format_duration(its["measured_s"]), format_duration(its["predicted_s"]), percent(its["error"]),
                    fmt::format("{} {:.0f}%", most, 100 * most_s / its["predicted_s"].get<double>())});
  }
  if (rows.empty()) return "";
  return "\nWorst rows\n" + table({"id", "model", "GPUs", "measured", "predicted", "error", "most of it"}, rows, 0);
}

}  // namespace

json accuracy_report(const PublishedSet& set, const std::vector<Prediction>& predictions) {
  std::vector<const Prediction*> timed;
  for (const Prediction& its : predictions)
    if (!its.run->out_of_memory && its.run->measured_step_s > 0) timed.push_back(&its);
  json out{{"version", version_number()}, {"commit", commit_id()}, {"rows", set.rows}, {"predicted", timed.size()}};
  std::vector<double> errors;
  for (const Prediction* its : timed) errors.push_back(its->error());
  if (!errors.empty()) {
    out.update(figures(errors));
    out["rows"] = set.rows;
    out["by_source"] = by(grouped(timed, [](const Prediction& p) { return p.run->source; }));
    double macro = 0;
    for (const json& its : out["by_source"]) macro += its["median_abs_error"].get<double>();
    out["macro_median_abs_error"] = macro / static_cast<double>(out["by_source"].size());
    out["noise_floor"] = noise_floor(timed);
    std::vector<double> held_out;
    for (const Prediction* its : timed)
      if (!its->fitted) held_out.push_back(its->error());
    if (!held_out.empty()) out["held_out"] = figures(held_out);
    out["null_model"] = null_model(timed);
    out["by_gpu"] = by(grouped(timed, [](const Prediction& p) { return p.run->gpu; }));
    out["by_stack"] = by(grouped(timed, [](const Prediction& p) { return p.stack; }));
    out["ranking"] = ranking(timed);
    out["waterfall"] = mean_waterfalls(timed);
    out["by_model"] = by(grouped(timed, [](const Prediction& p) { return p.run->scenario.model.name; }));
  }
  out["memory"] = memory(predictions);
  out["skipped"] = json::array();
  for (const SkippedRow& row : set.skipped)
    out["skipped"].push_back({{"id", row.id}, {"source", row.source}, {"reason", row.reason}});
  out["results"] = json::array();
  for (const Prediction* its : timed) out["results"].push_back(result(*its));
  return out;
}

std::string accuracy_text(const json& report, std::size_t worst) {
  std::string out = counts_of(report) + "\n";
  if (report["predicted"] > 0) {
    const json& null = report["null_model"];
    out += fmt::format("median |error| {}, 90th percentile {}, bias {}, mean over sources {}\n",
                       unsigned_percent(report["median_abs_error"]), unsigned_percent(report["p90_abs_error"]),
                       percent(report["bias"]), unsigned_percent(report["macro_median_abs_error"]));
    if (report.contains("held_out")) {
      const json& its = report["held_out"];
      out += fmt::format("on the {} that no stack was fitted on: {}, {}, {}\n", its["rows"].get<std::size_t>(),
                         unsigned_percent(its["median_abs_error"]), unsigned_percent(its["p90_abs_error"]),
                         percent(its["bias"]));
    }
    out += fmt::format("constant FLOP/s per GPU, for comparison: {}, {}\n", unsigned_percent(null["median_abs_error"]),
                       unsigned_percent(null["p90_abs_error"]));
    out += groups_text(report["by_source"], "source");
    out += groups_text(report["by_gpu"], "GPU") + groups_text(report["by_stack"], "stack");
    if (!report["ranking"].empty()) out += "\n" + table(kRankingHead, ranking_rows(report["ranking"]), 0);
    out += "\n" + table(kWaterfallHead, waterfall_rows(report["waterfall"]), 0);
    out += worst_text(report["results"], worst);
  }
  std::vector<std::vector<std::string>> rows;
  for (const auto& [reason, count] : reasons_of(report)) rows.push_back({reason, std::to_string(count)});
  if (!rows.empty()) out += "\n" + table({"Skipped, because", "rows"}, rows, 0);
  return out;
}

std::string accuracy_markdown(const json& report, std::size_t worst, const std::string& picture) {
  const json& null = report["null_model"];
  std::string out =
      "# Predicted against published\n\nMade by `trainyard validate`; do not edit. An error is predicted over measured "
      "seconds a step, less one. What the rows are: `scenarios/measured/README.md`; on which few of them each stack "
      "was "
      "fitted: `scenarios/profiles/fit_stacks.py`; what is left out: [accuracy.md](accuracy.md).\n\n";
  out += counts_of(report) + ".\n\n| | median, absolute | 90th percentile | mean |\n| --- | --: | --: | --: |\n";
  const auto line = [](const std::string& name, const json& its) {
    return fmt::format("| {} | {} | {} | {} |\n", name, unsigned_percent(its["median_abs_error"]),
                       unsigned_percent(its["p90_abs_error"]), percent(its["bias"]));
  };
  out += line("all", report);
  if (report.contains("held_out")) out += line("those that no stack was fitted on", report["held_out"]);
  out += line("constant FLOP/s of each GPU, fitted on these very rows", null);
  out += fmt::format(
      "\nThe mean over sources of their medians is {}. Of {} jobs there are several measurements, which lie {} apart "
      "(median).\n",
      unsigned_percent(report["macro_median_abs_error"]), report["noise_floor"]["jobs"].get<std::size_t>(),
      unsigned_percent(report["noise_floor"]["median_spread"]));
  if (!picture.empty()) out += fmt::format("\n![errors]({})\n", picture);
  for (const auto& [title, key] : {std::pair("source", "by_source"), {"GPU", "by_gpu"}, {"stack", "by_stack"}}) {
    out += fmt::format("\n| {} | rows | median, absolute | 90th percentile | mean |\n| --- | --: | --: | --: | --: |\n",
                       title);
    for (const auto& [name, its] : report[key].items())
      out += fmt::format("| {} | {} | {} | {} | {} |\n", name, its["rows"].get<std::size_t>(),
                         unsigned_percent(its["median_abs_error"]), unsigned_percent(its["p90_abs_error"]),
                         percent(its["bias"]));
  }
  out += fmt::format("\n| {} |\n| --- | --: | --: | --: |\n", fmt::join(kRankingHead, " | "));
  for (const auto& row : ranking_rows(report["ranking"])) out += fmt::format("| {} |\n", fmt::join(row, " | "));
  out +=
      "\nWhere the predicted time goes, in % of a step, averaged over the rows of a source: products (`gemm`), "
      "attention, "
      "what is recomputed (`again`), memory-bound kernels, fill of the pipeline and uneven stages (`pipe`), "
      "collectives "
      "of tensor and context parallelism that compute does not hide, gathers and scatters of FSDP, SMs and bandwidth "
      "that collectives take from kernels (`SMs`), the last gradient bucket, gathers of ZeRO 1 and the optimizer "
      "(`sync`), waits for the host and gaps between launches (`host`), the slowest rank (`jitter`), pipeline "
      "transfers, and all-to-alls of experts "
      "(`ep`).\n\n";
  out += "| " + fmt::format("{}", fmt::join(kWaterfallHead, " | ")) + " |\n| ---";
  for (std::size_t i = 1; i < kWaterfallHead.size(); ++i) out += " | --:";
  out += " |\n";
  for (const auto& row : waterfall_rows(report["waterfall"])) out += fmt::format("| {} |\n", fmt::join(row, " | "));
  out +=
      "\nThe worst rows:\n\n| row | model | GPUs | measured | predicted | error |\n| --- | --- | --- | --: | --: | --: "
      "|\n";
  for (const json* its : by_size(report["results"], worst))
    out += fmt::format("| {} | {} | {} {} | {} | {} | {} |\n", (*its)["id"].get<std::string>(),
                       (*its)["model"].get<std::string>(), (*its)["gpus"].get<std::int64_t>(),
                       (*its)["gpu"].get<std::string>(), format_duration((*its)["measured_s"]),
                       format_duration((*its)["predicted_s"]), percent((*its)["error"]));
  out += "\n| skipped, because | rows |\n| --- | --: |\n";
  for (const auto& [reason, count] : reasons_of(report)) out += fmt::format("| {} | {} |\n", reason, count);
  return out;
}

std::string accuracy_csv(const json& report) {
  std::vector<std::string> header{"id",   "source", "framework",  "model",       "gpu",
                                  "gpus", "stack",  "measured_s", "predicted_s", "error"};
  const std::size_t facts = header.size();
  for (int p = 0; p < kStepPartCount; ++p) header.emplace_back(std::string(to_string(static_cast<StepPart>(p))) + "_s");
  std::string out = csv_row(header);
  for (const json& its : report["results"]) {
    std::vector<std::string> row;
    for (std::size_t i = 0; i < facts; ++i) {
      const json& value = its[header[i]];
      row.push_back(value.is_string() ? value.get<std::string>() : csv_number(value.get<double>()));
    }
    for (int p = 0; p < kStepPartCount; ++p)
      row.push_back(csv_number(its["parts"].value(to_string(static_cast<StepPart>(p)), 0.0)));
    out += csv_row(row);
  }
  return out;
}

std::string accuracy_svg(const json& report) {
  std::map<std::string, Line> lines;
  for (const json& its : report["results"]) {
    Line& line = lines[its["gpu"]];
    line.name = its["gpu"];
    line.points_only = true;
    line.x.push_back(its["measured_s"]);
    line.y.push_back(100 * its["error"].get<double>());
  }
  Panel panel{"", {"measured seconds a step", true, {}, {}}, {"error of the prediction, %", false, -60, 60}, {}};
  for (auto& [gpu, line] : lines) panel.lines.push_back(std::move(line));
  return chart_svg("Predicted against published", {panel}, 1);
}

}  // namespace trainyard::cli
