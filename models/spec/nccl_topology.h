// ClusterSpec of a node from the file that NCCL writes of it (NCCL_TOPO_DUMP_FILE; its format: nccl/src/graph/xml.cc).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "models/base/status.h"
#include "models/spec/cluster_spec.h"

namespace trainyard {

/// GPUs and NICs of the node, and what a NIC moves: its own speed, or that of the slowest PCIe link above it. NICs that
/// are slower than the fastest are taken for management. Rail-optimised where every GPU has a NIC of its own. Of the
/// fabric such a file says nothing: one switch. `nodes` of them.
Result<ClusterSpec> load_nccl_topology(const std::string& file, std::int64_t nodes);
/// The same of text; problems name `file`.
Result<ClusterSpec> parse_nccl_topology(std::string_view text, const std::string& file, std::int64_t nodes);

/// A cluster file for scenarios, which says where it is from.
std::string cluster_file_text(const ClusterSpec& cluster, const std::string& source);

}  // namespace trainyard
