// Where the control groups of this process keep their limits (Linux, versions 1 and 2).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pmkvq {

struct ControlGroupFolder {
  std::string path;
  bool is_version_2 = false;
};

// The folders of this process's control group for `controller` ("cpu", "memory") and of the groups
// around it, up to the mount point. Empty where /proc or the control group file systems cannot be
// read; groups outside of the container's own view cannot be seen.
//
// Read from `root`/proc/self/cgroup and `root`/proc/self/mountinfo; the paths begin with `root`.
std::vector<ControlGroupFolder> ControlGroupFolders(std::string_view controller,
                                                    const std::string& root = "");

// The number that a file of such a folder holds; nothing for a file that is not there or says
// "max".
std::optional<int64_t> ControlGroupNumber(const std::string& path);

}  // namespace pmkvq
