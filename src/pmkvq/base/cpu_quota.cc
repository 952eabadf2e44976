#include "pmkvq/base/cpu_quota.h"

#include <fstream>

#include "pmkvq/base/control_groups.h"

namespace pmkvq {
namespace {

// Of one group alone. Version 2: "max PERIOD" or "QUOTA PERIOD"; version 1: -1 means none.
std::optional<double> QuotaOfFolder(const std::string& folder, bool is_version_2) {
  std::optional<double> quota;
  std::optional<double> period;
  if (is_version_2) {
    std::ifstream file(folder + "/cpu.max");
    double values[2] = {};
    if (file >> values[0] >> values[1]) {  // "max" is no number.
      quota = values[0];
      period = values[1];
    }
  } else {
    quota = ControlGroupNumber(folder + "/cpu.cfs_quota_us");
    period = ControlGroupNumber(folder + "/cpu.cfs_period_us");
  }
  if (!quota || !period || !(*quota > 0) || !(*period > 0)) return std::nullopt;
  return *quota / *period;
}

}  // namespace

std::optional<double> CpuQuota(const std::string& root) {
  std::optional<double> tightest;
  for (const ControlGroupFolder& folder : ControlGroupFolders("cpu", root)) {
    const std::optional<double> quota = QuotaOfFolder(folder.path, folder.is_version_2);
    if (quota && (!tightest || *quota < *tightest)) tightest = quota;
  }
  return tightest;
}

}  // namespace pmkvq
