#include "exec/device_teams.h"

#include <algorithm>
#include <set>
#include <utility>

#include "models/base/index.h"
#include "models/plan/mesh.h"

namespace trainyard::exec {

DeviceTeams device_teams(const StepProgram& program, std::int64_t rank) {
  const Mesh mesh(program.plan);
  const StageProgram& stage = program.stages[index(mesh.coordinates(rank).pp)];
  std::set<std::pair<Group, Stream>> used;
  std::set<MessageChannel> channels;
  for (const Item& item : stage.items) {
    for (const Transfer& transfer : item.transfers) {
      Coordinates peer = mesh.coordinates(rank);
      peer.pp = transfer.peer_stage;
      const std::int64_t other = mesh.rank(peer);
      channels.insert({transfer.send ? rank : other, transfer.send ? other : rank, transfer.backward});
    }
    if (item.block < 0) continue;
    for (const Op& op : program.block(item).ops) {
      if (is_communication(op.kind)) used.insert({op.group, op.stream});
    }
  }
  DeviceTeams out;
  // A group's teams have no rank in common, so ranks that go through groups in one order meet in one order.
  for (const auto& [group, stream] : used) {
    Team team{mesh.members(group, rank), index(mesh.group_index(group, rank)), stream};
    if (team.ranks.size() > 1) out.teams.push_back(std::move(team));
  }
  out.channels.assign(channels.begin(), channels.end());
  return out;
}

}  // namespace trainyard::exec
