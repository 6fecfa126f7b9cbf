// Files that are on the disk when a function returns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "models/base/status.h"

namespace trainyard::exec {

/// That errno kept `file` from being written.
Problem not_written(const std::string& file);

/// Makes a new file of these bytes, and waits until the disk has it.
Problems write_synced(const std::string& file, const std::byte* bytes, std::int64_t count);
Problems write_synced(const std::string& file, const std::string& text);

/// Waits until the disk has the names in a folder. False, with errno, when it cannot be told to.
bool sync_folder(const std::string& folder);

}  // namespace trainyard::exec
