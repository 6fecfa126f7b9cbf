// trainyard run merge: the stores of shards as one.

#include <iostream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "models/base/units.h"
#include "store/merge.h"

namespace trainyard::cli {

namespace {

struct Options {
  std::vector<std::string> files;
  std::string out;
};

int merge(const Options& options, const Context& context) {
  const Result<store::MergeCounts> merged = store::merge(options.files, options.out);
  if (!merged) return fail(merged.problems(), context);
  const store::MergeCounts& counts = merged.value();
  if (context.json) {
    std::cout << nlohmann::ordered_json{{"store", options.out},
                                        {"runs", counts.runs},
                                        {"sweeps", counts.sweeps},
                                        {"cells", counts.cells},
                                        {"runs_again", counts.runs_again},
                                        {"cells_again", counts.cells_again}}
                     .dump(2)
              << "\n";
    return kOk;
  }
  const auto again = [](std::int64_t count) {
    return count > 0 ? fmt::format(" ({} more than once)", format_count(count)) : "";
  };
  std::cout << fmt::format("{}: {} runs{}, {} sweeps with {} cells{}\n", options.out, format_count(counts.runs),
                           again(counts.runs_again), format_count(counts.sweeps), format_count(counts.cells),
                           again(counts.cells_again));
  return kOk;
}

}  // namespace

void add_run_merge(CLI::App& run, Context& context) {
  CLI::App* command = add_command(run, "merge", "Join stores, such as those of a sweep's shards, into a new one",
                                  "  trainyard run merge trainyard.shard-*.sqlite -o all.sqlite\n"
                                  "  trainyard --store all.sqlite run list");
  auto options = std::make_shared<Options>();
  command->add_option("stores", options->files, "Stores to join; they are only read")->required();
  command->add_option("-o,--output", options->out, "The new store")->required();
  command->callback([options, &context] { context.run = [options, &context] { return merge(*options, context); }; });
}

}  // namespace trainyard::cli
