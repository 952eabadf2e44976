// Locks of files between processes (flock). They end with the process, however it ends; NFS carries
// them to other hosts.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "pmkvq/base/descriptor.h"

namespace pmkvq {

// Held until it is released or destroyed. Move-only. Two locks of one process exclude each other as
// those of two processes do.
class FileLock {
 public:
  enum class Kind : uint8_t {
    kShared,     // Beside other shared ones.
    kExclusive,  // Alone.
  };

  FileLock() = default;  // Holds nothing.
  // Makes the file where there is none. Nothing where a lock of somebody else stands against it;
  // does not wait. Throws IoError naming the path.
  static std::optional<FileLock> Try(const std::string& path, Kind kind);

  bool is_held() const { return file_.get() >= 0; }
  void Release() { file_ = Descriptor(); }
  // Removes the file of an exclusive lock and releases it. Whoever waits for a lock of that name
  // then makes a new file. Does nothing where the file cannot be removed.
  void RemoveFile();

 private:
  FileLock(std::string path, Descriptor file) : path_(std::move(path)), file_(std::move(file)) {}

  std::string path_;
  Descriptor file_;
};

}  // namespace pmkvq
