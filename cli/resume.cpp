#include "cli/resume.h"

#include <xxhash.h>

#include <fmt/format.h>

#include "models/spec/hugging_face.h"

namespace trainyard::cli {

namespace {

// The newest sound checkpoint of the folder, if there is any; what is damaged is named and passed over.
Problems find_newest(const std::string& folder, Start& start) {
  Problems damaged;
  for (const std::string& checkpoint : exec::list_checkpoints(folder)) {
    Result<exec::SavedState> state = exec::SavedState::open(checkpoint);
    if (!state) {
      damaged.push_back(state.problems().front());
      continue;
    }
    for (const Problem& problem : damaged)
      start.notes.push_back("passed over a damaged checkpoint: " + to_string(problem));
    start.state.emplace(std::move(state).value());
    return {};
  }
  return damaged;  // never from the beginning without being told so
}

// What another seed, text or batch changes is the order of samples: people do that, and should know.
std::vector<std::string> changes(const exec::Manifest& then, const Scenario& scenario, const exec::Corpus& corpus) {
  std::vector<std::string> out;
  const auto compare = [&](const char* what, const auto& was, const auto& is) {
    if (was != is)
      out.push_back(fmt::format("the checkpoint was made with {} {}, and the job has {} now", what, was, is));
  };
  compare("seed", then.seed, scenario.seed);
  compare("sequences of", then.sequence_length, scenario.plan.sequence_length);
  compare("a global batch of", then.global_batch, scenario.plan.global_batch);
  compare("a text of", then.text, text_id(corpus));
  return out;
}

}  // namespace

std::string model_id(const ModelSpec& model) {
  ModelSpec nameless = model;
  nameless.name.clear();
  const std::string text = model_file_text(nameless);
  return fmt::format("{:016x}", XXH3_64bits(text.data(), text.size()));
}

std::string text_id(const exec::Corpus& corpus) {
  return fmt::format("{} bytes, checksum {:08x}", corpus.bytes(), corpus.checksum());
}

Result<Start> find_start(const std::string& job_file, const Scenario& scenario, const StepProgram& program,
                         const exec::Corpus& corpus, const std::string& from) {
  Start start;
  // The job's own checkpoints come before what it once started from.
  const std::string& folder = scenario.training->checkpoint.folder;
  Problems problems = folder.empty() ? Problems{} : find_newest(folder, start);
  if (!problems.empty()) return problems;
  const bool own = start.state.has_value();
  if (!own && !from.empty()) {
    Result<exec::SavedState> opened = exec::SavedState::open(from);
    if (!opened) return opened.problems();
    start.state.emplace(std::move(opened).value());
  }
  if (!start.state) return start;
  problems = start.state->fits(program);
  if (!problems.empty()) return problems;
  const exec::Manifest& then = start.state->manifest();
  if (!start.state->has_moments()) return start;
  if (then.model != model_id(scenario.model) && !then.model.empty()) {
    const std::string rule = fmt::format(
        "is not the model of the checkpoint of step {} in {}, though their weights have "
        "the same shapes",
        then.step, own ? folder : from);
    if (own)
      return Problem{job_file, "$.model", scenario.model.name, rule,
                     "give the job a checkpoint folder of its own, and the other's checkpoint with --from"};
    start.notes.push_back(fmt::format("{} {}", scenario.model.name, rule));
  }
  const std::vector<std::string> changed = changes(then, scenario, corpus);
  start.notes.insert(start.notes.end(), changed.begin(), changed.end());
  return start;
}

}  // namespace trainyard::cli
