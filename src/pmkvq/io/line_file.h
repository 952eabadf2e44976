// A file of lines that grows while a run goes on. A kill at any moment costs at most its last line.
#pragma once

#include <sys/types.h>

#include <string>

#include "pmkvq/base/descriptor.h"

namespace pmkvq {

// Not for several threads, nor for several processes at once: the caller holds a lock.
class LineFile {
 public:
  LineFile() = default;  // No file; nothing may be called but is_open.
  // Opens the file or makes an empty one, and cuts off a last line without its end, which a kill
  // left behind. Throws IoError naming the path.
  explicit LineFile(const std::string& path);

  bool is_open() const { return file_.get() >= 0; }
  const std::string& path() const { return path_; }
  // All whole lines.
  std::string Read() const;
  // `line` ends in a line break. The operating system has the line when Append returns, so that a
  // killed process loses nothing. A line is one write of the system, unless that takes only a part.
  // Throws IoError (disk full names the file); the file then ends before `line`.
  void Append(const std::string& line);
  // Flushes to the disk.
  void Flush();

 private:
  std::string path_;
  Descriptor file_;
  off_t size_ = 0;
};

}  // namespace pmkvq
