#include "models/plan/replica_layout.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "models/plan/mesh.h"

namespace trainyard {

ReplicaLayout replica_layout(const ParallelPlan& plan, std::int64_t gpus_per_node) {
  const Mesh mesh(plan);
  // Data-parallel indices are put together until they fill whole nodes, and no expert group is split. The stages of one
  // index follow one another, or lie apart.
  const bool stages_together = plan.order == "tp-cp-ep-pp-dp";
  const std::int64_t block = plan.tp * plan.cp * (stages_together ? plan.pp : 1);
  const std::int64_t to_fill_nodes = gpus_per_node / std::gcd(gpus_per_node, block);
  const std::int64_t together = std::lcm(to_fill_nodes, std::max<std::int64_t>(1, plan.ep / plan.cp));
  ReplicaLayout layout;
  layout.hold_all = plan.zero_stage == 0;
  if (together >= plan.dp || plan.dp % together != 0) return layout;
  layout.replicas = plan.dp / together;
  for (std::int64_t replica = 0; replica < layout.replicas; ++replica) {
    std::set<std::int64_t> nodes;
    for (std::int64_t i = 0; i < together; ++i) {
      Coordinates at;
      at.dp = replica * together + i;
      for (at.pp = 0; at.pp < plan.pp; ++at.pp)
        for (at.cp = 0; at.cp < plan.cp; ++at.cp)
          for (at.tp = 0; at.tp < plan.tp; ++at.tp) nodes.insert(mesh.rank(at) / gpus_per_node);
    }
    layout.positions.insert(layout.positions.end(), nodes.begin(), nodes.end());
  }
  return layout;
}

}  // namespace trainyard
