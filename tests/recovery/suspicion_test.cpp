#include "models/recovery/suspicion.h"

#include <catch2/catch.hpp>

using namespace trainyard::recovery;

namespace {

CommunicatorError complaint(NodeId reporter, std::optional<NodeId> suspect) { return {1, reporter, suspect, 0}; }

}  // namespace

TEST_CASE("Direct evidence outweighs any number of complaints") {
  Suspicion suspicion;
  for (NodeId reporter = 10; reporter < 20; ++reporter) suspicion.accuse(complaint(reporter, 3));
  CHECK(suspicion.blame(4));
  CHECK_FALSE(suspicion.blame(4));
  CHECK(suspicion.verdict() == std::vector<NodeId>{4});
}

TEST_CASE("Without direct evidence the node that most reporters name is blamed") {
  Suspicion suspicion;
  suspicion.accuse(complaint(1, 5));
  suspicion.accuse(complaint(2, 5));
  for (int repeat = 0; repeat < 10; ++repeat) suspicion.accuse(complaint(3, 6));
  CHECK(suspicion.verdict() == std::vector<NodeId>{5});
  suspicion.accuse(complaint(4, 6));
  CHECK(suspicion.verdict() == std::vector<NodeId>{5, 6});
}

TEST_CASE("Nobody named, nobody blamed") {
  Suspicion suspicion;
  suspicion.accuse(complaint(1, std::nullopt));
  suspicion.accuse(complaint(2, 2));  // a reporter cannot name itself
  CHECK(suspicion.verdict().empty());
  suspicion.blame(3);
  suspicion.forget(3);
  CHECK(suspicion.verdict().empty());
}

TEST_CASE("XIDs mean what NVIDIA's catalogue says") {
  CHECK(xid_meaning(43) == XidMeaning::Harmless);
  CHECK(xid_meaning(63) == XidMeaning::Harmless);
  CHECK(xid_meaning(13) == XidMeaning::RestartJob);
  CHECK(xid_meaning(31) == XidMeaning::RestartJob);
  CHECK(xid_meaning(94) == XidMeaning::RestartJob);
  for (const int xid : {48, 62, 64, 74, 79, 95, 119, 120, 140, 149, 9999}) {
    CAPTURE(xid);
    CHECK(xid_meaning(xid) == XidMeaning::BlameNode);
  }
}
