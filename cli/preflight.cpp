#include "cli/preflight.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include <fmt/format.h>

#include "models/base/units.h"

namespace trainyard::cli {

namespace {

Problems check_text(const Scenario& scenario, const exec::Corpus& corpus) {
  const TrainingSpec& training = *scenario.training;
  Problems problems;
  if (scenario.model.vocab_size < exec::kByteVocabulary)
    problems.push_back({"", "$.model.vocab_size", std::to_string(scenario.model.vocab_size),
                        "text is trained on byte by byte, which takes a vocabulary of 256", "make it 256 or more"});
  if (corpus.windows(scenario.plan.sequence_length) < 1)
    problems.push_back({training.data, "", fmt::format("{} bytes", corpus.bytes()),
                        fmt::format("does not fill one sequence of {} tokens", scenario.plan.sequence_length),
                        "train on more text, or on shorter sequences"});
  return problems;
}

std::int64_t available_memory_bytes() {
  std::ifstream info("/proc/meminfo");
  std::string word;
  std::int64_t kib = 0;
  while (info >> word) {
    if (word == "MemAvailable:" && info >> kib) return kib * 1024;
  }
  return sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGE_SIZE);
}

// Rank r has the r-th GPU. Libraries need room of their own for what they work with.
Problems check_gpu_memory(const StepProgram& program, const std::vector<kernels::DeviceInfo>& gpus) {
  constexpr double kLibraryBytes = 1.5e9;
  const Mesh mesh(program.plan);
  for (std::int64_t rank = 0; rank < mesh.ranks(); ++rank) {
    const StageProgram& stage = program.stages[static_cast<std::size_t>(mesh.coordinates(rank).pp)];
    const kernels::DeviceInfo& gpu = gpus[static_cast<std::size_t>(rank)];
    const double wanted = static_cast<double>(stage.arena_bytes) + kLibraryBytes;
    if (wanted <= static_cast<double>(gpu.free_bytes)) continue;
    return {{"", "$.plan", format_bytes(wanted),
             fmt::format("is what rank {} allocates, and {} is free on GPU {}", rank,
                         format_bytes(static_cast<double>(gpu.free_bytes)), gpu.ordinal),
             "recompute more, use smaller micro-batches, or a smaller model", ProblemKind::Infeasible}};
  }
  return {};
}

// Ranks on GPUs begin with their weights and optimizer state on the host, and keep a copy of the latter to save it.
Problems check_staging_memory(const StepProgram& program) {
  const Mesh mesh(program.plan);
  double wanted = 0;
  for (std::int64_t rank = 0; rank < mesh.ranks(); ++rank) {
    const MemoryUse use = memory_use(program.stages[static_cast<std::size_t>(mesh.coordinates(rank).pp)]);
    for (const Role role : {Role::Params, Role::Optimizer})
      wanted += static_cast<double>(use.by_role[static_cast<std::size_t>(role)]);
  }
  const auto available = static_cast<double>(available_memory_bytes());
  if (wanted <= available) return {};
  return {{"", "$.plan", format_bytes(wanted),
           fmt::format("is what the {} ranks hold on the host while they start, and {} is free here", mesh.ranks(),
                       format_bytes(available)),
           "shard more of the optimizer, or use a smaller model", ProblemKind::Infeasible}};
}

// All ranks are on this machine. A snapshot of the optimizer state comes on top where there are checkpoints.
Problems check_memory(const StepProgram& program, bool saves) {
  const Mesh mesh(program.plan);
  double wanted = 0;
  for (std::int64_t rank = 0; rank < mesh.ranks(); ++rank) {
    const StageProgram& stage = program.stages[static_cast<std::size_t>(mesh.coordinates(rank).pp)];
    const MemoryUse use = memory_use(stage);
    wanted += static_cast<double>(stage.arena_bytes);
    if (saves) wanted += static_cast<double>(use.by_role[static_cast<std::size_t>(Role::Optimizer)]);
  }
  const auto available = static_cast<double>(available_memory_bytes());
  if (wanted <= available) return {};
  return {{"", "$.plan", format_bytes(wanted),
           fmt::format("is what the {} ranks allocate together, and {} is free here", mesh.ranks(),
                       format_bytes(available)),
           "recompute more, use smaller micro-batches, or a smaller model", ProblemKind::Infeasible}};
}

}  // namespace

Result<Preflight> check_lock(const std::string& job_file, std::string lock_file, const Scenario& scenario,
                             const StepProgram& program) {
  Preflight out;
  out.lock_file = lock_file.empty() ? lock_file_of(job_file) : std::move(lock_file);
  Result<std::optional<LockedPlan>> lock = read_lock(out.lock_file, job_file);
  if (!lock) return lock.problems();
  out.lock = std::move(lock).value();
  if (!out.lock) {
    std::error_code error;
    const bool exists = std::filesystem::exists(out.lock_file, error);
    return Problem{out.lock_file, exists ? "$.plans" : "", "",
                   exists ? fmt::format("has no entry for {}: its plan has not been validated", job_file)
                          : fmt::format("is not there: the plan of {} has not been validated", job_file),
                   fmt::format("run trainyard plan validate {}, or pass --unvalidated", job_file)};
  }
  const Result<ProfileFiles> profiles = find_profiles(scenario, job_file);
  if (!profiles) return profiles.problems();
  const Result<PlanHashes> now = hash_plan(scenario, program, profiles.value());
  if (!now) return now.problems();
  const Problems changed = changed_since(*out.lock, now.value(), job_file);
  if (!changed.empty()) return changed;
  out.notes = drift_since(*out.lock, now.value());
  const std::int64_t threads = scenario.plan.ranks() * scenario.plan.cpu_threads;
  const auto processors = static_cast<std::int64_t>(std::thread::hardware_concurrency());
  if (threads > processors)
    out.notes.push_back(
        fmt::format("{} ranks with {} threads each share {} processors: steps take longer than predicted",
                    scenario.plan.ranks(), scenario.plan.cpu_threads, processors));
  return out;
}

Problems check_training(const std::string& job_file, const Scenario& scenario, const StepProgram& program,
                        const exec::Corpus& corpus, const std::vector<kernels::DeviceInfo>& gpus) {
  Problems problems = check_text(scenario, corpus);
  if (problems.empty() && !gpus.empty()) problems = check_gpu_memory(program, gpus);
  if (problems.empty() && !gpus.empty()) problems = check_staging_memory(program);
  if (problems.empty() && gpus.empty()) problems = check_memory(program, !scenario.training->checkpoint.folder.empty());
  for (Problem& problem : problems) problem.file = problem.file.empty() ? job_file : problem.file;
  return problems;
}

}  // namespace trainyard::cli
