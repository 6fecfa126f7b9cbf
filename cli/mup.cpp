// trainyard mup: whether a model keeps its hyperparameters as it grows wider, by what its activations do, and by what
// it learns.

#include <algorithm>
#include <cmath>
#include <iostream>
#include <limits>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/chart.h"
#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/interrupt.h"
#include "cli/output_file.h"
#include "cli/preflight.h"
#include "cli/terminal.h"
#include "cli/version.h"
#include "exec/coordinate_check.h"
#include "exec/launcher.h"
#include "models/base/stop.h"
#include "models/spec/scenario.h"
#include "models/spec/widened.h"

namespace trainyard::cli {

namespace {

using json = nlohmann::ordered_json;

constexpr std::array<Parametrization, 2> kBoth{Parametrization::Standard, Parametrization::Mup};

struct Options {
  std::string job, data, picture;
  std::vector<std::int64_t> widths;  // empty: 1, 2, 4 and 8 times the job's
  std::int64_t steps = 0, seeds = 1;
  std::vector<double> rates{-12, -3};  // log2 of the learning rate, from and to
};

const char* name_of(Parametrization parametrization) {
  return parametrization == Parametrization::Mup ? "muP" : "standard";
}

// --- the job, at every width

struct Sweep {
  Scenario scenario;
  exec::Corpus corpus;
  std::vector<std::int64_t> widths;

