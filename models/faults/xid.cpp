#include "models/faults/xid.h"

#include "models/faults/xid_table.h"

namespace trainyard::faults {

namespace {

constexpr bool numbered_from_one() {
  for (std::size_t i = 0; i < kXidTable.size(); ++i)
    if (kXidTable[i].xid != static_cast<int>(i) + 1) return false;
  return true;
}
static_assert(numbered_from_one(), "an XID is found by its number");

}  // namespace

const XidRow* find_xid(int xid) {
  if (xid < 1 || xid > static_cast<int>(kXids)) return nullptr;
  return &kXidTable[static_cast<std::size_t>(xid) - 1];
}

}  // namespace trainyard::faults
