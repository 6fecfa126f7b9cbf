// That cuDNN knows the graphs of every model's attention and experts. Needs cuDNN, no GPU and no driver: an H100's
// properties are read from below, and where no driver is installed its place is taken by the toolkit's stub.

#include <dlfcn.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/cuda/attention_graph.h"
#include "kernels/cuda/grouped_graph.h"

namespace trainyard::kernels::cuda {

namespace {

// As cuDNN writes it. What engines heed: the architecture, multiprocessors, shared memory and registers.
const char* const kH100 = R"({
  "deviceVer": 900, "multiProcessorCount": 132, "warpSize": 32, "maxSharedMemoryPerBlock": 49152,
  "maxSharedMemoryPerBlockOptin": 232448, "reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536,
  "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "regsPerBlock": 65536,
  "totalGlobalMem": 85029158912, "smClockRateKHz": 1980000, "l2CacheSize": 52428800, "maxBlockSize": [1024, 1024, 64],
  "memClockRateKHz": 2619000, "maxGridSize": [2147483647, 65535, 65535], "supportCoopLaunch": 1, "pciDeviceId": 0,
  "isTccDriver": 0, "cudaDeviceId": 0, "driverVer": 13000, "deviceName": "NVIDIA H100 80GB HBM3"})";

// cuDNN opens libcuda.so.1 by name; what is loaded under that name already is taken.
bool open_driver_or_stub() {
  for (const char* path :
       {"libcuda.so.1", "/usr/local/cuda/lib64/stubs/libcuda.so", "/usr/local/cuda/lib/stubs/libcuda.so"})
    if (dlopen(path, RTLD_NOW | RTLD_GLOBAL) != nullptr) return true;
  return false;
}

const CudnnTarget& h100() {
  static const CudnnTarget target{std::string(kH100)};
  return target;
}

// Without anything like a driver engines do not answer; that the heuristics know the graph is then all there is.
int engines(CudnnGraph& graph) {
  static const bool driver = open_driver_or_stub();
  return graph.engines(h100(), !driver);
}

struct Model {
  std::string name;
  std::int64_t hidden = 0, inner = 0, query_heads = 0, key_heads = 0, dim = 0, experts = 0;
  bool gated = false;
  double softcap = 0;
};

std::vector<Model> models() {
  std::vector<Model> found;
  const std::filesystem::path folder = std::filesystem::path(TRAINYARD_SOURCE_DIR) / "scenarios/models";
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".json") continue;
    std::ifstream file(entry.path());
    const auto json = nlohmann::json::parse(file, nullptr, true, true);
    Model m;
    m.name = entry.path().stem();
    m.hidden = json.at("hidden_size");
    m.inner = json.at("intermediate_size");
    m.query_heads = json.at("num_attention_heads");
    m.key_heads = json.value("num_key_value_heads", m.query_heads);
    m.dim = json.value("head_dim", m.hidden / m.query_heads);
    m.gated = json.value("gated_mlp", true);
    m.softcap = json.value("attention_softcap", 0.0);
    if (json.contains("moe")) m.experts = json.at("moe").at("num_local_experts");
    found.push_back(m);
  }
  std::sort(found.begin(), found.end(), [](const Model& a, const Model& b) { return a.name < b.name; });
  return found;
}

AttentionGraphShape attention_of(const Model& model, std::int64_t length, std::int64_t tp) {
  AttentionGraphShape shape;
  shape.sequences = 2;
  shape.length = length;
  shape.dim = model.dim;
  shape.query_heads = shape.row_query_heads = model.query_heads / tp;
  shape.key_heads = shape.row_key_heads = model.key_heads / tp;
  shape.scale = 0.125;
  shape.softcap = model.softcap;
  return shape;
}

// What a rank of a context has beside causal attention: all queries with the first half of an earlier rank's keys, and
// the second half of the queries with all of a later rank's.
std::vector<AttentionGraphShape> context_of(const AttentionGraphShape& local) {
  AttentionGraphShape earlier = local, later = local;
  earlier.causal = later.causal = false;
  earlier.sequence_rows = later.sequence_rows = local.length;
  earlier.key_length = later.length = local.length / 2;
  later.key_length = local.length;
  return {earlier, later};
}

}  // namespace

