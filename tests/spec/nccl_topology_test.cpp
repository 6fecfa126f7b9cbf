// Nodes as NCCL writes them down.
#include <catch2/catch.hpp>

#include <filesystem>
#include <fstream>

#include "models/spec/nccl_topology.h"
#include "models/spec/scenario.h"

using namespace trainyard;

namespace {

std::string gpu(int number, int sm, int nvlinks) {
  std::string out = "<pci busid=\"0000:1" + std::to_string(number) +
                    ":00.0\" class=\"0x030200\" link_speed=\"32.0 GT/s PCIe\" link_width=\"16\"><gpu dev=\"" +
                    std::to_string(number) + "\" sm=\"" + std::to_string(sm) + "\" rank=\"0\" gdr=\"1\">";
  if (nvlinks > 0)
    out += "<nvlink target=\"0000:c1:00.0\" count=\"" + std::to_string(nvlinks) + "\" tclass=\"0x068000\"/>";
  return out + "</gpu></pci>";
}

std::string nic(int number, int megabits, const char* link_speed = "32.0 GT/s PCIe") {
  return "<pci busid=\"0000:2" + std::to_string(number) + ":00.0\" class=\"0x020700\" link_speed=\"" + link_speed +
         "\" link_width=\"16\"><nic><net name=\"mlx5_" + std::to_string(number) + "\" dev=\"" + std::to_string(number) +
         "\" speed=\"" + std::to_string(megabits) + "\" port=\"1\" maxconn=\"131072\" gdr=\"1\"/></nic></pci>";
}

// A DGX H100: eight switches of a GPU and a NIC each, and a slower NIC for management.
std::string dgx(int sm = 90, int nvlinks = 18, const char* nic_link = "32.0 GT/s PCIe") {
  std::string out = "<system version=\"1\">";
  for (int socket = 0; socket < 2; ++socket) {
    out += "<cpu numaid=\"" + std::to_string(socket) + "\" arch=\"x86_64\">";
    for (int i = 4 * socket; i < 4 * socket + 4; ++i)
      out += "<pci busid=\"0000:0" + std::to_string(i) +
             ":00.0\" class=\"0x060400\" link_speed=\"32.0 GT/s PCIe\" link_width=\"16\">" + gpu(i, sm, nvlinks) +
             nic(i, 400000, nic_link) + "</pci>";
    if (socket == 0) out += nic(9, 100000);
    out += "</cpu>";
  }
  return out + "</system>";
}

Result<ClusterSpec> read(const std::string& text) {
  const auto file = std::filesystem::temp_directory_path() / "trainyard-nccl-topology.xml";
  std::ofstream(file) << text;
  Result<ClusterSpec> cluster = load_nccl_topology(file.string(), 16);
  std::filesystem::remove(file);
  return cluster;
}

}  // namespace

TEST_CASE("a DGX H100 as NCCL wrote it down") {
  const Result<ClusterSpec> cluster = read(dgx());
  REQUIRE(cluster.ok());
  CHECK(cluster.value().gpus_per_node == 8);
  CHECK(cluster.value().nics_per_node == 8);
  CHECK(cluster.value().nic_bytes_per_s == 50e9);
  CHECK(cluster.value().rail_optimized);
  CHECK(cluster.value().hardware == "h100-sxm");
  CHECK(cluster.value().nodes == 16);
  // What it writes is a cluster that scenarios can have.
  const std::string file = (std::filesystem::temp_directory_path() / "trainyard-nccl-cluster.json").string();
  std::ofstream(file) << cluster_file_text(cluster.value(), "topology.xml");
  const Result<Scenario> scenario = parse_scenario(
      R"({"schema": 1, "name": "s", "model": "models/tiny-llama.json",
          "plan": {"dp": 8, "sequence_length": 16, "global_batch_size": 8}, "cluster": ")" +
          file + "\"}",
      std::string(TRAINYARD_SOURCE_DIR) + "/scenarios/test.json");
  std::filesystem::remove(file);
  if (!scenario) FAIL(to_string(scenario.problems().front()));
  CHECK(scenario.value().cluster.nics_per_node == 8);
}

TEST_CASE("a NIC is no faster than the PCIe links above it") {
  const Result<ClusterSpec> narrow = read(dgx(90, 18, "8.0 GT/s PCIe"));
  REQUIRE(narrow.ok());
  CHECK(narrow.value().nic_bytes_per_s == Approx(14.4e9));
}

TEST_CASE("topologies that no cluster can be made of") {
  const auto refused = [](const std::string& text, const std::string& why) {
    const Result<ClusterSpec> cluster = read(text);
    REQUIRE_FALSE(cluster.ok());
    INFO(to_string(cluster.problems().front()));
    CHECK(to_string(cluster.problems().front()).find(why) != std::string::npos);
    CHECK_FALSE(cluster.problems().front().fix.empty());
  };
  refused("", "NCCL_TOPO_DUMP_FILE");
  refused("<system><cpu", "byte");
  refused("<graph/>", "no GPU");
  refused("<system>" + gpu(0, 90, 18) + "</system>", "no network");
  refused(dgx(90, 0), "PCIe alone");
  refused(dgx(70, 6), "70");
  std::string deep = "<system>";
  for (int i = 0; i < 100'000; ++i) deep += "<pci>";
  refused(deep, "");
  CHECK_FALSE(load_nccl_topology("/nowhere/topology.xml", 1).ok());
}
