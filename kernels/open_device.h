// GPUs through the plug-in, which is looked for beside the binary and where it was built.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/plugin.h"
#include "kernels/device.h"
#include "models/base/status.h"

namespace trainyard::kernels {

/// Opens GPU `ordinal` with so many streams. A problem of kind MissingCapability when there is no plug-in, no driver or
/// no such GPU. A process that has opened one must not fork any more.
Result<std::unique_ptr<Device>> open_cuda_device(int ordinal, int streams);

/// The GPUs that could be opened, asked in a process of its own, so that this one may still fork. Takes a second.
Result<std::vector<DeviceInfo>> list_cuda_devices();

/// What the plug-in exports.
Result<void*> cuda_symbol(const std::string& name);

}  // namespace trainyard::kernels
