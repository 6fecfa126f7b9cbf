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

// Another seed, text or batch changes which samples come: people do that, and should know, because checkpoints of what
// was are replaced by those of what is.
Problems changes(const exec::Manifest& then, const Scenario& scenario, const exec::Corpus& corpus,
                 const std::string& job_file) {
  Problems out;
  const auto compare = [&](const char* path, const auto& was, const auto& is) {
    if (was == is) return;
    out.push_back({job_file, path, fmt::format("{}", is),
                   fmt::format("was {} when the checkpoint of step {} was made", was, then.step),
                   "give the job a checkpoint folder of its own, or pass --changed to go on all the same"});
  };
  compare("$.seed", then.seed, scenario.seed);
  compare("$.plan.sequence_length", then.sequence_length, scenario.plan.sequence_length);
  compare("$.plan.global_batch_size", then.global_batch, scenario.plan.global_batch);
  compare("$.training.data", then.text, text_id(corpus));
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
                         const exec::Corpus& corpus, const std::string& from, bool changed) {
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
  if (own && !from.empty())
    start.notes.push_back(fmt::format("goes on from the job's own checkpoint of step {} in {}, not from {}",
                                      start.state->manifest().step, folder, from));
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
  const Problems others = changes(then, scenario, corpus, job_file);
  if (own && !changed && !others.empty()) return others;
  for (const Problem& other : others)
    start.notes.push_back(fmt::format("{} = {}: {}", other.path, other.value, other.rule));
  return start;
}

}  // namespace trainyard::cli
