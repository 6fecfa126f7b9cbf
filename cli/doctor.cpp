// trainyard doctor: what this build and machine can do.

#include <unistd.h>

#include <iostream>
#include <thread>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/terminal.h"
#include "cli/version.h"
#include "kernels/open_device.h"
#include "models/base/units.h"
#include "store/store_file.h"

namespace trainyard::cli {

namespace {

bool writable_folder_of(const std::string& file) {
  const std::size_t slash = file.rfind('/');
  return access(slash == std::string::npos ? "." : file.substr(0, slash + 1).c_str(), W_OK) == 0;
}

int doctor(const Context& context) {
  const std::string store = context.store_file.empty() ? store::default_store_file() : context.store_file;
  const double memory = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
  const Result<std::vector<kernels::DeviceInfo>> gpus = kernels::list_cuda_devices();
  nlohmann::ordered_json found = nlohmann::ordered_json::array();
  if (gpus) {
    for (const kernels::DeviceInfo& gpu : gpus.value())
      found.push_back(fmt::format("{}: {}, {} of {} free, {}", gpu.ordinal, gpu.name,
                                  format_bytes(static_cast<double>(gpu.free_bytes)),
                                  format_bytes(static_cast<double>(gpu.memory_bytes)), gpu.runtime));
  }
  const nlohmann::ordered_json facts{
      {"version", version_number()},
      {"commit", commit_id()},
      {"compiler", TRAINYARD_COMPILER},
      {"simgrid", TRAINYARD_SIMGRID_VERSION},
      {"processors", std::thread::hardware_concurrency()},
      {"memory_bytes", memory},
      {"store", store},
      {"store_writable", writable_folder_of(store)},
      {"simulator", true},
      {"execution_backend", gpus ? "processors and GPUs" : "processors"},
      {"gpus", gpus ? found : nlohmann::ordered_json("none: " + gpus.problems().front().rule)},
      {"gui", "not part of this version"},
  };
  if (context.json) {
    std::cout << facts.dump(2) << "\n";
  } else {
    std::vector<std::vector<std::string>> rows;
    for (const auto& [name, value] : facts.items()) {
      rows.push_back({name, name == "memory_bytes" ? format_bytes(value)
                            : value.is_string()    ? value.get<std::string>()
                                                   : value.dump()});
    }
    for (auto& row : rows) row[1].insert(0, "  ");
    for (const auto& row : rows) std::cout << fmt::format("{:<18}{}\n", row[0], row[1]);
  }
  return facts["store_writable"].get<bool>() ? kOk : kMissingCapability;
}

}  // namespace

void add_doctor(CLI::App& app, Context& context) {
  CLI::App* command = add_command(app, "doctor", "What this build and this machine can do",
                                  "  trainyard doctor\n  trainyard doctor --json");
  command->callback([&context] { context.run = [&context] { return doctor(context); }; });
}

}  // namespace trainyard::cli
