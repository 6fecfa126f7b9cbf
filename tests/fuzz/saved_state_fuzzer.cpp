// Coverage-guided fuzzing of what reads checkpoints and models of other tools: files that anybody may have made.
// Whatever the bytes, no crash, no hang, and nothing outside of the file is read.
//
// The first byte says what the rest is: an even one, a safetensors file; an odd one, a manifest's text, which gets a
// sound CRC, since no mutation would find one.

#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "exec/saved_state.h"

namespace {

namespace fs = std::filesystem;

// In memory where the system has such a place.
std::string make_folder(const char* name) {
  const fs::path base = fs::exists("/dev/shm") ? "/dev/shm" : fs::temp_directory_path();
  const fs::path folder = base / ("trainyard-fuzz-" + std::to_string(::getpid())) / name;
  fs::create_directories(folder);
  std::atexit([] {
    std::error_code ignored;
    for (const char* parent : {"/dev/shm", "/tmp"})
      fs::remove_all(fs::path(parent) / ("trainyard-fuzz-" + std::to_string(::getpid())), ignored);
  });
  return folder.string();
}

void read_all(const trainyard::exec::SavedState& state) {
  constexpr std::int64_t kMost = 1 << 16;
  for (const std::string& name : state.names()) {
    std::int64_t elements = 1;
    for (const std::int64_t dim : state.shape(name)) {
      if (__builtin_mul_overflow(elements, dim, &elements)) return;
    }
    const std::int64_t some = std::min(elements, kMost);
    const std::vector<double> first = state.elements(name, 0, some);
    const std::vector<double> last = state.elements(name, elements - some, some);
    TY_CHECK(first.size() == last.size(), "as many as were asked for");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace trainyard;
  static const std::string kModel = make_folder("model"), kCheckpoint = make_folder("step-00000001");
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data + 1), size - 1);
  const bool manifest = data[0] % 2 == 1;
  if (manifest) {
    const auto crc = crc32_z(crc32_z(0, nullptr, 0), data + 1, size - 1);
    const nlohmann::json whole{{"manifest", text}, {"crc32", static_cast<std::uint32_t>(crc)}};
    std::ofstream(kCheckpoint + "/manifest.json")
        << whole.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    std::ofstream(kCheckpoint + "/a", std::ios::binary) << "data";
  } else {
    std::ofstream(kModel + "/model.safetensors", std::ios::binary) << text;
  }
  const Result<exec::SavedState> state = exec::SavedState::open(manifest ? kCheckpoint : kModel);
  if (state) {
    read_all(state.value());
  } else {
    for (const Problem& problem : state.problems())
      TY_CHECK(!problem.file.empty() && !problem.rule.empty(), "a problem says where and what");
  }
  return 0;
}
