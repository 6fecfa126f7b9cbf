#include "cli/job_identity.h"

#include <fstream>
#include <iterator>

#include <fmt/format.h>
#include <xxhash.h>

#include "cli/plan_lock.h"
#include "cli/version.h"

namespace trainyard::cli {

std::string short_hash(const std::string& text) {
  return fmt::format("{:016x}", XXH3_64bits(text.data(), text.size()));
}

std::string long_hash(const std::string& text) {
  const XXH128_hash_t value = XXH3_128bits(text.data(), text.size());
  return fmt::format("{:016x}{:016x}", value.high64, value.low64);
}

// A commit names the code only where the tree was clean.
std::string code_identity() {
  const std::string commit = commit_id();
  if (commit != "unknown" && commit.find("-dirty") == std::string::npos) return commit;
  std::ifstream program("/proc/self/exe", std::ios::binary);
  return commit + "/" + short_hash({std::istreambuf_iterator<char>(program), {}});
}

Result<nlohmann::ordered_json> job_identity(const Job& job) {
  const Result<PlanHashes> hashed = hash_plan(job.scenario, job.program, job.profiles);
  if (!hashed) return hashed.problems();
  const PlanHashes& hashes = hashed.value();
  return nlohmann::ordered_json{{"code", code_identity()},   {"model", hashes.model},     {"plan", hashes.plan},
                                {"program", hashes.program}, {"cluster", hashes.cluster}, {"hardware", hashes.hardware},
                                {"stack", hashes.stack}};
}

}  // namespace trainyard::cli
