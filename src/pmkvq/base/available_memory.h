// How much memory this process can take without swapping or being killed (Linux).
#pragma once

#include <cstdint>
#include <string>

namespace pmkvq {

// Bytes: MemAvailable of `root`/proc/meminfo, or less where the memory limit of a control group
// (ControlGroupFolders) leaves less: its limit without what its processes hold, but for file pages
// that the kernel drops first (inactive_file). 0 where the system does not tell.
int64_t AvailableMemory(const std::string& root = "");

}  // namespace pmkvq
