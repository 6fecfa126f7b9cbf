// Finds the GPU plug-in and opens devices through it.

#include "kernels/open_device.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "kernels/module.h"

namespace trainyard::kernels {

namespace {

Problem missing(const std::string& rule, const std::string& fix) {
  return {"", "", "", rule, fix, ProblemKind::MissingCapability};
}

Result<void*> open_plugin() {
  for (const std::string& folder : module_folders(TRAINYARD_KERNELS_DIR "/cuda")) {
    const std::string file = folder + "/" + kCudaModule;
    if (!std::filesystem::exists(file)) continue;
    void* module = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (module != nullptr) return module;
    return missing(fmt::format("the GPU plug-in cannot be loaded: {}", dlerror()),
                   "install CUDA 13's runtime, cuBLAS, cuDNN 9 and NCCL, or add their folders to LD_LIBRARY_PATH");
  }
  return missing("this build has no GPU plug-in", "build it where CUDA 13, cuDNN 9 and NCCL are installed");
}

// Reads until the other end is closed.
std::string read_all(int descriptor) {
  std::string text;
  std::array<char, 4096> buffer{};
  while (true) {
    const ssize_t got = ::read(descriptor, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return text;
    text.append(buffer.data(), static_cast<std::size_t>(got));
  }
}

// A GPU a line: number, processors, capability, bytes, free bytes, runtime, name; or "problem" and the reason.
std::string list_as_text() {
  std::string text;
  for (int ordinal = 0;; ++ordinal) {
    const Result<std::unique_ptr<Device>> device = open_cuda_device(ordinal, 1);
    if (!device) {
      if (ordinal == 0)
        text = "problem\t" + device.problems().front().rule + "\t" + device.problems().front().fix + "\n";
      return text;
    }
    const DeviceInfo info = device.value()->info();
    text += fmt::format("{}\t{}\t{}\t{}\t{}\t{}\t{}\n", info.ordinal, info.multiprocessors, info.compute_capability,
                        info.memory_bytes, info.free_bytes, info.runtime, info.name);
  }
}

std::vector<std::string> split(const std::string& text, char by) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  for (std::size_t end = text.find(by); end != std::string::npos; end = text.find(by, begin)) {
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  parts.push_back(text.substr(begin));
  return parts;
}

}  // namespace

Result<void*> cuda_symbol(const std::string& name) {
  static const Result<void*> plugin = open_plugin();
  if (!plugin) return plugin.problems();
  void* symbol = dlsym(plugin.value(), name.c_str());
  if (symbol == nullptr)
    return missing(fmt::format("the GPU plug-in is of another version: it has no {}", name), "build both together");
  return symbol;
}

Result<std::unique_ptr<Device>> open_cuda_device(int ordinal, int streams) {
  // Each stream gets a queue of its own, or kernels of one would wait for another's. Read when CUDA starts.
  ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
  // Asked first, because loading the plug-in's libraries takes a while.
  if (dlopen("libcuda.so.1", RTLD_LAZY) == nullptr)
    return missing("there is no NVIDIA driver here", "install one, or run on processors with --device cpu");
  const Result<void*> open = cuda_symbol(kOpenCudaDeviceSymbol);
  if (!open) return open.problems();
  std::array<char, 1024> problem{};
  Device* device = reinterpret_cast<OpenCudaDevice>(open.value())(ordinal, streams, problem.data(),
                                                                  static_cast<int>(problem.size()));
  if (device != nullptr) return std::unique_ptr<Device>(device);
  return missing(fmt::format("GPU {} cannot be used: {}", ordinal, problem.data()),
                 "check the driver with nvidia-smi, or run on processors with --device cpu");
}

Result<std::vector<DeviceInfo>> list_cuda_devices() {
  std::array<int, 2> ends{};
  if (::pipe(ends.data()) != 0) return missing("the system gives no more pipes", "close some files");
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(ends[0]);
    std::string text;
    try {
      text = list_as_text();
    } catch (const std::exception& error) {
      text = fmt::format("problem\tGPUs cannot be asked for: {}\tcheck the driver with nvidia-smi\n", error.what());
    }
    for (std::size_t done = 0; done < text.size();) {
      const ssize_t put = ::write(ends[1], text.data() + done, text.size() - done);
      if (put <= 0) break;
      done += static_cast<std::size_t>(put);
    }
    ::_exit(0);
  }
  ::close(ends[1]);
  const std::string text = child < 0 ? "" : read_all(ends[0]);
  ::close(ends[0]);
  if (child > 0) ::waitpid(child, nullptr, 0);
  std::vector<DeviceInfo> devices;
  for (const std::string& line : split(text, '\n')) {
    const std::vector<std::string> fields = split(line, '\t');
    if (fields.size() == 3 && fields[0] == "problem") return missing(fields[1], fields[2]);
    if (fields.size() != 7) continue;
    devices.push_back({fields[6], std::stoi(fields[0]), std::stoi(fields[1]), std::stoi(fields[2]),
                       std::stoll(fields[3]), std::stoll(fields[4]), fields[5]});
  }
  if (devices.empty())
    return missing("GPUs cannot be asked for: the process that asked has died", "see the kernel's log");
  return devices;
}

}  // namespace trainyard::kernels