TEST_CASE("every model's attention has an engine in cuDNN", "[.][slow]") {
  for (const Model& model : models()) {
    for (const std::int64_t tp : {1, 2, 4, 8}) {
      if (model.key_heads % tp != 0 || model.query_heads % tp != 0) continue;
      for (const std::int64_t length : {128, 200, 2048}) {
        INFO(model.name << ", tp " << tp << ", sequences of " << length);
        const AttentionGraphShape shape = attention_of(model, length, tp);
        CHECK(engines(*attention_graph(shape)) > 0);
        CHECK(engines(*attention_grad_graph(shape)) > 0);
      }
    }
  }
}

TEST_CASE("every model's attention has an engine in cuDNN under context parallelism", "[.][slow]") {
  for (const Model& model : models()) {
    for (const std::int64_t tp : {1, 2, 4, 8}) {
      if (model.key_heads % tp != 0 || model.query_heads % tp != 0) continue;
      for (const std::int64_t length : {128, 200, 2048}) {
        for (const AttentionGraphShape& shape : context_of(attention_of(model, length, tp))) {
          INFO(model.name << ", tp " << tp << ", " << shape.length << " queries and " << shape.keys() << " keys of "
                          << length << " rows");
          CHECK(engines(*attention_graph(shape)) > 0);
          CHECK(engines(*attention_grad_graph(shape)) > 0);
        }
      }
    }
  }
}

TEST_CASE("some heads and sequences of larger tensors have an engine, and so have windows") {
  for (const double softcap : {0.0, 30.0}) {
    for (const std::int64_t window : {0, 512}) {
      INFO("softcap " << softcap << ", window " << window);
      AttentionGraphShape shape{.sequences = 1, .length = 4096, .dim = 128, .query_heads = 12, .key_heads = 2};
      shape.row_query_heads = 48;
      shape.row_key_heads = 8;
      shape.softcap = softcap;
      shape.window = window;
      CHECK(engines(*attention_graph(shape)) > 0);
      CHECK(engines(*attention_grad_graph(shape)) > 0);
      if (window > 0) continue;
      for (const AttentionGraphShape& part : context_of(shape)) {
        CHECK(engines(*attention_graph(part)) > 0);
        CHECK(engines(*attention_grad_graph(part)) > 0);
      }
    }
  }
}

TEST_CASE("every model's experts have an engine in cuDNN, forward", "[.][slow]") {
  for (const Model& model : models()) {
    if (model.experts == 0) continue;
    for (const std::int64_t rows : {256, 16384}) {
      INFO(model.name << ", " << rows << " rows");
      CHECK(engines(*grouped_graph({rows, (model.gated ? 2 : 1) * model.inner, model.hidden, model.experts, true})) >
            0);
      CHECK(engines(*grouped_graph({rows, model.hidden, model.inner, model.experts, true})) > 0);
    }
  }
}

// What the other cases rely on: heads of 12 are nothing that tensor cores load.
TEST_CASE("a graph that no engine can run has none") {
  if (!open_driver_or_stub()) return;
  AttentionGraphShape shape{.sequences = 1, .length = 128, .dim = 12, .query_heads = 4, .key_heads = 4};
  shape.row_query_heads = shape.row_key_heads = 4;
  CHECK(engines(*attention_graph(shape)) == 0);
  CHECK(engines(*attention_grad_graph(shape)) == 0);
}

TEST_CASE("the gradient's workspace is as large as it is said to be") {
  AttentionGraphShape shape{.sequences = 1, .length = 4096, .dim = 128, .query_heads = 32, .key_heads = 8};
  CHECK(attention_grad_workspace(shape) == 32LL * 4096 * (4096 + 2 * 128) * 2);
  shape.key_length = 1000;
  CHECK(attention_grad_workspace(shape) == 32LL * 1024 * (4096 + 2 * 128) * 2);
}

}  // namespace trainyard::kernels::cuda
