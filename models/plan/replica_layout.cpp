#include "models/plan/replica_layout.h"

#include <numeric>
#include <set>

#include "models/plan/mesh.h"

namespace trainyard {

ReplicaLayout replica_layout(const ParallelPlan& plan, std::int64_t gpus_per_node) {
  const Mesh mesh(plan);
  // Data-parallel indices are put together until they fill whole nodes, and neither an expert group nor a copy of the
  // state is split. A copy that all of them share is: what is left of them shards anew. The stages of one index follow
  // one another, or lie apart.
  const bool stages_together = plan.order == "tp-cp-ep-pp-dp";
  const std::int64_t block = plan.tp * plan.cp * (stages_together ? plan.pp : 1);
  const std::int64_t to_fill_nodes = gpus_per_node / std::gcd(gpus_per_node, block);
  // Indices that hold whole blocks of so many context and data parallel ranks.
  const auto to_hold = [&](std::int64_t ranks) { return ranks / std::gcd(ranks, plan.cp); };
  std::int64_t together = std::lcm(to_fill_nodes, to_hold(plan.ep));
  ReplicaLayout layout;
  layout.hold_all = true;
  for (const Group group : {Group::DpCp, Group::Edp}) {
    const Group shards = sharding(plan, group).shards;
    const std::int64_t stride = group == Group::Edp ? plan.ep : 1;
    if (shards == group) {
      layout.hold_all = false;
    } else {
      together = std::lcm(together, to_hold(mesh.group_size(shards) * stride));
    }
  }
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
