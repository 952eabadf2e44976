#include "pmkvq/base/available_memory.h"

#include <algorithm>
#include <fstream>
#include <optional>

#include "pmkvq/base/control_groups.h"

namespace pmkvq {
namespace {

// The number behind `name` in a file of lines "NAME NUMBER ...".
std::optional<int64_t> NumberOf(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  std::string word;
  int64_t number = 0;
  std::string rest;
  while (file >> word >> number && std::getline(file, rest)) {
    if (word == name) return number;
  }
  return std::nullopt;
}

std::optional<int64_t> LeftInFolder(const ControlGroupFolder& folder) {
  const bool is_v2 = folder.is_version_2;
  const auto limit =
      ControlGroupNumber(folder.path + (is_v2 ? "/memory.max" : "/memory.limit_in_bytes"));
  const auto used =
      ControlGroupNumber(folder.path + (is_v2 ? "/memory.current" : "/memory.usage_in_bytes"));
  if (!limit || !used) return std::nullopt;
  const int64_t dropped_first =
      NumberOf(folder.path + "/memory.stat", is_v2 ? "inactive_file" : "total_inactive_file")
          .value_or(0);
  return std::max<int64_t>(*limit - std::max<int64_t>(*used - dropped_first, 0), 0);
}

}  // namespace

int64_t AvailableMemory(const std::string& root) {
  constexpr int64_t kKibibyte = 1024;
  const auto available = NumberOf(root + "/proc/meminfo", "MemAvailable:");
  if (!available) return 0;
  int64_t least = *available * kKibibyte;
  for (const ControlGroupFolder& folder : ControlGroupFolders("memory", root)) {
    if (const auto left = LeftInFolder(folder)) least = std::min(least, *left);
  }
  return least;
}

}  // namespace pmkvq
