// A small job for the launcher: a tiny model over a text of its own.
#pragma once

#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "exec/launcher.h"
#include "models/base/random.h"
#include "tests/program/tiny_models.h"
#include "tests/store/temp_dir.h"

namespace trainyard::test {

/// The tiny model of a family with room for bytes.
inline ModelSpec byte_model(ModelFamily family) {
  ModelSpec model = tiny_model(family);
  model.vocab_size = 256;
  return model;
}

class TextFile {
 public:
  explicit TextFile(std::int64_t bytes = 4000) {
    RandomStream random(3, "text");
    std::ofstream out(dir_.file("text"));
    for (std::int64_t i = 0; i < bytes; ++i) out << static_cast<char>('a' + random.below(5) * random.below(4));
  }
  [[nodiscard]] std::string path() const { return dir_.file("text"); }

 private:
  TempDir dir_;
};

/// Losses of steps of a job; throws when it fails.
inline std::vector<double> losses(const exec::TrainingReport& report) {
  if (!report.problems.empty()) throw std::runtime_error(to_string(report.problems.front()));
  std::vector<double> out;
  for (const exec::StepReport& step : report.steps) out.push_back(step.loss);
  return out;
}

/// Trains from `resume` (or from the beginning) up to `steps`.
inline exec::TrainingReport train_job(const StepProgram& program, const exec::Corpus& corpus, std::int64_t steps,
                                      const CheckpointSpec& checkpoint = {}, const exec::SavedState* resume = nullptr,
                                      const exec::TrainingEvents& events = {}) {
  exec::TrainingJob job;
  job.program = &program;
  job.corpus = &corpus;
  job.training.steps = steps;
  job.training.checkpoint = checkpoint;
  job.seed = 11;
  job.resume = resume;
  Result<exec::TrainingReport> report = exec::train(job, events);
  if (!report) throw std::runtime_error(to_string(report.problems().front()));
  return std::move(report).value();
}

}  // namespace trainyard::test
