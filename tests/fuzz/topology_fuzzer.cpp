// Coverage-guided fuzzing of what reads NCCL's topology files: whatever the bytes, a cluster that is valid or a
// problem.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "models/base/check.h"
#include "models/spec/nccl_topology.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace trainyard;
  const Result<ClusterSpec> cluster =
      parse_nccl_topology({reinterpret_cast<const char*>(data), size}, "topology.xml", 16);
  if (!cluster) {
    for (const Problem& problem : cluster.problems())
      TY_CHECK(!problem.rule.empty() && !problem.fix.empty(), "a problem says what rule it breaks, and what to do");
    return 0;
  }
  TY_CHECK(validate(cluster.value()).empty(), "a cluster that is read is valid");
  TY_CHECK(std::isfinite(cluster.value().nic_bytes_per_s) && cluster.value().nic_bytes_per_s > 0, "NICs have a speed");
  TY_CHECK(!cluster_file_text(cluster.value(), "topology.xml").empty(), "it can be written");
  return 0;
}