  // The model is one of those that load_sweep has seen to be sound.
  [[nodiscard]] ModelSpec model(std::int64_t width, Parametrization parametrization) const {
    return widened(scenario.model, width, parametrization).value();
  }
};

Problems check_width(const Options& options, const Sweep& sweep, std::int64_t width) {
  const Result<ModelSpec> model = widened(sweep.scenario.model, width, Parametrization::Mup);
  Problems problems = model ? validate(model.value(), "--widths") : model.problems();
  if (problems.empty()) problems = validate(sweep.scenario.plan, model.value(), nullptr, "$.plan");
  if (problems.empty()) {
    Scenario wide = sweep.scenario;
    wide.model = model.value();
    problems = check_training(options.job, wide, lower(wide.model, wide.plan), sweep.corpus, {});
  }
  for (Problem& problem : problems) {
    if (problem.file.empty()) problem.file = options.job;
    if (problem.path.empty()) problem.path = "--widths";
  }
  return problems;
}

Result<Sweep> load_sweep(const Options& options) {
  Result<Scenario> loaded = load_scenario(options.job);
  if (!loaded) return loaded.problems();
  Scenario scenario = std::move(loaded).value();
  if (!scenario.training) scenario.training.emplace();
  if (!options.data.empty()) scenario.training->data = options.data;
  scenario.training->steps = options.steps;
  scenario.training->checkpoint = {};
  if (scenario.training->data.empty())
    return Problem{options.job, "$.training", "", "is missing: the job does not say what it trains on",
                   R"(add "training": { "data": "FILE" }, or give --data)"};
  Result<exec::Corpus> corpus = exec::Corpus::open(scenario.training->data);
  if (!corpus) return corpus.problems();
  Sweep sweep{std::move(scenario), std::move(corpus).value(), options.widths};
  if (sweep.widths.empty()) {
    for (const std::int64_t times : {1, 2, 4, 8}) sweep.widths.push_back(times * sweep.scenario.model.hidden_size);
  }
  std::sort(sweep.widths.begin(), sweep.widths.end());
  sweep.widths.erase(std::unique(sweep.widths.begin(), sweep.widths.end()), sweep.widths.end());
  for (const std::int64_t width : sweep.widths) {
    const Problems problems = check_width(options, sweep, width);
    if (!problems.empty()) return problems;
  }
  return sweep;
}

// What both reports begin with.
json report_of(const Sweep& sweep, const Options& options) {
  return {{"model", sweep.scenario.model.name},
          {"commit", commit_id()},
          {"seed", sweep.scenario.seed},
          {"widths", sweep.widths},
          {"steps", options.steps},
          {"picture", options.picture}};
}

Problems draw(const Options& options, const std::string& title, const std::vector<Panel>& panels, std::size_t columns) {
  return write_output(options.picture, chart_svg(title, panels, columns));
}

// --- coordinate check

// By width, then by step.
using Coordinates = std::vector<std::vector<exec::Magnitudes>>;

// Activations that grow or fall by more than this power of the width are not those of one parametrization: a matrix
// that is scaled wrongly is off by half a power at the least.
constexpr double kFlat = 0.33;

// The power of the width by which y goes: the slope of a least-squares line through their logarithms. NaN where y is
// nought.
double power_of_width(const std::vector<std::int64_t>& widths, const std::vector<double>& y) {
  double n = 0, sx = 0, sy = 0, sxx = 0, sxy = 0;
  for (std::size_t i = 0; i < widths.size(); ++i) {
    const double lx = std::log2(static_cast<double>(widths[i])), ly = std::log2(y[i]);
    n += 1, sx += lx, sy += ly, sxx += lx * lx, sxy += lx * ly;
  }
  const double power = (n * sxy - sx * sy) / (n * sxx - sx * sx);
  return std::isfinite(power) ? power : std::numeric_limits<double>::quiet_NaN();
}

std::vector<double> over_widths(const Coordinates& coordinates, std::size_t step, std::size_t which) {
  std::vector<double> out;
  for (const auto& steps : coordinates) out.push_back(steps[step][which]);
  return out;
}

// Every activation once, and whole, in this process.
ParallelPlan on_one_rank(const ParallelPlan& plan) {
  ParallelPlan one;
  one.sequence_length = plan.sequence_length;
  one.global_batch = plan.global_batch;
  one.micro_batch = plan.micro_batch;
  one.precision = plan.precision;
  one.optimizer = plan.optimizer;
  one.optimizer.warmup_steps = 0;  // at the full rate from the first step: small steps would show nothing
  one.cpu_threads = plan.cpu_threads;
  return one;
}

Result<std::vector<Coordinates>> measure(const Sweep& sweep, const Options& options, const Context& context) {
  const std::size_t runs = 2 * sweep.widths.size() * static_cast<std::size_t>(options.seeds);
  Progress progress("mup check", runs, context.quiet ? "none" : context.progress);
  std::vector<Coordinates> both;
  for (const Parametrization parametrization : kBoth) {
    Coordinates& coordinates = both.emplace_back();
    for (const std::int64_t width : sweep.widths) {
      ModelSpec model = sweep.model(width, parametrization);
      // A readout that is not nought gives logits that fall with the root of the width until it has learnt: by design,
      // and not what is looked for.
      if (model.mup) model.mup->zero_readout = true;
      const StepProgram program = lower(model, on_one_rank(sweep.scenario.plan));
      std::vector<exec::Magnitudes>& means =
          coordinates.emplace_back(static_cast<std::size_t>(options.steps) + 1, exec::Magnitudes{});
      for (std::int64_t s = 0; s < options.seeds; ++s) {
        // The first step's are those of the initial weights, so one more than the optimizer's.
        const auto measured = exec::measure_coordinates(
            program, sweep.corpus, sweep.scenario.seed + static_cast<std::uint64_t>(s), options.steps + 1);
        if (!measured) return measured.problems();
        for (std::size_t step = 0; step < means.size(); ++step)
          for (std::size_t c = 0; c < exec::kCoordinateCount; ++c)
            means[step][c] += measured.value()[step][c] / static_cast<double>(options.seeds);
        progress.step();
      }
    }
  }
  return both;
}

json report_coordinates(const Sweep& sweep, const Options& options, const std::vector<Coordinates>& both) {
  json out = report_of(sweep, options);
  out["seeds"] = options.seeds;
  out["flat_within"] = kFlat;
  const auto last = static_cast<std::size_t>(options.steps);
  for (std::size_t p = 0; p < both.size(); ++p) {
    json kinds = json::object();
    bool flat = true;
    for (std::size_t c = 0; c < exec::kCoordinateCount; ++c) {
      json steps = json::array();
      for (std::size_t step = 0; step <= last; ++step) steps.push_back(over_widths(both[p], step, c));
      const double power = power_of_width(sweep.widths, over_widths(both[p], last, c));
      flat = flat && std::abs(power) <= kFlat;
      kinds[exec::to_string(static_cast<exec::Coordinate>(c))] = {{"mean_magnitude", steps}, {"power_of_width", power}};
    }
    out[name_of(kBoth[p])] = {{"flat", flat}, {"activations", kinds}};
  }
  return out;
}

std::vector<Panel> coordinate_panels(const Sweep& sweep, const Options& options, const std::vector<Coordinates>& both) {
  std::vector<Panel> panels;
  const std::vector<double> widths(sweep.widths.begin(), sweep.widths.end());
  for (std::size_t p = 0; p < both.size(); ++p) {
    for (std::size_t c = 0; c < exec::kCoordinateCount; ++c) {
      Panel panel{fmt::format("{}: {}", name_of(kBoth[p]), exec::to_string(static_cast<exec::Coordinate>(c))),
                  {"width", true, {}, {}},
                  {c == 0 ? "mean magnitude" : "", true, {}, {}},
                  {}};
      for (std::size_t step = 0; step <= static_cast<std::size_t>(options.steps); ++step)
        panel.lines.push_back({fmt::format("step {}", step), widths, over_widths(both[p], step, c), {}});
      panels.push_back(std::move(panel));
    }
  }
  // One range for both parametrizations, or neither could be seen to be steeper.
  for (std::size_t c = 0; c < exec::kCoordinateCount; ++c) {
    double low = std::numeric_limits<double>::infinity(), high = 0;
    for (const Panel* panel : {&panels[c], &panels[exec::kCoordinateCount + c]}) {
      for (const Line& line : panel->lines) {
        for (const double y : line.y) {
          if (y > 0) low = std::min(low, y), high = std::max(high, y);
        }
      }
    }
    for (Panel* panel : {&panels[c], &panels[exec::kCoordinateCount + c]})
      panel->y.min = low / 1.5, panel->y.max = high * 1.5;
  }
  return panels;
}

std::string coordinate_text(const json& report) {
  std::string out;
  const std::size_t last = report["steps"].get<std::size_t>();
  std::vector<std::string> header{fmt::format("mean |x| after {} steps", last)};
  for (const json& width : report["widths"]) header.push_back(fmt::format("width {}", width.get<std::int64_t>()));
  header.emplace_back("goes as");
  std::vector<std::vector<std::string>> rows;
  for (const Parametrization parametrization : kBoth) {
    for (const auto& [kind, values] : report[name_of(parametrization)]["activations"].items()) {
      std::vector<std::string> row{fmt::format("{}: {}", name_of(parametrization), kind)};
      for (const json& value : values["mean_magnitude"][last])
        row.push_back(fmt::format("{:.4g}", value.get<double>()));
      row.push_back(fmt::format("width^{:.2f}", values["power_of_width"].get<double>()));
      rows.push_back(std::move(row));
    }
  }
  out = table(header, rows, 0);
  for (const Parametrization parametrization : kBoth)
    out += fmt::format("{}: {}\n", name_of(parametrization),
                       report[name_of(parametrization)]["flat"] ? "activations keep their size as the model grows"
                                                                : "activations change their size as the model grows");
  return out + "drawn in " + report["picture"].get<std::string>() + "\n";
}

int check_coordinates(const Options& options, const Context& context) {
  end_in_order_on_signals();
  const Result<Sweep> sweep = load_sweep(options);
  if (!sweep) return fail(sweep.problems(), context);
  if (sweep.value().widths.front() == sweep.value().widths.back())
    return fail({{options.job, "--widths", "", "one width shows nothing", "give two or more"}}, context);
  const Result<std::vector<Coordinates>> both = measure(sweep.value(), options, context);
  if (!both) return fail(both.problems(), context);
  const json report = report_coordinates(sweep.value(), options, both.value());
  const Problems problems = draw(options, "Coordinate check of " + sweep.value().scenario.model.name,
                                 coordinate_panels(sweep.value(), options, both.value()), exec::kCoordinateCount);
  if (!problems.empty()) return fail(problems, context);
  std::cout << (context.json ? report.dump(2) + "\n" : coordinate_text(report));
  return report["muP"]["flat"] ? kOk : kInfeasible;
}

// --- transfer of the learning rate

constexpr double kTail = 0.1;  // of the steps, over which the last loss is a mean

// By width, then by rate; infinite where training diverged.
using Losses = std::vector<std::vector<double>>;

std::vector<double> log2_rates(const Options& options) {
  std::vector<double> out;
  for (double rate = options.rates[0]; rate <= options.rates[1] + 1e-9; ++rate) out.push_back(rate);
  return out;
}

std::size_t best_of(const std::vector<double>& losses) {
  return static_cast<std::size_t>(std::min_element(losses.begin(), losses.end()) - losses.begin());
}

// The plan's schedule at another rate.
void set_rate(OptimizerSpec& optimizer, double rate) {
  optimizer.min_learning_rate *= rate / optimizer.learning_rate;
  optimizer.learning_rate = rate;
}

Result<double> loss_of(const Sweep& sweep, const ModelSpec& model, double rate, std::uint64_t seed,
                       Progress& progress) {
  ParallelPlan plan = sweep.scenario.plan;
  set_rate(plan.optimizer, rate);
  const StepProgram program = lower(model, plan);
  exec::TrainingJob job;
  job.program = &program;
  job.corpus = &sweep.corpus;
  job.training = *sweep.scenario.training;
  job.seed = seed;
  exec::TrainingEvents events;
  events.on_wait = [&] { progress.tick(); };
  const Result<exec::TrainingReport> report = exec::train(job, events);
  if (!report) return report.problems();
  const std::vector<exec::StepReport>& steps = report.value().steps;
  if (!steps.empty() && !std::isfinite(steps.back().loss)) return std::numeric_limits<double>::infinity();
  if (!report.value().problems.empty()) return report.value().problems;
  const auto tail = std::max<std::size_t>(static_cast<std::size_t>(kTail * static_cast<double>(steps.size())), 1);
  double sum = 0;
  for (std::size_t i = steps.size() - tail; i < steps.size(); ++i) sum += steps[i].loss;
  const double loss = sum / static_cast<double>(tail);
  return std::isfinite(loss) ? loss : std::numeric_limits<double>::infinity();
}

Result<std::vector<Losses>> train_all(const Sweep& sweep, const Options& options, const Context& context) {
  const std::vector<double> rates = log2_rates(options);
  const std::size_t runs = 2 * sweep.widths.size() * rates.size() * static_cast<std::size_t>(options.seeds);
  Progress progress("mup transfer", runs, context.quiet ? "none" : context.progress);
  std::vector<Losses> both;
  for (const Parametrization parametrization : kBoth) {
    Losses& losses = both.emplace_back();
    for (const std::int64_t width : sweep.widths) {
      const ModelSpec model = sweep.model(width, parametrization);
      losses.emplace_back();
      for (const double rate : rates) {
        double sum = 0;
        for (std::int64_t s = 0; s < options.seeds; ++s) {
          const Result<double> loss =
              loss_of(sweep, model, std::exp2(rate), sweep.scenario.seed + static_cast<std::uint64_t>(s), progress);
          if (!loss) return loss.problems();
          sum += loss.value();
          progress.step();
        }
        losses.back().push_back(sum / static_cast<double>(options.seeds));
      }
    }
  }
  return both;
}

json report_transfer(const Sweep& sweep, const Options& options, const std::vector<Losses>& both) {
  const std::vector<double> rates = log2_rates(options);
  json out = report_of(sweep, options);
  out["seeds"] = options.seeds;
  out["log2_rates"] = rates;
  for (std::size_t p = 0; p < both.size(); ++p) {
    json best = json::array();
    std::vector<double> best_rates;
    bool at_edge = false;
    for (const std::vector<double>& losses : both[p]) {
      const std::size_t i = best_of(losses);
      best_rates.push_back(rates[i]);
      at_edge = at_edge || i == 0 || i + 1 == rates.size();
      best.push_back({{"log2_rate", rates[i]}, {"loss", losses[i]}});
    }
    const auto [low, high] = std::minmax_element(best_rates.begin(), best_rates.end());
    out[name_of(kBoth[p])] = {
        {"best", best}, {"drift_octaves", *high - *low}, {"at_edge", at_edge}, {"losses", both[p]}};
  }
  return out;
}

std::vector<Panel> transfer_panels(const Sweep& sweep, const Options& options, const std::vector<Losses>& both) {
  double low = std::numeric_limits<double>::infinity(), high = low;
  std::vector<double> rates;
  for (const double rate : log2_rates(options)) rates.push_back(std::exp2(rate));
  for (const Losses& losses : both) {
    for (const std::vector<double>& of_width : losses) {
      low = std::min(low, of_width[best_of(of_width)]);
      high = std::min(high, *std::max_element(of_width.begin(), of_width.end()));
    }
  }
  // What learns nothing goes through the roof.
  const double room = 0.05 * std::max(high - low, 0.1);
  std::vector<Panel> panels;
  for (std::size_t p = 0; p < both.size(); ++p) {
    Panel panel{name_of(kBoth[p]),
                {"learning rate", true, {}, {}},
                {p == 0 ? fmt::format("loss after {} steps", options.steps) : "", false, low - room, high + room},
                {}};
    for (std::size_t w = 0; w < sweep.widths.size(); ++w)
      panel.lines.push_back({fmt::format("width {}", sweep.widths[w]), rates, both[p][w], best_of(both[p][w])});
    panels.push_back(std::move(panel));
  }
  return panels;
}

std::string transfer_text(const json& report) {
  std::vector<std::string> header{"best learning rate"};
  for (const json& width : report["widths"]) header.push_back(fmt::format("width {}", width.get<std::int64_t>()));
  header.emplace_back("drift");
  std::vector<std::vector<std::string>> rows;
  bool at_edge = false;
  for (const Parametrization parametrization : kBoth) {
    const json& its = report[name_of(parametrization)];
    std::vector<std::string> row{name_of(parametrization)}, losses{"  loss there"};
    for (const json& best : its["best"]) {
      row.push_back(fmt::format("2^{:g}", best["log2_rate"].get<double>()));
      losses.push_back(fmt::format("{:.3f}", best["loss"].get<double>()));
    }
    row.push_back(fmt::format("{:g} octaves", its["drift_octaves"].get<double>()));
    rows.insert(rows.end(), {row, losses});
    at_edge = at_edge || its["at_edge"];
  }
  std::string out = table(header, rows, 0);
  if (at_edge) out += "a best rate lies at the edge of the sweep: the true one may be further out (--rates)\n";
  return out + "drawn in " + report["picture"].get<std::string>() + "\n";
}

int transfer(const Options& options, const Context& context) {
  end_in_order_on_signals();
  if (options.rates[0] >= options.rates[1])
    return fail({{options.job, "--rates", fmt::format("{:g},{:g}", options.rates[0], options.rates[1]),
                  "the first is not below the last", "for example --rates=-12,-3"}},
                context);
  const Result<Sweep> sweep = load_sweep(options);
  if (!sweep) return fail(sweep.problems(), context);
  const Result<std::vector<Losses>> both = train_all(sweep.value(), options, context);
  if (!both) return fail(both.problems(), context);
  const json report = report_transfer(sweep.value(), options, both.value());
  const Problems problems = draw(options, "Learning rate and width, " + sweep.value().scenario.model.name,
                                 transfer_panels(sweep.value(), options, both.value()), 2);
  if (!problems.empty()) return fail(problems, context);
  std::cout << (context.json ? report.dump(2) + "\n" : transfer_text(report));
  return kOk;
}

std::shared_ptr<Options> add_options(CLI::App& command, std::int64_t steps, std::int64_t seeds, const char* picture) {
  auto options = std::make_shared<Options>();
  options->steps = steps;
  options->seeds = seeds;
  options->picture = picture;
  command.add_option("job", options->job, "Scenario file with a \"training\" part; its model is the narrowest")
      ->required();
  command.add_option("--widths", options->widths, "Values of hidden_size (default: 1, 2, 4 and 8 times the job's)")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20));
  command.add_option("--steps", options->steps, "Optimizer steps of each run")
      ->capture_default_str()
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 40));
  command.add_option("--seeds", options->seeds, "Seeds over which each value is a mean")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  command.add_option("--data", options->data, "Text to train on, instead of the job's");
  command.add_option("-o,--output", options->picture, "The picture, as SVG")->capture_default_str();
  return options;
}

}  // namespace

