#include "models/spec/nccl_topology.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <pugixml.hpp>

#include "models/spec/json_reader.h"

namespace trainyard {

namespace {

/// Bytes/s of payload of one direction; infinite where the file does not say. "32.0 GT/s PCIe" by 16 lanes, of which
/// 128b/130b coding and packet headers leave 90% of the line (NCCL counts 48 of 64 GB/s for Gen5 x16 both ways).
double pcie_bytes_per_s(const pugi::xml_node& pci) {
  const double transfers_per_s = std::strtod(pci.attribute("link_speed").value(), nullptr) * 1e9;
  const double width = pci.attribute("link_width").as_double();
  if (!(transfers_per_s > 0) || !(width > 0)) return std::numeric_limits<double>::infinity();
  return transfers_per_s * width / 8 * 0.9;
}

struct Node {
  struct Nic {
    double bytes_per_s;
  };
  std::int64_t gpus = 0, nvlinks = 0;
  int sm = 0;
  std::vector<Nic> nics;

  void visit(const pugi::xml_node& node, double above, int depth) {
    constexpr int kDeepest = 64;  // no machine nests its switches so
    if (depth > kDeepest) return;
    for (const pugi::xml_node& child : node.children()) {
      const std::string name = child.name();
      const double here = name == "pci" ? std::min(above, pcie_bytes_per_s(child)) : above;
      if (name == "gpu") {
        ++gpus;
        sm = std::max(sm, child.attribute("sm").as_int());
        for (const pugi::xml_node& link : child.children("nvlink")) nvlinks += link.attribute("count").as_int();
      }
      if (name == "net" && child.attribute("speed").as_double() > 0)
        nics.push_back({std::min(here, child.attribute("speed").as_double() * 1e6 / 8)});
      visit(child, here, depth + 1);
    }
  }
};

std::string hardware_of(int sm) {
  if (sm == 80) return "a100-sxm";
  if (sm == 90) return "h100-sxm";
  return "";
}

constexpr const char* kHowToGetOne = "write one with NCCL_TOPO_DUMP_FILE=topology.xml on a node";

Result<ClusterSpec> read(const pugi::xml_document& document, const pugi::xml_parse_result& parsed,
                         const std::string& file, std::int64_t nodes) {
  const char* fix = kHowToGetOne;
  if (!parsed) return Problem{file, fmt::format("byte {}", parsed.offset), "", parsed.description(), fix};
  Node node;
  node.visit(document.child("system"), std::numeric_limits<double>::infinity(), 0);
  if (node.gpus == 0) return Problem{file, "system", "", "has no GPU: it is no topology of NCCL's", fix};
  if (node.nics.empty())
    return Problem{file, "system", "", "has no network that NCCL would use", "write it where RDMA devices are up"};
  if (node.nvlinks == 0 && node.gpus > 1)
    return Problem{file, "system", "", "joins its GPUs by PCIe alone, and profiles are of NVLink nodes",
                   "no profile is known; see scenarios/profiles/README.md"};
  if (hardware_of(node.sm).empty())
    return Problem{file, "gpu.sm", std::to_string(node.sm), "is no GPU that there is a profile of (80: A100, 90: H100)",
                   "see scenarios/profiles/README.md"};
  double fastest = 0;
  for (const Node::Nic& nic : node.nics) fastest = std::max(fastest, nic.bytes_per_s);
  ClusterSpec cluster;
  cluster.name = "from-nccl-topology";
  cluster.hardware = hardware_of(node.sm);
  cluster.nodes = nodes;
  cluster.gpus_per_node = node.gpus;
  cluster.nics_per_node = std::count_if(node.nics.begin(), node.nics.end(),
                                        [&](const Node::Nic& nic) { return nic.bytes_per_s > 0.9 * fastest; });
  cluster.nic_bytes_per_s = std::round(fastest);
  // More NICs than GPUs: each GPU has as many, which count as one.
  if (cluster.nics_per_node > node.gpus && cluster.nics_per_node % node.gpus == 0) {
    cluster.nic_bytes_per_s *= static_cast<double>(cluster.nics_per_node / node.gpus);
    cluster.nics_per_node = node.gpus;
  }
  cluster.rail_optimized = cluster.nics_per_node == node.gpus;
  Problems problems = validate(cluster, "system");
  for (Problem& problem : problems) problem.file = file;
  if (!problems.empty()) return problems;
  return cluster;
}

}  // namespace

Result<ClusterSpec> load_nccl_topology(const std::string& file, std::int64_t nodes) {
  pugi::xml_document document;
  const pugi::xml_parse_result parsed = document.load_file(file.c_str());
  return read(document, parsed, file, nodes);
}

Result<ClusterSpec> parse_nccl_topology(std::string_view text, const std::string& file, std::int64_t nodes) {
  pugi::xml_document document;
  const pugi::xml_parse_result parsed = document.load_buffer(text.data(), text.size());
  return read(document, parsed, file, nodes);
}

std::string cluster_file_text(const ClusterSpec& cluster, const std::string& source) {
  const nlohmann::ordered_json out{{"schema", 1},
                                   {"name", cluster.name},
                                   {"hardware", cluster.hardware},
                                   {"nodes", cluster.nodes},
                                   {"gpus_per_node", cluster.gpus_per_node},
                                   {"nics_per_node", cluster.nics_per_node},
                                   {"nic_bytes_per_s", cluster.nic_bytes_per_s},
                                   {"rail_optimized", cluster.rail_optimized}};
  return "// Node from " + source + ". Of the fabric it says nothing: add \"tiers\" (scenarios/KEYS.md, Cluster).\n" +
         out.dump(2) + "\n";
}

}  // namespace trainyard
