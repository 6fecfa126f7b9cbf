// What the plug-in exports, for those who open it. Both sides are built from one source tree by compilers of one C++
// ABI.
#pragma once

namespace trainyard::kernels {

class Device;

/// Opens GPU `ordinal` with so many streams; the caller deletes it. Null, with the reason as text in `problem`, when
/// that fails.
using OpenCudaDevice = Device* (*)(int ordinal, int streams, char* problem, int problem_size);
inline constexpr const char* kOpenCudaDeviceSymbol = "trainyard_open_cuda_device";
inline constexpr const char* kCudaModule = "trainyard_cuda.so";

}  // namespace trainyard::kernels
