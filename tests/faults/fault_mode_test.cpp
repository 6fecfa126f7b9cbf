#include "models/faults/fault_mode.h"

#include <catch2/catch.hpp>

#include <set>
#include <string>

#include "models/faults/xid.h"

using namespace trainyard;
using namespace trainyard::faults;

namespace {

FaultScope coarse(ModeScope scope) {
  switch (scope) {
    case ModeScope::Gpu: return FaultScope::Gpu;
    case ModeScope::Node: return FaultScope::Node;
    case ModeScope::Network:
    case ModeScope::Leaf: return FaultScope::Network;
    case ModeScope::Storage:
    case ModeScope::Job: return FaultScope::Job;
  }
  return FaultScope::Job;
}

}  // namespace

TEST_CASE("The catalogue is whole and consistent") {
  std::set<std::string> names;
  for (const ModeRow& row : fault_modes()) {
    INFO(to_string(row.mode));
    CHECK(names.insert(to_string(row.mode)).second);
    CHECK(coarse(row.scope) == scope_of(row.mode));
    CHECK_FALSE(row.source.empty());
    const bool slows = row.effect == Effect::Slows;
    CHECK(slows == (row.slowdown_most > 1 || row.loss_most > 0));
    CHECK(row.loss_least <= row.loss_most);
    CHECK(row.slowdown_least <= row.slowdown_most);
    CHECK((row.mend == Mend::Itself) == (row.lasts.median_s > 0));
    // What is mended by a machine or a human takes time; a process restart takes what the policy says.
    if (row.mend != Mend::Itself && row.mend != Mend::ProcessRestart) CHECK(row.mends.median_s > 0);
  }
  CHECK(names.size() == kFaultModes);
}

TEST_CASE("Symptom profiles are made of probabilities and known XIDs") {
  for (const ModeRow& row : fault_modes()) {
    INFO(to_string(row.mode));
    const SymptomProfile& shows = row.shows;
    for (const double p : {shows.silent, shows.xid, shows.heartbeat, shows.peer_error, shows.names_victim,
                           shows.names_other, shows.link_event, shows.straggling, shows.hash_mismatch})
      CHECK((p >= 0 && p <= 1));
    CHECK(shows.names_victim + shows.names_other <= 1);
    double weight = 0;
    for (const XidWeight& entry : shows.xids) {
      weight += entry.weight;
      if (entry.weight > 0) CHECK(find_xid(entry.xid) != nullptr);
    }
    CHECK((shows.xid > 0) == (weight > 0));
    // A fault that is not silent has something to show.
    if (shows.silent < 1) CHECK(shows.xid + shows.heartbeat + shows.link_event + shows.peer_error > 0);
  }
}

TEST_CASE("A cause without a mode gets one of its scope") {
  for (const FaultScope scope : {FaultScope::Gpu, FaultScope::Node, FaultScope::Network, FaultScope::Job})
    CHECK(scope_of(default_mode(scope)) == scope);
}
