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
  bool batches = false;
  for (const Item& item : stage.items) {
    batches |= !item.transfers.empty() && item.stream == Stream::Pp;
    for (const Transfer& transfer : item.transfers) {
      if (item.stream == Stream::Pp) continue;
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
    const bool known = std::any_of(out.teams.begin(), out.teams.end(), [&](const Team& other) {
      return other.stream == team.stream && other.ranks == team.ranks;
    });
    if (team.ranks.size() > 1 && !known) out.teams.push_back(std::move(team));
  }
  if (batches) {
    Team stages;
    Coordinates at = mesh.coordinates(rank);
    for (at.pp = 0; at.pp < program.plan.pp; ++at.pp) stages.ranks.push_back(mesh.rank(at));
    stages.me = index(mesh.coordinates(rank).pp);
    stages.stream = Stream::Pp;
    out.teams.push_back(std::move(stages));
  }
  out.channels.assign(channels.begin(), channels.end());
  return out;
}

}  // namespace trainyard::exec
