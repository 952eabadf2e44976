// A file of lines that is added to while a run goes on, and survives a kill at any moment.
#pragma once

#include <sys/types.h>

#include <string>

#include "pmkvq/base/error.h"

namespace pmkvq {

// "[path] cannot ACTION: " and what errno says.
IoError SystemError(const std::string& path, const char* action);

// A file descriptor that closes itself; -1: none. Move-only.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int value) : value_(value) {}
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();
  int get() const { return value_; }

 private:
  int value_ = -1;
};

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
  // `line` ends in a line break. With the operating system before it returns, as a rule by one
  // call, so that a killed process loses nothing and readers see whole lines. Throws IoError (disk
  // full names the file); nothing of the line is then left.
  void Append(const std::string& line);
  // To the disk.
  void Flush();

 private:
  std::string path_;
  Descriptor file_;
  off_t size_ = 0;
};

}  // namespace pmkvq
