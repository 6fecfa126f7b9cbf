// XIDs: what NVIDIA's driver logs of a GPU in trouble, and what NVIDIA says to do about each.
#pragma once

#include <cstddef>
#include <string_view>

namespace trainyard::faults {

struct XidRow {
  int xid = 0;
  std::string_view mnemonic;
  /// NVIDIA's buckets, such as IGNORE, RESTART_APP, RESET_GPU, CONTACT_SUPPORT; empty where the catalogue has none.
  std::string_view immediate;
  std::string_view investigatory;
};

/// XIDs 1 to 172, none missing.
inline constexpr std::size_t kXids = 172;

/// The row of an XID; null where the catalogue has none. Source: NVIDIA XID catalogue, 2025-10-29.
const XidRow* find_xid(int xid);

}  // namespace trainyard::faults
