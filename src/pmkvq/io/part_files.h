// Files that shards of a job write side by side (base/shard.h), one for each shard: STEM, "IofN",
// EXTENSION. Another job with another N may have left some, too.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pmkvq/base/shard.h"

namespace pmkvq {

class PartFiles {
 public:
  // `stem` and `extension` are what stands around "IofN" in the file's name.
  PartFiles(std::string folder, std::string stem, std::string extension);

  std::string PathOf(const Shard& shard) const;
  // The files that are there, by N, then I. Empty where the folder does not exist. Throws IoError.
  std::vector<std::string> List() const;
  // Removes the files of List. Throws IoError.
  void Remove() const;

 private:
  std::string folder_;
  std::string stem_;
  std::string extension_;
};

// The whole lines of a file that another process may write to, or have been killed while it wrote
// to. Empty where there is no file. Throws IoError.
std::string ReadWholeLines(const std::string& path);

}  // namespace pmkvq
