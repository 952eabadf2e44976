#include "pmkvq/base/control_groups.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string_view>
#include <vector>

namespace pmkvq {
namespace {

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

bool Contains(const std::vector<std::string>& parts, std::string_view part) {
  return std::find(parts.begin(), parts.end(), part) != parts.end();
}

// Of a controller in one of the two versions: the process's group, and where the groups are
// mounted. `mount_root` is the group that the mount point shows.
struct Group {
  bool is_version_2 = false;
  std::string path;
  std::string mount_root;
  std::string mount_point;
};

// Lines of /proc/self/cgroup: ID:controller,controller:/path. Version 2 has no controllers here.
std::string GroupPath(const std::string& root, std::string_view controller, bool is_version_2) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool matches =
        is_version_2 ? controllers.empty() : Contains(Split(controllers, ','), controller);
    if (matches) return line.substr(second + 1);
  }
  return "";
}

// Spaces, tabs, line breaks and backslashes in mountinfo are written as three octal digits.
std::string Unescape(const std::string& text) {
  const auto is_octal = [](char c) { return c >= '0' && c <= '7'; };
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size() && is_octal(text[i + 1]) && is_octal(text[i + 2]) &&
        is_octal(text[i + 3])) {
      plain += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                                 (text[i + 3] - '0'));
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

// Lines of mountinfo: ID parent device root mount-point options [tags] - type source super-options.
std::vector<Group> GroupsOf(const std::string& root, std::string_view controller) {
  std::vector<Group> groups;
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    const std::vector<std::string> fields = Split(line, ' ');
    const auto dash = std::find(fields.begin(), fields.end(), "-");
    if (dash - fields.begin() < 6 || fields.end() - dash < 4) continue;
    const bool is_version_2 = dash[1] == "cgroup2";
    if (!is_version_2 && (dash[1] != "cgroup" || !Contains(Split(dash[3], ','), controller))) {
      continue;
    }
    const std::string path = GroupPath(root, controller, is_version_2);
    if (path.empty() || path.front() != '/') continue;
    groups.push_back({is_version_2, path, Unescape(fields[3]), Unescape(fields[4])});
  }
  return groups;
}

// The group's path below the mount point. A path outside of the mount (a container without a
// name space for its groups) means the mounted group itself.
std::string PathBelowMount(const Group& group) {
  if (group.path.find("/..") != std::string::npos) return "";
  if (group.mount_root == "/") return group.path == "/" ? "" : group.path;
  if (group.path == group.mount_root) return "";
  return group.path.starts_with(group.mount_root + "/") ? group.path.substr(group.mount_root.size())
                                                        : "";
}

}  // namespace

std::vector<ControlGroupFolder> ControlGroupFolders(std::string_view controller,
                                                    const std::string& root) {
  std::vector<ControlGroupFolder> folders;
  for (const Group& group : GroupsOf(root, controller)) {
    // The group, then the groups around it up to the mount point.
    for (std::string path = PathBelowMount(group);; path.resize(path.rfind('/'))) {
      folders.push_back({root + group.mount_point + path, group.is_version_2});
      if (path.empty()) break;
    }
  }
  return folders;
}

std::optional<int64_t> ControlGroupNumber(const std::string& path) {
  std::ifstream file(path);
  int64_t number = 0;
  if (!(file >> number)) return std::nullopt;
  return number;
}

}  // namespace pmkvq
