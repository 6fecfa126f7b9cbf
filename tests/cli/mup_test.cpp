// trainyard mup, as a user runs it.
#include <catch2/catch.hpp>

#include <cmath>

#include <nlohmann/json.hpp>

#include "tests/cli/yard.h"

using namespace trainyard::test;
namespace fs = std::filesystem;

namespace {

std::string text_of(const std::string& file) {
  std::ifstream in(file);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::size_t count(const std::string& text, const std::string& what) {
  std::size_t n = 0;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

constexpr char kJob[] = "scenarios/tiny/mup-llama.json";

}  // namespace

TEST_CASE("activations keep their size over widths under muP, and only there", "[cli]") {
  const Yard yard;
  const std::string job = GENERATE(as<std::string>{}, "mup-llama.json", "mup-grok1.json");
  const std::string picture = yard.file("check.svg", "");
  const Outcome outcome = yard.run("mup check scenarios/tiny/" + job +
                                   " --widths 32,64,128 --steps 3 --seeds 3 --json -o '" + picture + "'");
  INFO(job << outcome.err);
  REQUIRE(outcome.code == 0);
  const auto report = nlohmann::json::parse(outcome.out);
  CHECK(report["muP"]["flat"] == true);
  CHECK(report["standard"]["flat"] == false);
  for (const char* kind : {"embedding", "attention", "MLP", "logits"}) {
    INFO(kind);
    const auto& steps = report["muP"]["activations"][kind]["mean_magnitude"];
    REQUIRE(steps.size() == 4);
    CHECK(steps[3][0] > 0);
    CHECK(steps[3].size() == 3);
  }
  const std::string svg = text_of(picture);
  CHECK(svg.rfind("<svg", 0) == 0);
  CHECK(count(svg, "<path") == 2 * 4 * 4);  // parametrizations, activations, steps
  CHECK(contains(svg, "muP: logits"));
}

TEST_CASE("a sweep of the learning rate says which was best at each width", "[cli]") {
  const Yard yard;
  const std::string picture = yard.file("transfer.svg", "");
  const std::string command =
      std::string("mup transfer ") + kJob + " --widths 32,64 --rates=-9,-5 --steps 8 --json -o '" + picture + "'";
  const Outcome outcome = yard.run(command);
  INFO(outcome.err);
  REQUIRE(outcome.code == 0);
  const auto report = nlohmann::json::parse(outcome.out);
  CHECK(report["log2_rates"] == nlohmann::json({-9, -8, -7, -6, -5}));
  for (const char* name : {"standard", "muP"}) {
    INFO(name);
    const auto& its = report[name];
    double low = 0, high = -100;
    for (std::size_t w = 0; w < 2; ++w) {
      const auto losses = its["losses"][w].get<std::vector<double>>();
      REQUIRE(losses.size() == 5);
      const auto best = std::min_element(losses.begin(), losses.end());
      CHECK(its["best"][w]["loss"] == *best);
      CHECK(its["best"][w]["log2_rate"] == -9 + (best - losses.begin()));
      CHECK(*best < std::log(256));  // it has learnt something
      low = std::min<double>(low, its["best"][w]["log2_rate"]);
      high = std::max<double>(high, its["best"][w]["log2_rate"]);
    }
    CHECK(its["drift_octaves"] == high - low);
  }
  // At the base both are trained at the same rates, from different readouts.
  CHECK(report["standard"]["losses"][0] != report["muP"]["losses"][0]);
  CHECK(count(text_of(picture), "<path") == 2 * 2);
  CHECK(yard.run(command).out == outcome.out);
}

TEST_CASE("widths that no model has are refused", "[cli]") {
  const Yard yard;
  const std::string check = std::string("mup check ") + kJob + " -o /dev/null ";
  for (const auto& [arguments, what] : std::vector<std::pair<std::string, std::string>>{
           {"--widths 32,40", "40"}, {"--widths 64", "two or more"}, {"--data nowhere.txt", "nowhere.txt"}}) {
    const Outcome outcome = yard.run(check + arguments);
    INFO(arguments << ": " << outcome.err);
    CHECK(outcome.code == 2);
    CHECK(contains(outcome.err, what));
  }
  const Outcome backwards = yard.run(std::string("mup transfer ") + kJob + " --rates=-3,-9 -o /dev/null");
  CHECK(backwards.code == 2);
  CHECK(contains(backwards.err, "--rates"));
}
