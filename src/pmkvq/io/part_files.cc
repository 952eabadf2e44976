#include "pmkvq/io/part_files.h"

#include <algorithm>
#include <filesystem>
#include <tuple>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/limits.h"

namespace pmkvq {

PartFiles::PartFiles(std::string folder, std::string stem, std::string extension)
    : folder_(std::move(folder)), stem_(std::move(stem)), extension_(std::move(extension)) {}

std::string PartFiles::PathOf(const Shard& shard) const {
  return JoinPath(folder_, stem_ + FileNameOf(shard) + extension_);
}

std::vector<std::string> PartFiles::List() const {
  const std::string folder = folder_.empty() ? "." : folder_;
  if (!FileExists(folder)) return {};
  std::error_code error;
  std::filesystem::directory_iterator entries(folder, error);
  if (error) throw IoError(folder, "cannot list the folder: " + error.message());
  std::vector<Shard> shards;
  for (; entries != std::filesystem::directory_iterator(); entries.increment(error)) {
    const std::string name = entries->path().filename().string();
    if (name.size() <= stem_.size() + extension_.size() || !name.starts_with(stem_) ||
        !name.ends_with(extension_)) {
      continue;
    }
    const auto shard = ParseShardFileName(std::string_view(name).substr(
        stem_.size(), name.size() - stem_.size() - extension_.size()));
    if (shard) shards.push_back(*shard);
  }
  if (error) throw IoError(folder, "cannot list the folder: " + error.message());
  std::sort(shards.begin(), shards.end(), [](const Shard& a, const Shard& b) {
    return std::tie(a.count, a.index) < std::tie(b.count, b.index);
  });
  std::vector<std::string> paths;
  for (const Shard& shard : shards) paths.push_back(PathOf(shard));
  return paths;
}

void PartFiles::Remove() const {
  for (const std::string& path : List()) {
    std::error_code error;
    std::filesystem::remove(path, error);
    if (error) throw IoError(path, "cannot remove the file: " + error.message());
  }
}

std::string ReadWholeLines(const std::string& path) {
  if (!FileExists(path)) return {};
  std::string content = ReadFile(path, limits::kLogBytes);
  content.resize(content.rfind('\n') + 1);  // 0 for none.
  return content;
}

}  // namespace pmkvq
