#include "models/faults/xid.h"

#include <catch2/catch.hpp>

#include <map>
#include <string>

#include "models/recovery/suspicion.h"

using namespace trainyard;
using faults::find_xid;

TEST_CASE("The table holds NVIDIA's catalogue") {
  CHECK(find_xid(0) == nullptr);
  CHECK(find_xid(-1) == nullptr);
  CHECK(find_xid(173) == nullptr);
  CHECK(find_xid(79)->mnemonic == "ROBUST_CHANNEL_GPU_HAS_FALLEN_OFF_THE_BUS");
  CHECK(find_xid(79)->immediate == "RESTART_BM");
  CHECK(find_xid(31)->investigatory == "WORKFLOW_XID_31");
  std::map<std::string_view, int> actions;
  for (int xid = 1; xid <= static_cast<int>(faults::kXids); ++xid) {
    REQUIRE(find_xid(xid) != nullptr);
    CHECK_FALSE(find_xid(xid)->mnemonic.empty());
    ++actions[find_xid(xid)->immediate];
  }
  // As counted in the catalogue.
  CHECK(actions["CONTACT_SUPPORT"] == 62);
  CHECK(actions["RESTART_APP"] == 48);
  CHECK(actions["IGNORE"] == 21);
  CHECK(actions["RESET_GPU"] == 14);
  CHECK(actions["WORKFLOW_NVLINK5_ERR"] == 7);
  CHECK(actions[""] == 11);
}

// As models/recovery/suspicion.h documents it: IGNORE is harmless; RESTART_APP, 45 (which follows another error) and
// 159 restart the job; everything else blames the node.
TEST_CASE("The controller reads each XID as the catalogue means it") {
  for (int xid = 1; xid <= static_cast<int>(faults::kXids); ++xid) {
    const std::string_view action = find_xid(xid)->immediate;
    recovery::XidMeaning meaning = recovery::XidMeaning::BlameNode;
    if (action == "IGNORE") meaning = recovery::XidMeaning::Harmless;
    if (action == "RESTART_APP" || action == "WORKFLOW_XID_45" || action == "CHECK_UVM")
      meaning = recovery::XidMeaning::RestartJob;
    INFO(xid << " " << action);
    CHECK(recovery::xid_meaning(xid) == meaning);
  }
}
