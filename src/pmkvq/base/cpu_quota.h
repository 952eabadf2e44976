// How much processor time the control groups of this process allow (Linux, versions 1 and 2).
#pragma once

#include <optional>
#include <string>

namespace pmkvq {

// Processors that the tightest CPU quota of this process's control group and the groups around it
// allows, a fraction in general (quota / period); nothing where there is no quota, or where /proc
// or the control group file systems cannot be read.
//
// Read from cpu.max (version 2) or cpu.cfs_quota_us and cpu.cfs_period_us (version 1) in
// ControlGroupFolders.
std::optional<double> CpuQuota(const std::string& root = "");

}  // namespace pmkvq