void add_mup(CLI::App& app, Context& context) {
  CLI::App* mup = add_command(app, "mup", "Check that hyperparameters carry over to wider models (muP)",
                              "  trainyard mup check scenarios/tiny/mup-llama.json\n"
                              "  trainyard mup transfer scenarios/tiny/mup-llama.json");
  mup->require_subcommand(1);
  CLI::App* check = add_command(*mup, "check", "Coordinate check: do activations keep their size over widths?",
                                "  trainyard mup check scenarios/tiny/mup-llama.json\n"
                                "  trainyard mup check job.json --widths 64,128,256,512 --steps 8 -o check.svg");
  const auto checked = add_options(*check, 4, 5, "mup-check.svg");
  check->callback(
      [checked, &context] { context.run = [checked, &context] { return check_coordinates(*checked, context); }; });
  CLI::App* sweep = add_command(*mup, "transfer", "Sweep the learning rate over widths: does its best value stay?",
                                "  trainyard mup transfer scenarios/tiny/mup-llama.json\n"
                                "  trainyard mup transfer job.json --widths 64,128 --rates=-10,-4 --steps 100");
  const auto swept = add_options(*sweep, 200, 1, "mup-transfer.svg");
  sweep->add_option("--rates", swept->rates, "log2 of the learning rate: first and last, an octave apart")
      ->delimiter(',')
      ->expected(2)
      ->capture_default_str()
      ->check(CLI::Range(-40.0, 10.0));
  sweep->callback([swept, &context] { context.run = [swept, &context] { return transfer(*swept, context); }; });
}

}  // namespace trainyard::cli
